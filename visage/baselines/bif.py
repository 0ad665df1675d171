"""Face crops become biologically inspired features (BIF): Gabor filters, then local maxima and
deviations of them.

Guo, Mu, Fu, Huang 2009, with their constants (Table 1). S1: responses to Gabor filters of sixteen
sizes and evenly spaced orientations. C1: two neighbouring sizes are a band, of which the larger
response counts at every pixel; its standard deviation over square cells that overlap by half is the
feature ("STD" in place of HMAX's maximum).

Where the papers are silent: the filters have mean 0 and length 1 (Serre et al. 2007), so that a
face's brightness has no effect and its contrast is only a factor; responses keep their sign; the
rim is mirrored; only complete cells count. With 60 px (Guo), 6 bands and 8 orientations that makes
6752 numbers a face. DLDL-v2 says 4616 and does not give the side. Legend: B faces, O orientations,
H and W side in pixels, D features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from visage.networks.inputs import GREY
from visage.strict import check_range

# gamma, of the filters' Gaussian.
ASPECT = 0.3


@dataclass(frozen=True, kw_only=True)
class Band:
    """Side of the pooling cells, and the two filters: side, Gaussian's sigma, wavelength, all in
    pixels."""

    cell_px: int
    filters: tuple[tuple[int, float, float], tuple[int, float, float]]


BANDS = (
    Band(cell_px=6, filters=((5, 2.0, 2.5), (7, 2.8, 3.5))),
    Band(cell_px=8, filters=((9, 3.6, 4.6), (11, 4.5, 5.6))),
    Band(cell_px=10, filters=((13, 5.4, 6.8), (15, 6.3, 7.9))),
    Band(cell_px=12, filters=((17, 7.3, 9.1), (19, 8.2, 10.3))),
    Band(cell_px=14, filters=((21, 9.2, 11.5), (23, 10.2, 12.7))),
    Band(cell_px=16, filters=((25, 11.3, 14.1), (27, 12.3, 15.4))),
    Band(cell_px=18, filters=((29, 13.4, 16.8), (31, 14.6, 18.2))),
    Band(cell_px=20, filters=((33, 15.8, 19.7), (35, 17.0, 21.2))),
)


@dataclass(frozen=True, kw_only=True)
class BIFSettings:
    """`side_px`: crops are resized to it first, so that the features do not depend on the crop's
    size."""

    side_px: int
    num_bands: int
    num_orientations: int

    def __post_init__(self) -> None:
        check_range(self, num_bands=(1, len(BANDS)), num_orientations=(1, None))

        largest = BANDS[self.num_bands - 1].filters[1][0]
        if self.side_px < largest:
            raise ValueError(
                f"side_px is {self.side_px}: band {self.num_bands} has filters of {largest} px, "
                f"give more"
            )


def dimension(settings: BIFSettings) -> int:
    """D: orientations times the cells of all bands."""
    rows = [
        (settings.side_px - band.cell_px) // (band.cell_px // 2) + 1
        for band in BANDS[: settings.num_bands]
    ]
    return settings.num_orientations * sum(count * count for count in rows)


def bif(crops_BCHW: Tensor, settings: BIFSettings) -> Tensor:
    """uint8 RGB crops (B,3,H,W) -> features (B,D), float32, not normalised: band by band, in it by
    orientation."""
    grey_B1HW = grey(crops_BCHW, settings.side_px)
    bands = [c1(grey_B1HW, band, settings.num_orientations) for band in BANDS[: settings.num_bands]]
    return torch.cat([deviations_BOHW.flatten(1) for deviations_BOHW in bands], dim=1)


def grey(crops_BCHW: Tensor, side_px: int) -> Tensor:
    """Crops as grey levels from 0 to 1, (B,1,side_px,side_px)."""
    weights_C = torch.tensor(GREY, device=crops_BCHW.device)
    grey_BHW = torch.einsum("bchw,c->bhw", crops_BCHW.to(torch.float32) / 255.0, weights_C)
    return functional.interpolate(
        grey_BHW[:, None],
        size=(side_px, side_px),
        mode="bilinear",
        antialias=True,
    )


def c1(grey_B1HW: Tensor, band: Band, num_orientations: int) -> Tensor:
    """Of the stronger of the band's two responses at every pixel, the deviation over each cell,
    (B,O,rows,columns)."""
    finer_BOHW, coarser_BOHW = (
        s1(grey_B1HW, gabor(*shape, num_orientations)) for shape in band.filters
    )
    return local_deviation(torch.maximum(finer_BOHW, coarser_BOHW), band.cell_px)


def s1(grey_B1HW: Tensor, filters_O1HW: Tensor) -> Tensor:
    """Responses to the filters, (B,O,H,W)."""
    rim = filters_O1HW.shape[-1] // 2
    padded_B1HW = functional.pad(grey_B1HW, (rim, rim, rim, rim), mode="reflect")
    return functional.conv2d(padded_B1HW, filters_O1HW.to(grey_B1HW.device))


@cache
def gabor(px: int, sigma: float, wavelength: float, num_orientations: int) -> Tensor:
    """exp(-(X^2 + gamma^2 Y^2) / 2 sigma^2) cos(2 pi X / lambda), X and Y turned by k pi / O;
    (O,1,px,px)."""
    angle_O = torch.arange(num_orientations, dtype=torch.float64) * math.pi / num_orientations
    angle_O = angle_O[:, None, None]
    place = torch.arange(px, dtype=torch.float64) - px // 2
    x_OHW = place * torch.cos(angle_O) + place[:, None] * torch.sin(angle_O)
    y_OHW = place[:, None] * torch.cos(angle_O) - place * torch.sin(angle_O)

    bell_OHW = torch.exp(-(x_OHW**2 + (ASPECT * y_OHW) ** 2) / (2 * sigma**2))
    wave_OHW = bell_OHW * torch.cos(2 * math.pi * x_OHW / wavelength)

    # Mean 0 and length 1 (Serre et al. 2007), where the papers are silent.
    wave_OHW = wave_OHW - wave_OHW.mean(dim=(1, 2), keepdim=True)
    filters_OHW: Tensor = wave_OHW / wave_OHW.norm(dim=(1, 2), keepdim=True)
    return filters_OHW[:, None].to(torch.float32)


def local_deviation(maps_BOHW: Tensor, cell_px: int) -> Tensor:
    """Standard deviation over square cells, each half a cell from the next, (B,O,rows,columns)."""
    mean = functional.avg_pool2d(maps_BOHW, cell_px, stride=cell_px // 2)
    square = functional.avg_pool2d(maps_BOHW**2, cell_px, stride=cell_px // 2)
    deviation: Tensor = (square - mean**2).clamp_min(0).sqrt()
    return deviation
