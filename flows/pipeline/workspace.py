"""The working copy that the flows work in, and the rule that one of them changes it at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flows.pipeline.file_lock import Locked, file_lock

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
    with ExitStack() as held:
        try:
            descriptor = held.enter_context(file_lock(root / LOCK, wait=False))
        except Locked as error:
            raise Busy(f"{root}: {error}; this one ends, the next looks again") from error
        yield descriptor
