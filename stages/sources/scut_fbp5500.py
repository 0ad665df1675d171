"""SCUT-FBP5500: 5,500 faces, each rated for attractiveness by 60 people on a scale of 1 to 5.

Photos `Images/<AF|AM|CF|CM><n>.jpg`: Asian or Caucasian, female or male. `All_labels.txt`
(`CF437.jpg 2.883333`) holds the labels, `All_Ratings.xlsx` (columns Rater, Filename, Rating) the
single ratings. Sigma is their population standard deviation, sqrt(mean((r - mean(r))^2)): how far
those raters disagree, not an estimate for others; a photo that several sheets of the file name is
taken from the first of them.

Protocols, both the authors' own lists: `folds` takes `cross_validation_<k>/{train,test}_<k>.txt`
with k = `fold`, 1 to 5; `split_60_40` takes `split_of_60%training and 40%testing/{train,test}.txt`.
All these files come with the photos.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from stages.ingest.records import ManifestRow, ReportSkip, Source, only_file
from stages.ingest.spreadsheet import cell_number, named_rows
from visage.photo_files import photos_under

LABELS = "All_labels.txt"
RATINGS = "All_Ratings.xlsx"
NAME = re.compile(r"(?P<ethnicity>[AC])(?P<sex>[FM])\d+\.jpg")
ETHNICITIES = {"A": "asian", "C": "white"}
SEXES = {"F": "female", "M": "male"}
LOWEST = 1.0
HIGHEST = 5.0
NUM_FOLDS = 5
# Between a split list's label and that of All_labels.txt
ROUNDING = 1e-4


@dataclass(frozen=True, kw_only=True)
class ScutFbp5500Options:
    """`fold`: 1 to 5 for protocol `folds`, null for `split_60_40`."""

    protocol: Literal["folds", "split_60_40"]
    fold: int | None

    def __post_init__(self) -> None:
        if self.protocol == "folds" and self.fold not in range(1, NUM_FOLDS + 1):
            raise ValueError(f"fold {self.fold}: protocol folds has the folds 1 to {NUM_FOLDS}")
        if self.protocol == "split_60_40" and self.fold is not None:
            raise ValueError(f"fold {self.fold}: protocol split_60_40 has none; say null")

    def lists(self) -> dict[str, str]:
        """The ending of each split's list."""
        if self.protocol == "folds":
            ending = f"cross_validation_{self.fold}/{{split}}_{self.fold}.txt"
        else:
            ending = "split_of_60%training and 40%testing/{split}.txt"
        return {split: ending.format(split=split) for split in ("train", "test")}


def scut_fbp5500_rows(
    raw_dir: Path, options: ScutFbp5500Options, report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """Every labelled photo becomes a row with its raters' mean, their spread and its split."""
    labels = read_scores(only_file(raw_dir, LABELS), report_skip)
    splits = _read_splits(raw_dir, options, report_skip)
    spreads = read_spreads(only_file(raw_dir, RATINGS), report_skip)

    for photo_id in photos_under(raw_dir):
        name = PurePosixPath(photo_id).name
        found = NAME.fullmatch(name)
        label = labels.pop(name, None)
        split, listed = splits.pop(name, (None, None))
        if found is None:
            report_skip(photo_id, "not in the form AF1.jpg, AM1.jpg, CF1.jpg or CM1.jpg")
        elif label is None:
            report_skip(photo_id, f"has no usable line in {LABELS}, or another photo has its name")
        elif listed is not None and abs(listed - label) > ROUNDING:
            report_skip(photo_id, f"the {split} list says {listed:g}, {LABELS} says {label:g}")
        else:
            yield ManifestRow(
                photo_id=photo_id,
                label=label,
                sigma=spreads.get(name),
                person=None,
                sex=SEXES[found["sex"]],
                ethnicity=ETHNICITIES[found["ethnicity"]],
                split=split,
            )

    for name in sorted({*labels, *splits}):
        source = LABELS if name in labels else "a split list"
        report_skip(name, f"{source} names it, but there is no such photo")


def _read_splits(
    raw_dir: Path, options: ScutFbp5500Options, report_skip: ReportSkip
) -> dict[str, tuple[str | None, float | None]]:
    """Photo name -> (split, label); ValueError where two lists name one photo."""
    splits: dict[str, tuple[str | None, float | None]] = {}
    for split, ending in options.lists().items():
        file = only_file(raw_dir, ending)
        for name, label in read_scores(file, report_skip).items():
            if name in splits:
                raise ValueError(
                    f"{file}: {name} is in the list of {splits[name][0]} too; a photo has one split"
                )
            splits[name] = (split, label)
    return splits


def read_scores(file: Path, report_skip: ReportSkip) -> dict[str, float]:
    """Lines `AF1.jpg 2.88` -> name -> label; a line of another form, or of a photo named before,
    is listed."""
    scores: dict[str, float] = {}
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            text, _, score = line.strip().rpartition(" ")
            name = text.strip()
            label = cell_number(score)

            if name in scores:
                why = "names its photo again"
            elif not name or label is None or not LOWEST <= label <= HIGHEST:
                why = f"is not a name and a label from {LOWEST:g} to 5"
            else:
                scores[name] = label
                continue
            report_skip(f"{file.name} line {number}", f"{line.strip()[:80]!r} {why}")
    return scores


def read_spreads(sheet: Path, report_skip: ReportSkip) -> dict[str, float]:
    """Photo name -> population standard deviation of its ratings; ratings off the scale are counted
    in one line."""
    sums: dict[str, tuple[str, int, float, float]] = {}
    num_odd = 0
    first_odd = ""

    for title, number, cells in named_rows(sheet, ("Rater", "Filename", "Rating")):
        if cells["Filename"] is None:
            continue
        name = str(cells["Filename"]).strip()
        rating = cell_number(cells["Rating"])
        if rating is None or not LOWEST <= rating <= HIGHEST:
            num_odd += 1
            first_odd = first_odd or f"{title} line {number}: {cells['Rating']!r}"
            continue

        # A photo's ratings come from the first sheet that names it
        first_title, count, total, squares = sums.get(name, (title, 0, 0.0, 0.0))
        if first_title == title:
            sums[name] = (title, count + 1, total + rating, squares + rating * rating)

    if num_odd:
        report_skip(
            sheet.name,
            f"{num_odd} ratings are not numbers from 1 to 5 (first: {first_odd}); not counted",
        )
    spreads = {}
    for name, (_, count, total, squares) in sums.items():
        # Rounding may bring the variance of equal ratings below 0
        spreads[name] = math.sqrt(max(0.0, squares / count - (total / count) ** 2))
    return spreads


SCUT_FBP5500 = Source(
    name="scut_fbp5500", options=ScutFbp5500Options, rows=scut_fbp5500_rows, produce=None
)
