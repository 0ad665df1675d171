"""One process at a time, by a lock on a file: `filelock` with the holder's number in the file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


class Locked(RuntimeError):
    """Another process has the lock; the text says which, and since when."""


@contextmanager
def file_lock(path: Path, *, wait: bool) -> Iterator[int]:
    """Holds the lock file `path`, made where it is missing; its descriptor.

    Where another holds it this waits, or raises Locked at once. The lock ends with the block or
    with its process, however that ends. A child that was given the descriptor (`pass_fds`) holds it
    on after a process that was killed.
    """
    descriptors: list[int] = []

    def note_holder(descriptor: int) -> None:
        holder = {"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %Z")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        descriptors.append(descriptor)

    # A marker file would outlive a killed holder, and Ray enters and leaves in different threads.
    lock = FileLock(path, fallback_to_soft=False, thread_local=False, on_acquired=note_holder)
    try:
        lock.acquire(blocking=wait)
    except Timeout as error:
        raise Locked(f"in use by {_holder(path)}") from error
    try:
        yield descriptors[0]
    finally:
        lock.release()


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # it has the lock and has not yet written its number
        return "another process that has just begun"
    return f"process {holder['pid']} since {holder['since']}"
