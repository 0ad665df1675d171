"""SCUT-FBP: 500 photos of Asian women, rated for attractiveness by about 70 people each on a scale
of 1 to 5.

Photos `Data_Collection/SCUT-FBP-<n>.jpg`; the rating sheet (xlsx, `Rating_Collection/Attractiveness
label.xlsx`) has the photo's number in its first column, the mean rating in the second, the ratings'
standard deviation in the third: the label and its sigma. The set gives no split; the papers'
protocol is random 80-20, `split.test_fraction` 0.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stages.ingest.records import ManifestRow, ReportSkip, Source, only_file
from stages.ingest.spreadsheet import cell_number, sheet_lines
from visage.photo_files import photos_under

NAME = re.compile(r"SCUT-FBP-(\d+)\.jpe?g", re.IGNORECASE)
LOWEST = 1.0
HIGHEST = 5.0


@dataclass(frozen=True, kw_only=True)
class ScutFbpOptions:
    """`ratings`: the name of the rating sheet, a file that the locations bring along."""

    ratings: str


def scut_fbp_rows(
    raw_dir: Path, options: ScutFbpOptions, report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """Every rated photo becomes a row with mean and standard deviation of its ratings."""
    rated = _read_ratings(only_file(raw_dir, options.ratings), report_skip)

    for photo_id in photos_under(raw_dir):
        found = NAME.fullmatch(PurePosixPath(photo_id).name)
        if found is None:
            report_skip(photo_id, "not in the form SCUT-FBP-<n>.jpg")
        elif int(found[1]) not in rated:
            report_skip(
                photo_id,
                f"has no usable line in {options.ratings}, or another photo has its number",
            )
        else:
            mean, std = rated.pop(int(found[1]))
            yield ManifestRow(photo_id, mean, std, None, "female", "asian", None)

    for number in rated:
        report_skip(
            f"SCUT-FBP-{number}.jpg",
            f"{options.ratings} rates it, but there is no such photo",
        )


def _read_ratings(sheet: Path, report_skip: ReportSkip) -> dict[int, tuple[float, float | None]]:
    """Photo number -> (mean, std); lines above the first number are headings, later ones
    without a rating are listed."""
    rated: dict[int, tuple[float, float | None]] = {}
    for title, line, cells in sheet_lines(sheet):
        # A short line lacks its last cells
        image, mean, std = (*cells, None, None, None)[:3]
        if image is None or (not rated and _photo_number(image) is None):
            continue
        try:
            number, values = _rating(image, mean, std)
            if number in rated:
                raise ValueError(f"photo {number} has a line above already")
        except ValueError as error:
            report_skip(f"{sheet.name}: {title} line {line}", str(error))
            continue
        rated[number] = values

    if not rated:
        raise ValueError(
            f"{sheet}: no line holds a photo's number, mean and standard deviation; "
            "correct the options"
        )
    return rated


def _photo_number(image: Any) -> int | None:
    """`7`, `7.0` and `SCUT-FBP-7.jpg` are photo 7."""
    if found := NAME.fullmatch(str(image).strip()):
        return int(found[1])
    value = cell_number(image)
    return int(value) if value is not None and value == int(value) else None


def _rating(image: Any, mean: Any, std: Any) -> tuple[int, tuple[float, float | None]]:
    number = _photo_number(image)
    label = cell_number(mean)
    sigma = cell_number(std)
    if number is None:
        raise ValueError(f"{image!r} is no photo's number")
    if label is None or not LOWEST <= label <= HIGHEST:
        raise ValueError(
            f"photo {number}: mean {mean!r} is not on the scale of {LOWEST:g} to {HIGHEST:g}"
        )
    if (std is not None and sigma is None) or (sigma is not None and sigma < 0):
        raise ValueError(f"photo {number}: standard deviation {std!r} is none")
    return number, (label, sigma)


SCUT_FBP = Source(name="scut_fbp", options=ScutFbpOptions, rows=scut_fbp_rows, produce=None)
