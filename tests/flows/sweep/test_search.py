"""The state that a sweep's search keeps over a stop."""

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
    params = read_params(REPOSITORY / "params.yaml")
    plan = planned(params, sweep_settings(grace_epochs=1), "params.yaml")
    scheduler: Any = scheduler_of(plan)
    assert isinstance(scheduler, ASHAScheduler)
    scheduler.set_search_properties(METRIC, "min")
    return scheduler


def decision(scheduler: Any, name: str, val_mae: float) -> str:
    """The scheduler's decision on a new trial after its first epoch."""
    trial: Any = SimpleNamespace(trial_id=name)
    result = {EPOCH: 1, METRIC: val_mae, "training_iteration": 1}
    scheduler.on_trial_add(None, trial)
    return str(scheduler.on_trial_result(None, trial, result))


def test_asha_judges_a_trial_by_those_before_the_stop() -> None:
    first = asha()
    for number in range(4):
        decision(first, f"good {number}", 4.0 + number / 10)
    kept = copy.deepcopy(SchedulerState(first).get_state())

    fresh = asha()
    restored = asha()
    SchedulerState(restored).set_state(kept)

    # The fresh one has no other trial to compare with.
    assert decision(fresh, "poor", 9.0) == TrialScheduler.CONTINUE
    assert decision(restored, "poor", 9.0) == TrialScheduler.STOP
