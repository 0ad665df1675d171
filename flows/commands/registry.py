"""The registered model, and which of its versions is champion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.in_clone import in_clone
from visage.cli.failures import CommandFailed

Model = Annotated[
    str | None, typer.Option(help="The registered model; default: package.model of params.yaml.")
]
Reason = Annotated[str, typer.Option(help="Why, for the record.")]


def registered_model(root: Path) -> str:
    """The name of the registered model of the data set in use."""
    from stages.presets import read_params

    return str(read_params(root / "params.yaml")["package"]["model"])


def history(model: Model = None) -> None:
    """List which version was champion, when and why."""
    from model_registry.mlflow_client import ERRORS

    with in_clone(*ERRORS) as root:
        _print_history(model or registered_model(root))


def promote(
    version: Annotated[int, typer.Argument(min=1, help="Of the registered model.")],
    model: Model = None,
    reason: Reason = "by hand",
) -> None:
    """Make a version the champion by hand."""
    from model_registry import promote as champions
    from model_registry.mlflow_client import ERRORS

    with in_clone(*ERRORS) as root:
        name = model or registered_model(root)
        champions.promote(name, version, reason)
        _print_history(name)


def rollback(model: Model = None, reason: Reason = "by hand") -> None:
    """Make the previous champion the champion again."""
    from model_registry import promote as champions
    from model_registry.mlflow_client import ERRORS

    with in_clone(*ERRORS) as root:
        name = model or registered_model(root)
        champions.rollback(name, reason)
        _print_history(name)


def _print_history(name: str) -> None:
    from model_registry.promote import champion
    from model_registry.promote import history as events

    for event in events(name):
        typer.echo(
            f"{event['time']}  version {event['version']:<4} {event['action']}: {event['reason']}"
        )
    typer.echo(f"champion: version {champion(name)}")


def serve(model: str, host: str, port: int, poll_seconds: float | None) -> None:
    """Serves a registered version; `champion` is that of the data set in use."""
    from model_registry import serve as server
    from model_registry.mlflow_client import ERRORS

    with in_clone(*ERRORS) as root:
        poll = server.POLL_SECONDS if poll_seconds is None else poll_seconds
        uri = f"models:/{registered_model(root)}@champion" if model == "champion" else model
        server.serve(uri, host, port, poll)


def release(
    exported: Annotated[Path, typer.Argument(help="An exported model's folder.")],
    released: Annotated[Path, typer.Argument(help="The folder that is written.")],
    name: Annotated[str, typer.Option(help="The released model's name.")],
    terms: Annotated[
        str,
        typer.Option(help="What the terms of the training data mean for these weights."),
    ],
    metrics: Annotated[Path, typer.Option(help="JSON with the measured figures.")],
) -> None:
    """Turn an exported model into a released one."""
    from visage.export import release as export

    try:
        figures = json.loads(metrics.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandFailed(f"{metrics}: {error}") from error
    export.release(exported, released, name=name, terms=terms, metrics=figures)
    sizes = [f"{path.name} {path.stat().st_size} bytes" for path in sorted(released.iterdir())]
    typer.echo(f"{released}: {', '.join(sizes)}")


COMMANDS = {"history": history, "promote": promote, "rollback": rollback, "release": release}
