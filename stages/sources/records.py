"""What every adapter gives: a `Row` a photo, and the `Source` record that download looks up by name.

An adapter is one frozen `Source`, a constant of its module (`DRAWN` in drawn.py) that stages/sources/__init__.py lists:
- `options`: its own frozen, keyword-only dataclass without defaults; `download.<role>.options` of params.yaml must fill
  it exactly. Paths in it (type `Path`) are relative to the repository root: open them with `from_repository`.
- `rows(raw_dir, options, report_skip)`: yields one `Row` for every usable photo that lies under `raw_dir`, in any
  order, each `photo_id` once. One that cannot be used goes to `report_skip(photo_id, reason)`; one whose meaning was
  repaired goes to `report_skip(photo_id, reason, action="repaired")` and is yielded too. Nothing is renamed on disk.
- `produce(raw_dir, options)`, or None: for a set that is made, not fetched. It writes its photos, and whatever `rows`
  needs to know about them (a labels.csv, say), into the empty `raw_dir`; `locations` must then be empty.
Names that begin with a dot are not photos; `.visage` in `raw_dir` belongs to download.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

Action = Literal["skipped", "repaired"]
PHOTO_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".pgm", ".ppm", ".jp2", ".avif"}
)
REPOSITORY = Path(__file__).resolve().parents[2]


class Row(NamedTuple):
    """One photo: `photo_id` is its posix path below the raw folder; None where the set does not say."""

    photo_id: str
    label: float | None
    sigma: float | None
    person: str | None
    sex: str | None
    ethnicity: str | None
    split: str | None  # train | val | test, as the set's authors gave it


class ReportSkip(Protocol):
    """Takes a photo that is left out (or repaired) with its reason; it ends in skipped.csv."""

    def __call__(self, photo_id: str, reason: str, *, action: Action = "skipped") -> None: ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """One adapter: how a data set's native files become rows."""

    name: str
    options: type[Any]
    rows: Callable[[Path, Any, ReportSkip], Iterator[Row]]
    produce: Callable[[Path, Any], None] | None


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """For a set that leaves nothing to choose: `options: {}`."""


def from_repository(path: Path) -> Path:
    """A path of params.yaml: absolute as it is, else below the repository root."""
    return REPOSITORY / path


def photos_under(folder: Path) -> Iterator[str]:
    """The photos below a folder as posix paths relative to it, in the order of those strings; one folder in memory."""
    return (name for name in files_under(folder) if Path(name).suffix.lower() in PHOTO_SUFFIXES)


def files_under(folder: Path, prefix: str = "") -> Iterator[str]:
    """Every plain file below a folder but dot-names, sorted as whole strings (hence the slash in a folder's key)."""
    with os.scandir(folder) as entries:
        found = sorted((e.name + "/" if e.is_dir() else e.name) for e in entries if not e.name.startswith("."))
    for name in found:
        if name.endswith("/"):
            yield from files_under(folder / name, prefix + name)
        elif (folder / name).is_file():
            yield prefix + name
