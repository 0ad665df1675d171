"""What Ray Tune runs a sweep with: Optuna and ASHA, both taken up again after a stop, and who
listens to the trials."""

# ruff: noqa: ARG002  (what Tune hands its listeners)
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from flows.sweep.space import (
    ChoiceSettings,
    Dimension,
    IntegerSettings,
    LogRangeSettings,
    Plan,
    RangeSettings,
)
from flows.sweep.trial import DIVERGED, EPOCH, METRIC, NO_OTHER_TRY, VALUES
from model_registry.sweep_runs import Status, end_trial, log_epoch, open_trial

FIGURES = (METRIC, "train_loss", "learning_rate", "seconds")


class Search(OptunaSearch):
    """Optuna, which gets how trials end and not their epochs: those are ASHA's. A trial that
    diverged counts as pruned without a value, which is worse than any other: its neighbourhood is
    left."""

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        super().on_trial_complete(
            trial_id, None if result and DIVERGED in result else result, error
        )


class SchedulerState(Callback):
    """Keeps the scheduler's memory with the sweep's own state, which Tune restores without it."""

    def __init__(self, scheduler: ASHAScheduler) -> None:
        self._scheduler = scheduler

    def get_state(self) -> dict[str, Any]:
        return dict(self._scheduler.__dict__)

    def set_state(self, state: dict[str, Any]) -> None:
        self._scheduler.__dict__.update(state)


def domain(dimension: Dimension) -> Any:
    """A dimension as Tune draws from it."""
    match dimension:
        case LogRangeSettings():
            return tune.loguniform(dimension.low, dimension.high)
        case RangeSettings():
            return tune.uniform(dimension.low, dimension.high)
        case IntegerSettings():
            return tune.randint(dimension.low, dimension.high + 1)
        case ChoiceSettings():
            return tune.choice(dimension.values)


def parameters(plan: Plan) -> dict[str, Any]:
    """Tune's `param_space`: a trial's config has the values by path."""
    if plan.settings.search == "optuna":
        return {VALUES: {path: domain(dimension) for path, dimension in plan.space.items()}}
    return {VALUES: tune.grid_search(plan.listed())}


def tune_config(plan: Plan, scheduler: ASHAScheduler | None) -> tune.TuneConfig:
    """How trials are chosen; workers are used for one trial after the other."""
    settings = plan.settings
    drawn: dict[str, Any] = {}
    if settings.search == "optuna":
        drawn = {"search_alg": Search(seed=settings.seed), "num_samples": settings.num_samples}
    return tune.TuneConfig(
        metric=METRIC,
        mode="min",
        scheduler=scheduler,
        max_concurrent_trials=settings.max_concurrent,
        trial_name_creator=name_of,
        trial_dirname_creator=name_of,
        reuse_actors=True,
        **drawn,
    )


def scheduler_of(plan: Plan) -> ASHAScheduler | None:
    """ASHA over the epochs that trials report; listed trials all run to their end."""
    if plan.settings.search != "optuna":
        return None
    return ASHAScheduler(
        time_attr=EPOCH,
        max_t=plan.max_epochs,
        grace_period=plan.settings.grace_epochs,
        reduction_factor=plan.settings.reduction_factor,
    )


def name_of(trial: Trial) -> str:
    """A trial's name, which is also that of its folder: it stays the same however often it is taken
    up."""
    return str(trial.trial_id)


# -------------------------------------------------------------------------------
# Who listens
# -------------------------------------------------------------------------------


class SweepStopped(RuntimeError):
    """A trial met what every other one would, too; Tune wraps it into an error of its own."""


@dataclass
class Listener(Callback):
    """The driver's: a line an epoch in the terminal, and MLflow's runs. What no other try helps
    ends the sweep.

    `parent`: the sweep's run in MLflow. `num_epochs` and `num_ended` are of this process alone, for
    the throughput.
    """

    parent: str
    max_epochs: int
    num_trials: int
    num_epochs: int = 0
    num_ended: int = 0
    epochs: dict[str, int] = field(default_factory=dict)  # trial -> its newest
    runs: dict[str, str] = field(default_factory=dict)  # trial -> its run in MLflow

    def get_state(self) -> dict[str, Any]:
        """What a restored sweep goes on with."""
        return {"epochs": dict(self.epochs)}

    def set_state(self, state: dict[str, Any]) -> None:
        """The counts begin again."""
        self.epochs, self.num_epochs, self.num_ended = state["epochs"], 0, 0

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Its run in MLflow runs, again if it was there."""
        self.runs[trial.trial_id] = open_trial(self.parent, trial.trial_id, trial.config[VALUES])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch ended; one that is reported again is left out. Errors: SweepStopped."""
        if NO_OTHER_TRY in result:
            raise SweepStopped(f"trial {trial.trial_id}: {result[NO_OTHER_TRY]}")
        if DIVERGED in result or result[EPOCH] <= self.epochs.get(trial.trial_id, 0):
            return
        self.epochs[trial.trial_id] = result[EPOCH]
        self.num_epochs += 1
        figures = {name: result[name] for name in FIGURES if name in result}
        log_epoch(self.runs[trial.trial_id], result[EPOCH], figures)
        done = sum(one.status in (Trial.TERMINATED, Trial.ERROR) for one in trials)
        words = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        say(
            trial,
            f"epoch {result[EPOCH]}/{self.max_epochs}  {words}  [{done} of {self.num_trials} "
            f"trials done]",
        )

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """All epochs, ended early, or diverged."""
        self.num_ended += 1
        status, reason = outcome(trial.last_result, self.max_epochs)
        say(trial, reason)
        end_trial(self.runs[trial.trial_id], status, reason)

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """It failed and is taken up again."""
        say(trial, f"failed ({reason_of(trial)}); it is taken up again after its last epoch")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """It failed too often."""
        self.num_ended += 1
        say(trial, f"failed for good: {reason_of(trial)}")
        end_trial(self.runs[trial.trial_id], "FAILED", reason_of(trial))


def outcome(last: Mapping[str, Any], max_epochs: int) -> tuple[Status, str]:
    """How a trial ended that did not fail, for MLflow and in words."""
    if DIVERGED in last:
        return "FAILED", f"diverged: {last[DIVERGED]}"
    if last[EPOCH] < max_epochs:
        return "KILLED", f"ended early after epoch {last[EPOCH]}"
    return "FINISHED", "finished"


def reason_of(trial: Trial) -> str:
    """The last line of a failed trial's error, where Tune has just written it (the sweep's folder
    gets it later)."""
    return Path(trial.error_file).read_text(encoding="utf-8").strip().splitlines()[-1]


def say(trial: Trial, words: str) -> None:
    """A line in the terminal."""
    values = ", ".join(
        f"{path.rpartition('.')[2]} {_short(value)}" for path, value in trial.config[VALUES].items()
    )
    print(f"{trial.trial_id} ({values})  {words}", flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
