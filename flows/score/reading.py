"""Reads the photos of a list, a few ahead of the one in work: their bytes, or the reason why there
are none.

If a store returns an error, the photo is requested a few more times; then it is a reject. Many such
photos in a row mean that the store itself is gone: `Unreachable` ends the run, and the finished
shards stay.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from flows.score.inventory import MISSING, ListedPhoto, filesystem_of, one_line
from visage.parallel import map_ordered

NUM_ATTEMPTS = 3
FIRST_PAUSE_S = 0.5
# After so many failed photos in a row, the store is unreachable.
MAX_UNANSWERED = 8
# Photos that are read while others are in work; times score.max_photo_bytes in memory.
NUM_AHEAD = 8


class Unreachable(ValueError):
    """The store of the photos does not respond any more."""


class Unanswered(str):
    """The reason why a photo could not be fetched, if another run may succeed."""


class Reader:
    """Reads photos of the folder, bucket or table `photos`."""

    def __init__(self, photos: str, max_photo_bytes: int) -> None:
        self.photos = photos
        self.max_photo_bytes = max_photo_bytes
        self._filesystem, _ = filesystem_of(photos)

    def read_ahead(self, photos: Iterable[ListedPhoto]) -> Iterator[bytes | str]:
        """Each photo's bytes or reason, in order."""
        num_unanswered = 0
        pool = ThreadPoolExecutor(NUM_AHEAD)

        with closing(map_ordered(self.read, photos, pool, NUM_AHEAD)) as contents:
            for content in contents:
                num_unanswered = num_unanswered + 1 if isinstance(content, Unanswered) else 0
                if isinstance(content, Unanswered) and num_unanswered == MAX_UNANSWERED:
                    raise Unreachable(
                        f"{self.photos}: {MAX_UNANSWERED} photos in a row could not be fetched, "
                        f"{content}; when it can be reached again, the same command resumes where "
                        f"it stopped"
                    )
                yield content

    def read(self, photo: ListedPhoto) -> bytes | str:
        """The photo's bytes, or the reason why there are none."""
        if photo.reason is not None:
            return photo.reason
        if photo.num_bytes is not None and photo.num_bytes > self.max_photo_bytes:
            return self._too_large(photo.num_bytes)

        filesystem = self._filesystem
        path = photo.address
        if "://" in photo.address:
            filesystem, path = filesystem_of(photo.address)

        # The file may have grown since it was listed.
        content = _fetched(filesystem, path)
        has_grown = isinstance(content, bytes) and len(content) > self.max_photo_bytes
        return self._too_large(len(content)) if has_grown else content

    def _too_large(self, num_bytes: int) -> str:
        return f"{num_bytes} bytes are more than the {self.max_photo_bytes} allowed"


def _fetched(filesystem: Any, path: str) -> bytes | str:
    for attempt in range(NUM_ATTEMPTS):
        try:
            content: bytes = filesystem.cat_file(path)
            return content
        except FileNotFoundError:
            return MISSING
        except PermissionError:
            return "cannot be read: permission denied"
        except Exception as error:
            # Every kind of store has its own exceptions for a broken connection.
            reason = f"cannot be read: {one_line(error)}"
            if isinstance(filesystem, LocalFileSystem):
                return reason
            if attempt + 1 < NUM_ATTEMPTS:
                time.sleep(FIRST_PAUSE_S * 2**attempt)

    return Unanswered(reason)
