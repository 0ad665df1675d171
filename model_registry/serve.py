"""The registered champion predicts photos over HTTP, in one process.

    python -m model_registry.serve --model models:/NAME@champion [--host 127.0.0.1] [--port 5001]
    (or: make serve)

POST /invocations predicts. GET /ready names the model and its version, /metrics counts for
Prometheus, /statistics summarises the newest faces for flows/drift.py; /ping, /health and /version
are those of MLflow's scoring server. An alias is looked up once, at the start: after a promotion,
restart the server.

Each prediction runs on one thread, as many at once as there are cores: sixteen clients then share
the cores without thrashing, and a single client loses little (bench/serving.py). Requests wait in a
bounded queue; beyond it, 503 says when to come back. Requests of several clients are not joined
into batches: measured, it gains too little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlflow
import torch
import uvicorn
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from model_registry.invocations import predict_with
from model_registry.mlflow_client import connect, load_package
from model_registry.prometheus_metrics import PrometheusMetrics
from model_registry.request_guard import JSON, GuardSettings, Refusal, RequestGuard

# Requests in the queue; each holds at most max_request_bytes.
MAX_WAITING = 32

# /statistics summarises the newest faces; the oldest leave it a block at a time.
WINDOW_FACES = 2_000
BLOCK_FACES = 200

ARRIVAL_SECONDS = 30.0  # for all of a request to arrive
SECONDS_TO_FINISH = 30  # for requests in flight after SIGTERM


def exact_uri(uri: str) -> str:
    """`models:/NAME@champion` -> `models:/NAME/3`, the version that the alias names now; other
    addresses stay as they are."""
    client = connect()
    name, at, alias = uri.removeprefix("models:/").partition("@")
    if not (uri.startswith("models:/") and at):
        return uri
    return f"models:/{name}/{client.get_model_version_by_alias(name, alias).version}"


def build_app(model: PyFuncModel, name: str, num_at_once: int) -> Starlette:
    """The HTTP application of a loaded package; `name` is what /ready and /metrics call it.

    Raises ValueError for a package of an older visage, which cannot report to this server.
    """
    served: Any = model.unwrap_python_model()  # type: ignore[no-untyped-call]
    if not hasattr(served, "summarise"):
        raise ValueError(
            "the package was made by an older visage: register the model again (make retrain), "
            "or serve it with `mlflow models serve`"
        )

    config = served.predictor.config
    summary = served.summarise(WINDOW_FACES, BLOCK_FACES)
    metrics = PrometheusMetrics(config, name, served.version)
    served.on_documents = metrics.count_documents
    ready = {
        "ready": True,
        "name": name,
        "version": served.version,
        "model": config.name,
        "sha256": config.weights.sha256,
    }

    switches = model.metadata.get_params_schema().params  # type: ignore[no-untyped-call]
    settings = GuardSettings(
        max_request_bytes=served.limits.max_request_bytes,
        max_items=served.limits.max_photos,
        switches=[switch.name for switch in switches],
        max_inside=num_at_once + MAX_WAITING,
        arrival_seconds=ARRIVAL_SECONDS,
    )
    guard = RequestGuard(predict_with(model), settings, metrics.count_response)
    metrics.watch(lambda: guard.inside)

    return routed(
        guard,
        {
            "/ready": lambda: Response(json.dumps(ready), media_type=JSON),
            "/statistics": lambda: Response(json.dumps(summary.as_document()), media_type=JSON),
            "/metrics": lambda: Response(metrics.page(), media_type=CONTENT_TYPE_LATEST),
            "/ping": lambda: Response("\n", media_type=JSON),
            "/health": lambda: Response("\n", media_type=JSON),
            "/version": lambda: Response(mlflow.__version__, media_type=JSON),
        },
    )


def routed(guard: ASGIApp, pages: dict[str, Callable[[], Response]]) -> Starlette:
    """`guard` at /invocations with every method, and the pages to GET."""

    def page(make: Callable[[], Response]) -> Callable[[Request], Any]:
        async def endpoint(_: Request) -> Response:
            return make()

        return endpoint

    async def refuse(_: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 405:
            return Refusal(405, "this page is only read", {"allow": "GET, HEAD"}).response()
        return Refusal(404, "there is no such page; photos go to POST /invocations").response()

    routes = [Route(path, page(make)) for path, make in pages.items()]
    app = Starlette(
        routes=[Route("/invocations", guard), *routes],
        exception_handlers={404: refuse, 405: refuse},
    )
    app.router.redirect_slashes = False
    return app


async def run(app: ASGIApp, host: str, port: int, num_at_once: int) -> None:
    """Serves until SIGTERM or SIGINT; requests in flight are finished first."""
    # Predictions run in the event loop's default thread pool: its size bounds what runs at once.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(num_at_once, "predict"))
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SECONDS_TO_FINISH,
    )
    await uvicorn.Server(config).serve()


def serve(uri: str, host: str, port: int) -> None:
    """Loads the package that `uri` names and serves it until a signal stops it."""
    num_at_once = len(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    exact = exact_uri(uri)
    model = load_package(exact)

    # The first prediction imports and warms up what the later ones use.
    model.predict(model.input_example)

    # MLflow's warnings repeat what a request holds.
    logging.getLogger("mlflow").setLevel(logging.ERROR)

    name = exact.removeprefix("models:/").partition("/")[0]
    asyncio.run(run(build_app(model, name, num_at_once), host, port, num_at_once))


def main() -> None:
    """The command line. A missing or damaged model ends it with one line and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m model_registry.serve", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--model", required=True, help="models:/NAME@ALIAS or models:/NAME/VERSION")
    parser.add_argument(
        "--host", default="127.0.0.1", help="where to listen; beyond loopback see docs/serve.md"
    )
    parser.add_argument("--port", type=int, default=5001)
    arguments = parser.parse_args()
    try:
        serve(arguments.model, arguments.host, arguments.port)
    except (ValueError, MlflowException) as error:
        print(f"model_registry.serve: {arguments.model}: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
