"""A small registered model in its own store, photos for it, and real servers on loopback."""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from model_registry.mlflow_client import connect
from model_registry.package import PackageSettings, package
from tests.conftest import REPOSITORY
from visage.synthetic import encode_face, sample_person, sample_photo

SETTINGS = PackageSettings(
    model="small",
    max_request_bytes=400_000,
    max_request_pixels=3_000_000,
    max_photos=8,
    max_photo_bytes=100_000,
    max_photo_pixels=1_000_000,
)
SECONDS_TO_START = 120


@dataclass(frozen=True, kw_only=True)
class Store:
    """MLflow's data in a folder, and the run that made the small model in `export`."""

    folder: Path
    export: Path
    run_id: str
    version: int

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def environment(self) -> dict[str, str]:
        """A server's, whose temporary files are the store's."""
        scratch = self.folder / "tmp"
        scratch.mkdir(exist_ok=True)
        own = {"MLFLOW_TRACKING_URI": self.uri, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
        own["PATH"] = (
            f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where MLflow looks for uvicorn
        )
        return {
            **os.environ,
            **own,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONPATH": str(REPOSITORY),
        }


def make_store(folder: Path, export: Path) -> Store:
    """Registers `export` as version 1 and champion in the store of MLFLOW_TRACKING_URI."""
    client = connect()
    experiment = client.create_experiment(
        "small", artifact_location=(folder / "artifacts").as_uri()
    )
    run_id = client.create_run(experiment).info.run_id
    version = package(export, run_id, SETTINGS)
    client.set_registered_model_alias(SETTINGS.model, "champion", str(version))
    return Store(folder=folder, export=export, run_id=run_id, version=version)


def package_folder(store: Store) -> Path:
    """The folder of the registered package."""
    return Path(mlflow.artifacts.download_artifacts(f"models:/{SETTINGS.model}/{store.version}"))


def synthetic_photos(count: int, px: int = 160, seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [
        encode_face(sample_photo(sample_person(rng), rng, clean=True), px) for _ in range(count)
    ]


def base64_of(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server process at a port of loopback."""

    port: int
    process: subprocess.Popen[bytes]

    def send(self, body: Any, method: str = "POST", path: str = "/invocations") -> tuple[int, Any]:
        """Status and document; dictionaries go as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            data = json.dumps(body) if isinstance(body, dict) else body
            connection.request(method, path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text.strip().startswith(b"{") else text
        finally:
            connection.close()

    def photos(self, photos: list[bytes], **switches: bool) -> list[dict[str, Any]]:
        """The documents of photos that are accepted."""
        rows = [{"photo": base64_of(photo)} for photo in photos]
        status, document = self.send({"dataframe_records": rows, "params": switches})
        assert status == 200, document
        documents: list[dict[str, Any]] = document["predictions"]
        return documents


def serve_command(port: int) -> list[str]:
    model = f"models:/{SETTINGS.model}@champion"
    return [sys.executable, "-m", "visage.cli", "serve", "--model", model, "--port", str(port)]


@contextmanager
def running(command: list[str], port: int, store: Store, ready: str) -> Iterator[Server]:
    """A server from its first response at `ready` on. It is stopped at the end, and its log is kept
    next to the store."""
    with (store.folder / f"server-{port}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=store.environment,
            cwd=store.folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(port=port, process=process)
    try:
        wait_until_ready(server, ready)
        yield server
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 15)  # MLflow's own server has a child
        process.wait(timeout=60)


def wait_until_ready(server: Server, ready: str) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end:
        assert server.process.poll() is None, "the server ended while it started"
        try:
            if server.send(None, "GET", ready)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"not ready after {SECONDS_TO_START} s")
