"""The server's log: to standard error, and no faster than a few lines a minute from one place.

Whoever attacks a server can make it refuse thousands of requests a second. Refusals are counted
(/metrics), not logged; what the libraries below log is held back here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

BURST = 10  # lines of one place in the code, in PERIOD seconds
PERIOD = 60.0


class RateLimit(logging.Filter):
    """Lets BURST records of one place in the code pass in PERIOD seconds. The first that passes
    afterwards says how many did not. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        # Place -> start of its period, records that came in it
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        place = (record.pathname, record.lineno)
        now = self._clock()
        with self._lock:
            start, count = self._seen.get(place, (now, 0))
            held_back = 0
            if now - start >= PERIOD:
                held_back = max(0, count - BURST)
                start = now
                count = 0
            self._seen[place] = (start, count + 1)

        if count >= BURST:
            return False
        if held_back:
            record.msg = f"{record.getMessage()} ({held_back} more like it were left out)"
            record.args = ()
        return True


def log_config() -> dict[str, Any]:
    """What uvicorn gives to `logging.config.dictConfig`."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"rate": {"()": RateLimit}},
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "line",
                "filters": ["rate"],
            }
        },
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {
            "uvicorn": {"level": "INFO"},
            # Its warnings repeat what a file holds.
            "PIL": {"level": "CRITICAL"},
        },
    }
