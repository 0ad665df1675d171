"""Boxes and values drawn on a photo, with Pillow and the font inside it alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

# Of the photo's shorter side: readable when the photo is shown on a page
LINE_SHARE = 1 / 250
TEXT_SHARE = 1 / 28
# Text below cannot be read; a small photo gets larger text than its share
LEAST_TEXT_PX = 11
# Black on yellow: the largest contrast that also stands out from skin
BOX_COLOUR = (255, 214, 10)
TEXT_COLOUR = (0, 0, 0)


class Marked(NamedTuple):
    """A box x0 y0 x1 y1 in pixels of the photo, and its text."""

    box: tuple[float, ...]
    text: str


def drawn(photo_HWC: npt.NDArray[np.uint8], marks: Sequence[Marked]) -> Image.Image:
    """RGB uint8 (H,W,3) and what to mark on it, the largest first -> the photo with boxes and
    texts."""
    image = Image.fromarray(photo_HWC)
    shorter_px = min(image.size)
    line_px = max(1, round(shorter_px * LINE_SHARE))
    font = ImageFont.load_default(max(LEAST_TEXT_PX, round(shorter_px * TEXT_SHARE)))
    canvas = ImageDraw.Draw(image)

    # The largest face last: its text stays on top of its neighbours
    for mark in reversed(marks):
        canvas.rectangle(mark.box, outline=BOX_COLOUR, width=line_px)
    for mark in reversed(marks):
        _write(canvas, image.size, mark, font)
    return image


def _write(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    mark: Marked,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """The text on a plate above its box, below where there is no room, always inside the photo."""
    left, top, right, bottom = canvas.textbbox((0, 0), mark.text, font=font)
    margin = (bottom - top) / 4
    width = right - left + 2 * margin
    height = bottom - top + 2 * margin

    x0, y0, _, y1 = mark.box
    x = max(0.0, min(x0, size[0] - width))
    above = y0 - height
    y = above if above >= 0 else max(0.0, min(y1, size[1] - height))

    canvas.rectangle((x, y, x + width, y + height), fill=BOX_COLOUR)
    canvas.text((x + margin - left, y + margin - top), mark.text, fill=TEXT_COLOUR, font=font)
