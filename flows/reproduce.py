"""Brings the working copy up to date as a Prefect flow: each stage of dvc.yaml is a task, in DVC's
order.

    visage reproduce [--experiment NAME]

A fresh stage does not run again. What a stage prints is in its task's log while it runs. After a
broken connection, a failing device or another DVC at work, a stage is tried again after a pause. A
stage that ran out of memory is tried again in smaller batches (see stages/exit_status.py). Bad
data, bad settings and a full disk need a person, and the flow fails at once with the reason. After
a cancelled or killed flow, the next one finishes the work. Metrics, plots and the data's quality
are in Prefect's pages, which link to the flow's one run in MLflow.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.pipeline.artifacts import RecordedRun, show_quality, show_results, show_run
from flows.pipeline.dvc_stages import Declared
from flows.pipeline.run_name import run_name
from flows.pipeline.stage_outputs import EVALUATION, outputs_of
from flows.pipeline.stage_runner import StageFailed, StageRunner
from flows.pipeline.workspace import ROOT, only_one
from stages.code import STAGE as CODE_STAGE
from stages.exit_status import ExitStatus
from stages.presets import read_params

if TYPE_CHECKING:
    from model_registry.record import Evidence

RETRY_PAUSES_S = [5.0, 30.0, 120.0]
MAY_PASS = {ExitStatus.IO_ERROR, ExitStatus.OUT_OF_MEMORY}
EXPERIMENT = "visage"


@flow(name="reproduce", flow_run_name=run_name("experiment"))
def reproduce(root: Path = ROOT, experiment: str = EXPERIMENT) -> dict[str, str]:
    """Runs the stale stages, records and shows the results; returns `ran` or `fresh` for each stage
    but `code`, which always runs.

    Errors: StageFailed, when no other try may help; Busy, while another process has the working
    copy.
    """
    with only_one(root):
        return reproduce_and_record(root, experiment)[0]


def reproduce_and_record(root: Path, experiment: str) -> tuple[dict[str, str], RecordedRun]:
    """`reproduce` inside a flow; also returns the MLflow run that holds the result.

    Errors: StageFailed, when no other try may help.
    """
    # The runner is opened first: DVC starts in its process while MLflow starts in this one.
    with closing(StageRunner(root)) as runner, recorded(root, experiment) as record:
        made = _run_all(root, runner)
        run = record(runner.stages(get_run_logger().info))
    show_run(run)
    return made, run


def _run_all(root: Path, runner: StageRunner) -> dict[str, str]:
    stages = runner.stages(get_run_logger().info)
    outputs = outputs_of(root, stages)

    made: dict[str, str] = {}
    try:
        for stage in stages:
            made[stage.name] = task_of(stage.name)(runner, stage.name)
    except StageFailed:
        show_quality(outputs)
        raise

    made.pop(CODE_STAGE, None)
    if "ran" in made.values():
        show_quality(outputs)
        show_results(outputs, unit_of(root))
    return made


def unit_of(root: Path) -> str:
    """The labels' unit, such as years."""
    labels: dict[str, str] = read_params(root / "params.yaml").get("labels", {})
    return labels.get("unit", "label units")


def task_of(stage: str) -> Any:
    """`one_stage` under the stage's name, tried again where that may help."""
    return one_stage.with_options(
        name=stage,
        task_run_name=stage,
        retries=len(RETRY_PAUSES_S),
        retry_delay_seconds=RETRY_PAUSES_S,
    )


def _may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Whether another try may help; Prefect calls it after a failure."""
    error = state.data
    return isinstance(error, StageFailed) and error.ending in MAY_PASS


@task(cache_policy=NO_CACHE, retry_condition_fn=_may_pass)
def one_stage(runner: StageRunner, stage: str) -> str:
    """Runs one stage unless it is fresh."""
    return runner.run(stage, get_run_logger().info)


@contextmanager
def recorded(root: Path, experiment: str) -> Iterator[Callable[[list[Declared]], RecordedRun]]:
    """An MLflow run around the stages; yields the function that records their results when they
    have ended well."""
    from model_registry.mlflow_client import connect
    from model_registry.record import finish, recording

    def record(stages: list[Declared]) -> RecordedRun:
        client = connect()
        finished_id = finish(run_id, _evidence(root, stages), code_of(root))
        kept = client.get_run(finished_id).info

        return RecordedRun(
            run_id=kept.run_id,
            experiment_id=kept.experiment_id,
            tracking_uri=client.tracking_uri,
        )

    with recording(experiment, f"{socket.gethostname()}:{root}") as run_id:
        yield record


def _evidence(root: Path, stages: list[Declared]) -> Evidence:
    """The files that are recorded for a reproduction, by the paths of dvc.yaml."""
    from model_registry.record import Evidence

    outputs = outputs_of(root, stages)
    params = root / "params.yaml"

    return Evidence(
        settings=read_params(params),
        params=params,
        lock=root / "dvc.lock",
        metrics=outputs.metrics[EVALUATION],
        groups=outputs.groups[EVALUATION],
        predictions=outputs.predictions[EVALUATION],
        history=outputs.history,
        reports=outputs.reports,
        manifests=outputs.manifests,
    )


def code_of(root: Path) -> dict[str, str]:
    """The commit of the working copy, and whether the code differs from it. Settings and results
    do not count, because they are recorded themselves."""
    changed = _git(root, "status", "--porcelain", "--", "*.py", "dvc.yaml")
    return {
        "git_commit": _git(root, "rev-parse", "HEAD") or "unknown",
        "dirty": str(bool(changed)).lower(),
    }


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=False, timeout=60
    )
    return done.stdout.strip()
