"""`visage models`: the released models."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visage.cli.reports import aligned

if TYPE_CHECKING:
    from visage.inference.loading import ReleasedModel

HEADER = ("model", "quantity", "labels", "mean error (95 %)", "parameters", "size", "precisions")


def models(
    as_json: Annotated[bool, typer.Option("--json", help="A list of JSON objects.")] = False,
) -> None:
    """List the released models, the default one first."""
    import visage

    found = visage.models()
    if as_json:
        typer.echo(json.dumps(list(map(_document, found)), indent=1, ensure_ascii=False))
        return

    sys.stdout.writelines(aligned([HEADER, *map(_row, found)]))
    for model in found:
        typer.echo(f"\n{model.name}: {model.terms}")


def _row(model: ReleasedModel) -> tuple[str, ...]:
    error = "not measured"
    if model.mean_absolute_error is not None:
        value, low, high = model.mean_absolute_error
        error = f"{value:.2f} ({low:.2f} to {high:.2f})"
    return (
        f"{model.name} (default)" if model.is_default else model.name,
        model.quantity,
        f"{model.grid.minimum:g} to {model.grid.maximum:g} {model.unit}",
        error,
        f"{model.num_parameters:,}",
        f"{model.num_bytes / 1e6:.1f} MB",
        ", ".join(model.precisions),
    )


def _document(model: ReleasedModel) -> dict[str, Any]:
    return dataclasses.asdict(model) | {"folder": str(model.folder)}
