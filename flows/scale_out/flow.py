"""One stage of dvc.yaml on Ray, where one machine is too slow for it: the alignment or the
pre-training.

    visage scale-out align@identity          (or: make scale-out STAGE=align@identity)

The stages before it are brought up to date by DVC. The stage itself is called with a runner that
distributes its work over the Ray of RAY_ADDRESS (by default a Ray of this machine). DVC commits the
result, so that `dvc repro` continues from it. Aligned faces are the same bytes as without Ray.
After a stop at any point the same command continues: no finished shard and no finished epoch is
computed again.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.pipeline.artifacts import RecordedRun, show_run
from flows.pipeline.dvc_stages import Declared, before
from flows.pipeline.run_name import run_name
from flows.pipeline.stage_runner import StageFailed, StageRunner
from flows.pipeline.workspace import ROOT, only_one
from flows.scale_out.driver import SECTIONS, ScaleOutSettings
from flows.scale_out.driver_process import drive
from stages.exit_status import ExitStatus
from stages.settings import load_section, read_json


@flow(name="scale-out", flow_run_name=run_name("stage"))
def scale_out(stage: str, root: Path = ROOT) -> None:
    """Runs `stage` on Ray, in the working copy. Errors: ValueError, Busy, StageFailed,
    DriverFailed."""
    settings = load_section(root / "params.yaml", "scale_out", ScaleOutSettings)
    log = get_run_logger().info

    with only_one(root) as lock_file:
        with closing(StageRunner(root)) as runner:
            declared = runner.stages(log)
            chosen = _chosen(declared, stage)
            for name in before(declared, stage):
                runner.run(name, log)

        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder) / "work.json"
            on_ray(chosen, root, work, lock_file)
            into_dvc(stage, root)
            show_run(recorded(settings.experiment, stage, work))


def _chosen(declared: list[Declared], stage: str) -> Declared:
    able = {one.name: one for one in declared if one.name.partition("@")[0] in SECTIONS}
    if stage not in able:
        raise ValueError(f"{stage!r} does not run on Ray; these do: {', '.join(able)}")
    return able[stage]


@task(cache_policy=NO_CACHE, task_run_name="{stage.name} on Ray")
def on_ray(stage: Declared, root: Path, work: Path, lock_file: int) -> None:
    """Runs the stage's command with a runner on Ray; `work` gets the counts and the speed."""
    words = [stage.name, str(work), *stage.command[1:]]
    drive(
        "flows.scale_out.driver",
        words,
        root=root,
        kept="finished shards and epochs are kept",
        log=get_run_logger().info,
        lock_file=lock_file,
    )


@task(cache_policy=NO_CACHE, task_run_name="commit {stage}")
def into_dvc(stage: str, root: Path) -> None:
    """Puts the outputs into dvc.lock and DVC's cache, as if DVC had run the command."""
    command = [sys.executable, "-m", "dvc", "commit", "--force", "--quiet", stage]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StageFailed(
            stage,
            ExitStatus.IO_ERROR,
            f"done, but DVC could not take it over: {done.stderr.strip()}",
        )


@task(cache_policy=NO_CACHE, task_run_name="record {stage}")
def recorded(experiment: str, stage: str, work: Path) -> RecordedRun:
    """An MLflow run of the work: the number of nodes, the duration and the speed."""
    from model_registry.job_runs import record_job

    client, run = record_job(experiment, f"scale-out {stage}", read_json(work))

    return RecordedRun(
        run_id=run.run_id,
        experiment_id=run.experiment_id,
        tracking_uri=client.tracking_uri,
    )
