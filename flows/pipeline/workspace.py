"""The working copy that the flows work in, and the rule that one of them changes it at a time."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ".retrain.lock"


class Busy(RuntimeError):
    """Another process has the working copy; the text says which, and since when."""


@contextmanager
def only_one(root: Path) -> Iterator[int]:
    """Holds the working copy (or another folder), or raises Busy at once; the lock's file
    descriptor.

    The lock goes with its process, however that ends, and with the children that were given the
    descriptor.
    """
    with (root / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Busy(
                f"{root}: {_holder(root / LOCK)}; this one ends, the next looks again"
            ) from error
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %Z")}))
        file.flush()
        yield file.fileno()


def _holder(lock: Path) -> str:
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
    except ValueError:  # it has the lock and has not yet written its name
        return "another flow has just begun here"
    return f"another flow (process {holder['pid']}) has been at work here since {holder['since']}"
