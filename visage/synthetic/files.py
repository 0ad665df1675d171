"""A drawn data set as files: photos in a folder per person, a table of what is true about them, and
a little dirt.

`folder/p000012/003.jpg`, ..., `folder/dirt/...`, and at last `folder/labels.csv`. Photo j of person
i depends on the set's seed, i and j alone, so a larger set begins with the smaller one, a killed
run goes on where it stopped, and the number of processes changes nothing.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from visage.atomic import atomic_write, atomic_write_bytes
from visage.parallel import batched, die_with_parent, map_ordered
from visage.synthetic.face import COMMENT, encode_face
from visage.synthetic.people import (
    LABEL_YEARS,
    MAX_YEARS,
    SCORES,
    FaceParameters,
    apparent_label,
    ethnicity,
    sample_person,
    sample_photo,
)

LABELS = "labels.csv"
SETTINGS = ".drawn.json"
CHUNK_PEOPLE = 4
# Starting processes takes longer than drawing these.
FEW_PEOPLE = 16


@dataclass(frozen=True, kw_only=True)
class DrawnSet:
    """What to draw.

    The ages of a person span at most `age_span_years`, anywhere in 0 to 90. `label_noise` times
    sigma is the standard deviation of a label around the truth. `dirt`: name of a flaw (a key of
    DIRT) -> how many.
    """

    num_people: int
    photos_per_person: int
    px: int
    seed: int
    age_span_years: float
    label_noise: float
    dirt: Mapping[str, int]

    def __post_init__(self) -> None:
        if self.num_people < 1 or self.photos_per_person < 1:
            raise ValueError(
                f"{self.num_people} people with {self.photos_per_person} photos: at least 1 of each"
            )

        if not 0.0 <= self.age_span_years <= MAX_YEARS:
            raise ValueError(f"age_span_years {self.age_span_years}: must be 0 to {MAX_YEARS:g}")
        if self.label_noise < 0.0:
            raise ValueError(f"label_noise {self.label_noise}: must not be negative")

        if unknown := sorted(set(self.dirt) - set(DIRT)):
            raise ValueError(f"dirt {unknown[0]!r} is not one of {', '.join(DIRT)}")
        if max(self.dirt.values(), default=0) > self.num_people:
            raise ValueError(
                f"dirt {dict(self.dirt)}: at most one of each kind for each of {self.num_people} "
                f"people"
            )


class DrawnPhoto(NamedTuple):
    """A row of labels.csv: the truth (`age_years`, `attractiveness`), and the labels that raters
    give, with their sigma."""

    photo_id: str
    person: str
    sex: str
    ethnicity: str
    age_years: float
    apparent_age: float
    sigma_age: float
    attractiveness: float
    apparent_attractiveness: float
    sigma_attractiveness: float


def draw_set(folder: Path, drawn_set: DrawnSet, num_workers: int) -> None:
    """Draws the set into `folder` with `num_workers` processes; photos that are already there are
    kept.

    About 5 ms a photo of 128 px on one core. ValueError if the folder holds a set that was drawn
    with other settings.
    """
    _claim(folder, drawn_set)

    people = range(drawn_set.num_people)
    with (
        atomic_write(folder / LABELS) as part,
        part.open("w", newline="", encoding="utf-8") as lines,
    ):
        table = csv.writer(lines)
        table.writerow(DrawnPhoto._fields)
        drawn = _mapped(partial(_draw_person, folder, drawn_set), people, num_workers)
        for rows in tqdm(drawn, total=len(people), desc="draw", unit=" people"):
            table.writerows(rows)
        table.writerows(_add_dirt(folder, drawn_set))


def read_labels(folder: Path) -> Iterator[DrawnPhoto]:
    """The rows of a drawn folder's table, one at a time."""
    with (folder / LABELS).open(newline="", encoding="utf-8") as lines:
        table = csv.reader(lines)
        next(table)
        for photo_id, person, sex, group, *numbers in table:
            yield DrawnPhoto(photo_id, person, sex, group, *map(float, numbers))


def person_photos(drawn_set: DrawnSet, index: int) -> list[FaceParameters]:
    """The photos of one person of the set, before they are drawn."""
    rng = np.random.default_rng((drawn_set.seed, index))
    person = sample_person(rng)
    youngest = rng.uniform(0.0, MAX_YEARS - drawn_set.age_span_years)

    photos = []
    for number in range(drawn_set.photos_per_person):
        # A generator for each photo: a larger set begins with the smaller one.
        photo_rng = np.random.default_rng((drawn_set.seed, index, number))
        age_years = youngest + drawn_set.age_span_years * photo_rng.uniform()
        photos.append(sample_photo(person, photo_rng, age_years))

    return photos


def _draw_person(folder: Path, drawn_set: DrawnSet, index: int) -> list[DrawnPhoto]:
    name = f"p{index:06d}"
    rows = []
    for number, parameters in enumerate(person_photos(drawn_set, index)):
        photo_id = f"{name}/{number:03d}.jpg"
        if not (folder / photo_id).is_file():
            atomic_write_bytes(folder / photo_id, encode_face(parameters, drawn_set.px))
        rows.append(_row(photo_id, name, parameters, drawn_set.label_noise))

    return rows


def _row(photo_id: str, name: str, parameters: FaceParameters, label_noise: float) -> DrawnPhoto:
    person = parameters.person
    sigma_age = round(parameters.sigma_years, 3)
    sigma_score = round(parameters.sigma_attractiveness, 3)

    # A stream of its own: the drawing uses the one of the seed alone.
    rng = np.random.default_rng((parameters.seed, 1))
    apparent_age = apparent_label(parameters.age_years, label_noise * sigma_age, rng, LABEL_YEARS)
    apparent_score = apparent_label(person.attractiveness, label_noise * sigma_score, rng, SCORES)

    return DrawnPhoto(
        photo_id=photo_id,
        person=name,
        sex=person.sex,
        ethnicity=ethnicity(person),
        age_years=round(parameters.age_years, 2),
        apparent_age=apparent_age,
        sigma_age=sigma_age,
        attractiveness=round(person.attractiveness, 3),
        apparent_attractiveness=apparent_score,
        sigma_attractiveness=sigma_score,
    )


Flaw = Callable[[bytes, DrawnPhoto], tuple[bytes, DrawnPhoto]]


def _duplicate(photo: bytes, row: DrawnPhoto) -> tuple[bytes, DrawnPhoto]:
    return photo, row


def _contradiction(photo: bytes, row: DrawnPhoto) -> tuple[bytes, DrawnPhoto]:
    """The same picture with another label: half the scale away."""
    other_age = row.apparent_age + (45.0 if row.apparent_age < 45.0 else -45.0)
    other_score = row.apparent_attractiveness + (2.0 if row.apparent_attractiveness < 3.0 else -2.0)
    return photo, row._replace(
        apparent_age=round(other_age, 2), apparent_attractiveness=round(other_score, 2)
    )


def _unreadable(photo: bytes, row: DrawnPhoto) -> tuple[bytes, DrawnPhoto]:
    return photo[: len(photo) * 3 // 4], row


def _tiny(photo: bytes, row: DrawnPhoto) -> tuple[bytes, DrawnPhoto]:
    file = io.BytesIO()
    Image.open(io.BytesIO(photo)).resize((8, 8)).save(file, format="JPEG", comment=COMMENT)
    return file.getvalue(), row


DIRT: dict[str, Flaw] = {
    "duplicate": _duplicate,
    "contradiction": _contradiction,
    "unreadable": _unreadable,
    "tiny": _tiny,
}


def _add_dirt(folder: Path, drawn_set: DrawnSet) -> Iterator[DrawnPhoto]:
    """Flawed copies of first photos, each kind from other people where there are enough; they keep
    their person."""
    start = 0
    for kind, count in sorted(drawn_set.dirt.items()):
        for number in range(count):
            index = (start + number) % drawn_set.num_people
            name = f"p{index:06d}"
            parameters = person_photos(drawn_set, index)[0]
            first = _row("", name, parameters, drawn_set.label_noise)
            photo, row = DIRT[kind]((folder / name / "000.jpg").read_bytes(), first)

            photo_id = f"dirt/{kind}_{number:03d}.jpg"
            atomic_write_bytes(folder / photo_id, photo)
            yield row._replace(photo_id=photo_id)
        start += count


def _claim(folder: Path, drawn_set: DrawnSet) -> None:
    """Writes the set's settings into the folder, so that photos of two sets are never mixed."""
    wanted = json.dumps(dataclasses.asdict(drawn_set), sort_keys=True)
    note = folder / SETTINGS
    if note.is_file() and note.read_text(encoding="utf-8") != wanted:
        raise ValueError(
            f"{folder}: holds a set drawn with other settings ({note.name}); empty it or draw "
            f"elsewhere"
        )

    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(note, wanted.encode())


def _mapped(
    draw: Callable[[int], list[DrawnPhoto]], people: range, num_workers: int
) -> Iterator[list[DrawnPhoto]]:
    """`draw` of each person, in order, with `num_workers` processes."""
    if num_workers <= 1 or len(people) <= FEW_PEOPLE:
        _keep_memory()
        yield from map(draw, people)
        return

    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=_start_worker)
    chunks = batched(people, CHUNK_PEOPLE)
    for drawn in map_ordered(partial(_draw_chunk, draw), chunks, pool, 4 * num_workers):
        yield from drawn


def _draw_chunk(
    draw: Callable[[int], list[DrawnPhoto]], people: list[int]
) -> list[list[DrawnPhoto]]:
    return [draw(index) for index in people]


def _start_worker() -> None:
    die_with_parent()
    _keep_memory()


def _keep_memory() -> None:
    """One large array, freed at once: glibc then stops giving memory back after every picture, a
    sixth of the time."""
    np.empty(1 << 24, np.uint8)
