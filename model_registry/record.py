"""One run of the pipeline becomes one MLflow run: its inputs, its results, and the machine's load.

`recording` opens the run before the stages start and samples the machine meanwhile. `finish` logs
settings, metrics with their intervals, training curves, reports, lock file, digests of the data and
the environment. The lock file's digest identifies the result: what is recorded already is not
recorded again. A run whose process died is continued by the next one.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.data.meta_dataset import MetaDataset

# mlflow makes this class at run time.
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_RUN_NAME,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
)

from model_registry.mlflow_client import connect, experiment, patiently
from visage.parallel import batched

LOCK_TAG, WORKSPACE_TAG, OPEN_TAG = "visage.lock", "visage.workspace", "visage.open"

# What MLflow's pages show as the source of a run
SOURCE = "flows/reproduce.py"

# Metrics that a run's description shows
SHOWN = {"mae": "MAE", "cs_5": "CS@5", "coverage_80": "labels inside the 80% interval"}

# Artifacts that promotion and the model card read
PREDICTIONS = "predictions.parquet"
METRICS = "metrics.json"
GROUPS = "groups.csv"

# What every MLflow store accepts: characters of a parameter, parameters and metrics in one call
MAX_VALUE = 6000
MAX_PARAMS = 100
MAX_METRICS = 1000

SAMPLING_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a run of the pipeline leaves: `settings`, the parsed params file; files; `reports`: name
    -> file or folder; `manifests`: role -> the manifest of its photos, whose digest is the one in
    dvc.lock."""

    settings: Mapping[str, Any]
    params: Path
    lock: Path
    metrics: Path
    groups: Path
    predictions: Path
    history: tuple[Path, ...]
    reports: Mapping[str, Path]
    manifests: Mapping[str, Path]


def lock_digest(lock: Path) -> str:
    """The sha256 of dvc.lock, which names settings, code, data and results of every stage."""
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def find(experiment_name: str, digest: str) -> str | None:
    """The finished run of a lock digest; None where there is none."""
    client = connect()
    number = experiment(experiment_name)

    query = f"tags.`{LOCK_TAG}` = '{digest}' and attributes.status = 'FINISHED'"
    found = client.search_runs([number], query, max_results=1)
    return str(found[0].info.run_id) if found else None


@contextmanager
def recording(experiment_name: str, workspace: str) -> Iterator[str]:
    """The id of an open run while the block lasts: a new one, or the one that this workspace left
    unfinished.

    Where the block raises, the run is FAILED, and the next recording of the workspace continues it.
    """
    client = connect()
    number = patiently(lambda: experiment(experiment_name))
    digest = hashlib.sha256(workspace.encode()).hexdigest()[:16]
    run_id = patiently(lambda: _open_run(client, number, digest))

    sampler = _sampler(run_id)
    sampler.start()
    try:
        yield run_id
    except BaseException:
        patiently(lambda: client.set_terminated(run_id, "FAILED"))
        raise
    finally:
        sampler.finish()


class Sampler(SystemMetricsMonitor):
    """MLflow's sampler of the machine. MLflow's own stops for good where the store is unavailable
    once; this one starts again."""

    def monitor(self) -> None:
        sample: Any = super().monitor
        while not self._shutdown_event.is_set():
            sample()
            self._shutdown_event.wait(self.sampling_interval)


def _sampler(run_id: str) -> Any:
    """A sampler that continues the steps of a continued run."""
    make: Any = Sampler
    return make(run_id, sampling_interval=SAMPLING_SECONDS, resume_logging=True)


def _open_run(client: MlflowClient, number: str, workspace: str) -> str:
    query = f"tags.`{OPEN_TAG}` = 'true' and tags.`{WORKSPACE_TAG}` = '{workspace}'"
    left = client.search_runs([number], query, max_results=1)
    if left:
        client.update_run(left[0].info.run_id, status="RUNNING")
        return str(left[0].info.run_id)
    tags = {
        OPEN_TAG: "true",
        WORKSPACE_TAG: workspace,
        MLFLOW_RUN_NAME: f"pipeline {time.strftime('%Y-%m-%d %H:%M')}",
        MLFLOW_SOURCE_NAME: SOURCE,
        MLFLOW_SOURCE_TYPE: "LOCAL",
    }
    return str(client.create_run(number, tags=tags).info.run_id)


def finish(run_id: str, evidence: Evidence, code: Mapping[str, Any]) -> str:
    """Logs the evidence and ends the run; returns the id of the run that holds it, which may be an
    earlier one.

    May be called again after an interruption: nothing is logged twice. Where the interrupted call
    was logging another result, this one goes into a new run: MLflow never changes a parameter that
    a run has.
    """
    client = connect()
    digest = lock_digest(evidence.lock)
    run = patiently(lambda: client.get_run(run_id))
    known = patiently(lambda: find(client.get_experiment(run.info.experiment_id).name, digest))
    if known is not None:
        if known != run_id:
            patiently(lambda: client.delete_run(run_id))
        return known

    if run.data.tags.get(LOCK_TAG, digest) != digest or _has_other_settings(run, evidence):
        run = patiently(lambda: _replacement(client, run))
        run_id = str(run.info.run_id)

    patiently(lambda: client.set_tag(run_id, LOCK_TAG, digest))
    patiently(lambda: _log_evidence(client, run_id, run.info.start_time, evidence))

    tags = [RunTag(f"visage.{name}", str(value)) for name, value in code.items()]
    tags.append(RunTag(MLFLOW_RUN_NOTE, note(evidence, code)))
    if "git_commit" in code:
        tags.append(RunTag(MLFLOW_GIT_COMMIT, str(code["git_commit"])))
    tags.append(RunTag(OPEN_TAG, "false"))
    patiently(lambda: client.log_batch(run_id, tags=tags))
    patiently(lambda: client.set_terminated(run_id, "FINISHED"))
    return run_id


def _has_other_settings(run: Run, evidence: Evidence) -> bool:
    """Whether the run holds a setting with another value, including those that no stage reads."""
    wanted = {param.key: param.value for param in _params(evidence)}
    return any(wanted.get(name) != value for name, value in run.data.params.items())


def _replacement(client: MlflowClient, run: Run) -> Run:
    """A new open run of the same workspace; the old one stays FAILED."""
    client.set_tag(run.info.run_id, OPEN_TAG, "false")
    client.set_terminated(run.info.run_id, "FAILED")
    return client.create_run(run.info.experiment_id, tags=dict(run.data.tags) | {OPEN_TAG: "true"})


def _log_evidence(client: MlflowClient, run_id: str, time_ms: int, evidence: Evidence) -> None:
    """Logs everything but the tags that close the run. Metrics have the run's start as their time,
    so that MLflow keeps a metric that is logged twice as one row."""
    figures = numbers(json.loads(evidence.metrics.read_text(encoding="utf-8")))
    metrics = [Metric(key, value, time_ms, 0) for key, value in figures.items()]
    for file in evidence.history:
        metrics += [Metric(key, value, time_ms, step) for key, step, value in curve(file)]

    for some_params in batched(_params(evidence), MAX_PARAMS):
        client.log_batch(run_id, params=some_params)
    for some_metrics in batched(metrics, MAX_METRICS):
        client.log_batch(run_id, metrics=some_metrics)
    datasets = [_dataset(role, manifest) for role, manifest in evidence.manifests.items()]
    client.log_inputs(run_id, datasets)

    files = (
        evidence.params,
        evidence.lock,
        evidence.metrics,
        evidence.groups,
        evidence.predictions,
    )
    for file in files:
        client.log_artifact(run_id, str(file))
    for name, path in evidence.reports.items():
        place = Path("reports") / name
        if path.is_dir():
            client.log_artifacts(run_id, str(path), place.as_posix())
        else:
            client.log_artifact(run_id, str(path), place.parent.as_posix())

    installed = sorted(f"{each.name}=={each.version}" for each in distributions())
    client.log_text(run_id, "\n".join(installed) + "\n", "environment.txt")


def note(evidence: Evidence, code: Mapping[str, Any]) -> str:
    """The run's description as markdown: its main metrics, and where the rest is."""
    labels = evidence.settings["labels"]
    lists = json.loads(evidence.metrics.read_text(encoding="utf-8"))

    lines = [
        f"Every stage of the pipeline; {labels['quantity']} in {labels['unit']}.",
        "",
        f"| faces of | {' | '.join(SHOWN.values())} |",
        f"|---|{'---|' * len(SHOWN)}",
    ]
    for name, figures in lists.items():
        cells = [_cell(metric, figures.get(metric)) for metric in SHOWN]
        if any(cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")

    commit = f"commit `{code.get('git_commit', 'unknown')}`"
    changed = (
        ", with changes that are not committed" if str(code.get("dirty")).lower() == "true" else ""
    )
    lines += [
        "",
        "The report is `reports/report.html` under Artifacts, the settings are the parameters.",
        f"Code: {commit}{changed}.",
    ]
    return "\n".join(lines)


def _cell(metric: str, figure: Mapping[str, float | None] | None) -> str:
    """5.77 (5.31 to 6.22); empty where the figure is missing or undefined."""
    if not isinstance(figure, Mapping) or figure.get("value") is None:
        return ""
    form = ".2f" if metric == "mae" else ".1%"
    value, low, high = (figure[end] for end in ("value", "low", "high"))
    if low is None or high is None:
        return f"{value:{form}}"
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def _params(evidence: Evidence) -> list[Param]:
    return [Param(key, str(value)[:MAX_VALUE]) for key, value in flat(evidence.settings).items()]


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections -> dotted names; lists stay values."""
    leaves: dict[str, Any] = {}
    for key, value in document.items():
        name = f"{prefix}{key}"
        leaves |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return leaves


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """metrics.json -> figures by name: `test.mae` with the ends of its interval, `test.mae.low` and
    `test.mae.high`."""
    figures: dict[str, float] = {}
    for name, value in flat(metrics).items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and math.isfinite(value):
            figures[name.removesuffix(".value")] = float(value)
    return figures


def curve(history: Path) -> Iterator[tuple[str, int, float]]:
    """A training's CSV -> (name, epoch, value), such as finetune.val_mae; nothing for a training
    that was skipped."""
    with history.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = int(float(row.pop("epoch")))
            for name, text in row.items():
                if text and math.isfinite(float(text)):
                    yield f"{history.stem}.{name}", step, float(text)


def _dataset(role: str, manifest: Path) -> DatasetInput:
    """A role's photos, identified by the digest (MD5) that DVC has of their manifest."""
    with manifest.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    describe: Any = MetaDataset
    data = describe(LocalArtifactDatasetSource(str(manifest)), name=role, digest=digest)
    return DatasetInput(Dataset(**data.to_dict()), [InputTag("mlflow.data.context", role)])
