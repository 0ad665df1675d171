"""Training augmentations: crops become network input, a batch at a time.

Crops are uint8 RGB (B,3,H,W). Views are float32 and normalised. Landmarks move with the view. Every
random number is drawn on the CPU from the generator that is passed in, so the same seed gives the
same augmentations on CPU and GPU. The evaluation view is in `visage.data.preprocess`. Legend:
B batch, S the scaled ones of it, C colour channels, H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from visage.data.mirror import MIRRORED
from visage.model_config import NormaliseConfig
from visage.networks.inputs import GREY, input_of, normalised
from visage.networks.protocol import FaceBatch
from visage.strict import check_range

# The normalisation that leaves colours as they are
UNCHANGED = NormaliseConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """Training augmentations of a preset, in the order of application; a probability or spread of 0
    turns one off.

    `scale_probability`, `min_scale`: so many faces are down-sampled to U(min_scale, 1) of their
    side and back (the paper's "random scaling" of every face, 112 to 224 of 224 px). `scaling`:
    `released` shrinks by Torch7's bicubic without antialiasing, moves the small face, and stretches
    it by the same bicubic, as the released code does; `antialiased` goes down and up by antialiased
    bilinear resampling before the move, which blurs more.
    `rotation_degrees`: U(-r, r), black fill. `zoom` and `translation`: U(1-z, 1+z) and U(-t, t) of
    the side. `interpolation` of these three: `bilinear` as released, or `bicubic`. Bilinear, and
    down-sampling every face, blur small crops so that the network takes the sharper ones of
    evaluation for older people (LOG.md, 2026-11-22). `jitter`: brightness, contrast and saturation
    factors U(1-j, 1+j). `erase_probability`: one rectangle of 2 to 20 % of the crop becomes the
    mean colour.
    """

    flip_probability: float
    grey_probability: float
    scale_probability: float
    min_scale: float
    scaling: Literal["antialiased", "released"]
    rotation_degrees: float
    zoom: float
    translation: float
    interpolation: Literal["bilinear", "bicubic"]
    jitter: float
    erase_probability: float

    def __post_init__(self) -> None:
        check_range(
            self,
            flip_probability=(0, 1),
            grey_probability=(0, 1),
            scale_probability=(0, 1),
            min_scale=(0.01, 1),
            rotation_degrees=(0, 180),
            zoom=(0, 0.9),
            translation=(0, 1),
            jitter=(0, 1),
            erase_probability=(0, 1),
        )

        if self.scaling == "released" and self.translation > 0:
            raise ValueError(
                f"translation is {self.translation} with scaling released, where the face is moved "
                f"while it is small: give 0, or scaling antialiased"
            )


def training_view(
    crops: FaceBatch,
    settings: AugmentationSettings,
    normalise: NormaliseConfig,
    generator: torch.Generator,
) -> FaceBatch:
    """uint8 crops (B,3,H,W) and their landmarks -> augmented, normalised float32 of the same shape,
    and the landmarks at their new places, if they were given.

    Geometry is one resampling, and grey, jitter and normalisation together are one affine map of
    the colours of each face. Another input than RGB is computed after grey and jitter.
    """
    view_BCHW = crops.view_BCHW.to(torch.float32)
    stretch_BHH = None
    if settings.scale_probability > 0 and settings.scaling == "released":
        view_BCHW, stretch_BHH = _shrunk(view_BCHW, settings, generator)
    elif settings.scale_probability > 0:
        view_BCHW = _down_and_up(view_BCHW, settings, generator)

    # Turning a face while it is small moves its landmarks as turning it at full size: both turn
    # about the middle.
    view_BCHW, landmarks_B52 = _move(view_BCHW, crops.landmarks_B52, settings, generator)
    if stretch_BHH is not None:
        view_BCHW = _resampled(view_BCHW, stretch_BHH)

    mean_BC = view_BCHW.mean(dim=(2, 3)).cpu() / 255.0
    matrix_BCC, offset_BC = _colour_maps(
        mean_BC, settings, normalise if normalise.input == "rgb" else UNCHANGED, generator
    )
    flat_BCN = view_BCHW.flatten(2)
    matrix_BCC = matrix_BCC.to(flat_BCN.device) / 255.0
    offset_BC1 = offset_BC[:, :, None].to(flat_BCN.device)
    view_BCHW = torch.baddbmm(offset_BC1, matrix_BCC, flat_BCN).view_as(view_BCHW)
    if normalise.input != "rgb":
        view_BCHW = input_of(view_BCHW, normalise.input)
        view_BCHW = normalised(view_BCHW, normalise.mean, normalise.std)

    if settings.erase_probability > 0:
        view_BCHW = _erase(view_BCHW, settings, generator)
    return FaceBatch(view_BCHW, landmarks_B52)


def _uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _down_and_up(
    view_BCHW: Tensor, settings: AugmentationSettings, generator: torch.Generator
) -> Tensor:
    """Loses detail as a smaller photo would have: bilinear (antialiased) down to a random size and
    back.

    Both resamplings are linear and separable, so together they are one matrix for a face's rows and
    one for its columns: two batched matrix products, several times faster than resampling each face
    on its own.
    """
    count = len(view_BCHW)
    is_scaled_B = torch.rand(count, generator=generator) < settings.scale_probability
    scale_B = _uniform(settings.min_scale, 1.0, count, generator)
    scale_S = scale_B[is_scaled_B].tolist()
    if not scale_S:
        return view_BCHW

    height, width = view_BCHW.shape[-2:]
    row_maps = [_down_and_up_matrix(height, round(height * scale)) for scale in scale_S]
    column_maps = [_down_and_up_matrix(width, round(width * scale)) for scale in scale_S]
    rows_SHH = torch.stack(row_maps)
    columns_SWW = torch.stack(column_maps)

    device = view_BCHW.device
    chosen_S = is_scaled_B.nonzero()[:, 0].to(device)
    view_SCHW = view_BCHW[chosen_S]
    across_SCHW = (view_SCHW.flatten(1, 2) @ columns_SWW.to(device).mT).view_as(view_SCHW)
    return view_BCHW.index_copy(0, chosen_S, rows_SHH.to(device)[:, None] @ across_SCHW)


@cache
def _down_and_up_matrix(side: int, smaller: int) -> Tensor:
    """The (side, side) matrix that shrinks a row of pixels to `smaller` of them and stretches it
    back."""
    pixels = torch.eye(side)[None, None]
    small = functional.interpolate(
        pixels, size=(max(1, smaller), side), mode="bilinear", antialias=True
    )
    return functional.interpolate(small, size=(side, side), mode="bilinear")[0, 0]


def _shrunk(
    view_BCHW: Tensor, settings: AugmentationSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Square faces, shrunk by Torch7's bicubic to random sides, in the middle of a black square as
    large as before; and the matrices (B,H,H) that stretch them again.

    A face loses an even number of pixels, so that its middle is the square's: what then turns,
    mirrors or zooms the square turns, mirrors or zooms the small face, and the black around it is
    the fill that it would have on its own. The released code draws odd and even sides.
    """
    count = len(view_BCHW)
    side = view_BCHW.shape[-1]
    is_scaled_B = torch.rand(count, generator=generator) < settings.scale_probability
    scale_B = _uniform(settings.min_scale, 1.0, count, generator).masked_fill(~is_scaled_B, 1.0)
    lost_B = [2 * round((1 - scale) * side / 2) for scale in scale_B.tolist()]

    smaller_B = [max(side - lost, 2 + side % 2) for lost in lost_B]
    shrink_BHH = torch.stack([_in_the_middle(side, smaller)[0] for smaller in smaller_B])
    stretch_BHH = torch.stack([_in_the_middle(side, smaller)[1] for smaller in smaller_B])

    device = view_BCHW.device
    return _resampled(view_BCHW, shrink_BHH.to(device)), stretch_BHH.to(device)


def _resampled(view_BCHW: Tensor, matrix_BHH: Tensor) -> Tensor:
    """The rows and the columns of square faces, each face through its own matrix."""
    across_BCHW = (view_BCHW.flatten(1, 2) @ matrix_BHH.mT).view_as(view_BCHW)
    return matrix_BHH[:, None] @ across_BCHW


@cache
def _in_the_middle(side: int, smaller: int) -> tuple[Tensor, Tensor]:
    """Matrices (side, side) that shrink a row of pixels into the `smaller` middle ones of black,
    and stretch those middle ones back."""
    rim = (side - smaller) // 2
    middle = slice(rim, rim + smaller)

    shrink_HH, stretch_HH = torch.zeros(2, side, side).unbind()
    shrink_HH[middle] = bicubic_matrix(side, smaller)
    stretch_HH[:, middle] = bicubic_matrix(smaller, side)
    return shrink_HH, stretch_HH


def bicubic_matrix(side: int, wanted: int) -> Tensor:
    """The (wanted, side) matrix of Torch7's `image.scale(..., "bicubic")` for a row of `side` >= 2
    pixels.

    The outermost pixels keep their places, between two pixels runs a Catmull-Rom curve through four
    of them, a row goes on beyond its ends in a straight line, and nothing is averaged on the way
    down.
    """
    place_W = torch.arange(wanted, dtype=torch.float64) * ((side - 1) / (wanted - 1))
    left_W = place_W.long().clamp_max(side - 2)
    t_W = place_W - left_W
    weight_W4 = 0.5 * torch.stack(
        [
            -t_W + 2 * t_W**2 - t_W**3,
            2 - 5 * t_W**2 + 3 * t_W**3,
            t_W + 4 * t_W**2 - 3 * t_W**3,
            -(t_W**2) + t_W**3,
        ],
        dim=1,
    )

    # Of the row with one more pixel at each end
    longer = torch.zeros(wanted, side + 2, dtype=torch.float64)
    longer.scatter_(1, left_W[:, None] + torch.arange(4), weight_W4)
    ends = torch.eye(side, dtype=torch.float64)
    beyond = [2 * ends[:1] - ends[1:2], ends, 2 * ends[-1:] - ends[-2:-1]]
    return (longer @ torch.cat(beyond)).float()


def _move(
    view_BCHW: Tensor,
    landmarks_B52: Tensor | None,
    settings: AugmentationSettings,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor | None]:
    """Flip, rotation, zoom and translation as one resampling with black fill, of the view and of
    the landmarks; a mere flip stays exact."""
    count = len(view_BCHW)
    flip_B = torch.rand(count, generator=generator) < settings.flip_probability
    mirror_B = torch.where(flip_B, -1.0, 1.0)

    if not (settings.rotation_degrees or settings.zoom or settings.translation):
        turned = flip_B.nonzero()[:, 0].to(view_BCHW.device)
        if len(turned):
            view_BCHW = view_BCHW.index_copy(0, turned, view_BCHW[turned].flip(3))

        flips_B23 = torch.eye(2, 3).repeat(count, 1, 1)
        flips_B23[:, 0, 0] = mirror_B
        return view_BCHW, _move_landmarks(landmarks_B52, flips_B23, flip_B, view_BCHW)

    angle_B = _uniform(-1, 1, count, generator) * math.radians(settings.rotation_degrees)
    zoom_B = 1 / _uniform(1 - settings.zoom, 1 + settings.zoom, count, generator)
    shift_B2 = 2 * settings.translation * (2 * torch.rand(count, 2, generator=generator) - 1)
    cosine_B = torch.cos(angle_B) * zoom_B
    sine_B = torch.sin(angle_B) * zoom_B
    rows = [
        torch.stack([mirror_B * cosine_B, -mirror_B * sine_B, shift_B2[:, 0]], dim=1),
        torch.stack([sine_B, cosine_B, shift_B2[:, 1]], dim=1),
    ]
    matrix_B23 = torch.stack(rows, dim=1).to(view_BCHW.device)

    places = functional.affine_grid(matrix_B23, list(view_BCHW.shape), align_corners=False)
    moved_BCHW = functional.grid_sample(
        view_BCHW,
        places,
        mode=settings.interpolation,
        padding_mode="zeros",
        align_corners=False,
    )
    return moved_BCHW, _move_landmarks(landmarks_B52, matrix_B23, flip_B, view_BCHW)


def _move_landmarks(
    landmarks_B52: Tensor | None, matrix_B23: Tensor, flip_B: Tensor, view_BCHW: Tensor
) -> Tensor | None:
    """Landmarks of the view before -> of the view after.

    `matrix_B23` is affine_grid's: it gives the place before of each place after, both from -1 to 1
    across the crop, so landmarks take the way back. In a mirror image left and right change places.
    """
    if landmarks_B52 is None:
        return None
    height_px, width_px = view_BCHW.shape[-2:]
    sides_2 = landmarks_B52.new_tensor([width_px, height_px])
    matrix_B23 = matrix_B23.to(landmarks_B52)
    flip_B = flip_B.to(landmarks_B52.device)

    before_B52 = 2 * landmarks_B52 / sides_2 - 1
    turn_B22 = matrix_B23[:, :, :2]
    shift_B12 = matrix_B23[:, None, :, 2]
    after_B52 = torch.linalg.solve(turn_B22, (before_B52 - shift_B12).mT).mT
    moved_B52 = (after_B52 + 1) / 2 * sides_2

    return torch.where(flip_B[:, None, None], moved_B52[:, MIRRORED], moved_B52)


def _colour_maps(
    mean_BC: Tensor,
    settings: AugmentationSettings,
    normalise: NormaliseConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Per face, the matrix (B,3,3) and offset (B,3) that grey, jitter and normalisation amount to.

    Brightness scales, contrast pulls towards the grey level of the face's mean colour, saturation
    pulls towards each pixel's own grey level, and grey is saturation 0. Nothing is clipped in
    between, as in the released code, so the random order in which it applies them has no effect: a
    scale commutes with the rest, and neither of the pulls changes what the other pulls to.
    """
    count = len(mean_BC)
    least = 1 - settings.jitter
    most = 1 + settings.jitter
    is_grey_B = torch.rand(count, generator=generator) < settings.grey_probability
    brightness_B11 = _uniform(least, most, count, generator)[:, None, None]
    contrast_B11 = _uniform(least, most, count, generator)[:, None, None]
    saturation_B11 = _uniform(least, most, count, generator)[:, None, None]
    saturation_B11 = saturation_B11.masked_fill(is_grey_B[:, None, None], 0.0)

    grey_C = torch.tensor(GREY)
    mix_BCC = saturation_B11 * torch.eye(3) + (1 - saturation_B11) * grey_C.expand(3, 3)
    offset_BC = (brightness_B11 * (1 - contrast_B11))[:, 0] * (mean_BC @ grey_C)[:, None]

    mean_C = torch.tensor(normalise.mean)
    std_C = torch.tensor(normalise.std)
    return brightness_B11 * contrast_B11 * mix_BCC / std_C[:, None], (offset_BC - mean_C) / std_C


def _erase(view_BCHW: Tensor, settings: AugmentationSettings, generator: torch.Generator) -> Tensor:
    """Random erasing: a rectangle of 2 to 20 % of the area, aspect 0.5 to 2, set to 0 (the mean
    colour)."""
    count = len(view_BCHW)
    height, width = view_BCHW.shape[-2:]

    chosen_B = torch.rand(count, generator=generator) < settings.erase_probability
    area_B = _uniform(0.02, 0.2, count, generator)
    aspect_B = torch.exp(_uniform(-math.log(2), math.log(2), count, generator))
    sides_B2 = torch.stack([(area_B * aspect_B).sqrt(), (area_B / aspect_B).sqrt()], dim=1)
    half_B2 = sides_B2 / 2
    centre_B2 = torch.rand(count, 2, generator=generator)

    rows_H = (torch.arange(height) + 0.5) / height
    columns_W = (torch.arange(width) + 0.5) / width
    in_rows_BH = (rows_H - centre_B2[:, :1]).abs() < half_B2[:, :1]
    in_columns_BW = (columns_W - centre_B2[:, 1:]).abs() < half_B2[:, 1:]
    gone_BHW = in_rows_BH[:, :, None] & in_columns_BW[:, None, :] & chosen_B[:, None, None]
    return view_BCHW.masked_fill(gone_BHW[:, None].to(view_BCHW.device), 0.0)
