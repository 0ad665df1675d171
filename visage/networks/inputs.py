"""What a network sees of a crop: RGB, its grey level, or the gradient of that.

`grey` is the grey level (ITU-R BT.601) in three equal channels. `sobel` is the length of the grey
level's 3x3 Sobel gradient in three equal channels, where an edge from black to white has length 1
and the rim repeats the outermost pixels. Legend: B batch, C colour channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from visage.model_config import InputKind

# ITU-R BT.601, the weights of Torch7's and Pillow's grey
GREY = (0.299, 0.587, 0.114)


def input_of(view_BCHW: Tensor, kind: InputKind) -> Tensor:
    """RGB of 0 to 1 (B,3,H,W) -> the kind of input, not yet normalised, of the same shape."""
    if kind == "rgb":
        return view_BCHW

    red_B1HW = view_BCHW[:, :1]
    green_B1HW = view_BCHW[:, 1:2]
    blue_B1HW = view_BCHW[:, 2:]
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
    length_B1HW: Tensor = (x_B1HW.square() + y_B1HW.square()).sqrt()
    return length_B1HW


def normalised(view_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """An input (B,3,H,W) less the mean of each channel, over its deviation."""
    mean_C = view_BCHW.new_tensor(mean)
    std_C = view_BCHW.new_tensor(std)
    return (view_BCHW - mean_C[:, None, None]) / std_C[:, None, None]
