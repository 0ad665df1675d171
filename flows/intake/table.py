"""labels.csv as it comes in: the photos that it names, or the reason why it is wrong.

A table that is half-written, or that does not fit `download.<role>.incoming` of params.yaml, is
refused completely. A line whose photo has a name that leads out of the folder is refused alone.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flows.intake.database import IntakeDatabase, Line
from stages.download import DownloadSettings
from stages.ingest.archives import is_ignored, odd_name, printable, safe_name
from stages.settings import convert, load_section
from stages.sources.table import TableOptions, wanted_columns

LABELLED = "labelled"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The part of `download.<role>.incoming` below the labelled folder: the table, the photos'
    folder, the columns."""

    table: str
    photos: str
    options: TableOptions
    max_photo_bytes: int


def read_wanted(folder: Path) -> Wanted:
    """Reads the role's settings in params.yaml; ValueError if they do not read the photos that are
    brought here."""
    params = folder.parents[1] / "params.yaml"
    role = folder.name
    where = f"{params}: download.{role}.incoming"
    settings = load_section(params, "download", DownloadSettings, role)
    if settings.incoming is None:
        raise ValueError(f"{where} is null: nothing would read what comes; see docs/real-data.md")

    options = convert(dict(settings.incoming.options), TableOptions, f"{where}.options")
    labelled = PurePosixPath(folder.parent.name, role, LABELLED)
    table = PurePosixPath(options.table)
    photos = PurePosixPath(options.photos_folder)
    is_read = table.is_relative_to(labelled) and photos.is_relative_to(LABELLED)
    if (
        settings.incoming.source != "table"
        or str(labelled) not in settings.incoming.locations
        or not is_read
    ):
        raise ValueError(
            f"{where}: must read a table and its photos from {labelled}, where they are brought"
        )

    return Wanted(
        table=str(table.relative_to(labelled)),
        photos="/".join(photos.relative_to(LABELLED).parts),
        options=options,
        max_photo_bytes=settings.limits.max_photo_bytes,
    )


def usable_lines(table: Path, wanted: Wanted, database: IntakeDatabase) -> Iterator[Line]:
    """The table's usable lines; the others are refused one by one. ValueError if the table itself
    is incomplete."""
    columns = wanted_columns(wanted.options)
    for number, line in _checked_lines(table, wanted):
        name = line[wanted.options.columns.photo]
        text = "\x1f".join(line[column] for column in columns)
        try:
            yield Line(_name(name, wanted), number, text)
        except ValueError as error:
            database.refuse(number, printable(name), str(error))


def _checked_lines(table: Path, wanted: Wanted) -> Iterator[tuple[int, dict[str, str]]]:
    """(number, cells by column) of every line; ValueError for a table that looks half-written or
    wrong."""
    columns = wanted_columns(wanted.options)
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=wanted.options.delimiter, strict=True)
            header = next(reader, [])
            missing = [column for column in columns if header.count(column) != 1]
            if missing:
                raise ValueError(
                    f"has the column {missing[0]!r} {header.count(missing[0])} times; it has "
                    f"{header}"
                )

            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise ValueError(
                        f"line {reader.line_num} has {len(cells)} cells, the first line "
                        f"{len(header)}"
                    )
                named = dict(zip(header, cells, strict=True))
                yield reader.line_num, {column: named[column].strip() for column in columns}

        with table.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() not in b"\r\n":
                raise ValueError("its last line does not end: is it half-written?")
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read ({error})") from error


def _name(text: str, wanted: Wanted) -> str:
    """A photo's path below the labelled folder; ValueError gives the reason if it is refused."""
    try:
        name = safe_name(text)
    except ValueError as error:
        raise ValueError("its name is empty or leads out of the folder") from error

    name = f"{wanted.photos}/{name}" if wanted.photos else name
    if is_ignored(name):
        raise ValueError("its name begins with a dot, or is one that systems leave behind")
    if name == wanted.table:
        raise ValueError("its name is the table's own")
    if reason := odd_name(name):
        raise ValueError(reason)
    return name
