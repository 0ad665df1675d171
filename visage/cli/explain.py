"""`visage explain`: what the model looks at in the faces of a photo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visage.cli.failures import needs
from visage.cli.options import Flip, Model


def explain(
    photo: Annotated[Path, typer.Argument(help="A photo.")],
    out: Annotated[
        Path | None,
        typer.Argument(help="The PNG that is written; default: PHOTO's name, explained.png."),
    ] = None,
    model: Model = None,
    flip: Flip = True,
) -> None:
    """Draw the score map and the distribution of each face of a photo."""
    target = out or Path(f"{photo.stem}-explained.png")
    with needs("torch,plots"):
        from visage.explain.photo import MAX_SHOWN, explain_file

    num_faces = explain_file(photo, target, model, flip)
    if num_faces > MAX_SHOWN:
        typer.echo(f"{photo}: {num_faces} faces, the largest {MAX_SHOWN} are shown", err=True)
    typer.echo(str(target))
