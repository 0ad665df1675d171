"""APPA-REAL: 7,591 photos with their apparent age (38 guesses each) and the real one.

`gt_avg_{train,valid,test}.csv` (file_name, num_ratings, apparent_age_avg, apparent_age_std,
real_age), folders `train/`, `valid/`, `test/` with `000000.jpg` and beside it its crop
`000000.jpg_face.jpg`: turned upright, margins of 40 %. `photos: crops` takes the crops, which leave
no doubt about whose face is meant, `whole` the photos; the others are counted in one line of
skipped.csv (photo_id `*`). `label: apparent` has the guesses' deviation as sigma, `real` has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.ingest.records import Action, ManifestRow, ReportSkip, Source
from stages.sources.label_lists import LabelList, Listed, listed_rows
from stages.sources.table import read_table

CROP_SUFFIX = "_face.jpg"
COLUMNS = {"apparent": "apparent_age_avg", "real": "real_age"}


@dataclass(frozen=True, kw_only=True)
class AppaRealOptions:
    """`lists`: the averages of each split; `label`: which age; `photos`: which of the two pictures
    of a face."""

    lists: tuple[LabelList, ...]
    label: Literal["apparent", "real"]
    photos: Literal["crops", "whole"]


def appa_real_rows(
    raw_dir: Path, options: AppaRealOptions, report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """Every listed photo, or its crop, becomes a row."""
    others: list[str] = []

    def skip(photo_id: str, reason: str, *, action: Action = "skipped") -> None:
        if photo_id.endswith(CROP_SUFFIX) == (options.photos == "crops"):
            report_skip(photo_id, reason, action=action)
        else:
            others.append(photo_id)

    yield from listed_rows(raw_dir, _lines(options), skip)
    if others:
        report_skip(
            "*", f"{len(others)} pictures are not of the kind that photos: {options.photos} takes"
        )


def _lines(options: AppaRealOptions) -> Iterator[Listed]:
    column = COLUMNS[options.label]
    suffix = CROP_SUFFIX if options.photos == "crops" else ""
    wanted = ["file_name", column, "apparent_age_std"]

    for each in options.lists:
        for line_number, line in enumerate(read_table(each.file, ",", wanted), start=2):
            yield Listed(
                photo_id=each.photo_id(line["file_name"] + suffix),
                label=line[column],
                sigma=line["apparent_age_std"] if options.label == "apparent" else "",
                split=each.split,
                where=f"{each.file.name}:{line_number}",
            )


APPA_REAL = Source(name="appa_real", options=AppaRealOptions, rows=appa_real_rows, produce=None)
