"""The adapter of the drawn set: options of params.yaml -> photos -> rows with the chosen label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.ingest.records import Action
from stages.settings import convert
from stages.sources.synthetic import SYNTHETIC, DrawnOptions
from visage.photo_files import photos_under
from visage.synthetic import read_labels

OPTIONS = {
    "quantity": "age",
    "num_people": 2,
    "photos_per_person": 2,
    "px": 24,
    "seed": 1,
    "age_span_years": 10,
    "label_noise": 1,
    "dirt": {"duplicate": 1},
}


def options(**changes: Any) -> DrawnOptions:
    made: DrawnOptions = convert({**OPTIONS, **changes}, SYNTHETIC.options, "options")
    return made


def never_skipped(photo_id: str, reason: str, *, action: Action = "skipped") -> None:
    raise AssertionError(f"{photo_id} {action}: {reason}")


def test_every_photo_becomes_a_row(tmp_path: Path) -> None:
    assert SYNTHETIC.produce is not None
    SYNTHETIC.produce(tmp_path, options())
    rows = list(SYNTHETIC.rows(tmp_path, options(), never_skipped))
    assert sorted(row.photo_id for row in rows) == sorted(photos_under(tmp_path))
    assert {row.person for row in rows} == {"p000000", "p000001"}
    assert {row.sex for row in rows} <= {"female", "male"}
    assert all(row.split is None and (row.ethnicity or "").startswith("tone-") for row in rows)


def test_the_quantity_chooses_the_label(tmp_path: Path) -> None:
    assert SYNTHETIC.produce is not None
    SYNTHETIC.produce(tmp_path, options())
    truth = {photo.photo_id: photo for photo in read_labels(tmp_path)}
    for row in SYNTHETIC.rows(tmp_path, options(), never_skipped):
        assert (row.label, row.sigma) == (
            truth[row.photo_id].apparent_age,
            truth[row.photo_id].sigma_age,
        )
    for row in SYNTHETIC.rows(tmp_path, options(quantity="attractiveness"), never_skipped):
        photo = truth[row.photo_id]
        assert (row.label, row.sigma) == (photo.apparent_attractiveness, photo.sigma_attractiveness)


@pytest.mark.parametrize(
    ("changes", "named"), [({"quantity": "height"}, "height"), ({"dirt": {"mud": 1}}, "mud")]
)
def test_options_are_checked_before_anything_is_drawn(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        options(**changes)
