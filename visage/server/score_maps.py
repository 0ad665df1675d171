"""A score map as a picture that a page lays over the face: PNG with transparency, as a data:
address, and the corners of the crop in the photo.

Legend: h, w side of the network's last maps; R red, G green, B blue, A opacity.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from visage.detection import align
from visage.model_config import AlignmentConfig
from visage.server.pictures import to_base64

# From weak to strong: dark violet, red, yellow; weak places let the face through
COLOURS_RGB = np.array([(40, 0, 80), (190, 30, 70), (250, 130, 30), (255, 250, 130)], np.float32)
MAX_OPACITY = 190


def as_png(map_hw: Sequence[Sequence[float]], crop_px: int) -> str:
    """A map as a PNG of the crop's size, a data: address. Its least value is transparent, its
    largest one opaque; only differences inside a map mean something."""
    values_hw = np.asarray(map_hw, np.float32)
    span = float(np.ptp(values_hw))
    if span > 0:
        values_hw = (values_hw - values_hw.min()) / span
    else:
        values_hw = np.zeros_like(values_hw)

    image = Image.fromarray(values_hw).resize((crop_px, crop_px), Image.Resampling.BICUBIC)
    strength_HW = np.clip(np.asarray(image), 0.0, 1.0)
    stream = io.BytesIO()
    Image.fromarray(_coloured(strength_HW)).save(stream, "PNG")
    return to_base64(stream.getvalue(), "png")


def _coloured(strength_HW: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    places = np.linspace(0.0, 1.0, len(COLOURS_RGB))
    channels = [np.interp(strength_HW, places, column) for column in COLOURS_RGB.T]
    channels.append(MAX_OPACITY * strength_HW)
    return np.round(np.stack(channels, axis=2)).astype(np.uint8)


def corners_in_photo(landmarks: Any, how: AlignmentConfig) -> list[list[float]]:
    """The corners of a face's crop (top left, top right, bottom right, bottom left), x y in pixels
    of the upright photo."""
    template_52 = align.template(how.template, how.crop_px, how.face_scale)
    matrix_23 = align.similarity(np.array(landmarks, np.float32), template_52)
    inverse_22 = np.linalg.inv(matrix_23[:, :2])

    px = how.crop_px
    corners_42 = np.array([(0, 0), (px, 0), (px, px), (0, px)], np.float64)
    in_photo_42 = (corners_42 - matrix_23[:, 2]) @ inverse_22.T
    return [[float(x), float(y)] for x, y in in_photo_42]
