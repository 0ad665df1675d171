"""A folder per person (LFW, VGGFace2, CASIA-WebFace, CFP, one's own): the folder that holds the
photo is the person.

Where a set has a folder in between (`Person/frontal/01.jpg`), `person_level` counts the folders
from the top of the raw folder: LFW's `lfw-deepfunneled/Abdullah_Gul/Abdullah_Gul_0001.jpg` has its
person at level 2. There are no labels. LFW is read in the same way, with its own rule that a
photo's name begins with its person's: a misplaced photo is listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.ingest.records import ManifestRow, NoOptions, ReportSkip, Source
from visage.photo_files import photos_under


@dataclass(frozen=True, kw_only=True)
class PeopleOptions:
    """`person_level`: 1 for `person/photo.jpg`, 2 for `set/person/photo.jpg`, and so on."""

    person_level: int

    def __post_init__(self) -> None:
        if self.person_level < 1:
            raise ValueError(f"person_level {self.person_level}: the first folder is level 1")


def people_rows(
    raw_dir: Path, options: PeopleOptions, report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """Every photo below a person's folder becomes a row with that person."""
    for photo_id in photos_under(raw_dir):
        folders = photo_id.split("/")[:-1]
        if len(folders) < options.person_level:
            report_skip(
                photo_id,
                f"is in {len(folders)} folders; the person's is number {options.person_level}",
            )
            continue
        yield ManifestRow(photo_id, None, None, folders[options.person_level - 1], None, None, None)


def lfw_rows(
    raw_dir: Path,
    options: NoOptions,  # noqa: ARG001
    report_skip: ReportSkip,
) -> Iterator[ManifestRow]:
    """LFW: `<any>/<Person>/<Person>_<number>.jpg`."""
    for photo_id in photos_under(raw_dir):
        *folders, name = photo_id.split("/")
        person = folders[-1] if folders else ""
        if not person or not re.fullmatch(re.escape(person) + r"_\d{4}\.jpg", name):
            report_skip(photo_id, f"not in the form Person/Person_0001.jpg (folder {person!r})")
            continue
        yield ManifestRow(photo_id, None, None, person, None, None, None)


PEOPLE = Source(name="people", options=PeopleOptions, rows=people_rows, produce=None)
LFW = Source(name="lfw", options=NoOptions, rows=lfw_rows, produce=None)
