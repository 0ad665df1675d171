"""What every adapter gives: a `ManifestRow` a photo, and the `Source` record that download looks up
by name.

An adapter is one frozen `Source`, a constant of its module (`SYNTHETIC` in synthetic.py) that
stages/sources/__init__.py lists:
- `options`: its own frozen, keyword-only dataclass without defaults; `download.<role>.options` of
  params.yaml must fill it exactly. Paths in it (type `Path`) are relative to the repository root:
  open them with `from_repository`.
- `rows(raw_dir, options, report_skip)`: yields one `ManifestRow` for every usable photo
  under `raw_dir`, in any order, each `photo_id` once. One that cannot be used goes to
  `report_skip(photo_id, reason)`; one whose meaning was repaired goes to `report_skip(photo_id,
  reason, action="repaired")` and is yielded too. Nothing is renamed on disk.
- `containers`: file suffix -> `Reader`, for a set that comes in container files of its own (no tar,
  no zip).
- `produce(raw_dir, options)`, or None: for a set that is made, not fetched. It writes its photos,
  and what `rows` needs to know about them (a labels.csv, say), into the empty `raw_dir`;
  `locations` must then be empty.
Names that begin with a dot are not photos; `.visage` in `raw_dir` belongs to download.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from visage.photo_files import files_under

Action = Literal["skipped", "repaired"]
REPOSITORY = Path(__file__).resolve().parents[2]


class ManifestRow(NamedTuple):
    """One photo: `photo_id` is its posix path below the raw folder; None where the set does not
    say. `half_width`: the label is an interval, from `label - half_width` to `label +
    half_width`."""

    photo_id: str
    label: float | None
    sigma: float | None
    person: str | None
    sex: str | None
    ethnicity: str | None
    split: str | None  # train | val | test, as the set's authors gave it
    half_width: float | None = None


class ReportSkip(Protocol):
    """Takes a photo that is left out (or repaired) with its reason; it ends in skipped.csv."""

    def __call__(self, photo_id: str, reason: str, *, action: Action = "skipped") -> None: ...


class Record(NamedTuple):
    """One record of a container file: `end` is where the next begins, `name` the photo's posix path
    below the raw folder. A damaged one has a reason, no photo, and its place in the file for a
    name."""

    end: int
    name: str
    photo: bytes
    reason: str | None


class Reader(Protocol):
    """The records of a container file from position `start` on, which is 0 or where one ended."""

    def __call__(self, path: Path, start: int, max_photo_bytes: int, /) -> Iterator[Record]: ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """One adapter: how a data set's native files become rows."""

    name: str
    options: type[Any]
    rows: Callable[[Path, Any, ReportSkip], Iterator[ManifestRow]]
    produce: Callable[[Path, Any], None] | None
    containers: Mapping[str, Reader] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """For a set that leaves nothing to choose: `options: {}`."""


def from_repository(path: Path) -> Path:
    """A path of params.yaml: absolute as it is, else below the repository root."""
    return REPOSITORY / path


def only_file(raw_dir: Path, ending: str) -> Path:
    """The one file below the raw folder whose last path parts are `ending`; ValueError for none or
    several."""
    found = [name for name in files_under(raw_dir) if f"/{name}".endswith(f"/{ending}")]
    if len(found) != 1:
        there = f"{len(found)} times there ({', '.join(found[:2])})" if found else "not there"
        raise ValueError(
            f"{raw_dir}: {ending!r} is {there}; the locations must bring it along once"
        )

    return raw_dir / found[0]
