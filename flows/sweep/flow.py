"""A search over finetune's settings by Ray Tune, as the `sweep` section of params.yaml says:
tables, figures, the best.

    visage sweep          (or: make sweep)

First, the inputs of finetune are brought up to date (DVC has their stages). Then the driver runs
the trials in a process of its own (flows/sweep/driver.py), here or on the cluster of RAY_ADDRESS.
After a stop at any time, the same command continues at each trial's last epoch. Results are in
reports/sweep/ and in one MLflow run with a child run for each trial.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.pipeline.dvc_stages import Declared, before
from flows.pipeline.run_name import run_name
from flows.pipeline.stage_runner import StageRunner
from flows.pipeline.workspace import ROOT, only_one
from flows.reproduce import task_of
from flows.scale_out.driver_process import drive

GOAL = "finetune"
INPUTS = ("faces", "backbone", "start")  # arguments that finetune and the driver share
RESULTS = "reports/sweep"
KEPT = "every trial's epochs that ended are kept"


@flow(name="sweep", flow_run_name=run_name())
def sweep(root: Path = ROOT) -> str:
    """Runs the sweep, or the rest of it; returns its results as text, which is also its
    artifact."""
    logger = get_run_logger()

    with closing(StageRunner(root)) as runner, only_one(root):
        stages = runner.stages(logger.info)
        for name in before(stages, GOAL):
            task_of(name)(runner, name)
        inputs = _inputs(stages)

    words = ["--params", "params.yaml"]
    for name, folder in inputs.items():
        words += [f"--{name}", folder]
    words += ["--results", RESULTS]
    drive("flows.sweep.driver", words, root=root, kept=KEPT, log=logger.info)

    page = (root / RESULTS / "sensitivity.md").read_text(encoding="utf-8")
    create_markdown_artifact(key="sweep", markdown=page, description="The last sweep")
    return page


def _inputs(stages: list[Declared]) -> dict[str, str]:
    """The folders of the faces and of the models to start from, as finetune's command has them."""
    [command] = [stage.command for stage in stages if stage.name == GOAL]
    return {name: command[command.index(f"--{name}") + 1] for name in INPUTS}
