"""The registered champion answers photos over HTTP: MLflow's scoring app behind a guard, in one
process.

    python -m model_registry.serve --model models:/NAME@champion [--host 127.0.0.1] [--port 5001]

(or: make serve)

POST /invocations answers; GET /ready says which model and version, /metrics counts for Prometheus,
/statistics sums the newest faces up for flows/drift.py, /ping /health /version are MLflow's own. An
alias is looked up once, at the start: after a promotion start the server anew.

Each prediction runs on one thread, as many at once as there are cores: sixteen clients then share
the cores without thrashing, and one alone loses little (bench/serving.py). Requests wait in a queue
with an end, beyond which 503 says when to come back. Requests from several clients are not joined
into batches: measured, it gains too little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlflow
import torch
import uvicorn
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel, scoring_server
from prometheus_client import CONTENT_TYPE_LATEST

from model_registry.mlflow_client import connect
from model_registry.prometheus_metrics import Tally
from model_registry.request_guard import App, Guard, GuardSettings

JSON = "application/json"
MAX_WAITING = 32  # requests in the queue; each holds at most max_request_bytes
ARRIVAL_SECONDS = 30.0  # for a request to arrive whole
SECONDS_TO_FINISH = 30  # for requests in flight after SIGTERM


def exact_uri(uri: str) -> str:
    """`models:/NAME@champion` -> `models:/NAME/3`, the version that the alias means now; others
    stay."""
    client = connect()
    name, at, alias = uri.removeprefix("models:/").partition("@")
    if not (uri.startswith("models:/") and at):
        return uri
    return f"models:/{name}/{client.get_model_version_by_alias(name, alias).version}"


def build_app(model: PyFuncModel, name: str, num_at_once: int) -> App:
    """The whole application around a loaded package; `name` is what /ready and /metrics call it."""
    served: Any = model.unwrap_python_model()  # type: ignore[no-untyped-call]
    model_config = served.predictor.config
    tally = Tally(model_config, name, served.version)
    served.told = tally.count_documents
    ready = {
        "ready": True,
        "name": name,
        "version": served.version,
        "model": model_config.name,
        "sha256": model_config.weights.sha256,
    }
    switches = model.metadata.get_params_schema().params  # type: ignore[no-untyped-call]
    guard = Guard(
        scoring_server.init(model),
        GuardSettings(
            max_request_bytes=served.limits.max_request_bytes,
            max_items=served.limits.max_photos,
            switches=[switch.name for switch in switches],
            max_inside=num_at_once + MAX_WAITING,
            arrival_seconds=ARRIVAL_SECONDS,
        ),
        pages={
            "/ready": lambda: (json.dumps(ready).encode(), JSON),
            "/statistics": lambda: (json.dumps(served.summary.as_document()).encode(), JSON),
            "/metrics": lambda: (tally.page(), CONTENT_TYPE_LATEST),
        },
        seen=tally.count_answer,
    )
    tally.watch(lambda: guard.inside)
    return guard


async def run(app: App, host: str, port: int, num_at_once: int) -> None:
    """Serves until SIGTERM or SIGINT; requests in flight are then answered first."""
    # MLflow predicts in the loop's own pool of threads: its size bounds what runs at once.
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
    """Loads the package that `uri` names and answers until told to stop."""
    num_at_once = len(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    exact = exact_uri(uri)
    model = mlflow.pyfunc.load_model(exact)
    model.predict(model.input_example)  # the first answer imports and warms what the later ones use
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # its warnings repeat what a request holds
    name = exact.removeprefix("models:/").partition("/")[0]
    asyncio.run(run(build_app(model, name, num_at_once), host, port, num_at_once))


def main() -> None:
    """The command line; a model that is not there or not sound ends it with one line and exit
    status 2."""
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
