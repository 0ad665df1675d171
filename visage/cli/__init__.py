"""The command `visage`: photos in, predictions out; from a clone also the pipeline.

    visage predict photo.jpg holidays/ 'scans/*.png'
    visage models | serve | explain
    visage run | retrain | score | promote ...          (from a clone: flows/commands/)

| exit status | meaning |
|---|---|
| 0 | done; every photo was answered, one without a face too |
| 1 | some photo could not be read, or some step failed: each is named, and the others are done |
| 2 | nothing was done: the message says what to correct |
| 74, 137 | `visage reproduce` and `visage run`: those of stages/exit_status.py |
| 130 | stopped by Ctrl-C |

An error is one line on stderr. Only a fault of this code prints a traceback.
"""

from __future__ import annotations

from typing import Annotated

import typer

from visage.cli import explain, models, predict, serve
from visage.cli.group import CommandGroup

app = typer.Typer(
    cls=CommandGroup,
    help="Age and attractiveness from face photos.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(predict.predict)
app.command()(models.models)
app.command()(explain.explain)
app.command()(serve.serve)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"visage {version('visage')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Age and attractiveness from face photos."""


def main() -> None:
    """The console script."""
    app(prog_name="visage")
