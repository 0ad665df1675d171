"""A scoring process whose reader of photos has bugs: one content ends it, another keeps it busy for ever."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from flows import score_workers
from visage import photos

KILLS, HANGS, RAISES = b"kills", b"hangs", b"raises"
work_as_it_is = score_workers._work


def work(*arguments: Any) -> None:
    """What a process runs in place of `score_workers._work`."""
    photos.read_photo = read_photo
    work_as_it_is(*arguments)


def read_photo(source: bytes, max_pixels: int, really: Any = photos.read_photo) -> Any:
    if source == KILLS:
        os.kill(os.getpid(), signal.SIGKILL)
    if source == HANGS:
        time.sleep(1000)
    if source == RAISES:
        raise RuntimeError("no memory")
    return really(source, max_pixels)
