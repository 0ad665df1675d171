"""Computes perceptual hashes of photos, in as many processes as there are cores. The processes
import this module, so that it imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from flows.label.database import Hashed
from visage.dedup.perceptual_hash import perceptual_hash
from visage.detection.image_io import PhotoError, read_photo
from visage.parallel import batched, die_with_parent, map_ordered

# photo_id, bytes, time of its file
PhotoFile = tuple[str, int, int]
CHUNK_PHOTOS = 64
# To hash so few takes less time than to start processes.
FEW_PHOTOS = 256


def hash_all(photos: Path, found: Iterable[PhotoFile], num_photos: int) -> Iterator[Hashed]:
    """Hashes the photos in order, in as many processes as there are cores; only a few chunks wait
    at a time."""
    num_workers = len(os.sched_getaffinity(0))
    if num_photos <= FEW_PHOTOS or num_workers == 1:
        yield from _hash(photos, found)
        return

    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=die_with_parent)
    chunks = batched(found, CHUNK_PHOTOS)
    for chunk in map_ordered(partial(_hash, photos), chunks, pool, 4 * num_workers):
        yield from chunk


def _hash(photos: Path, found: Iterable[PhotoFile]) -> list[Hashed]:
    hashed = []
    for photo_id, num_bytes, mtime_ns in found:
        try:
            photo_HWC = read_photo(photos / photo_id)
        except PhotoError as error:
            hashed.append(Hashed(photo_id, num_bytes, mtime_ns, 0, 0, str(error)))
            continue

        height, width = photo_HWC.shape[:2]
        value = perceptual_hash(photo_HWC)
        hashed.append(Hashed(photo_id, num_bytes, mtime_ns, value, width * height, None))

    return hashed
