"""What a sweep's search remembers over a stop."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from flows.sweep.search import SchedulerState, scheduler_of
from flows.sweep.space import planned
from flows.sweep.trial import EPOCH, METRIC
from stages.presets import read_params
from tests.flows.small_sweep import sweep_settings
from tests.imports import REPOSITORY


def asha() -> Any:
    plan = planned(
        read_params(REPOSITORY / "params.yaml"), sweep_settings(grace_epochs=1), "params.yaml"
    )
    scheduler: Any = scheduler_of(plan)
    assert isinstance(scheduler, ASHAScheduler)
    scheduler.set_search_properties(METRIC, "min")
    return scheduler


def answer(scheduler: Any, name: str, val_mae: float) -> str:
    """Whether a trial goes on that begins and tells of its first epoch."""
    trial: Any = SimpleNamespace(trial_id=name)
    scheduler.on_trial_add(None, trial)
    return str(
        scheduler.on_trial_result(None, trial, {EPOCH: 1, METRIC: val_mae, "training_iteration": 1})
    )


def test_asha_judges_a_trial_by_those_before_the_stop() -> None:
    first = asha()
    for number in range(4):
        answer(first, f"good {number}", 4.0 + number / 10)
    kept = copy.deepcopy(SchedulerState(first).get_state())
    fresh, restored = asha(), asha()
    SchedulerState(restored).set_state(kept)
    assert (
        answer(fresh, "poor", 9.0) == TrialScheduler.CONTINUE
    )  # it has nothing to compare it with
    assert answer(restored, "poor", 9.0) == TrialScheduler.STOP
