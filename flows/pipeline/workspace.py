"""The working copy of the flows, and the rule that only one flow changes it at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flows.pipeline.file_lock import Locked, file_lock

ROOT = Path(__file__).resolve().parents[2]
LOCK = ".retrain.lock"


class Busy(RuntimeError):
    """Another process holds the working copy; the text says which, and since when."""


@contextmanager
def only_one(root: Path) -> Iterator[int]:
    """Holds the working copy (or another folder) and yields the lock's file descriptor; raises Busy
    at once if another process holds it.

    The lock ends with its process, however that ends, and with the children that got the
    descriptor.
    """
    with ExitStack() as held:
        try:
            descriptor = held.enter_context(file_lock(root / LOCK, wait=False))
        except Locked as error:
            raise Busy(f"{root}: {error}; this one ends, the next looks again") from error
        yield descriptor
