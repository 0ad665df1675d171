"""The options that several commands take."""

from __future__ import annotations

from typing import Annotated, Literal

import typer


def _released_names(incomplete: str) -> list[str]:
    """For the shell's completion."""
    import visage

    names = [model.name for model in visage.models()]
    return [name for name in names if name.startswith(incomplete)]


Model = Annotated[
    str | None,
    typer.Option(
        help="A released model's name (visage models), or a model's folder; default: the default "
        "released model.",
        autocompletion=_released_names,
    ),
]
Runtime = Annotated[
    Literal["onnx", "torch"] | None,
    typer.Option(help="Default: onnx, where the model has it; torch needs visage[torch]."),
]
Precision = Annotated[
    Literal["float", "int8"], typer.Option(help="int8 is faster and a little less exact.")
]
Flip = Annotated[
    bool, typer.Option("--flip/--no-flip", help="Average each face with its mirror image.")
]
