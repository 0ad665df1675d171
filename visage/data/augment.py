"""Crops become network input: the ONE evaluation view, and the training augmentations, on a whole
batch at a time.

Crops are uint8 RGB (B,3,H,W); views are float32, normalised. Every random number is drawn on the
CPU from the generator that is passed in, so the same seed gives the same augmentations on CPU and
GPU. Legend: B batch, S the scaled ones of it, C colour channels, H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from visage.data.preprocess import GREY
from visage.model_config import NormaliseConfig


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
        for name, low, high in (
            ("flip_probability", 0, 1),
            ("grey_probability", 0, 1),
            ("scale_probability", 0, 1),
            ("min_scale", 0.01, 1),
            ("rotation_degrees", 0, 180),
            ("zoom", 0, 0.9),
            ("translation", 0, 1),
            ("jitter", 0, 1),
            ("erase_probability", 0, 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}: give {low} to {high}")
        if self.scaling == "released" and self.translation > 0:
            raise ValueError(
                f"translation is {self.translation} with scaling released, where the face is moved "
                f"while it is small: give 0, or scaling antialiased"
            )


def training_view(
    crops_BCHW: Tensor,
    settings: AugmentationSettings,
    normalise: NormaliseConfig,
    generator: torch.Generator,
) -> Tensor:
    """uint8 crops (B,3,H,W) -> augmented, normalised float32 of the same shape.

    Geometry is one resampling, and grey, jitter and normalisation together are one affine map of
    the colours of each face.
    """
    view_BCHW = crops_BCHW.to(torch.float32)
    stretch_BHH = None
    if settings.scale_probability > 0 and settings.scaling == "released":
        view_BCHW, stretch_BHH = _shrunk(view_BCHW, settings, generator)
    elif settings.scale_probability > 0:
        view_BCHW = _down_and_up(view_BCHW, settings, generator)
    view_BCHW = _move(view_BCHW, settings, generator)
    if stretch_BHH is not None:
        view_BCHW = _resampled(view_BCHW, stretch_BHH)
    matrix_BCC, offset_BC = _colour_maps(
        view_BCHW.mean(dim=(2, 3)).cpu() / 255.0, settings, normalise, generator
    )
    flat_BCN = view_BCHW.flatten(2)
    matrix_BCC, offset_BC1 = (
        matrix_BCC.to(flat_BCN.device) / 255.0,
        offset_BC[:, :, None].to(flat_BCN.device),
    )
    view_BCHW = torch.baddbmm(offset_BC1, matrix_BCC, flat_BCN).view_as(view_BCHW)
    return _erase(view_BCHW, settings, generator) if settings.erase_probability > 0 else view_BCHW


def _uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _down_and_up(
    view_BCHW: Tensor, settings: AugmentationSettings, generator: torch.Generator
) -> Tensor:
    """Loses detail as a smaller photo would have: bilinear (antialiased) down to a random size and
    back.

    Both resamplings are linear and separable, so a face's whole journey is one matrix for its rows
    and one for its columns: two batched matrix products, several times faster than resampling each
    face on its own.
    """
    is_scaled_B = torch.rand(len(view_BCHW), generator=generator) < settings.scale_probability
    scale_S = _uniform(settings.min_scale, 1.0, len(view_BCHW), generator)[is_scaled_B].tolist()
    if not scale_S:
        return view_BCHW
    (height, width), device = view_BCHW.shape[-2:], view_BCHW.device
    rows_SHH = torch.stack(
        [_down_and_up_matrix(height, round(height * scale)) for scale in scale_S]
    )
    columns_SWW = torch.stack(
        [_down_and_up_matrix(width, round(width * scale)) for scale in scale_S]
    )
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
    the fill that it would have on its own. The released code draws any whole side.
    """
    count, side = len(view_BCHW), view_BCHW.shape[-1]
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


def _move(view_BCHW: Tensor, settings: AugmentationSettings, generator: torch.Generator) -> Tensor:
    """Flip, rotation, zoom and translation as one resampling with black fill; a mere flip stays
    exact."""
    count = len(view_BCHW)
    flip_B = torch.rand(count, generator=generator) < settings.flip_probability
    if not (settings.rotation_degrees or settings.zoom or settings.translation):
        turned = flip_B.nonzero()[:, 0].to(view_BCHW.device)
        return (
            view_BCHW.index_copy(0, turned, view_BCHW[turned].flip(3)) if len(turned) else view_BCHW
        )
    angle_B = _uniform(-1, 1, count, generator) * math.radians(settings.rotation_degrees)
    zoom_B = 1 / _uniform(1 - settings.zoom, 1 + settings.zoom, count, generator)
    shift_B2 = 2 * settings.translation * (2 * torch.rand(count, 2, generator=generator) - 1)
    mirror_B = torch.where(flip_B, -1.0, 1.0)
    cosine_B, sine_B = torch.cos(angle_B) * zoom_B, torch.sin(angle_B) * zoom_B
    rows = [
        torch.stack([mirror_B * cosine_B, -mirror_B * sine_B, shift_B2[:, 0]], dim=1),
        torch.stack([sine_B, cosine_B, shift_B2[:, 1]], dim=1),
    ]
    matrix_B23 = torch.stack(rows, dim=1).to(view_BCHW.device)
    places = functional.affine_grid(matrix_B23, list(view_BCHW.shape), align_corners=False)
    return functional.grid_sample(
        view_BCHW, places, mode=settings.interpolation, padding_mode="zeros", align_corners=False
    )


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
    count, grey_C = len(mean_BC), torch.tensor(GREY)
    is_grey_B11 = (torch.rand(count, generator=generator) < settings.grey_probability)[
        :, None, None
    ]
    brightness_B11, contrast_B11, saturation_B11 = (
        _uniform(1 - settings.jitter, 1 + settings.jitter, count, generator)[:, None, None]
        for _ in range(3)
    )
    saturation_B11 = saturation_B11.masked_fill(is_grey_B11, 0.0)
    mix_BCC = saturation_B11 * torch.eye(3) + (1 - saturation_B11) * grey_C.expand(3, 3)
    offset_BC = (brightness_B11 * (1 - contrast_B11))[:, 0] * (mean_BC @ grey_C)[:, None]
    mean_C, std_C = torch.tensor(normalise.mean), torch.tensor(normalise.std)
    return brightness_B11 * contrast_B11 * mix_BCC / std_C[:, None], (offset_BC - mean_C) / std_C


def _erase(view_BCHW: Tensor, settings: AugmentationSettings, generator: torch.Generator) -> Tensor:
    """Random erasing: a rectangle of 2 to 20 % of the area, aspect 0.5 to 2, set to 0 (the mean
    colour)."""
    count, height, width = len(view_BCHW), *view_BCHW.shape[-2:]
    chosen_B = torch.rand(count, generator=generator) < settings.erase_probability
    area_B = _uniform(0.02, 0.2, count, generator)
    aspect_B = torch.exp(_uniform(-math.log(2), math.log(2), count, generator))
    half_B2 = torch.stack([(area_B * aspect_B).sqrt(), (area_B / aspect_B).sqrt()], dim=1) / 2
    centre_B2 = torch.rand(count, 2, generator=generator)
    rows_H, columns_W = ((torch.arange(side) + 0.5) / side for side in (height, width))
    in_rows_BH = (rows_H - centre_B2[:, :1]).abs() < half_B2[:, :1]
    in_columns_BW = (columns_W - centre_B2[:, 1:]).abs() < half_B2[:, 1:]
    gone_BHW = in_rows_BH[:, :, None] & in_columns_BW[:, None, :] & chosen_B[:, None, None]
    return view_BCHW.masked_fill(gone_BHW[:, None].to(view_BCHW.device), 0.0)
