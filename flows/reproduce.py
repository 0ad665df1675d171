"""Brings the working copy up to date as a Prefect flow: every stage of dvc.yaml a task, in DVC's
order.

    python -m flows.reproduce [--experiment NAME]

What is fresh is not run again. What a stage prints is in its task's log while it runs. A broken
connection, a failing device or another DVC at work is tried again after a pause, a stage that ran
out of memory in smaller batches (see stages/exit_status.py); bad data, settings and a full disk
need a person, and the flow fails at once with the reason. A flow that was cancelled or killed
leaves a workspace that the next one finishes. Metrics, plots and the data's quality are shown in
Prefect's pages, and MLflow has one run of it, to which they link.
"""

from __future__ import annotations

import argparse
import importlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.pipeline.artifacts import RecordedRun, show_quality, show_results, show_run
from flows.pipeline.dvc_stages import Declared
from flows.pipeline.stage_outputs import EVALUATION, outputs_of
from flows.pipeline.stage_runner import StageFailed, StageRunner
from flows.pipeline.workspace import ROOT, Busy, only_one
from stages.code import STAGE as CODE_STAGE
from stages.exit_status import ExitStatus
from stages.presets import read_params

if TYPE_CHECKING:
    from model_registry.record import Evidence

RETRY_PAUSES_S = [5.0, 30.0, 120.0]
MAY_PASS = {ExitStatus.IO_ERROR, ExitStatus.OUT_OF_MEMORY}
EXPERIMENT = "visage"


@flow(name="reproduce")
def reproduce(root: Path = ROOT, experiment: str = EXPERIMENT) -> dict[str, str]:
    """Runs what is stale, records it, shows it; returns what became of each stage, `ran` or
    `fresh`, but of `code`, which always runs.

    Errors: StageFailed, when no other try may help; Busy, while another process has the working
    copy.
    """
    with only_one(root):
        return reproduce_and_record(root, experiment)[0]


def reproduce_and_record(root: Path, experiment: str) -> tuple[dict[str, str], RecordedRun]:
    """`reproduce`, inside of a flow, and the run that holds the result.

    Errors: StageFailed, when no other try may help.
    """
    with (
        closing(StageRunner(root)) as runner,
        recorded(root, experiment) as record,
    ):  # DVC starts while MLflow does
        made = _run_all(root, runner)
        run = record(runner.stages(get_run_logger().info))
    show_run(run)
    return made, run


def _run_all(root: Path, runner: StageRunner) -> dict[str, str]:
    stages = runner.stages(get_run_logger().info)
    outputs = outputs_of(root, stages)
    try:
        made: dict[str, str] = {
            stage.name: task_of(stage.name)(runner, stage.name) for stage in stages
        }
    except StageFailed:
        show_quality(outputs)
        raise
    made.pop(CODE_STAGE, None)
    if "ran" in made.values():
        show_quality(outputs)
        show_results(outputs)
    return made


def task_of(stage: str) -> Any:
    """`one_stage` under the stage's name, tried again where that may help."""
    pauses = RETRY_PAUSES_S
    return one_stage.with_options(
        name=stage, task_run_name=stage, retries=len(pauses), retry_delay_seconds=pauses
    )


def _may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Whether another try may help; Prefect asks."""
    error = state.data
    return isinstance(error, StageFailed) and error.ending in MAY_PASS


@task(cache_policy=NO_CACHE, retry_condition_fn=_may_pass)
def one_stage(runner: StageRunner, stage: str) -> str:
    """Runs one stage unless it is fresh."""
    return runner.run(stage, get_run_logger().info)


@contextmanager
def recorded(root: Path, experiment: str) -> Iterator[Callable[[list[Declared]], RecordedRun]]:
    """An MLflow run around the stages; what is yielded writes it down when they have ended well."""
    from model_registry.mlflow_client import connect
    from model_registry.record import finish, recording

    def record(stages: list[Declared]) -> RecordedRun:
        client = connect()
        kept = client.get_run(finish(run_id, _evidence(root, stages), code_of(root))).info
        return RecordedRun(
            run_id=kept.run_id, experiment_id=kept.experiment_id, tracking_uri=client.tracking_uri
        )

    with recording(experiment, f"{socket.gethostname()}:{root}") as run_id:
        yield record


def _evidence(root: Path, stages: list[Declared]) -> Evidence:
    """The files that are recorded of a reproduction, by the paths of dvc.yaml."""
    from model_registry.record import Evidence

    outputs, params = outputs_of(root, stages), root / "params.yaml"
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
    """The commit of the working copy, and whether its code differs from it (settings and results
    are recorded)."""
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


def main(root: Path = ROOT, words: list[str] | None = None) -> None:
    """The command line; ends with the status of the stage that failed."""
    threading.Thread(
        target=importlib.import_module, args=["model_registry.record"]
    ).start()  # loads MLflow
    parser = argparse.ArgumentParser(
        prog="python -m flows.reproduce", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument(
        "--experiment", default=EXPERIMENT, help="MLflow's experiment that gets the run"
    )
    arguments = parser.parse_args(words)
    try:
        reproduce(root, arguments.experiment)
    except (StageFailed, Busy) as failed:
        print(f"flows.reproduce: {failed}", file=sys.stderr)
        raise SystemExit(
            int(failed.ending if isinstance(failed, StageFailed) else ExitStatus.IO_ERROR)
        ) from failed


if __name__ == "__main__":
    main()
