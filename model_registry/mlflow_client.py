"""The connection to MLflow: what its environment variables name, else SQLite and a folder in the
working directory.

MLFLOW_TRACKING_URI names a server (http://...) or a database (postgresql://...). A server knows
where artifacts go. With a database, MLFLOW_DEFAULT_ARTIFACT_ROOT names the place
(s3://bucket/folder; keys and endpoint in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
MLFLOW_S3_ENDPOINT_URL). With SQLite the artifacts are in a folder next to the database file.
Without any of these variables everything is in .mlflow/.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, TEMPORARILY_UNAVAILABLE
from mlflow.pyfunc import PyFuncModel
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

LOCAL = ".mlflow"  # folder of the working directory: database and artifacts without a server
# MLflow's pages show it under the experiment's name
ABOUT_EXPERIMENT = (
    "One run for each result of the pipeline, named by its start; one run for each sweep, with its "
    "trials below it."
)
PASSING = databricks_pb2.ErrorCode.Name(TEMPORARILY_UNAVAILABLE)

# Seconds between attempts: after these 63 s a database that restarts is back.
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)

# What MLflow raises, for callers outside this package, which alone imports it.
ERRORS = (MlflowException,)

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


def connect() -> MlflowClient:
    """MLflow's client, and MLflow itself, connected to the store that the environment names."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        folder = Path.cwd() / LOCAL
        folder.mkdir(exist_ok=True)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


def experiment(name: str) -> str:
    """The id of the experiment `name`, which is created where it is missing."""
    client = connect()
    known = client.get_experiment_by_name(name)
    if known is None:
        try:
            return str(
                client.create_experiment(
                    name,
                    artifact_location=artifact_root(),
                    tags={MLFLOW_RUN_NOTE: ABOUT_EXPERIMENT},
                )
            )
        except MlflowException as error:
            # Another process may have created it in between.
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
    """Where a new experiment's artifacts go; None leaves it to the server. MLflow's own default is
    ./mlruns."""
    # `connect` ran before, and MLflow then sets the variable where it was not set.
    kind, _, place = os.environ["MLFLOW_TRACKING_URI"].partition("://")
    if kind in ("http", "https"):
        return None
    if "MLFLOW_DEFAULT_ARTIFACT_ROOT" in os.environ:
        return os.environ["MLFLOW_DEFAULT_ARTIFACT_ROOT"]
    if kind != "sqlite":
        raise ValueError(
            f"MLFLOW_TRACKING_URI is a database ({kind}), but MLFLOW_DEFAULT_ARTIFACT_ROOT is not "
            "set: set it to where files go, such as s3://bucket/folder"
        )
    return (Path(place.removeprefix("/")).absolute().parent / "artifacts").as_uri()


def patiently(action: Callable[[], Result]) -> Result:
    """The result of `action`, tried again while the database is unavailable for a moment. The
    action must be one that may run twice.

    A server that is unavailable is not retried here: MLflow's own client tries for minutes.
    """
    for pause in PAUSES:
        try:
            return action()
        except MlflowException as error:
            if error.error_code != PASSING:
                raise
            _log.warning(
                "MLflow's store is unavailable, next attempt in %g s: %s", pause, str(error)[:200]
            )
            time.sleep(pause)
    return action()


def load_package(uri: str) -> PyFuncModel:
    """A registered version or a logged package, ready to predict in this process.

    MLflow puts the package's code first on `sys.path` and leaves it there. A process that is
    spawned later inherits that path and would import the package's copy of visage, which holds
    inference only, in place of this tree's. So the path is put back.
    """
    path = list(sys.path)
    try:
        package: PyFuncModel = mlflow.pyfunc.load_model(uri)
    finally:
        sys.path[:] = path
    return package
