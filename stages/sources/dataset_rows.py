"""One data set as its settings describe it: its files gathered or made below a folder, its rows on
the wanted scale.

A role has one such set. It has further ones where it is trained on a union of sets (`joined`), one
more where it is tested on another set than its own (`test_set`), and one that grows where the
user's own labelled photos come in (`incoming`).
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
from stages.ingest.sigma import SigmaRule
from stages.ingest.splits import SplitSettings
from stages.settings import convert
from stages.sources import SOURCES

# Folders below the raw folder, where there are two sets
TRAIN_SET = "train_set"
TEST_SET = "test_set"
# Below the raw folder too. Its name sorts last: align's shards before its photos stay as they are
INCOMING = "~incoming"


@dataclass(frozen=True, kw_only=True)
class SetSettings:
    """Where a set is and how it is read. `sha256`: file name -> hex, as far as known; `options`:
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
                f"locations: empty, but source {source.name} is read from somewhere; "
                "give a path or URL"
            )
        if source.produce is not None and self.locations:
            raise ValueError(
                f"locations {list(self.locations)}: source {source.name} is made here; "
                "leave them empty"
            )
        convert(dict(self.options), source.options, "options")


@dataclass(frozen=True, kw_only=True)
class JoinedSetSettings(SetSettings):
    """A further set to train on, with a split of its own. `sigma`: the rule for labels without one;
    null leaves them without."""

    sigma: SigmaRule | None
    split: SplitSettings


@dataclass(frozen=True, kw_only=True)
class OtherSetSettings(SetSettings):
    """Another set to test on. `splits`: those of its own splits whose photos to take; empty takes
    all photos."""

    splits: tuple[Literal["train", "val", "test"], ...]


def set_rows(
    settings: SetSettings, raw_dir: Path, fetched_dir: Path, budget: Budget, report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """Fills `raw_dir` from the set's locations and yields its rows; ValueError names file and
    remedy."""
    source = SOURCES[settings.source]
    options = convert(dict(settings.options), source.options, "options")
    if source.produce is None:
        fill_raw(
            settings.locations,
            settings.sha256,
            budget,
            raw_dir,
            fetched_dir,
            report_skip,
            source.containers,
        )
    else:
        empty(raw_dir)
        source.produce(raw_dir, options)

    rows = source.rows(raw_dir, options, report_skip)
    if settings.scale is not None:
        rows = settings.scale.rows(rows, report_skip)
    yield from rows


def below(folder: str, report_skip: ReportSkip) -> ReportSkip:
    """The same list of left-out photos, for a set whose photos are in a folder of the raw
    folder."""

    def skip(photo_id: str, reason: str, *, action: Action = "skipped") -> None:
        # `*` is a count, not a photo
        name = photo_id if photo_id == "*" else f"{folder}/{photo_id}"
        report_skip(name, reason, action=action)

    return skip


def as_joined_rows(folder: str, rows: Iterator[ManifestRow]) -> Iterator[ManifestRow]:
    """The rows below their set's folder; a person's name gets the folder's before it, since two
    sets may number their people alike."""
    for row in rows:
        person = None if row.person is None else f"{folder}/{row.person}"
        yield row._replace(photo_id=f"{folder}/{row.photo_id}", person=person)


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
    """Whether a set that grows has begun: files in its locations, and the tables that it reads."""
    options = convert(dict(settings.options), SOURCES[settings.source].options, "options")
    if not all(map(has_files, settings.locations)):
        return False
    tables = [value for value in vars(options).values() if isinstance(value, Path)]
    return all(from_repository(table).is_file() for table in tables)


def as_incoming_rows(rows: Iterator[ManifestRow]) -> Iterator[ManifestRow]:
    """The rows below their folder. Names of persons stay as they are: two photos with one name show
    one person."""
    return (row._replace(photo_id=f"{INCOMING}/{row.photo_id}") for row in rows)
