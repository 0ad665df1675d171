"""All-Age-Faces: 13,322 photos, most of Asian people, 2 to 80 years; the file name is number and
age, `00000A02.jpg`.

The first 7,381 numbers are women and girls, the others men and boys. The release holds each photo
twice, in `original images` and, cut out, in `aglined faces` (so spelt), under one name:
`photos_folder` says which to take; the others are counted in one line of skipped.csv (photo_id
`*`). Every number is another photo; the persons are unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stages.ingest.records import ManifestRow, ReportSkip, Source
from visage.photo_files import photos_under

NAME = re.compile(r"(?P<number>\d{5})A(?P<age>\d{2})\.jpe?g", re.IGNORECASE)
NUM_FEMALE = 7381


@dataclass(frozen=True, kw_only=True)
class AafOptions:
    """`photos_folder`: the name of the folder that holds the photos to take, wherever it is."""

    photos_folder: str


def aaf_rows(raw_dir: Path, options: AafOptions, report_skip: ReportSkip) -> Iterator[ManifestRow]:
    """Every photo of the folder with such a name becomes a row; a number twice is taken once."""
    num_elsewhere = 0
    first_of: dict[str, str] = {}

    for photo_id in photos_under(raw_dir):
        path = PurePosixPath(photo_id)
        found = NAME.fullmatch(path.name)
        if path.parent.name != options.photos_folder:
            num_elsewhere += 1
        elif not found:
            report_skip(
                photo_id, f"name {path.name!r} is not [number]A[age].jpg such as 00000A02.jpg"
            )
        elif (first := first_of.setdefault(found["number"], photo_id)) != photo_id:
            report_skip(photo_id, f"number {found['number']} is {first}'s already")
        else:
            sex = "female" if int(found["number"]) < NUM_FEMALE else "male"
            yield ManifestRow(photo_id, float(found["age"]), None, None, sex, None, None)

    if num_elsewhere:
        report_skip("*", f"{num_elsewhere} photos are not in a folder {options.photos_folder!r}")


AAF = Source(name="aaf", options=AafOptions, rows=aaf_rows, produce=None)
