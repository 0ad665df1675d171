"""The working copy is brought up to date, by hand or by schedule."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flows.commands.in_clone import absolute, in_clone
from flows.pipeline.workspace import Busy
from stages.exit_status import ExitStatus
from visage.cli.failures import CommandFailed

Data = Annotated[
    list[str] | None,
    typer.Option(help="A preset to use from now on; of several, the first wins. Or: synthetic."),
]


def use_data(names: list[str] | None, root: Path) -> None:
    """Writes the presets in use into params.yaml, where some are named."""
    from stages.presets import use

    if names:
        use(names, root / "params.yaml")


def run(data: Data = None) -> None:
    """Run the stale stages of dvc.yaml."""
    with in_clone() as root:
        use_data(data, root)
        done = subprocess.run([sys.executable, "-m", "dvc", "repro"], check=False)

    if done.returncode != 0:
        raise typer.Exit(done.returncode if done.returncode > 0 else 128 - done.returncode)


def reproduce(
    experiment: Annotated[
        str, typer.Option(help="MLflow's experiment that gets the run.")
    ] = "visage",
) -> None:
    """Run the stale stages as a Prefect flow, recorded in MLflow.

    Ends with the status of the stage that failed.
    """
    # MLflow is loaded in the background while the flow starts.
    threading.Thread(target=importlib.import_module, args=["model_registry.record"]).start()
    from flows import reproduce as flow
    from flows.pipeline.stage_runner import StageFailed

    with in_clone() as root:
        try:
            flow.reproduce(root, experiment)
        except StageFailed as error:
            raise CommandFailed(str(error), int(error.ending)) from error
        except Busy as error:
            raise CommandFailed(str(error), int(ExitStatus.IO_ERROR)) from error


def retrain(
    reason: Annotated[str, typer.Option(help="Why it runs now, for the record.")] = "by hand",
) -> None:
    """New labelled data becomes a challenger, and the champion if it passes the promotion gate."""
    from flows import retrain as flow
    from flows.pipeline.stage_runner import StageFailed

    with in_clone(StageFailed) as root:
        state: Any = flow.retrain(reason, root, return_state=True)
        if state.is_cancelled():
            raise CommandFailed(state.message)
        state.result()
    typer.echo(state.message)


def drift() -> None:
    """Compare the faces that are served with those of the training; retrain on drift."""
    from flows import drift as flow

    with in_clone() as root:
        state: Any = flow.drift(root, return_state=True)
        state.result()
    typer.echo(state.message)


def deploy(
    register_only: Annotated[
        bool, typer.Option("--register-only", help="Start no worker; needs PREFECT_API_URL.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Of the server that is started here.")
    ] = 4200,
) -> None:
    """Run the schedules of prefect.yaml until Ctrl-C: server, work pool, worker."""
    from flows.deploy import run_schedules

    with in_clone(subprocess.CalledProcessError):
        run_schedules(port, register_only)


def bring(
    watch: Annotated[str, typer.Argument(help="A folder, or a URL such as s3://bucket/folder.")],
    role: Annotated[
        Literal["identity", "target"], typer.Option(help="What the photos are used for.")
    ] = "target",
) -> None:
    """Bring new labelled photos of a folder or bucket into incoming/, under DVC."""
    from flows.intake.bring import look

    place = absolute(watch)
    with in_clone() as root:
        typer.echo(str(look(place, root / "incoming" / role)))


COMMANDS = {
    "run": run,
    "reproduce": reproduce,
    "retrain": retrain,
    "drift": drift,
    "deploy": deploy,
    "bring": bring,
}
