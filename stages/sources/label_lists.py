"""Lists of labels beside the photos (ChaLearn, APPA-REAL): every line names a photo, its label and
its deviation.

Left out with their reason: a line without three fields or without a number, a photo that is not
there, and a photo of which two lines say different things. A photo of which several lines say the
same is taken once and listed as repaired. Photos that no line names are listed as well. Bytes that
are not UTF-8 become U+FFFD, so that such a name is listed, not fatal.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from stages.ingest.archives import safe_name
from stages.ingest.records import ManifestRow, ReportSkip, from_repository
from stages.sources.table import number
from visage.photo_files import PHOTO_SUFFIXES, photos_under


@dataclass(frozen=True, kw_only=True)
class LabelList:
    """One list: all its photos are in `photos_folder` ('' for the raw folder) and belong to
    `split`."""

    file: Path
    photos_folder: str
    split: Literal["train", "val", "test"]

    def photo_id(self, name: str) -> str:
        """The photo that the list means by a name, written in one way."""
        parts = f"{self.photos_folder}/{name}".replace("\\", "/").split("/")
        return "/".join(part for part in parts if part not in ("", "."))


class Listed(NamedTuple):
    """One line: its texts as they are written, and its file and line number."""

    photo_id: str
    label: str
    sigma: str
    split: str
    where: str


def read_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of a list, each line separated by semicolons or commas; a header is
    left out."""
    file = from_repository(path)
    if not file.is_file():
        raise ValueError(f"{file}: no such list; correct download.<role>.options")

    is_first = True
    with file.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
        for line_number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            delimiter = ";" if ";" in line else ","
            (fields,) = csv.reader([line.strip()], delimiter=delimiter)

            # Only the first line can be a header: it does not begin with a photo's name
            suffix = Path(fields[0].strip()).suffix.lower()
            is_header = is_first and suffix not in PHOTO_SUFFIXES
            is_first = False
            if not is_header:
                yield line_number, [field.strip() for field in fields]


def listed_rows(
    raw_dir: Path, lines: Iterable[Listed], report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """A row for every photo whose lines agree, whose label is a number, and that is there."""
    by_photo: dict[str, list[Listed]] = {}
    for line in lines:
        by_photo.setdefault(line.photo_id, []).append(line)

    for photo_id, same in by_photo.items():
        try:
            row = _row(raw_dir, same)
        except ValueError as error:
            report_skip(photo_id, f"{same[0].where}: {error}")
            continue
        if len(same) > 1:
            where = " and ".join(line.where for line in same)
            report_skip(photo_id, f"{where} say the same of it: taken once", action="repaired")
        yield row

    for photo_id in photos_under(raw_dir):
        if photo_id not in by_photo:
            report_skip(photo_id, "no list names it")


def _row(raw_dir: Path, same: list[Listed]) -> ManifestRow:
    """The row that all lines about a photo agree on; ValueError says why there is none."""
    line = same[0]
    for other in same[1:]:
        # All but `where`
        if other[:-1] != line[:-1]:
            raise ValueError(
                f"says {line[1:-1]}, but {other.where} says {other[1:-1]}; "
                "which one holds is not certain"
            )

    photo_id = safe_name(line.photo_id)
    if not (raw_dir / photo_id).is_file():
        raise ValueError("no such photo")
    label = number(line.label, "label")
    sigma = number(line.sigma, "sigma")
    if label is None:
        raise ValueError("has no label")
    if sigma is not None and sigma < 0:
        raise ValueError(f"sigma {sigma} is below 0")

    return ManifestRow(photo_id, label, sigma, None, None, None, line.split)
