"""Aligned crops as JPEG and back: how the face table keeps them."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image


def encode_jpeg(crop_HWC: npt.NDArray[np.uint8], quality: int) -> bytes:
    """RGB uint8 (H, W, 3) -> JPEG without chroma subsampling."""
    stream = io.BytesIO()
    # At these sizes, subsampling would blur what colour says of the skin
    Image.fromarray(crop_HWC).save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def decode_jpeg(data: bytes) -> npt.NDArray[np.uint8]:
    """An encoded crop -> RGB uint8 (H, W, 3)."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))
