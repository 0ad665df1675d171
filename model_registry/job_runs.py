"""A job outside the pipeline, such as a stage on a cluster, becomes one MLflow run: where, how
long, how fast."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunInfo

from model_registry.mlflow_client import connect, experiment, patiently


def record_job(
    experiment_name: str, name: str, document: Mapping[str, str | float]
) -> tuple[MlflowClient, RunInfo]:
    """Numbers become metrics, strings become parameters; returns the client and the run."""
    client = connect()
    number = patiently(lambda: experiment(experiment_name))
    info = client.create_run(number, run_name=name).info

    metrics = [
        Metric(key, value, info.start_time, 0)
        for key, value in document.items()
        if not isinstance(value, str)
    ]
    params = [Param(key, value) for key, value in document.items() if isinstance(value, str)]

    patiently(lambda: client.log_batch(info.run_id, metrics=metrics, params=params))
    patiently(lambda: client.set_terminated(info.run_id, "FINISHED"))
    return client, info
