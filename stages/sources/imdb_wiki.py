"""IMDB-WIKI: 460,723 photos of film people and 62,328 of Wikipedia's, with `imdb.mat` and
`wiki.mat` beside them.

The age is that on 1 July of the year in which the photo was taken (`photo_taken`), in whole years
from the date of birth (`dob`, MATLAB's serial days), as the authors compute it. Much of the set is
wrong: a film's still may be years older than the film, and the face found need not be the
person's. Hence the options, which use the authors' scores: `min_face_score` (no face at all is
-inf), `max_second_face_score` (a photo with a second face above it is left out; -.inf leaves out
every photo with two), and the range of ages. Every photo left out is listed with its reason.

`face_location` is not used: align finds the faces itself, in whole photos and in the release's
crops (`imdb_crop.tar`, `wiki_crop.tar`: the face and 40 % of margin), which are what to take. A
person is identified by the name, so that a split by person keeps namesakes, and one person of both
halves, on one side; without a name, by the number of the page.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.ingest.matlab import read_struct, text
from stages.ingest.records import ManifestRow, ReportSkip, Source
from visage.photo_files import photos_under

# MATLAB's serial day of 1970-01-01
UNIX_EPOCH = 719_529
FIELDS = ["dob", "photo_taken", "full_path", "gender", "name", "face_score", "second_face_score"]
SEXES = {0.0: "female", 1.0: "male"}


@dataclass(frozen=True, kw_only=True)
class ImdbWikiOptions:
    """`tables`: folder below the raw one -> its .mat, named like its struct (imdb.mat, wiki.mat).
    Ages in years."""

    tables: Mapping[str, Path]
    min_face_score: float
    max_second_face_score: float
    min_age: int
    max_age: int


Columns = dict[str, npt.NDArray[Any]]


def imdb_wiki_rows(
    raw_dir: Path, options: ImdbWikiOptions, report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """Every photo that passes the options' rules becomes a row."""
    for folder, table in options.tables.items():
        columns = read_struct(table, table.stem, FIELDS)
        columns["age"] = ages_on_1_july(columns["dob"], columns["photo_taken"])
        why_not = reasons(columns, options)
        yield from _table_rows(raw_dir, folder, columns, why_not, report_skip)
    for photo_id in photos_under(raw_dir):
        if photo_id.split("/")[0] not in options.tables:
            report_skip(photo_id, f"is in none of the folders {', '.join(options.tables)}")


def _table_rows(
    raw_dir: Path, folder: str, columns: Columns, why_not: list[str], report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """The rows of one .mat, in the order of its photos on disk."""
    line_of: dict[str, int] = {}
    for line, cell in enumerate(columns["full_path"]):
        first = line_of.setdefault(f"{folder}/{text(cell)}", line)
        if first != line:
            why_not[first] = f"lines {first + 1} and {line + 1} of the table both name it"

    here = raw_dir / folder
    for below in photos_under(here) if here.is_dir() else ():
        photo_id = f"{folder}/{below}"
        line = line_of.pop(photo_id, -1)
        if line < 0:
            report_skip(photo_id, "the table does not name it")
        elif why_not[line]:
            report_skip(photo_id, why_not[line])
        else:
            yield ManifestRow(
                photo_id=photo_id,
                label=float(columns["age"][line]),
                sigma=None,
                person=_person(columns["name"][line], below),
                sex=SEXES.get(float(columns["gender"][line])),
                ethnicity=None,
                split=None,
            )

    for photo_id in line_of:
        report_skip(photo_id, "the table names it, but there is no such photo")


def _person(name: Any, path: str) -> str:
    """The name, else the page's number, which the file's name begins with (nm0000001_...,
    10000217_...)."""
    return unicodedata.normalize("NFC", text(name)) or path.rsplit("/", 1)[-1].split("_")[0]


def ages_on_1_july(
    birth_days: npt.NDArray[Any], years: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Whole years from MATLAB's serial day of birth to 1 July of a year; NaN where one of them is
    no date."""
    usable = np.isfinite(birth_days.astype(np.float64)) & (birth_days > 0)
    usable &= np.isfinite(years.astype(np.float64))
    unix_days = np.where(usable, birth_days, UNIX_EPOCH).astype(np.int64) - UNIX_EPOCH
    born = unix_days.astype("datetime64[D]")

    birth_year = born.astype("datetime64[Y]")
    july = birth_year.astype("datetime64[M]") + np.timedelta64(6, "M")
    is_after_july_1 = born > july.astype("datetime64[D]")
    year = np.where(usable, years, 0).astype(np.int64)
    age = year - (birth_year.astype(np.int64) + 1970) - is_after_july_1

    return np.where(usable, age, np.nan)


def reasons(columns: Columns, options: ImdbWikiOptions) -> list[str]:
    """Why each photo of a table is left out; an empty text where it is not. The first rule that it
    breaks is named."""
    age = columns["age"]
    score = columns["face_score"].astype(np.float64)
    second = columns["second_face_score"].astype(np.float64)
    is_out_of_range = (age < options.min_age) | (age > options.max_age)
    has_second = second > options.max_second_face_score

    broken = {
        "its date of birth is none": np.isnan(age),
        f"its age is not {options.min_age} to {options.max_age}": is_out_of_range,
        "no face was found by the authors": ~np.isfinite(score),
        f"its face score is below {options.min_face_score:g}": score < options.min_face_score,
        f"its second face scores above {options.max_second_face_score:g}": has_second,
    }
    # The score of a photo without a face is -inf: this bound allows it
    if options.min_face_score == -math.inf:
        del broken["no face was found by the authors"]

    return [str(reason) for reason in np.select(list(broken.values()), list(broken), default="")]


IMDB_WIKI = Source(name="imdb_wiki", options=ImdbWikiOptions, rows=imdb_wiki_rows, produce=None)
