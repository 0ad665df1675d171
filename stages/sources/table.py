"""A user's own CSV: one line a photo, the columns named in params.yaml, the photos in a folder.

A column that the table does not have is `null` in the options. A line is left out, and listed with
its reason, when its photo is missing, when its label or sigma is no number (or the label is empty
though a column is named), when a named person is empty, or when its split is none of train, val,
test; an empty split, sex, ethnicity or sigma is unknown. The table is streamed: millions of lines
take no memory.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from stages.ingest.archives import safe_name
from stages.ingest.records import ManifestRow, ReportSkip, Source, from_repository

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class TableColumns:
    """Which column of the CSV says what; null where there is none."""

    photo: str
    label: str | None
    sigma: str | None
    person: str | None
    sex: str | None
    ethnicity: str | None
    split: str | None


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """`photos_folder`: the folder below the raw folder that the photo column starts from ('' for
    the raw folder)."""

    table: Path
    delimiter: str
    photos_folder: str
    columns: TableColumns

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1:
            raise ValueError(f"delimiter {self.delimiter!r}: must be one character")


def table_rows(
    raw_dir: Path, options: TableOptions, report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """Each usable line of the CSV becomes a row; the others are listed."""
    lines = read_table(options.table, options.delimiter, wanted_columns(options))
    # The header is line 1
    for number, line in enumerate(lines, start=2):
        name = line[options.columns.photo]
        try:
            yield line_row(name, line, raw_dir, options)
        except ValueError as error:
            photo_id = "/".join(part for part in (options.photos_folder, name) if part)
            report_skip(photo_id, f"line {number}: {error}")


def read_table(table: Path, delimiter: str, wanted: list[str]) -> Iterator[dict[str, str]]:
    """The lines of a CSV by column name, blanks stripped; ValueError where a wanted column is not
    there."""
    path = from_repository(table)
    if not path.is_file():
        raise ValueError(f"{path}: no such table; correct it in download.<role>.options")

    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        missing = sorted(set(wanted) - set(reader.fieldnames or ()))
        if missing:
            raise ValueError(
                f"{path}: has no column {missing[0]!r}, only {reader.fieldnames}; "
                "correct the options"
            )
        for line in reader:
            yield {name: (line[name] or "").strip() for name in wanted}


def wanted_columns(options: TableOptions) -> list[str]:
    """The columns that the options name."""
    named = [getattr(options.columns, field.name) for field in fields(options.columns)]
    return [column for column in named if column is not None]


def line_row(name: str, line: dict[str, str], raw_dir: Path, options: TableOptions) -> ManifestRow:
    """One line of the CSV as a row; ValueError says why it cannot be used."""
    columns = options.columns
    photo_id = safe_name(f"{options.photos_folder}/{name}" if options.photos_folder else name)
    if not (raw_dir / photo_id).is_file():
        raise ValueError("no such photo")

    label = number(line[columns.label], "label") if columns.label is not None else None
    if columns.label is not None and label is None:
        raise ValueError("has no label")
    sigma = number(line[columns.sigma], "sigma") if columns.sigma is not None else None
    if sigma is not None and sigma < 0:
        raise ValueError(f"sigma {sigma} is below 0")

    person = _text(line, columns.person)
    split = _text(line, columns.split)
    if columns.person is not None and person is None:
        raise ValueError("has no person")
    if split not in (None, *SPLITS):
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")

    return ManifestRow(
        photo_id=photo_id,
        label=label,
        sigma=sigma,
        person=person,
        sex=_text(line, columns.sex),
        ethnicity=_text(line, columns.ethnicity),
        split=split,
    )


def _text(line: dict[str, str], column: str | None) -> str | None:
    """The text of a column, None where it is empty or the table has no such column."""
    return None if column is None else line[column] or None


def number(text: str, what: str) -> float | None:
    """A finite number, None for an empty text; ValueError for anything else."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"{what} {text!r} is no number") from error
    if not math.isfinite(value):
        raise ValueError(f"{what} {text!r} is not finite")
    return value


TABLE = Source(name="table", options=TableOptions, rows=table_rows, produce=None)
