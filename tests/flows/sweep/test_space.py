"""The sweep section of params.yaml: what is searched, what is refused before anything starts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from flows.sweep.space import LAMBDA, STEP, Plan, SweepSettings, planned
from stages.presets import read_params
from stages.settings import load_section
from tests.flows.small_sweep import SPACE, sweep_settings
from tests.imports import REPOSITORY
from tests.small_faces import finetune_settings, plain_settings

LAMBDAS = {LAMBDA: {"kind": "choice", "values": [0.01, 0.1, 1.0, 10.0]}}
STEPS = {STEP: {"kind": "choice", "values": [2.5, 5.0, 10.0, 20.0]}}


def plan_of(finetune: dict[str, Any] | None = None, **changes: Any) -> Plan:
    params = plain_settings(finetune=finetune_settings(**(finetune or {})))
    return planned(params, sweep_settings(**changes), "params.yaml")


def test_the_committed_space_is_the_papers() -> None:
    settings = load_section(REPOSITORY / "params.yaml", "sweep", SweepSettings)
    plan = planned(read_params(REPOSITORY / "params.yaml"), settings, "params.yaml")
    assert list(plan.space) == [LAMBDA, STEP, "labels.fixed_sigma"]
    assert plan.space[LAMBDA].ends == [0.01, 10.0]
    assert plan.space[STEP].ends == [0.25, 0.5, 1.0, 2.0, 4.0]


def test_values_reach_the_settings_of_a_trial() -> None:
    plan = plan_of(epochs=7)
    values = {
        LAMBDA: 0.3,
        STEP: 5.0,
        "labels.fixed_sigma": 6,
        "finetune.recipes.small.learning_rate": 0.01,
    }

    settings = plan.trial_settings(values)
    assert settings.loss["lambda_"] == 0.3
    assert settings.grid.step == 5.0
    assert settings.fixed_sigma == 6.0
    assert settings.epochs == 7
    assert settings.recipes["small"].learning_rate == 0.01
    assert plan.trial_settings({}) == dataclasses.replace(finetune_settings(), epochs=7)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"space": {}}, "sweep.space is empty"),
        (
            {"space": {"finetune.loss.lamda": LAMBDAS[LAMBDA]}},
            r"no setting 'finetune\.loss\.lamda'",
        ),
        (
            {"space": {"pretrain.epochs": LAMBDAS[LAMBDA]}},
            r"'pretrain\.epochs' is no setting of finetune",
        ),
        ({"space": {"finetune.epochs": LAMBDAS[LAMBDA]}}, r"sweep\.epochs sets it"),
        ({"space": {LAMBDA: {"kind": "normal"}}}, r"lambda_: kind is 'normal'; known: uniform"),
        ({"space": {LAMBDA: {"kind": "uniform", "low": 1.0}}}, r"lambda_: missing key 'high'"),
        (
            {"space": {LAMBDA: {"kind": "uniform", "low": 2.0, "high": 1.0}}},
            "low must be the smaller",
        ),
        ({"space": {LAMBDA: {"kind": "loguniform", "low": 0.0, "high": 1.0}}}, "begins above 0"),
        (
            {"space": {LAMBDA: {"kind": "uniform", "low": -1.0, "high": 1.0}}},
            r"lambda_ = -1\.0: .*give 0 or more",
        ),
        (
            {"space": {STEP: {"kind": "choice", "values": [5.0, 3.0]}}},
            r"step = 3\.0: .*divide the range",
        ),
        ({"space": {LAMBDA: {"kind": "choice", "values": []}}}, "values is empty"),
        (
            {"space": {"finetune.method": {"kind": "choice", "values": [["er"]]}}},
            "neither a number nor a word",
        ),
        ({"search": "grid"}, r"takes listed values alone; finetune\.loss\.lambda_ is a range"),
        ({"grace_epochs": 5}, "grace_epochs is 5, a trial has 4"),
    ],
)
def test_what_cannot_run_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        plan_of(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_samples": 0},
        {"reduction_factor": 1},
        {"cpus_per_trial": 0.0},
        {"epochs": 0},
        {"max_concurrent": 0},
    ],
)
def test_numbers_out_of_place_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        sweep_settings(**changes)


def test_a_grid_is_all_combinations() -> None:
    plan = plan_of(search="grid", space=LAMBDAS | STEPS)
    assert plan.num_trials == len(plan.listed()) == 16
    assert plan.listed()[5] == {LAMBDA: 0.1, STEP: 5.0}


def test_lines_are_the_rows_of_table_7() -> None:
    """Each dimension alone, the rest as in params.yaml; the cell that both lines have runs once."""
    rows = plan_of(search="lines", space=LAMBDAS | STEPS).listed()
    assert [row[LAMBDA] for row in rows if row[STEP] == 10.0] == [0.01, 0.1, 1.0, 10.0]
    assert sorted(row[STEP] for row in rows if row[LAMBDA] == 1.0) == [2.5, 5.0, 10.0, 20.0]
    assert len(rows) == 7


def test_two_stages_have_twice_the_epochs() -> None:
    assert plan_of().max_epochs == 4
    assert plan_of({"schedule": "two_stage"}).max_epochs == 8
    assert plan_of(epochs=None).max_epochs == 2


def test_a_dimension_can_be_left_out() -> None:
    assert list(plan_of().without(STEP).space) == [path for path in SPACE if path != STEP]
