"""Adience (Eidinger, Enbar, Hassner 2014): photos of Flickr accounts, labelled with age groups.

`fold_0_data.txt` to `fold_4_data.txt` have tab-separated lines with a header: user_id,
original_image, face_id, age, gender, then box and angles, which are not used. The picture is
`PICTURES/USER_ID/PREFIX.FACE_ID.ORIGINAL_IMAGE`: `aligned` has the prefix `landmark_aligned_face`,
`faces` has `coarse_tilt_aligned_face`. An age is a group of completed years, "(25, 32)", or now and
then one year, "35". A group becomes the interval from half a year below its first label to half a
year above its last one: its middle is the label, and the distribution is flat over it
(visage.labels.interval). Lines whose age is None are left out.

The five folds share no person. With `test_fold` that fold is the test split and the others train;
without, no split is given and all folds' photos are there to train on.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.ingest.records import ManifestRow, ReportSkip, Source, from_repository

PREFIXES = {"aligned": "landmark_aligned_face", "faces": "coarse_tilt_aligned_face"}
SEXES = {"m": "male", "f": "female"}
GROUP = re.compile(r"\((?P<first>\d{1,3}), ?(?P<last>\d{1,3})\)")
NEEDED = ("user_id", "original_image", "face_id", "age", "gender")


@dataclass(frozen=True, kw_only=True)
class AdienceOptions:
    """`lists`: the folds' files, in the order of their numbers. `pictures`: which of the two
    folders of pictures the locations bring."""

    lists: tuple[Path, ...]
    pictures: Literal["aligned", "faces"]
    test_fold: int | None

    def __post_init__(self) -> None:
        if not self.lists:
            raise ValueError("lists: empty; name the folds' files")
        if self.test_fold is not None and not 0 <= self.test_fold < len(self.lists):
            raise ValueError(
                f"test_fold {self.test_fold}: give 0 to {len(self.lists) - 1}, or null"
            )


def parse_age(text: str) -> tuple[float, float | None]:
    """An age or a group -> the label, and half the group's width (None for an age), in years;
    ValueError for anything else."""
    if text.isdecimal():
        return float(text), None
    found = GROUP.fullmatch(text)
    if found is None:
        raise ValueError(f"age {text!r} is neither a year nor a group such as (25, 32)")

    first = int(found["first"])
    last = int(found["last"])
    if first > last:
        raise ValueError(f"age {text!r}: the lower end comes first")
    return (first + last) / 2, (last - first + 1) / 2


def adience_rows(
    raw_dir: Path, options: AdienceOptions, report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """Every line with an age and a picture becomes a row; a picture that two lines label
    differently is left out."""
    rows: dict[str, ManifestRow] = {}
    differing: set[str] = set()

    for fold, path in enumerate(options.lists):
        split = None
        if options.test_fold is not None:
            split = "test" if fold == options.test_fold else "train"
        for number, line in enumerate(_lines(from_repository(path)), start=2):
            try:
                row = _row(line, raw_dir, options.pictures, split)
            except ValueError as error:
                report_skip(f"{path.name}:{number}", str(error))
                continue
            if rows.setdefault(row.photo_id, row) != row:
                differing.add(row.photo_id)

    for photo_id, row in rows.items():
        if photo_id in differing:
            report_skip(photo_id, "two lines say different things of it; neither is certain")
        else:
            yield row


def _lines(path: Path) -> Iterator[Mapping[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = sorted(set(NEEDED) - set(reader.fieldnames or ()))
        if missing:
            raise ValueError(
                f"{path}: no column {missing[0]!r}; give Adience's fold_N_data.txt, tab-separated"
            )
        yield from reader


def _row(
    line: Mapping[str, str], raw_dir: Path, pictures: Literal["aligned", "faces"], split: str | None
) -> ManifestRow:
    """A line as a row; ValueError says why there is none."""
    if line["age"] in ("None", ""):
        raise ValueError("has no age")
    label, half_width = parse_age(line["age"])

    name = f"{PREFIXES[pictures]}.{line['face_id']}.{line['original_image']}"
    photo_id = f"{pictures}/{line['user_id']}/{name}"
    if not (raw_dir / photo_id).is_file():
        raise ValueError(f"no such photo: {photo_id}")

    return ManifestRow(
        photo_id=photo_id,
        label=label,
        sigma=None,
        person=f"{line['user_id']}/{line['face_id']}",
        sex=SEXES.get(line["gender"]),
        ethnicity=None,
        split=split,
        half_width=half_width,
    )


ADIENCE = Source(name="adience", options=AdienceOptions, rows=adience_rows, produce=None)
