"""`visage serve`: a model over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from visage.cli.failures import needs
from visage.cli.group import pipeline

# Of a clone: the registered champion of the data set in use
CHAMPION = "champion"
REGISTERED = "models:/"


def serve(
    model: Annotated[
        str | None,
        typer.Option(
            help="A released model's name or a model's folder; from a clone also champion, or "
            "models:/NAME/VERSION of the registry. Default: the default released model."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; beyond loopback see docs/serve.md.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5001,
    poll: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Look every so many seconds whether the model has changed; 0: only POST /reload "
            "does. Default: 0, of the registry 30.",
        ),
    ] = None,
) -> None:
    """Serve a model over HTTP, with a page to try it, until Ctrl-C."""
    if model is not None and (model == CHAMPION or model.startswith(REGISTERED)):
        pipeline().serve_registered(model, host, port, poll)
        return

    with needs("serve"):
        from visage.server.run import serve as run
    from visage.inference.loading import model_folder

    run(model_folder(model), host, port, poll or 0.0)
