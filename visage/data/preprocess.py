"""The one evaluation view: uint8 crops to normalised network input, for evaluation, export and
serving alike.

A network's input is one of three kinds: `rgb`; `grey`, the crop's grey level (BT.601) in three
equal channels; `sobel`, the length of the grey level's 3x3 Sobel gradient in three equal channels,
where an edge from black to white has length 1 and the rim repeats the outermost pixels. Each is
normalised by its own mean and deviation.

Legend: B batch, C colour channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from visage.model_config import InputKind, NormaliseConfig
from visage.networks.protocol import FaceBatch

# ITU-R BT.601, the weights of Torch7's and Pillow's grey
GREY = (0.299, 0.587, 0.114)
# Landmarks by number in the mirror image: left and right change places
MIRRORED = (1, 0, 2, 4, 3)
# The released code's
PAPER_NORMALISE = NormaliseConfig(mean=(0.5958, 0.4637, 0.4065), std=(0.2693, 0.2409, 0.2352))


def evaluation_view(crops_BCHW: Tensor, normalise: NormaliseConfig) -> Tensor:
    """uint8 crops (B,3,H,W) -> normalised float32 of the same shape: what evaluation, export and
    serving all see."""
    return normalised(input_of(crops_BCHW.to(torch.float32) / 255.0, normalise.input), normalise)


def input_of(view_BCHW: Tensor, kind: InputKind) -> Tensor:
    """RGB of 0 to 1 (B,3,H,W) -> the kind of input, not yet normalised, of the same shape."""
    if kind == "rgb":
        return view_BCHW

    red_B1HW, green_B1HW, blue_B1HW = view_BCHW.split(1, dim=1)
    one_B1HW = GREY[0] * red_B1HW + GREY[1] * green_B1HW + GREY[2] * blue_B1HW
    if kind == "sobel":
        one_B1HW = _gradient_length(one_B1HW)
    return one_B1HW.expand(-1, 3, -1, -1)


def _gradient_length(grey_B1HW: Tensor) -> Tensor:
    """The length of the 3x3 Sobel gradient, a quarter of the kernels' sums. Slices, no convolution:
    the same bits in a batch of any size."""
    rim = functional.pad(grey_B1HW, (1, 1, 1, 1), mode="replicate")
    down = rim[:, :, :-2] + 2 * rim[:, :, 1:-1] + rim[:, :, 2:]
    across = rim[..., :-2] + 2 * rim[..., 1:-1] + rim[..., 2:]

    x_B1HW = (down[..., 2:] - down[..., :-2]) / 4
    y_B1HW = (across[:, :, 2:] - across[:, :, :-2]) / 4
    return (x_B1HW.square() + y_B1HW.square()).sqrt()


def normalised(view_BCHW: Tensor, normalise: NormaliseConfig) -> Tensor:
    """An input (B,3,H,W) -> the same with mean 0 and deviation 1, where the config's are its
    own."""
    mean_C = view_BCHW.new_tensor(normalise.mean)
    std_C = view_BCHW.new_tensor(normalise.std)
    return (view_BCHW - mean_C[:, None, None]) / std_C[:, None, None]


def evaluation_faces(crops: FaceBatch, normalise: NormaliseConfig) -> FaceBatch:
    """uint8 crops and their landmarks -> the network's input; no landmark moves."""
    return crops._replace(view_BCHW=evaluation_view(crops.view_BCHW, normalise))


def mirrored(faces: FaceBatch) -> FaceBatch:
    """Crops or views, and their landmarks -> those of the mirror images. The left landmark is again
    the left one in the picture."""
    view_BCHW, landmarks_B52 = faces
    if landmarks_B52 is not None:
        turned_B52 = landmarks_B52[:, MIRRORED]
        width_px = view_BCHW.shape[-1]
        landmarks_B52 = torch.stack([width_px - turned_B52[..., 0], turned_B52[..., 1]], dim=-1)
    return FaceBatch(view_BCHW.flip(-1), landmarks_B52)
