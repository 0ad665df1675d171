"""Chicago Face Database: neutral faces with the mean of their attractiveness ratings on a scale of
1 to 7.

Photos `CFD-<race><sex>-<id>-<n>-<expression>.jpg`; the norms are of the neutral ones (`N`, 597 in
the first set), the others are counted in one line of skipped.csv (photo_id `*`). The norming sheet
(xlsx) names its columns somewhere below its explanations: `Target` (`WF-001`, which is the person),
`Race`, `Gender`, `Attractive`. Of a target that several sheets of the file norm, the first counts.
The sheet holds no spread of the ratings, so sigma is null unless `sigma_column` names a column that
does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from stages.ingest.records import ManifestRow, ReportSkip, Source, only_file
from stages.ingest.spreadsheet import Line, cell_number, named_rows
from visage.photo_files import photos_under

NAME = re.compile(
    r"CFD-(?P<target>(?P<race>[A-Z])(?P<sex>[FM])-\d+)-\d+-(?P<expression>[A-Z]+)\.jpe?g",
    re.IGNORECASE,
)
RACES = {"A": "asian", "B": "black", "I": "indian", "L": "latino", "M": "multiracial", "W": "white"}
SEXES = {"F": "female", "M": "male"}
COLUMNS = ("Target", "Race", "Gender", "Attractive")
LOWEST = 1.0
HIGHEST = 7.0


@dataclass(frozen=True, kw_only=True)
class CfdOptions:
    """`norms`: the name of the norming sheet, a file that the locations bring along."""

    norms: str
    sigma_column: str | None


class Norm(NamedTuple):
    """What the sheet says of one target; race and sex as their letters."""

    race: str
    sex: str
    label: float
    sigma: float | None


def cfd_rows(raw_dir: Path, options: CfdOptions, report_skip: ReportSkip) -> Iterator[ManifestRow]:
    """Every neutral photo of a normed target becomes a row."""
    norms = _read_norms(only_file(raw_dir, options.norms), options.sigma_column, report_skip)
    photographed: set[str] = set()
    num_expressive = 0

    for photo_id in photos_under(raw_dir):
        name = NAME.fullmatch(PurePosixPath(photo_id).name)
        if name is None:
            report_skip(photo_id, "not in the form CFD-WF-001-003-N.jpg")
            continue
        if name["expression"].upper() != "N":
            num_expressive += 1
            continue

        person = name["target"].upper()
        norm = norms.get(person)
        if norm is None:
            report_skip(photo_id, f"target {name['target']} has no usable line in {options.norms}")
        elif (norm.race, norm.sex) != (name["race"].upper(), name["sex"].upper()):
            report_skip(
                photo_id,
                f"{options.norms} says race {norm.race} and sex {norm.sex}, "
                "its name says otherwise",
            )
        else:
            photographed.add(person)
            yield ManifestRow(
                photo_id=photo_id,
                label=norm.label,
                sigma=norm.sigma,
                person=person,
                sex=SEXES[norm.sex],
                ethnicity=RACES[norm.race],
                split=None,
            )

    for target in sorted(set(norms) - photographed):
        report_skip(target, f"{options.norms} norms it, but there is no usable neutral photo of it")
    if num_expressive:
        report_skip("*", f"{num_expressive} photos are not neutral: the norms are not theirs")


def _read_norms(sheet: Path, sigma_column: str | None, report_skip: ReportSkip) -> dict[str, Norm]:
    wanted = COLUMNS if sigma_column is None else (*COLUMNS, sigma_column)
    norms: dict[str, Norm] = {}
    for line in named_rows(sheet, wanted):
        if line.cells["Target"] is None:
            continue
        target = str(line.cells["Target"]).strip().upper()
        try:
            norms.setdefault(target, _norm(line, sigma_column))
        except ValueError as error:
            report_skip(f"{sheet.name}: {line.sheet} line {line.number}", str(error))
    return norms


def _norm(line: Line, sigma_column: str | None) -> Norm:
    race = str(line.cells["Race"]).strip().upper()[:1]
    sex = str(line.cells["Gender"]).strip().upper()[:1]
    label = cell_number(line.cells["Attractive"])
    if race not in RACES or sex not in SEXES:
        raise ValueError(
            f"race {line.cells['Race']!r}, gender {line.cells['Gender']!r} "
            "are not letters of the set"
        )
    if label is None or not LOWEST <= label <= HIGHEST:
        raise ValueError(
            f"Attractive {line.cells['Attractive']!r} is not on the scale of "
            f"{LOWEST:g} to {HIGHEST:g}"
        )

    if sigma_column is None:
        return Norm(race, sex, label, None)
    sigma = cell_number(line.cells[sigma_column])
    if sigma is None or sigma < 0:
        raise ValueError(f"{sigma_column} {line.cells[sigma_column]!r} is no standard deviation")
    return Norm(race, sex, label, sigma)


CFD = Source(name="cfd", options=CfdOptions, rows=cfd_rows, produce=None)
