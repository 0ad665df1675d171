"""UTKFace (aligned and cropped): the file name is the label.

`[age]_[gender]_[race]_[date and time].jpg.chip.jpg`, the stamp being 17 digits; gender 0 male, 1
female; race 0 White, 1 Black, 2 Asian, 3 Indian, 4 Others. In the complete set 23,700 of 23,708
names have that form. The other eight are repaired, each for a reason that holds (none is renamed on
disk):
- a blank before, or a missing dot after, the stamp, and stamps of 16 or 18 digits: the three label
  fields are complete;
- one field is missing (three names): it is the race. The names made in the seconds around each of
  the three carry gender 1 almost without exception and race 1 almost never, so the 1 that is left
  is the gender. Ethnicity is null.

Protocols: `all_ages` takes every photo and gives no split. `coral` takes the public CORAL split:
only photos of ages 21 to 60 that `lists.train` or `lists.test` name (without `.chip.jpg`); two
train names exist on disk only under malformed names and are matched to those. Photos outside the
lists are counted in one line of skipped.csv (photo_id `*`); a list's age that is not the name's
age, or a name without a photo, is listed.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from stages.ingest.records import ManifestRow, ReportSkip, Source, from_repository
from visage.photo_files import photos_under

SEXES = {"0": "male", "1": "female"}
ETHNICITIES = {"0": "white", "1": "black", "2": "asian", "3": "indian", "4": "others"}
SUFFIX = re.compile(r"(\.jpg)?(\.chip)?\.jpg$", re.IGNORECASE)
WELL_FORMED = re.compile(r"\d{1,3}_[01]_[0-4]_\d{17}\.jpg(\.chip\.jpg)?")
COMPLETE = re.compile(r"(?P<age>\d{1,3})_+(?P<sex>[01])_+(?P<race>[0-4])_+(?P<stamp>\d{14,20})")
NO_RACE = re.compile(r"(?P<age>\d{1,3})_(?P<sex>[01])_(?P<stamp>\d{17})")


@dataclass(frozen=True, kw_only=True)
class UtkfaceOptions:
    """`lists`: the CSV of each split (columns filename and age), keys train and test; empty for
    `all_ages`."""

    protocol: Literal["coral", "all_ages"]
    lists: Mapping[str, Path]

    def __post_init__(self) -> None:
        wanted = {"train", "test"} if self.protocol == "coral" else set()
        if set(self.lists) != wanted:
            raise ValueError(
                f"lists: protocol {self.protocol} wants {sorted(wanted)}, found "
                f"{sorted(self.lists)}"
            )


@dataclass(frozen=True, kw_only=True)
class Name:
    """What a file name says. `listed` is the form that lists use; `repair` says what was wrong,
    None if nothing."""

    age: int
    sex: str
    ethnicity: str | None
    listed: str
    repair: str | None


def parse_name(name: str) -> Name:
    """A UTKFace file name becomes its labels; ValueError where the meaning is not certain."""
    stem = SUFFIX.sub("", name).removesuffix("jpg").strip()
    if found := COMPLETE.fullmatch(stem):
        ethnicity: str | None = ETHNICITIES[found["race"]]
    elif found := NO_RACE.fullmatch(stem):
        ethnicity = None
    else:
        raise ValueError(
            f"name {name!r} is not [age]_[gender]_[race]_[stamp].jpg.chip.jpg; "
            "its meaning is not certain"
        )

    repair = None
    if not WELL_FORMED.fullmatch(name):
        repair = _what_was_wrong(name, found["stamp"], ethnicity)
    return Name(
        age=int(found["age"]),
        sex=SEXES[found["sex"]],
        ethnicity=ethnicity,
        listed="_".join(field for field in stem.split("_") if field) + ".jpg",
        repair=repair,
    )


def _what_was_wrong(name: str, stamp: str, ethnicity: str | None) -> str:
    if ethnicity is None:
        return "the race field is missing: age and sex are taken, ethnicity is left empty"
    if len(stamp) != 17:
        return f"the stamp has {len(stamp)} digits, not 17: the label fields are complete and taken"
    return (
        f"the separators are not the usual ones ({name[-30:]!r}): "
        "the label fields are complete and taken"
    )


def utkface_rows(
    raw_dir: Path, options: UtkfaceOptions, report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """The photos below `raw_dir` become rows with age, sex, ethnicity and, for `coral`, the lists'
    split."""
    listed = _read_lists(options) if options.protocol == "coral" else None
    num_outside = 0

    for photo_id in photos_under(raw_dir):
        try:
            name = parse_name(PurePosixPath(photo_id).name)
        except ValueError as error:
            report_skip(photo_id, str(error))
            continue

        split = None
        if listed is not None:
            entry = listed.pop(name.listed, None)
            if entry is None:
                num_outside += 1
                continue
            split, age = entry
            if age != name.age:
                report_skip(photo_id, f"the {split} list says age {age}, the name says {name.age}")
                continue

        if name.repair is not None:
            report_skip(photo_id, name.repair, action="repaired")
        yield ManifestRow(photo_id, float(name.age), None, None, name.sex, name.ethnicity, split)

    for missing, (split, _) in (listed or {}).items():
        report_skip(missing, f"the {split} list names it, but there is no such photo")
    if num_outside:
        report_skip("*", f"{num_outside} photos are in neither list of the coral protocol")


def _read_lists(options: UtkfaceOptions) -> dict[str, tuple[str, int]]:
    """List name -> (split, age); a name that the lists hold twice is an error."""
    listed: dict[str, tuple[str, int]] = {}
    for split, path in options.lists.items():
        file = from_repository(path)
        if not file.is_file():
            raise ValueError(f"{file}: no such list; set download.<role>.options.lists.{split}")

        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                if "filename" not in row or not (row.get("age") or "").isdigit():
                    raise ValueError(
                        f"{file}: expected the columns filename and age (whole years), found {row}"
                    )
                if row["filename"] in listed:
                    raise ValueError(
                        f"{file}: {row['filename']} is listed twice; a photo has one split"
                    )
                listed[row["filename"]] = (split, int(row["age"]))
    return listed


UTKFACE = Source(name="utkface", options=UtkfaceOptions, rows=utkface_rows, produce=None)
