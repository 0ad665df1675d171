"""The first screen of an evaluation's page: what it says follows from the figures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.small_model import small_config
from visage.evaluation.bootstrap import Estimate, Group
from visage.evaluation.html import Finding, Table
from visage.evaluation.page import facts_tables
from visage.evaluation.summary import summary


def figure(value: float, low: float, high: float) -> Estimate:
    return Estimate(value=value, low=low, high=high)


def figures(**changes: Estimate) -> dict[str, Estimate]:
    """A good model's figures."""
    good = {
        "mae": figure(4.0, 3.5, 4.5),
        "bias": figure(0.1, -0.4, 0.6),
        "cs_5": figure(0.7, 0.65, 0.75),
        "coverage_80": figure(0.81, 0.77, 0.85),
        "mean_std": figure(5.0, 4.9, 5.1),
    }
    return good | changes


def group(name: str, num_faces: int, mae: float, **changes: Estimate) -> Group:
    error = figure(mae, mae - 1, mae + 1)
    return Group(name=name, num_faces=num_faces, estimates=figures(mae=error, **changes))


def findings(groups: dict[str, list[Group]], **changes: Estimate) -> tuple[Finding, ...]:
    evaluation: Any = SimpleNamespace(
        answers=SimpleNamespace(name="test", scored=range(1200)),
        figures=figures(**changes),
        groups=groups,
    )
    return tuple(summary(evaluation, small_config(), 0.95, 2).findings)


GROUPS = {
    "age": [
        group("0-9", 100, 2.0),
        group("60-69", 50, 7.5, coverage_80=figure(0.6, 0.5, 0.7)),
        group("90-99", 6, 14.0),
    ],
    "sex": [group("female", 600, 4.1, bias=figure(-1.5, -2.0, -1.0)), group("male", 600, 3.9)],
}


def test_three_questions_are_answered_by_figures() -> None:
    good, bad, sure = findings(GROUPS)
    assert good.value == "4.00 years off on average"
    assert good.sentences[0] == "1,200 faces of test; 95% interval 3.50 to 4.50 years."
    assert good.sentences[1] == "70.0% within 5 years."
    assert bad.value == "age 60-69: 7.50 years off"
    assert bad.sentences[0] == "50 faces: 7.50 (6.50 to 8.50), all faces 4.00 years."
    assert sure.value == "81.0% of the labels are in the 80% interval"
    assert "age 60-69, 60.0% (50.0% to 70.0%)" in sure.sentences[1]


def test_a_group_of_few_faces_is_named_with_their_number_but_is_not_the_worst() -> None:
    bad = findings(GROUPS)[1]
    assert "age 90-99: 14.00, but from 6 faces only." in bad.sentences
    few = findings({"age": [group("0-9", 5, 2.0), group("10-19", 1, 9.0)]})[1]
    assert few.value == "age 10-19: 9.00 years off"


def test_a_shift_is_one_only_where_its_interval_leaves_out_0() -> None:
    good, bad, _ = findings(GROUPS)
    assert good.sentences[-1] == "No shift to one side is seen: 0.10 (-0.40 to 0.60)."
    assert bad.sentences[-1] == "Most to one side: sex female, 1.50 years too low."
    shifted = findings(GROUPS, bias=figure(1.0, 0.5, 1.5))[0]
    assert (
        shifted.sentences[-1] == "Predictions are too high on average: 1.00 (0.50 to 1.50) years."
    )
    even = findings({"sex": [group("male", 600, 3.9)]})[1]
    assert len(even.sentences) == 1


@pytest.mark.parametrize(
    ("share", "verdict"),
    [
        (figure(0.81, 0.77, 0.85), "as wide as they should be"),
        (figure(0.90, 0.87, 0.93), "too wide"),
        (figure(0.70, 0.66, 0.74), "too narrow"),
    ],
)
def test_intervals_are_judged_by_the_interval_of_their_share(share: Estimate, verdict: str) -> None:
    sure = findings(GROUPS, coverage_80=share)[2]
    assert sure.sentences[0].startswith(f"The intervals are {verdict} (")


def test_facts_of_the_splits_are_tables_with_a_column_each() -> None:
    facts = {
        "splits": {"train": {"photos": 1781, "kept": 1766}, "test": {"photos": 456, "kept": 455}},
        "groups": {"sex": {"train": {"female": 825}, "test": {"female": 218, "male": 237}}},
        "labels": {"median": 44.35, "photos": {"train": {"0 to 10": 226}}},
        "people": {"across_splits": 0, "photos_of_a_person_minimum": 2.0},
    }
    tables = [part for part in facts_tables(facts) if isinstance(part, Table)]
    assert [table.caption for table in tables] == [
        *("Photos", "Photos by sex", "Photos by labels", "Other facts"),
    ]
    assert tables[0].rows[0] == ["photos", "1,781", "456"]
    assert tables[1].rows == [["female", "825", "218"], ["male", "0", "237"]]
    assert tables[3].rows == [
        *(["labels, median", "44.35"], ["people, across splits", "0"]),
        ["people, photos of a person minimum", "2"],
    ]
