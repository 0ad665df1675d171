"""Integral images: area interpolation of photos and of any rectangles in them, many at a time and
exact in integers.

What `torch.nn.functional.interpolate(mode="area")` does tensor by tensor, for the detector's
pyramid and candidates. Shapes: B photos, H W photo px, N rectangles, K side of the result, P planes
of sums, C colours.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Bits of one colour in a packed sum.
FIELD_BITS = 21
# The shortest side that whole photos are resampled to, and the one of rectangles.
LEAST_WHOLE_PX = 12
LEAST_CROP_PX = 24


class Integral:
    """Integral images of B photos, and their area interpolations: sums over any rectangle in four
    look-ups.

    The three colours' sums share one 64-bit number, 21 bits each, while no bin sums to 2^21 (photos
    up to some 1,000 px); else each has its own. Running sums may overflow: the bins' own sums,
    which are differences of them, are exact all the same.
    """

    def __init__(self, photos_BHWC: Tensor) -> None:
        self.num_photos, self.height, self.width, _ = photos_BHWC.shape
        shorter = min(self.height, self.width)
        largest_bin = max(
            (shorter // LEAST_WHOLE_PX + 3) ** 2,
            (self.height // LEAST_CROP_PX + 3) * (self.width // LEAST_CROP_PX + 3),
        )

        self._packed = largest_bin * 255 < 1 << FIELD_BITS
        fields = (
            torch.tensor([[1], [1 << FIELD_BITS], [1 << 2 * FIELD_BITS]])
            if self._packed
            else torch.eye(3)
        )

        # float64 holds these sums of products exactly (below 2^53), and multiplies them faster than
        # integers.
        numbers_BHWP = (photos_BHWC.to(torch.float64) @ fields.to(torch.float64)).to(torch.int64)

        shape = (numbers_BHWP.shape[-1], self.num_photos, self.height + 1, self.width + 1)
        self._sums_PBHW = torch.zeros(shape, dtype=torch.int64)
        torch.cumsum(
            numbers_BHWP.permute(3, 0, 1, 2).cumsum(dim=2), dim=3, out=self._sums_PBHW[:, :, 1:, 1:]
        )

    def resample(self, size: tuple[int, int]) -> Tensor:
        """Whole photos to (height, width): what the networks take, (B, 3, height, width)."""
        y0, y1 = (edge[0] for edge in _bins(torch.tensor([self.height]), size[0]))
        x0, x1 = (edge[0] for edge in _bins(torch.tensor([self.width]), size[1]))
        rows_PBKW = self._sums_PBHW.index_select(2, y1) - self._sums_PBHW.index_select(2, y0)
        sums_PBKK = rows_PBKW.index_select(3, x1) - rows_PBKW.index_select(3, x0)
        return self._network_input(sums_PBKK, (y1 - y0)[:, None] * (x1 - x0))

    def crops(self, photo_N: Tensor, corners_N4: Tensor, side: int) -> Tensor:
        """One rectangle x0 y0 x1 y1 (end excluded) a row to what the networks take, (N, 3, side,
        side)."""
        left_N, top_N, right_N, bottom_N = corners_N4.unbind(1)
        y0, y1 = (top_N[:, None] + edge for edge in _bins(bottom_N - top_N, side))
        x0, x1 = (left_N[:, None] + edge for edge in _bins(right_N - left_N, side))

        start_N1 = (photo_N * (self.height + 1))[:, None]
        lines_NK1 = [((start_N1 + edge) * (self.width + 1))[:, :, None] for edge in (y0, y1)]

        shape = (-1, len(photo_N), side, side)
        above_PNKK, below_PNKK = (
            self._look_up(line + x1[:, None]).sub_(self._look_up(line + x0[:, None])).view(shape)
            for line in lines_NK1
        )

        return self._network_input(
            below_PNKK - above_PNKK, (y1 - y0)[:, :, None] * (x1 - x0)[:, None]
        )

    def _look_up(self, positions: Tensor) -> Tensor:
        return self._sums_PBHW.flatten(1).index_select(1, positions.view(-1))

    def _network_input(self, sums_PNKK: Tensor, num_pixels: Tensor) -> Tensor:
        """Sums over bins of `num_pixels` -> means, normalised as in training, channels last."""
        _, count, height, width = sums_PNKK.shape
        input_NCKK = torch.empty(count, 3, height, width, memory_format=torch.channels_last)

        for channel in range(3):
            if self._packed:
                field_NKK = (sums_PNKK[0] >> channel * FIELD_BITS) & ((1 << FIELD_BITS) - 1)
            else:
                field_NKK = sums_PNKK[channel]
            torch.div(field_NKK, num_pixels, out=input_NCKK[:, channel])
        return normalised_(input_NCKK)


def normalised_(input_NCHW: Tensor) -> Tensor:
    """Pixel values 0 to 255 as MTCNN's networks were trained to see them, in place."""
    return input_NCHW.sub_(127.5).mul_(0.0078125)


def _bins(length_N: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """First and past-the-last pixel of each of `count` bins over each length, as adaptive average
    pooling cuts them."""
    step = torch.arange(count)
    length_N1 = length_N[:, None]
    return step * length_N1 // count, -(-(step + 1) * length_N1 // count)
