"""Integral images: area interpolation of photos and of any rectangles in them, many at a time and
exact in integers.

What `torch.nn.functional.interpolate(mode="area")` does tensor by tensor, for the detector's
pyramid and candidates. Shapes: B photos, H W photo px, N rectangles, K side of the result, P planes
of sums, C colours.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

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

    def __init__(self, photos_BHWC: npt.NDArray[np.uint8]) -> None:
        self.num_photos, self.height, self.width, _ = photos_BHWC.shape
        shorter = min(self.height, self.width)
        largest_bin = max(
            (shorter // LEAST_WHOLE_PX + 3) ** 2,
            (self.height // LEAST_CROP_PX + 3) * (self.width // LEAST_CROP_PX + 3),
        )

        self._packed = largest_bin * 255 < 1 << FIELD_BITS
        num_planes = 1 if self._packed else 3
        shape = (num_planes, self.num_photos, self.height + 1, self.width + 1)
        self._sums_PBHW = np.zeros(shape, np.int64)
        inside_PBHW = self._sums_PBHW[:, :, 1:, 1:]

        if self._packed:
            inside_PBHW[0] = photos_BHWC[..., 2]
            for channel in (1, 0):
                inside_PBHW[0] <<= FIELD_BITS
                inside_PBHW[0] |= photos_BHWC[..., channel]
        else:
            inside_PBHW[:] = np.moveaxis(photos_BHWC, 3, 0)
        np.cumsum(inside_PBHW, axis=3, out=inside_PBHW)
        # Row by row: numpy's own running sum over this axis jumps through memory.
        for row in range(1, self.height):
            inside_PBHW[:, :, row] += inside_PBHW[:, :, row - 1]

    def resample(self, size: tuple[int, int]) -> Float32Array:
        """Whole photos to (height, width): what the networks take, (B, 3, height, width)."""
        y0, y1 = (edge[0] for edge in _bins(np.array([self.height]), size[0]))
        x0, x1 = (edge[0] for edge in _bins(np.array([self.width]), size[1]))
        rows_PBKW = self._sums_PBHW.take(y1, axis=2)
        rows_PBKW -= self._sums_PBHW.take(y0, axis=2)
        sums_PBKK = rows_PBKW.take(x1, axis=3)
        sums_PBKK -= rows_PBKW.take(x0, axis=3)
        return self._network_input(sums_PBKK, (y1 - y0)[:, None] * (x1 - x0))

    def crops(self, photo_N: Integers, corners_N4: Integers, side: int) -> Float32Array:
        """One rectangle x0 y0 x1 y1 (end excluded) a row to what the networks take, (N, 3, side,
        side)."""
        left_N, top_N, right_N, bottom_N = corners_N4.T
        y0, y1 = (top_N[:, None] + edge for edge in _bins(bottom_N - top_N, side))
        x0, x1 = (left_N[:, None] + edge for edge in _bins(right_N - left_N, side))

        start_N1 = (photo_N * (self.height + 1))[:, None]
        lines_NK1 = [((start_N1 + edge) * (self.width + 1))[:, :, None] for edge in (y0, y1)]

        above_PNKK, below_PNKK = (
            self._look_up(line + x1[:, None]) - self._look_up(line + x0[:, None])
            for line in lines_NK1
        )
        below_PNKK -= above_PNKK

        return self._network_input(below_PNKK, (y1 - y0)[:, :, None] * (x1 - x0)[:, None])

    def _look_up(self, positions: Integers) -> Integers:
        planes_PS = self._sums_PBHW.reshape(len(self._sums_PBHW), -1)
        return planes_PS.take(positions, axis=1)

    def _network_input(self, sums_PNKK: Integers, num_pixels: Integers) -> Float32Array:
        """Sums over bins of `num_pixels` -> means, normalised as in training."""
        _, count, height, width = sums_PNKK.shape
        input_NCKK = np.empty((count, 3, height, width), np.float32)
        num_pixels_32 = num_pixels.astype(np.float32)

        for channel in range(3):
            if self._packed:
                input_NCKK[:, channel] = sums_PNKK[0] & ((1 << FIELD_BITS) - 1)
                sums_PNKK[0] >>= FIELD_BITS
            else:
                input_NCKK[:, channel] = sums_PNKK[channel]
            input_NCKK[:, channel] /= num_pixels_32
        return normalised_(input_NCKK)


def normalised_(input_NCHW: Float32Array) -> Float32Array:
    """Pixel values 0 to 255 as MTCNN's networks were trained to see them, in place."""
    input_NCHW -= np.float32(127.5)
    input_NCHW *= np.float32(0.0078125)
    return input_NCHW


def _bins(length_N: Integers, count: int) -> tuple[Integers, Integers]:
    """First and past-the-last pixel of each of `count` bins over each length, as adaptive average
    pooling cuts them."""
    step = np.arange(count)
    length_N1 = length_N[:, None]
    return step * length_N1 // count, -(-(step + 1) * length_N1 // count)
