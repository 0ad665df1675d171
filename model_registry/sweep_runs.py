"""A sweep in MLflow: one parent run, and a child run for each trial. Each is found again by its
tags, so that a continued sweep, or a figure that is logged twice, goes into the same runs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from model_registry.mlflow_client import connect, experiment, patiently
from model_registry.record import MAX_PARAMS, MAX_VALUE, flat
from visage.parallel import batched

SWEEP_TAG, TRIAL_TAG, REASON_TAG = "visage.sweep", "visage.trial", "visage.reason"
Status = Literal["FINISHED", "FAILED", "KILLED"]


def open_sweep(experiment_name: str, sweep: str, settings: Mapping[str, Any]) -> str:
    """The id of the open parent run of `sweep`; its parameters are the settings (dotted names)."""
    number = patiently(lambda: experiment(experiment_name))

    run = patiently(lambda: _run(number, {SWEEP_TAG: sweep, TRIAL_TAG: ""}, sweep))
    _parameters(run.info.run_id, flat(settings))
    return str(run.info.run_id)


def open_trial(parent: str, trial: str, values: Mapping[str, Any]) -> str:
    """The id of a trial's open run below its parent; `values` are its parameters."""
    above = patiently(lambda: connect().get_run(parent))
    tags = {SWEEP_TAG: above.data.tags[SWEEP_TAG], TRIAL_TAG: trial, MLFLOW_PARENT_RUN_ID: parent}

    run = patiently(lambda: _run(above.info.experiment_id, tags, trial))
    _parameters(run.info.run_id, values)
    return str(run.info.run_id)


def _run(number: str, tags: Mapping[str, str], name: str) -> Run:
    """The run with these tags, opened again, or a new one."""
    client = connect()
    query = f"tags.`{SWEEP_TAG}` = '{tags[SWEEP_TAG]}' and tags.`{TRIAL_TAG}` = '{tags[TRIAL_TAG]}'"
    found = client.search_runs([number], query, max_results=1)
    if not found:
        return client.create_run(number, tags={**tags, MLFLOW_RUN_NAME: name})
    client.update_run(found[0].info.run_id, status="RUNNING")
    return found[0]


def _running_trials(parent: str) -> list[str]:
    """The runs of trials that are still open although the sweep has ended."""
    client = connect()
    above = client.get_run(parent)
    query = f"tags.`{SWEEP_TAG}` = '{above.data.tags[SWEEP_TAG]}' and attributes.status = 'RUNNING'"
    found = client.search_runs([above.info.experiment_id], query)
    return [str(run.info.run_id) for run in found if run.data.tags[TRIAL_TAG]]


def _parameters(run_id: str, values: Mapping[str, Any]) -> None:
    params = [Param(key, str(value)[:MAX_VALUE]) for key, value in values.items()]
    for some in batched(params, MAX_PARAMS):
        patiently(lambda some=some: connect().log_batch(run_id, params=some))  # type: ignore[misc]


def log_epoch(run_id: str, epoch: int, values: Mapping[str, float]) -> None:
    """Logs an epoch's figures. Their time is the run's start, so that MLflow keeps figures that are
    logged twice once."""
    _log(run_id, epoch, values, patiently(lambda: connect().get_run(run_id)).info.start_time)


def _log(run_id: str, epoch: int, values: Mapping[str, float], time_ms: int) -> None:
    metrics = [
        Metric(key, float(value), time_ms, epoch)
        for key, value in values.items()
        if math.isfinite(value)
    ]
    patiently(lambda: connect().log_batch(run_id, metrics=metrics))


def end_trial(run_id: str, status: Status, reason: str) -> None:
    """Ends a trial's run: FINISHED after all epochs, KILLED when the search stopped it early, or
    FAILED. `reason`: one sentence."""
    patiently(lambda: connect().log_batch(run_id, tags=[RunTag(REASON_TAG, reason[:MAX_VALUE])]))
    patiently(lambda: connect().set_terminated(run_id, status))


def end_sweep(run_id: str, figures: Mapping[str, float], results: Path | None) -> None:
    """Ends the parent run with its figures and its results' folder; FAILED without results."""
    status = "FAILED"
    if results is not None:
        status = "FINISHED"
        for left in patiently(lambda: _running_trials(run_id)):
            reason = "started just before the sweep stopped; another trial was drawn in its place"
            end_trial(left, "KILLED", reason)

        # The time of this call, so that the last of several ends counts.
        _log(run_id, 0, figures, time.time_ns() // 10**6)
        patiently(lambda: connect().log_artifacts(run_id, str(results), "sweep"))

    patiently(lambda: connect().set_terminated(run_id, status))
