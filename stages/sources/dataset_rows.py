"""One data set as its settings say: its files gathered or made below a folder, its rows on the
wanted scale.

A role has one such set, a second one where it is to be tested on another than its own (`test_set`),
and one that grows where labelled photos of one's own come in (`incoming`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stages.ingest.archives import Budget
from stages.ingest.fetch import has_files
from stages.ingest.fill_raw import empty, fill_raw
from stages.ingest.records import Action, ManifestRow, ReportSkip, from_repository
from stages.ingest.scale import Scale
from stages.settings import convert
from stages.sources import SOURCES

TRAIN_SET, TEST_SET = (
    "train_set",
    "test_set",
)  # folders below the raw folder, where there are two sets
# Below the raw folder too. Its name sorts last: align's shards before its photos stay as they are
INCOMING = "~incoming"


@dataclass(frozen=True, kw_only=True)
class SetSettings:
    """Where a set lies and how it is read. `sha256`: file name -> hex, as far as known; `options`:
    the adapter's own; `scale`: null leaves the labels as they are."""

    source: str
    locations: tuple[str, ...]
    sha256: Mapping[str, str]
    options: Mapping[str, Any]
    scale: Scale | None

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"source {self.source!r} is not one of {', '.join(SOURCES)}")
        source = SOURCES[self.source]
        if source.produce is None and not self.locations:
            raise ValueError(
                f"locations: empty, but source {source.name} is read from somewhere; give a path "
                f"or URL"
            )
        if source.produce is not None and self.locations:
            raise ValueError(
                f"locations {list(self.locations)}: source {source.name} is made here; leave them "
                f"empty"
            )
        convert(dict(self.options), source.options, "options")


@dataclass(frozen=True, kw_only=True)
class OtherSetSettings(SetSettings):
    """Another set to test on. `splits`: the photos of which of its own splits; none named: all its
    photos."""

    splits: tuple[Literal["train", "val", "test"], ...]


def set_rows(
    settings: SetSettings, raw_dir: Path, fetched_dir: Path, budget: Budget, report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """Fills `raw_dir` from the set's locations and yields its rows; ValueError names file and
    remedy."""
    source = SOURCES[settings.source]
    options = convert(dict(settings.options), source.options, "options")
    if source.produce is None:
        located, sha256 = settings.locations, settings.sha256
        fill_raw(located, sha256, budget, raw_dir, fetched_dir, report_skip, source.containers)
    else:
        empty(raw_dir)
        source.produce(raw_dir, options)
    rows = source.rows(raw_dir, options, report_skip)
    yield from rows if settings.scale is None else settings.scale.rows(rows, report_skip)


def below(folder: str, report_skip: ReportSkip) -> ReportSkip:
    """The same list of left-out photos, for a set whose photos lie in a folder of the raw
    folder."""

    def skip(photo_id: str, reason: str, *, action: Action = "skipped") -> None:
        report_skip(photo_id if photo_id == "*" else f"{folder}/{photo_id}", reason, action=action)

    return skip


def as_test_rows(
    settings: OtherSetSettings, rows: Iterator[ManifestRow], report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """The rows of the wanted splits, all of them split `test`; the others are counted in one line.

    A person's name gets the folder's before it: two sets may number their people alike.
    """
    num_others = 0
    for row in rows:
        if settings.splits and row.split not in settings.splits:
            num_others += 1
            continue
        person = None if row.person is None else f"{TEST_SET}/{row.person}"
        yield row._replace(photo_id=f"{TEST_SET}/{row.photo_id}", person=person, split="test")
    if num_others:
        report_skip(
            "*",
            f"{num_others} photos of the test set are in none of its splits "
            f"{', '.join(settings.splits)}",
        )


def has_come(settings: SetSettings) -> bool:
    """Whether there is anything yet in a set that grows: files in its locations, and the tables
    that it reads."""
    options = convert(dict(settings.options), SOURCES[settings.source].options, "options")
    tables = (from_repository(value) for value in vars(options).values() if isinstance(value, Path))
    return all(map(has_files, settings.locations)) and all(table.is_file() for table in tables)


def as_incoming_rows(rows: Iterator[ManifestRow]) -> Iterator[ManifestRow]:
    """The rows below their folder, with persons as they are written: one who has the name of
    another is the other."""
    return (row._replace(photo_id=f"{INCOMING}/{row.photo_id}") for row in rows)
