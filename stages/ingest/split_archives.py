"""Archives in parts (`x.tar.001 x.tar.002`, `x.zip.part1`, `x.tgz.partaa`, `x.tar.aa`) are read as
one file."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ARCHIVE_NAME = re.compile(r".+\.(tar|tgz|tbz2?|txz|zip|tar\.(gz|bz2|xz))", re.IGNORECASE)
PART_NAME = re.compile(r"(?P<whole>.+)\.(?P<number>part[-_.]?(\d+|[a-z]{2})|\d+|a[a-z])")


def is_archive(name: str) -> bool:
    """Whether a file's name, less a part's number, is an archive's."""
    return whole_name(name) is not None


def whole_name(name: str) -> str | None:
    """`x.tar.002` -> `x.tar`, `x.zip` -> `x.zip`, None for what is no archive."""
    if ARCHIVE_NAME.fullmatch(name):
        return name

    part = PART_NAME.fullmatch(name)
    if part is None or not ARCHIVE_NAME.fullmatch(part["whole"]):
        return None
    return part["whole"]


def grouped_parts(paths: Sequence[Path]) -> list[tuple[str, list[Path]]]:
    """Archive files -> (archive's name, its parts in order), one each; ValueError where a part is
    missing."""
    groups: dict[Path, list[Path]] = {}
    for path in paths:
        groups.setdefault(path.with_name(str(whole_name(path.name))), []).append(path)

    for whole, parts in groups.items():
        parts.sort(key=lambda path: _place(path.name))
        if parts != [whole]:
            _check_complete(whole, [_place(path.name) for path in parts])

    return [(whole.name, parts) for whole, parts in groups.items()]


def _place(name: str) -> int:
    """A part's number, letters counted as aa = 0, ab = 1, ...; an archive in one file is -1."""
    if ARCHIVE_NAME.fullmatch(name):
        return -1

    found = re.search(r"(\d+|[a-z]{2})$", name)
    assert found is not None, name
    number = found[0]
    if number.isdigit():
        return int(number)
    return (ord(number[0]) - ord("a")) * 26 + ord(number[1]) - ord("a")


def _check_complete(whole: Path, places: Sequence[int]) -> None:
    complete = range(places[0], places[0] + len(places))
    if places[0] not in (0, 1) or list(places) != list(complete):
        raise ValueError(
            f"{whole}: found its parts number {list(places)}; one is missing, or one is there twice"
        )


class Joined(io.RawIOBase):
    """Several files read as one, seekable, nothing copied."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        sizes = [path.stat().st_size for path in paths]
        self.num_bytes = sum(sizes)
        self._starts = [sum(sizes[:index]) for index in range(len(sizes))]
        self._files = [path.open("rb") for path in paths]
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self.num_bytes)[whence])
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        # The last file that begins at or before the position
        index = max(i for i, start in enumerate(self._starts) if start <= self._position)
        self._files[index].seek(self._position - self._starts[index])
        count = self._files[index].readinto(buffer)
        self._position += count
        return count

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()
