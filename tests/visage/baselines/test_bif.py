"""BIF against a pixel-by-pixel version, and the effect of brightness, contrast, size and mirroring
on it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from visage.baselines.bif import ASPECT, BANDS, BIFSettings, bif, dimension
from visage.baselines.features import described
from visage.networks.inputs import GREY

PAPER = BIFSettings(side_px=60, num_bands=6, num_orientations=8)
SMALL = BIFSettings(side_px=18, num_bands=2, num_orientations=4)


def crops(count: int, px: int, low: int = 0, high: int = 256) -> torch.Tensor:
    return torch.randint(
        low, high, (count, 3, px, px), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def naive_filter(px: int, sigma: float, wavelength: float, angle: float) -> np.ndarray:
    """One Gabor filter, number by number; mean 0 and length 1."""
    wave = np.empty((px, px))
    for row in range(px):
        for column in range(px):
            u, v = column - px // 2, row - px // 2
            x = u * math.cos(angle) + v * math.sin(angle)
            y = v * math.cos(angle) - u * math.sin(angle)
            bell = math.exp(-(x * x + ASPECT * ASPECT * y * y) / (2 * sigma * sigma))
            wave[row, column] = bell * math.cos(2 * math.pi * x / wavelength)

    wave -= wave.mean()
    return wave / np.sqrt((wave**2).sum())


def naive_bif(crop_CHW: np.ndarray, settings: BIFSettings) -> list[float]:
    """BIF of a crop that has the side of the settings already."""
    grey, side = np.tensordot(GREY, crop_CHW / 255.0, 1), settings.side_px
    features = []
    for band in BANDS[: settings.num_bands]:
        for orientation in range(settings.num_orientations):
            response = np.full((side, side), -np.inf)
            for px, sigma, wavelength in band.filters:
                wave = naive_filter(
                    px, sigma, wavelength, math.pi * orientation / settings.num_orientations
                )
                padded = np.pad(grey, px // 2, mode="reflect")
                for row, column in np.ndindex(side, side):
                    here = (padded[row : row + px, column : column + px] * wave).sum()
                    response[row, column] = max(response[row, column], here)
            starts = range(0, side - band.cell_px + 1, band.cell_px // 2)
            cells = [
                response[r : r + band.cell_px, c : c + band.cell_px] for r in starts for c in starts
            ]
            features += [float(cell.std()) for cell in cells]
    return features


def test_features_are_those_of_the_naive_version() -> None:
    faces_BCHW = crops(2, SMALL.side_px)
    naive = [naive_bif(face.numpy().astype(np.float64), SMALL) for face in faces_BCHW]
    np.testing.assert_allclose(bif(faces_BCHW, SMALL).numpy(), naive, atol=1e-5)


@pytest.mark.parametrize(("settings", "width"), [(PAPER, 6752), (SMALL, 4 * (25 + 9))])
def test_dimension_is_the_one_reached(settings: BIFSettings, width: int) -> None:
    assert dimension(settings) == width
    for px in (settings.side_px, 64):
        assert bif(crops(2, px), settings).shape == (2, width)


def test_brightness_has_no_effect_and_contrast_is_a_factor() -> None:
    dark_BCHW = crops(3, SMALL.side_px, 0, 100)
    features = bif(dark_BCHW, SMALL)
    torch.testing.assert_close(bif(dark_BCHW + 50, SMALL), features, atol=1e-5, rtol=0)
    torch.testing.assert_close(bif(dark_BCHW * 2, SMALL), 2 * features, atol=1e-5, rtol=0)
    seen = described(dark_BCHW, lambda c: bif(c, SMALL), flip=False)
    torch.testing.assert_close(
        described(dark_BCHW * 2 + 50, lambda c: bif(c, SMALL), flip=False), seen
    )


def test_one_colour_has_no_features() -> None:
    plain_BCHW = torch.full((1, 3, 18, 18), 90, dtype=torch.uint8)
    assert bif(plain_BCHW, SMALL).abs().max() < 1e-5


def test_a_grating_excites_its_own_orientation_most() -> None:
    """Stripes across x of the first band's wavelength: orientation 0 of 4, and least of all the one
    across it."""
    wave_W = 127 + 100 * torch.cos(2 * math.pi * torch.arange(30) / 3.5)
    stripes_BCHW = wave_W.expand(1, 3, 30, 30).to(torch.uint8)
    settings = BIFSettings(side_px=30, num_bands=1, num_orientations=4)
    strength_O = bif(stripes_BCHW, settings).view(4, -1).mean(dim=1)
    assert strength_O.argmax() == 0
    assert strength_O.argmin() == 2


def test_described_faces_have_length_one_and_a_constant() -> None:
    seen = described(crops(4, 18), lambda c: bif(c, SMALL), flip=False)
    assert seen.shape == (4, dimension(SMALL) + 1)
    torch.testing.assert_close(seen[:, :-1].norm(dim=1), torch.ones(4))
    assert (seen[:, -1] == 1).all()


def test_with_flip_a_face_and_its_mirror_image_look_alike() -> None:
    faces_BCHW = crops(2, 18)
    once, mirrored = (
        described(f, lambda c: bif(c, SMALL), flip=True) for f in (faces_BCHW, faces_BCHW.flip(3))
    )
    torch.testing.assert_close(once, mirrored)
    unflipped = [
        described(f, lambda c: bif(c, SMALL), flip=False) for f in (faces_BCHW, faces_BCHW.flip(3))
    ]
    assert (unflipped[0] - unflipped[1]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_bands": 9}, "num_bands is 9: give 1 to 8"),
        ({"num_orientations": 0}, "num_orientations is 0"),
        ({"side_px": 10}, "side_px is 10: band 2 has filters of 11 px"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)
