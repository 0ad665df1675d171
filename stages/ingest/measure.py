"""A photo file becomes its checksum, size and width x height, or the reason why no decoder reads
it.

Every photo is decoded to its last byte, so that a truncated file is found. A JPEG is decoded at an
eighth of its size, which skips most of the arithmetic and none of the reading.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from visage.detection.image_io import FORMATS
from visage.parallel import batched, die_with_parent, map_ordered

DRAFT_FACTOR = 8
CHUNK_PHOTOS = 128
# Starting processes takes longer than measuring these
FEW_PHOTOS = 1024


class Measured(NamedTuple):
    """What the manifest says of a file; width and height are the header's (before EXIF), 0 if
    unreadable."""

    photo_id: str
    num_bytes: int
    mtime_ns: int
    sha256: str
    width: int
    height: int
    unreadable: str | None


class Bounds(NamedTuple):
    """A photo over either is not decoded."""

    max_photo_bytes: int
    max_photo_pixels: int


def measure(raw_dir: Path, photo_id: str, bounds: Bounds) -> Measured:
    """Reads one photo of the raw folder; never raises for what the file holds."""
    path = raw_dir / photo_id
    status = path.stat()
    if status.st_size > bounds.max_photo_bytes:
        reason = f"{status.st_size} bytes, over limits.max_photo_bytes {bounds.max_photo_bytes}"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Measured(photo_id, status.st_size, status.st_mtime_ns, digest, 0, 0, reason)

    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    width = height = 0
    unreadable: str | None = None
    try:
        width, height = decoded_size(data, bounds.max_photo_pixels)
    except UnidentifiedImageError:
        # Its own text holds a memory address
        known = ", ".join(FORMATS)
        unreadable = f"not a picture in a known format ({known})" if data else "empty file"
    except Exception as error:
        # Pillow's plugins raise any exception on damaged data
        unreadable = f"cannot be decoded: {str(error) or type(error).__name__}"[:200]

    return Measured(photo_id, status.st_size, status.st_mtime_ns, digest, width, height, unreadable)


def decoded_size(data: bytes, max_photo_pixels: int) -> tuple[int, int]:
    """(width, height) of the first frame, after decoding it; any exception means unreadable."""
    with warnings.catch_warnings():
        # Odd metadata is no reason to lose a photo
        warnings.simplefilter("ignore")
        # Without this, a format that nothing opened before is unknown
        Image.init()
        known = [name for name in FORMATS if name in Image.OPEN]

        with Image.open(io.BytesIO(data), formats=known) as image:
            width, height = image.size
            if width * height > max_photo_pixels:
                raise ValueError(
                    f"{width} x {height} pixels, over limits.max_photo_pixels {max_photo_pixels}"
                )

            image.draft("RGB", (max(1, width // DRAFT_FACTOR), max(1, height // DRAFT_FACTOR)))
            image.load()
    return width, height


def measure_all(
    raw_dir: Path, photo_ids: Iterable[str], num_photos: int, bounds: Bounds
) -> Iterator[Measured]:
    """Measures photos in order, in as many processes as there are cores; only a few chunks wait at
    a time."""
    num_workers = len(os.sched_getaffinity(0))
    if num_photos <= FEW_PHOTOS or num_workers == 1:
        yield from (measure(raw_dir, photo_id, bounds) for photo_id in photo_ids)
        return

    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=die_with_parent)
    work = partial(_measure_chunk, raw_dir, bounds)
    for chunk in map_ordered(work, batched(photo_ids, CHUNK_PHOTOS), pool, 4 * num_workers):
        yield from chunk


def _measure_chunk(raw_dir: Path, bounds: Bounds, photo_ids: list[str]) -> list[Measured]:
    return [measure(raw_dir, photo_id, bounds) for photo_id in photo_ids]
