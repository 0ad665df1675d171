"""A photo file, however hostile, becomes RGB pixels or a PhotoError that says why not.

The one reader of photos: alignment, prediction and serving see the same pixels for the same file.
Decisions:

- the content says what a file is, never its suffix; only FORMATS are tried (nothing that starts
  another program);
- the size in the header is checked before any pixel is decoded;
- a truncated file is refused, never filled up with grey;
- EXIF orientation is applied; a damaged EXIF block counts as upright;
- of an animation or a multi-picture file, the first picture;
- transparency is blended with white, as a viewer would show it;
- 16-bit grey keeps its upper 8 bits; floats range from 0 to 1, else from 0 to 255;
- colour profiles are not applied: CMYK becomes RGB by Pillow's plain formula.
"""

from __future__ import annotations

import io
import threading
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 100_000_000
ORIENTATION_TAG = 0x0112
# EXIF 2.32: orientation -> the operation that sets the picture upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# warnings.catch_warnings changes the process, not the thread.
_one_at_a_time = threading.Lock()


class PhotoError(ValueError):
    """A file that cannot be used as a photo; the text is the reason, for a list of rejects."""


def read_photo(source: Path | bytes, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """A file or its bytes -> upright RGB uint8 (H, W, 3).

    Raises PhotoError for everything else: no file, empty, not a picture, truncated, more than
    `max_pixels` pixels.
    """
    data = _bytes(source)

    with _one_at_a_time, warnings.catch_warnings():
        # What matters becomes a PhotoError; the rest need not be reported.
        warnings.simplefilter("ignore")
        try:
            # Otherwise only formats that something else has opened before are known.
            Image.init()
            known = [name for name in FORMATS if name in Image.OPEN]
            with Image.open(io.BytesIO(data), formats=known) as image:
                _check_size(image, max_pixels)
                image.load()
                return np.ascontiguousarray(np.asarray(_rgb(_upright(image))))
        except PhotoError:
            raise
        except UnidentifiedImageError as error:
            # The error's own text holds a memory address.
            raise PhotoError(f"not a picture in a known format ({', '.join(FORMATS)})") from error
        except Image.DecompressionBombError as error:
            raise PhotoError(f"claims to be too large: {error}") from error
        except Exception as error:
            # Decoders that are fed damaged bytes raise nearly anything.
            raise PhotoError(f"cannot be decoded: {error or type(error).__name__}") from error


def _bytes(source: Path | bytes) -> bytes:
    if isinstance(source, Path):
        try:
            source = source.read_bytes()
        except OSError as error:
            raise PhotoError(f"cannot be read: {error.strerror or type(error).__name__}") from error
    if not source:
        raise PhotoError("empty file")
    return source


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise PhotoError(f"{width} x {height} px is more than the {max_pixels} pixels allowed")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ORIENTATION_TAG)
    except Exception:
        # The picture is sound even where its EXIF block is not.
        return image
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")

    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        white = Image.new("RGBA", pixels.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, pixels).convert("RGB")

    return image.convert("RGB")


def _eight_bits(values_HW: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Grey of more than 8 bits, or floating, -> 8 bits."""
    if values_HW.dtype.kind == "f":
        top = 1.0 if values_HW.max() <= 1 else 255.0
        if not (np.isfinite(values_HW).all() and values_HW.min() >= 0 and values_HW.max() <= top):
            raise PhotoError("floating-point grey outside 0 to 255: its white is unknown")
        return np.round(values_HW.astype(np.float64) * (255 / top)).astype(np.uint8)

    if values_HW.min() < 0 or values_HW.max() > 65535:
        raise PhotoError("32-bit grey outside 0 to 65535: its white is unknown")
    return (values_HW.astype(np.int64) >> 8).astype(np.uint8)
