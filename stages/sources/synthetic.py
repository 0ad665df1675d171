"""The embedded data set: faces drawn in code, nothing to fetch (`visage.synthetic` documents what
is drawn and what is true).

The raw folder holds `p000012/003.jpg` and so on, `dirt/` and `labels.csv`. A row's label is what
raters would say, its sigma how far they would disagree; sex is female or male, ethnicity one of
eight skin tones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.ingest.records import ManifestRow, ReportSkip, Source
from visage.synthetic import DrawnPhoto, DrawnSet, draw_set, read_labels


@dataclass(frozen=True, kw_only=True)
class DrawnOptions:
    """`quantity` chooses the label. `age_span_years`: a person's photos are within so many years,
    anywhere from 0 to 90 (90: each at any age). `label_noise`: 1 takes labels from N(truth, sigma),
    0 takes the truth. `dirt`: how many flawed files of each kind (duplicate, contradiction,
    unreadable, tiny) are added for validation to find."""

    quantity: Literal["age", "attractiveness"]
    num_people: int
    photos_per_person: int
    px: int
    seed: int
    age_span_years: float
    label_noise: float
    dirt: Mapping[str, int]

    def __post_init__(self) -> None:
        # Refuses impossible numbers
        self.drawn_set()

    def drawn_set(self) -> DrawnSet:
        drawn = {name: value for name, value in vars(self).items() if name != "quantity"}
        return DrawnSet(**drawn)


def draw(raw_dir: Path, options: DrawnOptions) -> None:
    """Draws the set into `raw_dir`, in as many processes as there are cores."""
    draw_set(raw_dir, options.drawn_set(), num_workers=len(os.sched_getaffinity(0)))


def drawn_rows(
    raw_dir: Path,
    options: DrawnOptions,
    report_skip: ReportSkip,  # noqa: ARG001
) -> Iterator[ManifestRow]:
    """The set's own table, with the label of the chosen quantity."""
    return (_row(photo, options.quantity) for photo in read_labels(raw_dir))


def _row(photo: DrawnPhoto, quantity: str) -> ManifestRow:
    labels = {
        "age": (photo.apparent_age, photo.sigma_age),
        "attractiveness": (photo.apparent_attractiveness, photo.sigma_attractiveness),
    }
    label, sigma = labels[quantity]
    return ManifestRow(photo.photo_id, label, sigma, photo.person, photo.sex, photo.ethnicity, None)


SYNTHETIC = Source(name="synthetic", options=DrawnOptions, rows=drawn_rows, produce=draw)
