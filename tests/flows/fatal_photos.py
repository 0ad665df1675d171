"""A scoring process whose photo reader has bugs: one content ends it, another one never ends."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from flows.score import workers
from visage.detection import image_io
from visage.inference import photos

KILLS = b"kills"
HANGS = b"hangs"
RAISES = b"raises"
work_as_it_is = workers._work


def work(*arguments: Any) -> None:
    """Runs in a process in place of `flows.score.workers._work`."""
    photos.read_photo = read_photo
    work_as_it_is(*arguments)


def read_photo(source: bytes, max_pixels: int, really: Any = image_io.read_photo) -> Any:
    if source == KILLS:
        os.kill(os.getpid(), signal.SIGKILL)
    if source == HANGS:
        time.sleep(1000)
    if source == RAISES:
        raise RuntimeError("no memory")
    return really(source, max_pixels)
