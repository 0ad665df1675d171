"""Which files of a folder are photos, in one order for every command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PHOTO_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".pgm",
        ".ppm",
        ".jp2",
        ".avif",
    }
)


def photos_under(folder: Path) -> Iterator[str]:
    """The photos below a folder as posix paths relative to it, in the order of those strings; one
    folder in memory."""
    return (name for name in files_under(folder) if Path(name).suffix.lower() in PHOTO_SUFFIXES)


def files_under(folder: Path, prefix: str = "") -> Iterator[str]:
    """Every plain file below a folder but dot-names, sorted by the complete path."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        # The slash is part of a folder's key, as it is part of the path
        found = sorted(entry.name + "/" if entry.is_dir() else entry.name for entry in visible)
    for name in found:
        if name.endswith("/"):
            yield from files_under(folder / name, prefix + name)
        elif (folder / name).is_file():
            yield prefix + name
