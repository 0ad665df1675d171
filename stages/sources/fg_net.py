"""FG-NET: 1,002 photos of 82 people from childhood on; the file name is person and age.

`001A02.JPG` is person 001 at two years, `001A43a.JPG` the first of several photos of one age. The
protocol is `split.assign: leave_person_out`: fold k tests on the k-th person; the result is that of
all folds' photos together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from stages.ingest.records import ManifestRow, NoOptions, ReportSkip, Source
from visage.photo_files import photos_under

NAME = re.compile(r"(?P<person>\d{3})A(?P<age>\d{2})[a-z]?\.jpe?g", re.IGNORECASE)


def fg_net_rows(
    raw_dir: Path,
    options: NoOptions,  # noqa: ARG001
    report_skip: ReportSkip,
) -> Iterator[ManifestRow]:
    """Every photo with such a name becomes a row."""
    for photo_id in photos_under(raw_dir):
        name = PurePosixPath(photo_id).name
        found = NAME.fullmatch(name)
        if found is None:
            report_skip(
                photo_id,
                f"name {name!r} is not [person]A[age].JPG such as 001A02.JPG or 001A43a.JPG",
            )
            continue

        yield ManifestRow(
            photo_id=photo_id,
            label=float(found["age"]),
            sigma=None,
            person=found["person"],
            sex=None,
            ethnicity=None,
            split=None,
        )


FG_NET = Source(name="fg_net", options=NoOptions, rows=fg_net_rows, produce=None)
