"""MORPH II (MORPH Album 2, 2008, non-commercial): 55,134 police photos of 13,617 people, 16 to 77
years.

Photos are `<id>_<n><sex><age>.JPG` (009055_1M54.JPG), anywhere below the raw folder; the
release's CSV (id_num, picture_num, dob, doa, race, gender, facial_hair, age, age_diff, glasses,
photo) adds the race. A photo that the CSV does not name, or whose person, sex or age is another one
there, is left out with its reason. The CSV gives some people several races or sexes, and several
dates of birth (so that their ages do not fit together). These photos stay; how many people have
several races or sexes is counted in one line of skipped.csv (photo_id `*`).

Protocols (`protocol`):
- `random`: every photo, no split of its own. Papers draw 80-20 by photo: `split` {assign: folds,
  group_by: picture, num_folds: 5}. A person is then trained and tested on; `group_by: person` is
  the strict variant.
- `caucasian`: the white photos alone, split likewise. Papers take 5,493 of them by a list that is
  not released with the set; `listed` is a CSV with the column photo that names them, null takes
  all.
- `s1_s2_s3` (Guo and Mu 2010): S1 and S2 hold as many black as white photos and about three of men
  to one of women, S3 is all the rest. Fold 0 trains on S1 and tests on S2 and S3, fold 1 trains on
  S2 and tests on S1 and S3; the result is that of both folds' test photos together. `sets.listed`
  is a CSV with the columns photo and set (S1, S2, S3); where it is null the photos of each race and
  sex are ordered by a seeded draw, the first make S1, the next S2.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from stages.ingest.records import ManifestRow, ReportSkip, Source
from stages.ingest.splits import draw
from stages.sources.table import read_table
from visage.photo_files import photos_under

NAME = re.compile(
    r"(?P<person>\d+)_(?P<number>\d+)(?P<sex>[MF])(?P<age>\d{2})\.jpe?g", re.IGNORECASE
)
SEXES = {"M": "male", "F": "female"}
ETHNICITIES = {"W": "white", "B": "black", "A": "asian", "H": "hispanic", "O": "others"}
TRAINS = ("S1", "S2")


@dataclass(frozen=True, kw_only=True)
class SetsOptions:
    """S1 and S2: photos of men and of women, of each of the two races, in each of them; `fold`:
    which one trains."""

    listed: Path | None
    men: int
    women: int
    seed: int
    fold: Literal[0, 1]


@dataclass(frozen=True, kw_only=True)
class MorphOptions:
    """`table`: the release's CSV. `listed` may go with `caucasian`, `sets` must go with `s1_s2_s3`;
    else null."""

    protocol: Literal["random", "caucasian", "s1_s2_s3"]
    table: Path
    listed: Path | None
    sets: SetsOptions | None

    def __post_init__(self) -> None:
        if (self.sets is not None) != (self.protocol == "s1_s2_s3"):
            raise ValueError(
                f"sets: protocol s1_s2_s3 wants it, any other wants null; this is {self.protocol}"
            )
        if self.listed is not None and self.protocol != "caucasian":
            raise ValueError(
                f"listed {self.listed}: belongs to protocol caucasian, this is {self.protocol}; "
                f"set null"
            )


class Entry(NamedTuple):
    """What a line of the CSV says, as it is written."""

    person: str
    sex: str
    age: str
    race: str


def morph_rows(
    raw_dir: Path, options: MorphOptions, report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """Every photo that name and CSV agree about becomes a row of the chosen protocol."""
    rows = _all_rows(raw_dir, options.table, report_skip)
    if options.protocol == "caucasian":
        rows = _caucasian(rows, options.listed, report_skip)
    elif options.sets is not None:
        rows = _with_sets(list(rows), options.sets, report_skip)

    seen: dict[str | None, set[tuple[str | None, str | None]]] = defaultdict(set)
    for row in rows:
        seen[row.person].add((row.sex, row.ethnicity))
        yield row

    several = sum(len(kinds) > 1 for kinds in seen.values())
    if several:
        report_skip(
            "*",
            f"none left out for it: {several} people are of several races or sexes in "
            f"{options.table.name}",
        )


def _all_rows(raw_dir: Path, table: Path, report_skip: ReportSkip) -> Iterator[ManifestRow]:
    entries = _read_entries(table)
    first_of: dict[str, str] = {}

    for photo_id in photos_under(raw_dir):
        name = PurePosixPath(photo_id).name
        first = first_of.setdefault(name, photo_id)
        if first != photo_id:
            report_skip(photo_id, f"{first} bears the same name and is taken")
            continue
        try:
            row = _row(photo_id, name, entries.get(name))
        except ValueError as error:
            report_skip(photo_id, str(error))
            continue
        if row.ethnicity is None:
            report_skip(
                photo_id,
                f"{table.name} gives no known race: ethnicity is left empty",
                action="repaired",
            )
        yield row

    for name in entries:
        if name not in first_of:
            report_skip(name, f"{table.name} names it, but there is no such photo")


def _read_entries(table: Path) -> dict[str, set[Entry]]:
    """File name -> what the CSV's lines say of it, each once."""
    entries: dict[str, set[Entry]] = {}
    for line in read_table(table, ",", ["id_num", "race", "gender", "age", "photo"]):
        entry = Entry(line["id_num"], line["gender"], line["age"], line["race"])
        entries.setdefault(_base(line["photo"]), set()).add(entry)
    return entries


def _base(photo: str) -> str:
    """A file's name less its folders, whichever system wrote them."""
    return photo.replace("\\", "/").rsplit("/", 1)[-1]


def _row(photo_id: str, name: str, entries: set[Entry] | None) -> ManifestRow:
    """The row of a photo; ValueError where name and CSV leave a doubt."""
    found = NAME.fullmatch(name)
    if not found:
        raise ValueError(f"name {name!r} is not [id]_[n][sex][age].JPG such as 009055_1M54.JPG")
    if entries is None:
        raise ValueError("the CSV does not name it")
    if len(entries) > 1:
        raise ValueError(f"the CSV's lines about it differ: {sorted(map(tuple, entries))}")

    (entry,) = entries
    person = _padded(found["person"])
    sex = found["sex"].upper()
    age = int(found["age"])
    if (_padded(entry.person), entry.sex.upper(), entry.age) != (person, sex, str(age)):
        raise ValueError(
            f"name {name!r} against {entry[:-1]} (person, sex, age) in the CSV: "
            "which holds is not certain"
        )

    return ManifestRow(
        photo_id=photo_id,
        label=float(age),
        sigma=None,
        person=person,
        sex=SEXES[sex],
        ethnicity=ETHNICITIES.get(entry.race.upper()),
        split=None,
    )


def _padded(person: str) -> str:
    """A person's number as six digits, however many the name or the CSV has."""
    return person.lstrip("0").zfill(6)


def _caucasian(
    rows: Iterator[ManifestRow], listed: Path | None, report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """The white photos, and of them those that are listed."""
    chosen: set[str] | None = None
    if listed is not None:
        chosen = {_base(line["photo"]) for line in read_table(listed, ",", ["photo"])}
    num_others = 0
    for row in rows:
        name = PurePosixPath(row.photo_id).name
        if row.ethnicity != "white" or (chosen is not None and name not in chosen):
            num_others += 1
            continue
        if chosen is not None:
            chosen.remove(name)
        yield row

    if num_others:
        report_skip("*", f"{num_others} photos are not of the caucasian protocol")
    for name in sorted(chosen or ()):
        report_skip(
            f"{name} in {listed}",
            "listed, but no usable photo of a white person bears this name",
        )


def _with_sets(
    rows: list[ManifestRow], sets: SetsOptions, report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """The rows, each with the split that its set has in this fold."""
    set_of = drawn_sets(rows, sets) if sets.listed is None else _listed_sets(sets.listed)
    for row in rows:
        name = PurePosixPath(row.photo_id).name
        if name in set_of:
            trains = set_of.pop(name) == TRAINS[sets.fold]
            yield row._replace(split="train" if trains else "test")
        else:
            report_skip(row.photo_id, "the list puts it in none of S1, S2, S3")
    for name in set_of:
        report_skip(f"{name} in {sets.listed}", "listed, but there is no usable photo of this name")


def drawn_sets(rows: list[ManifestRow], sets: SetsOptions) -> dict[str, str]:
    """File name -> S1, S2 or S3, by the rule of the module's docstring; ValueError where a group is
    too small."""
    groups: dict[tuple[str | None, str | None], list[str]] = defaultdict(list)
    set_of = {}
    for row in rows:
        name = PurePosixPath(row.photo_id).name
        groups[row.ethnicity, row.sex].append(name)
        set_of[name] = "S3"

    def number(name: str) -> float:
        return draw(sets.seed, "s1_s2_s3", name)

    for ethnicity in ("white", "black"):
        for sex, size in (("male", sets.men), ("female", sets.women)):
            names = sorted(groups[ethnicity, sex], key=number)
            if len(names) < 2 * size:
                raise ValueError(
                    f"sets: {2 * size} photos of {ethnicity} {sex}s wanted, {len(names)} there; "
                    "lower it"
                )
            set_of |= dict.fromkeys(names[:size], "S1")
            set_of |= dict.fromkeys(names[size : 2 * size], "S2")
    return set_of


def _listed_sets(listed: Path) -> dict[str, str]:
    """File name -> set, as a user's CSV says; a photo in two sets is an error, because the
    protocol's sets are disjoint."""
    set_of: dict[str, str] = {}
    for line in read_table(listed, ",", ["photo", "set"]):
        name = _base(line["photo"])
        is_known = line["set"] in (*TRAINS, "S3")
        if not is_known or set_of.setdefault(name, line["set"]) != line["set"]:
            raise ValueError(
                f"{listed}: {name} is in {line['set']!r}; every photo wants one of S1, S2, S3, "
                "always the same"
            )
    return set_of


MORPH = Source(name="morph", options=MorphOptions, rows=morph_rows, produce=None)
