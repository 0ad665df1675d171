"""Where MLflow keeps things: what its environment variables say, else SQLite and a folder in the
working copy.

MLFLOW_TRACKING_URI names a server (http://...) or a database (postgresql://...). Beside a server
nothing else is needed: it knows where artifacts go. Beside a database, MLFLOW_DEFAULT_ARTIFACT_ROOT
says so (s3://bucket/folder; keys and endpoint in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
MLFLOW_S3_ENDPOINT_URL); SQLite has them beside its file. Without any, all lies in .mlflow/.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, TEMPORARILY_UNAVAILABLE

LOCAL = ".mlflow"  # in the working directory: database and artifacts of those who have no server
PASSING = databricks_pb2.ErrorCode.Name(TEMPORARILY_UNAVAILABLE)
PAUSES = (
    1.0,
    2.0,
    4.0,
    8.0,
    16.0,
    32.0,
)  # seconds between attempts: a database that restarts is back by then
Result = TypeVar("Result")
_log = logging.getLogger(__name__)


def connect() -> MlflowClient:
    """MLflow's client, and MLflow itself, at the store that the environment names."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        folder = Path.cwd() / LOCAL
        folder.mkdir(exist_ok=True)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


def experiment(name: str) -> str:
    """The experiment's id; it is made where it is missing, by whoever comes first."""
    client = connect()
    known = client.get_experiment_by_name(name)
    if known is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_root()))
        except MlflowException as error:
            if error.error_code != databricks_pb2.ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
            known = client.get_experiment_by_name(name)
    assert known is not None
    if known.lifecycle_stage == "deleted":
        raise ValueError(
            f"experiment {name!r} is deleted; restore it (mlflow experiments restore) or name "
            f"another"
        )
    return str(known.experiment_id)


def artifact_root() -> str | None:
    """Where a new experiment's artifacts go; None leaves it to the server. MLflow itself would take
    ./mlruns."""
    kind, _, place = os.environ["MLFLOW_TRACKING_URI"].partition(
        "://"
    )  # MLflow has set it, where it was not
    if kind in ("http", "https"):
        return None
    if "MLFLOW_DEFAULT_ARTIFACT_ROOT" in os.environ:
        return os.environ["MLFLOW_DEFAULT_ARTIFACT_ROOT"]
    if kind != "sqlite":
        raise ValueError(
            f"MLFLOW_TRACKING_URI is a database ({kind}) and nothing says where files go: set "
            "MLFLOW_DEFAULT_ARTIFACT_ROOT, such as s3://bucket/folder"
        )
    return (Path(place.removeprefix("/")).absolute().parent / "artifacts").as_uri()


def patiently(action: Callable[[], Result]) -> Result:
    """`action` again and again while the database is away for a moment. It must be one that may be
    done twice.

    Of a server that is away MLflow's own client has tried for minutes before it gives up; that is
    not done again.
    """
    for pause in PAUSES:
        try:
            return action()
        except MlflowException as error:
            if error.error_code != PASSING:
                raise
            _log.warning(
                "MLflow's store does not answer, again in %g s: %s", pause, str(error)[:200]
            )
            time.sleep(pause)
    return action()
