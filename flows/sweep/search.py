"""What Ray Tune runs a sweep with: Optuna and ASHA, which both resume after a stop, and the
callbacks that report the trials."""

# ruff: noqa: ARG002  (Tune passes these arguments to its callbacks)
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
    """Optuna, which gets the last result of a trial and not its epochs: those are ASHA's. A trial
    that diverged counts as pruned without a value, which is worse than any value, so that Optuna
    leaves its neighbourhood."""

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if result and DIVERGED in result:
            result = None
        super().on_trial_complete(trial_id, result, error)


class SchedulerState(Callback):
    """Keeps the scheduler's state with the sweep's own, because Tune does not restore it itself."""

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
    if plan.settings.search != "optuna":
        return {VALUES: tune.grid_search(plan.listed())}

    domains = {path: domain(dimension) for path, dimension in plan.space.items()}
    return {VALUES: domains}


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
    """A trial's name, which is also its folder's: it stays the same however often the trial
    resumes."""
    return str(trial.trial_id)


# -------------------------------------------------------------------------------
# Callbacks
# -------------------------------------------------------------------------------


class SweepStopped(RuntimeError):
    """A trial failed in a way in which all others would fail too. Tune wraps it into an error of
    its own."""


@dataclass
class Listener(Callback):
    """Runs in the driver: prints a line for each epoch and writes MLflow's runs. An error that a
    second try cannot help ends the sweep.

    `parent` is the sweep's run in MLflow. `num_epochs` and `num_ended` count in this process alone,
    for the throughput.
    """

    parent: str
    max_epochs: int
    num_trials: int
    num_epochs: int = 0
    num_ended: int = 0
    epochs: dict[str, int] = field(default_factory=dict)  # trial -> its newest
    runs: dict[str, str] = field(default_factory=dict)  # trial -> its run in MLflow

    def get_state(self) -> dict[str, Any]:
        """The state with which a restored sweep continues."""
        return {"epochs": dict(self.epochs)}

    def set_state(self, state: dict[str, Any]) -> None:
        """The counts start again at 0."""
        self.epochs = state["epochs"]
        self.num_epochs = 0
        self.num_ended = 0

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Opens the trial's run in MLflow, the same one when the trial resumes."""
        self.runs[trial.trial_id] = open_trial(self.parent, trial.trial_id, trial.config[VALUES])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Records an epoch that ended, but not one that is reported again. Errors:
        SweepStopped."""
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
        """The trial ran all epochs, was ended early, or diverged."""
        self.num_ended += 1
        status, reason = result_of(trial.last_result, self.max_epochs)
        say(trial, reason)
        end_trial(self.runs[trial.trial_id], status, reason)

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """The trial failed and resumes."""
        say(trial, f"failed ({reason_of(trial)}); it resumes after its last epoch")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """The trial failed too often."""
        self.num_ended += 1
        say(trial, f"failed for good: {reason_of(trial)}")
        end_trial(self.runs[trial.trial_id], "FAILED", reason_of(trial))


def result_of(last: Mapping[str, Any], max_epochs: int) -> tuple[Status, str]:
    """MLflow's status of a trial that ended without an error, and a phrase for people."""
    if DIVERGED in last:
        return "FAILED", f"diverged: {last[DIVERGED]}"
    if last[EPOCH] < max_epochs:
        return "KILLED", f"ended early after epoch {last[EPOCH]}"
    return "FINISHED", "finished"


def reason_of(trial: Trial) -> str:
    """The last line of a failed trial's error, read where Tune has just written it (Tune copies it
    to the sweep's folder later)."""
    return Path(trial.error_file).read_text(encoding="utf-8").strip().splitlines()[-1]


def say(trial: Trial, words: str) -> None:
    """A line in the terminal."""
    values = ", ".join(
        f"{path.rpartition('.')[2]} {_short(value)}" for path, value in trial.config[VALUES].items()
    )
    print(f"{trial.trial_id} ({values})  {words}", flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
