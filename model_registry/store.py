"""Where MLflow keeps things: what the environment names, else SQLite and a folder in the working directory."""

from __future__ import annotations

import os
from pathlib import Path

import mlflow
from mlflow import MlflowClient


def connect() -> MlflowClient:
    """MLflow's client, its tracking address set once: MLFLOW_TRACKING_URI, else .mlflow/mlflow.db here."""
    if "MLFLOW_TRACKING_URI" not in os.environ:
        folder = Path.cwd() / ".mlflow"
        folder.mkdir(exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    return MlflowClient()


def experiment(name: str) -> str:
    """The experiment's id, made at the first call."""
    found = connect().get_experiment_by_name(name)
    return str(found.experiment_id if found else connect().create_experiment(name))
