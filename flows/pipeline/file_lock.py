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
    """Another process holds the lock; the text says which, and since when."""


@contextmanager
def file_lock(path: Path, *, wait: bool) -> Iterator[int]:
    """Holds the lock file `path`, which is created if missing, and yields its descriptor.

    If another process holds the lock, this waits, or raises Locked at once. The lock ends with the
    block or with its process, however that ends. A child that got the descriptor (`pass_fds`) keeps
    the lock after its parent was killed.
    """
    descriptors: list[int] = []

    def note_holder(descriptor: int) -> None:
        holder = {"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %Z")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        descriptors.append(descriptor)

    lock = FileLock(
        path,
        # A marker file would outlive a killed holder.
        fallback_to_soft=False,
        # Ray enters and leaves in different threads.
        thread_local=False,
        on_acquired=note_holder,
    )
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
    except ValueError:
        # The holder has the lock but has not written its number yet.
        return "another process that has just begun"
    return f"process {holder['pid']} since {holder['since']}"
