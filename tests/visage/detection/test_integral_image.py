"""Integral images against torch's own area interpolation, rectangle by rectangle."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from visage.detection.integral_image import Integral


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels - 127.5) / 128


def random_photos(count: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, height, width, 3), generator=torch.Generator().manual_seed(0)
    ).to(torch.uint8)


# The last two do not fit into packed sums.
SHAPES = [(2, 40, 61), (1, 200, 33), (1, 1150, 1100), (1, 30, 6000)]


@pytest.mark.parametrize("shape", SHAPES)
def test_whole_photos(shape: tuple[int, int, int]) -> None:
    photos = random_photos(*shape)
    shorter = min(shape[1:])
    for scale in (1.3, 0.6, 12.5 / shorter):
        size = (int(shape[1] * scale + 1), int(shape[2] * scale + 1))
        if max(size) > 2000:
            continue
        expected = interpolate(photos.permute(0, 3, 1, 2).float(), size=size, mode="area")
        torch.testing.assert_close(
            torch.from_numpy(Integral(photos.numpy()).resample(size)),
            normalised(expected),
            rtol=0,
            atol=1e-6,
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [24, 48])
def test_rectangles(shape: tuple[int, int, int], side: int) -> None:
    photos = random_photos(*shape)
    count, height, width = shape

    generator = torch.Generator().manual_seed(1)
    ends = torch.rand(20, 2, 2, generator=generator).sort(dim=2).values * torch.tensor(
        [[width], [height]]
    )
    start, end = ends[:, :, 0].long(), ends[:, :, 1].long() + 1
    corners = torch.cat([start, torch.minimum(end, torch.tensor([width, height]))], dim=1)
    corners[0] = torch.tensor([0, 0, width, height])
    corners[1] = torch.tensor([width - 1, height - 1, width, height])  # one pixel, drawn large

    photo = torch.arange(20) * count // 20
    crops = torch.from_numpy(Integral(photos.numpy()).crops(photo.numpy(), corners.numpy(), side))

    for index, (x0, y0, x1, y1) in enumerate(corners.tolist()):
        piece = photos[photo[index], y0:y1, x0:x1].permute(2, 0, 1)[None].float()
        expected = normalised(interpolate(piece, size=(side, side), mode="area"))
        torch.testing.assert_close(crops[index : index + 1], expected, rtol=0, atol=2e-6)


def test_sums_beyond_a_field_do_not_spill_into_the_next_colour() -> None:
    """White photos just at the size where one bin's sum no longer fits its 21 bits."""
    for side in (1040, 1070, 1300):
        white = torch.full((1, side, side, 3), 255, dtype=torch.uint8)
        white[..., 1] = 0
        smallest = torch.from_numpy(Integral(white.numpy()).resample((13, 13)))
        expected = normalised(torch.tensor([255.0, 0.0, 255.0]))
        torch.testing.assert_close(smallest.amin(dim=(0, 2, 3)), expected)
        torch.testing.assert_close(smallest.amax(dim=(0, 2, 3)), expected)
