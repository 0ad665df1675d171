"""CACD: 163,446 photos of 2,000 celebrities; `celebrity2000_meta.mat` names each photo's age,
celebrity and rank.

Photos are `14_Aaron_Johnson_0001.jpg`. The rank (1 to 50) counts the celebrities of one birth year,
40 of each rank. The set's authors took wrong photos out by hand for ranks 1 to 5 only. The rest is
as a search engine found it, and its ages are years of photos less years of birth. The usual
protocol follows from that: ranks 1 and 2 (80 celebrities) for validation, 3 to 5 (120) for the
test, the other 1,800 for training. Nobody is in two splits.

Names with accents come out of archives in several encodings. They are matched by their ASCII
letters, and only where that leaves one photo of the table; each is listed as repaired.
Sex is unknown.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from stages.ingest.matlab import read_struct, text
from stages.ingest.records import ManifestRow, ReportSkip, Source
from visage.photo_files import photos_under

AGE = re.compile(r"(\d{1,3})_.+_\d+\.jpe?g", re.IGNORECASE)
SPLITS = ("val", "test")


@dataclass(frozen=True, kw_only=True)
class CacdOptions:
    """`meta`: celebrity2000_meta.mat. `ranks`: those of val and of test; all others train."""

    meta: Path
    ranks: Mapping[Literal["val", "test"], tuple[int, ...]]

    def __post_init__(self) -> None:
        has_both = set(self.ranks) == set(SPLITS)
        if not has_both or set(self.ranks["val"]) & set(self.ranks["test"]):
            raise ValueError(
                f"ranks {dict(self.ranks)}: give val and test each its own ranks; the others train"
            )


class CacdPhoto(NamedTuple):
    """What the table says of a photo."""

    age: int
    celebrity: int
    rank: int


def cacd_rows(
    raw_dir: Path, options: CacdOptions, report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """Every photo that the table knows becomes a row."""
    split_of: dict[int, str] = {}
    for split, ranks in options.ranks.items():
        split_of |= dict.fromkeys(ranks, split)
    table = _read_meta(options.meta)
    first_of: dict[str, str] = {}

    for photo_id in photos_under(raw_dir):
        name = PurePosixPath(photo_id).name
        key = _key(name)
        first = first_of.setdefault(key, photo_id)
        if first != photo_id:
            report_skip(photo_id, f"{first} is {key} of the table already")
            continue
        if reason := _why_not(name, table.get(key)):
            report_skip(photo_id, reason)
            continue

        if key != name:
            report_skip(
                photo_id,
                "a name with accents: matched to the table by its other letters",
                action="repaired",
            )
        (photo,) = table[key]
        yield ManifestRow(
            photo_id=photo_id,
            label=float(photo.age),
            sigma=None,
            person=f"{photo.celebrity:04}",
            sex=None,
            ethnicity=None,
            split=split_of.get(photo.rank) or "train",
        )

    for key in table:
        if key not in first_of:
            report_skip(key, "the table names it, but there is no such photo")


def _read_meta(meta: Path) -> dict[str, list[CacdPhoto]]:
    """Key of a name -> what the table's lines say of it; where that is more than one line, none is
    certain."""
    columns = read_struct(meta, "celebrityImageData", ["name", "age", "identity", "rank"])
    found: dict[str, list[CacdPhoto]] = {}
    for name, age, celebrity, rank in zip(*columns.values(), strict=True):
        photo = CacdPhoto(int(age), int(celebrity), int(rank))
        found.setdefault(_key(text(name)), []).append(photo)
    return found


def _key(name: str) -> str:
    """A name with every run of letters outside ASCII as one question mark, however it was
    encoded."""
    return re.sub(r"[^\x00-\x7f]+", "?", unicodedata.normalize("NFC", name))


def _why_not(name: str, lines: list[CacdPhoto] | None) -> str | None:
    """Why a photo has no row, None if it has one."""
    if lines is None:
        return "the table does not name it"
    if len(lines) > 1:
        return (
            f"the table names it {len(lines)} times, less the accents; "
            "which line is meant is not certain"
        )
    found = AGE.fullmatch(name)
    if not found or int(found[1]) != lines[0].age:
        return f"name {name!r} does not begin with the table's age {lines[0].age}"
    return None


CACD = Source(name="cacd", options=CacdOptions, rows=cacd_rows, produce=None)
