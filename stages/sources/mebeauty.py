"""MEBeauty: attractiveness rated by many people on a scale of 1 to 10; sigma is the standard
deviation of the ratings.

`ratings.csv` (image, sex, ethnicity, mean, std, raters, split), photos
`original_images/<sex>/<ethnicity>/<n>.jpg`. The scale is kept, the authors' split too; 3 photos are
in no split (download lists them under `split.assign: given`). Read as a table whose columns are
known; photos without a rating are listed as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.ingest.records import Action, ManifestRow, ReportSkip, Source
from stages.sources.table import TableColumns, TableOptions, table_rows
from visage.photo_files import photos_under

PHOTOS_FOLDER = "original_images"
LOWEST = 1.0
HIGHEST = 10.0
COLUMNS = TableColumns(
    photo="image",
    label="mean",
    sigma="std",
    person=None,
    sex="sex",
    ethnicity="ethnicity",
    split="split",
)


@dataclass(frozen=True, kw_only=True)
class MebeautyOptions:
    """`ratings`: the CSV of mean ratings."""

    ratings: Path


def mebeauty_rows(
    raw_dir: Path, options: MebeautyOptions, report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """Every rated photo becomes a row with mean and standard deviation of its ratings."""
    table = TableOptions(
        table=options.ratings,
        delimiter=",",
        photos_folder=PHOTOS_FOLDER,
        columns=COLUMNS,
    )
    listed = set()

    def skip(photo_id: str, reason: str, *, action: Action = "skipped") -> None:
        listed.add(photo_id)
        report_skip(photo_id, reason, action=action)

    for row in table_rows(raw_dir, table, skip):
        listed.add(row.photo_id)
        if row.label is None or not LOWEST <= row.label <= HIGHEST:
            report_skip(
                row.photo_id,
                f"mean rating {row.label} is not on the scale of {LOWEST:g} to {HIGHEST:g}",
            )
            continue
        yield row

    for photo_id in photos_under(raw_dir):
        if photo_id not in listed:
            report_skip(photo_id, f"has no line in {options.ratings.name}")


MEBEAUTY = Source(name="mebeauty", options=MebeautyOptions, rows=mebeauty_rows, produce=None)
