"""Atomic writes: a file or folder appears complete or not at all (architecture rule 9)."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path next to `path`; renamed to it when the block succeeds, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)

    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    # mkstemp makes it readable by its owner alone.
    part.chmod(0o644)

    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def atomic_write_bytes(path: Path, content: bytes) -> None:
    with atomic_write(path) as part:
        part.write_bytes(content)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """An empty folder next to `folder`; takes its place when the block succeeds, else is removed.

    A kill at any moment leaves the old folder or the new one. Between the two renames the old one
    is next to its place, as `.<name>.old`; the next call for the same folder, or `recover_folder`,
    puts it back. Only one process at a time may write a folder.
    """
    part = folder.with_name(f".{folder.name}.part")
    recover_folder(folder)
    part.mkdir(parents=True)

    try:
        yield part
        if folder.exists():
            folder.rename(_set_aside(folder))
        part.rename(folder)
    finally:
        recover_folder(folder)


def recover_folder(folder: Path) -> None:
    """Puts back the folder that a killed `atomic_folder` had set aside, and removes the temporary
    folder that it left."""
    old = _set_aside(folder)
    if old.exists():
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)

    shutil.rmtree(folder.with_name(f".{folder.name}.part"), ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
