"""Many photos at once: scored into a table, or labelled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.commands.in_clone import absolute, in_clone
from flows.pipeline.workspace import ROOT
from visage.cli.failures import CommandFailed


def score(
    photos: Annotated[
        str, typer.Argument(help="Folder, URL of a bucket's folder, or table (.csv, .parquet).")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the parquet files.")],
    model: Annotated[
        Path | None, typer.Option(help="A model's folder; default: the registry's champion.")
    ] = None,
    params: Annotated[Path, typer.Option(help="Settings.")] = ROOT / "params.yaml",
) -> None:
    """Score a folder, bucket or table of photos with the champion, or resume."""
    from flows.score import flow

    place = absolute(photos)
    target = output.absolute()
    folder = model and model.absolute()
    settings = params.absolute()
    with in_clone():
        counts = flow.score(place, target, folder, settings)
    typer.echo(f"{_counts_text(counts)}  -> {output}")


def label(
    photos: Annotated[Path, typer.Argument(help="Folder with photos, at any depth.")],
    model: Annotated[
        list[Path] | None,
        typer.Option(help="A model's folder, once for each of the ensemble."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Default: data/label/ and the name of the folder.")
    ] = None,
    show: Annotated[
        int, typer.Option(min=0, help="How many faces the pages show, the worst first.")
    ] = 1000,
    finish: Annotated[
        Path | None, typer.Option(help="Make labels.csv of this corrected review.csv.")
    ] = None,
    unreviewed: Annotated[
        Literal["take", "leave"] | None,
        typer.Option(help="Of rows not corrected, with --finish."),
    ] = None,
) -> None:
    """Turn unlabelled photos into a sheet to correct, and the sheet into labels.csv."""
    from flows.label import flow

    target = output or ROOT / "data" / "label" / photos.resolve().name
    if finish is None:
        if unreviewed is not None:
            raise CommandFailed("--unreviewed belongs to --finish review.csv")
        counts = flow.label(photos, model or [flow.default_model()], target, show)
        typer.echo(f"{_counts_text(counts)}  -> {target}")
        return

    if unreviewed is None:
        raise CommandFailed(
            "--finish wants --unreviewed take or leave: what becomes of rows without a correction"
        )
    done = flow.finish_labels(finish, target, unreviewed)
    typer.echo(f"{_counts_text(done)}  -> {target / flow.LABELS}")


def _counts_text(counts: Mapping[str, int]) -> str:
    return "  ".join(f"{name} {count}" for name, count in counts.items())


COMMANDS = {"score": score, "label": label}
