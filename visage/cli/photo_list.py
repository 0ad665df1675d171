"""The words of a command line become a list of photos."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from visage.photo_files import photos_under


@dataclass(frozen=True, kw_only=True)
class NamedPhoto:
    """A photo that a command was given. `name` is its path as a person reads it; `below` its path
    below the folder that was named, or its file's name."""

    path: Path
    name: str
    below: Path


@dataclass(frozen=True, kw_only=True)
class PhotoList:
    """The photos of a command line, each once, in its order; and the words that brought none, with
    the reason. `is_single`: one file was named, and nothing else."""

    photos: tuple[NamedPhoto, ...]
    refused: tuple[tuple[str, str], ...]
    is_single: bool


def photo_list(words: Sequence[str]) -> PhotoList:
    """Files, folders (their photos, at any depth) and patterns (`*`, `?`, `[]`, and `**` for
    folders at any depth) as photos.

    A word that names an existing file or folder is never a pattern. A file is taken whatever its
    suffix says; of a folder, the files with a photo's suffix.
    """
    photos: dict[str, NamedPhoto] = {}
    refused = []
    for word in words:
        found = _photos_of(word)
        if isinstance(found, str):
            refused.append((printable(word), found))
            continue
        for photo in found:
            photos.setdefault(str(photo.path.absolute()), photo)

    is_single = len(words) == 1 and Path(words[0]).is_file()
    return PhotoList(photos=tuple(photos.values()), refused=tuple(refused), is_single=is_single)


def _photos_of(word: str) -> list[NamedPhoto] | str:
    """The photos that a word names, or the reason why it names none."""
    try:
        path = Path(word)
        if path.is_dir():
            return _of_folder(path) or "a folder without photos"
        if path.exists():
            return [_named(path)] if path.is_file() else "not a file"
        if not glob.has_magic(word):
            return "no such file or folder"

        # Path.glob takes no absolute pattern
        found = sorted(glob.glob(word, recursive=True))  # noqa: PTH207
    except (OSError, ValueError) as error:
        return f"cannot be read: {error.__class__.__name__}: {error}"
    return _of_pattern(found) or "a pattern that matches no photo"


def _of_folder(folder: Path) -> list[NamedPhoto]:
    return [_named(folder / name, Path(name)) for name in photos_under(folder)]


def _of_pattern(found: list[str]) -> list[NamedPhoto]:
    """The files that a pattern matches, and the photos of the folders that it matches."""
    photos = []
    for path in map(Path, found):
        photos += _of_folder(path) if path.is_dir() else [_named(path)]
    return photos


def _named(path: Path, below: Path | None = None) -> NamedPhoto:
    return NamedPhoto(path=path, name=printable(str(path)), below=below or Path(path.name))


def printable(name: str) -> str:
    """A name for a terminal and for one line: what is not printable (a line end, an escape
    sequence, a byte that is no UTF-8) is written as Python writes it in a string."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in name
    )
