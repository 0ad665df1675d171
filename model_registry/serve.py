"""The registered champion predicts photos over HTTP: visage.server's application, MLflow's model.

    visage serve --model champion [--host 127.0.0.1] [--port 5001] [--poll 30]
    visage serve --model models:/NAME/VERSION
    (or: make serve)

An alias is looked up every `--poll` seconds and at POST /reload: a promoted champion takes over
without a restart. The champion's weights, config and limits come from its package, the code that
answers is this checkout's: the config says whether the two belong together. `mlflow models serve`
runs the code inside the package.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from model_registry.mlflow_client import connect
from model_registry.promote import (
    AGAINST,
    CHALLENGER,
    CHAMPION,
    DECISION,
    REASONS,
    history,
    version_with_alias,
)
from visage.server.application import build_app
from visage.server.limits import Limits
from visage.server.models import Loaded, loaded
from visage.server.run import run, server_settings

POLL_SECONDS = 30.0
# Of the page that watches the champion
SHOWN_VERSIONS = 10
SHOWN_EVENTS = 10
SHOWN_METRICS = ("mae", "rmse", "crps", "coverage_80")


def exact_uri(uri: str) -> str:
    """`models:/NAME@champion` -> `models:/NAME/3`, the version that the alias names now; other
    addresses stay as they are."""
    client = connect()
    name, at, alias = uri.removeprefix("models:/").partition("@")
    if not (uri.startswith("models:/") and at):
        return uri
    return f"models:/{name}/{client.get_model_version_by_alias(name, alias).version}"


class RegisteredSource:
    """The package that an address of MLflow's names, such as `models:/NAME@champion`."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        # The package before may still answer requests.
        self._folders: deque[tempfile.TemporaryDirectory[str]] = deque(maxlen=2)

    @property
    def name(self) -> str:
        """The registered model's name."""
        return self._uri.removeprefix("models:/").partition("@")[0].partition("/")[0]

    def identity(self) -> str:
        """The version that the address means now."""
        return exact_uri(self._uri)

    def load(self) -> Loaded:
        """Its package's weights, config, limits and card. ValueError for a package without them."""
        exact = exact_uri(self._uri)
        version = exact.rpartition("/")[2] if exact.startswith("models:/") else None
        folder = tempfile.TemporaryDirectory(prefix="visage-served-")
        package = Path(mlflow.artifacts.download_artifacts(exact, dst_path=folder.name))
        limits = package / "artifacts" / "limits.json"
        if not limits.is_file():
            raise ValueError(f"{exact}: no package of visage; register the model (make retrain)")

        found = loaded(
            package / "artifacts" / "model",
            name=self.name,
            version=version,
            limits=Limits(**json.loads(limits.read_text(encoding="utf-8"))),
            card=self._card(version),
        )
        self._folders.append(folder)
        return found

    def registry(self) -> dict[str, Any] | None:
        """Champion, challengers and what was decided about them, newest first."""
        if not self._uri.startswith("models:/"):
            return None
        client = connect()
        found = client.search_model_versions(f"name = '{self.name}'")
        newest = sorted(found, key=lambda each: int(each.version), reverse=True)
        return {
            "name": self.name,
            "champion": version_with_alias(client, self.name, CHAMPION),
            "challenger": version_with_alias(client, self.name, CHALLENGER),
            "versions": [_version_document(client, each) for each in newest[:SHOWN_VERSIONS]],
            "history": history(self.name)[-SHOWN_EVENTS:],
        }

    def _card(self, version: str | None) -> str | None:
        """The card that was written into the version's description."""
        if version is None:
            return None
        return connect().get_model_version(self.name, version).description or None


def _version_document(client: MlflowClient, version: ModelVersion) -> dict[str, Any]:
    """A version, its test figures, and the comparison by which it was promoted or refused."""
    metrics = client.get_run(version.run_id).data.metrics if version.run_id else {}
    return {
        "version": int(version.version),
        "created_ms": version.creation_timestamp,
        "decision": version.tags.get(DECISION),
        "reasons": version.tags.get(REASONS),
        "decided_against": version.tags.get(AGAINST),
        "metrics": {name: metrics[name] for name in metrics if _is_shown(name)},
    }


def _is_shown(metric: str) -> bool:
    return any(part in SHOWN_METRICS for part in metric.replace("/", ".").split("."))


def serve(uri: str, host: str, port: int, poll_seconds: float) -> None:
    """Serves the package that `uri` names until a signal stops it."""
    settings = server_settings(len(os.sched_getaffinity(0)), poll_seconds)
    # MLflow's warnings repeat what a request holds.
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    run(build_app(RegisteredSource(uri), settings, mlflow.__version__), host, port)
