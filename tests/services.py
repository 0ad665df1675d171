"""Real components on loopback for tests: PostgreSQL, an S3-compatible store, an MLflow server, each
for its block.

with postgres() as database, s3("models") as store:
    with mlflow_server(database.uri, store.root, store.environment) as uri:
        ...
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

LOOPBACK = "127.0.0.1"
SERVER_SECONDS = 120  # what a server may take to answer on a busy machine


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, kw_only=True)
class Postgres:
    """A PostgreSQL that trusts every client of this machine."""

    folder: Path
    port: int

    @property
    def uri(self) -> str:
        return f"postgresql://postgres@{LOOPBACK}:{self.port}/postgres"

    def start(self) -> None:
        options = f"-c listen_addresses={LOOPBACK} -c fsync=off -p {self.port} -k {self.folder}"
        self._control("start", "-l", str(self.folder / "log"), "-o", options)

    def stop(self) -> None:
        """Ends every connection at once, as an administrator's restart does."""
        self._control("stop", "-m", "fast")

    def restart(self) -> None:
        self.stop()
        self.start()

    def _control(self, *arguments: str) -> None:
        run_as_postgres("pg_ctl", "-D", str(self.folder / "data"), "-w", *arguments)


def postgres_program(name: str) -> Path:
    """One of PostgreSQL's programs in Debian's place or on the path; the test is skipped where
    there is none."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = places[-1] if places else shutil.which(name)
    if found is None:
        pytest.skip(f"no PostgreSQL here: {name} is neither in /usr/lib/postgresql nor on the path")
    return Path(found)


def run_as_postgres(name: str, *arguments: str) -> None:
    """One of PostgreSQL's programs, which refuse to be root: root runs them as Debian's user
    postgres."""
    command = [str(postgres_program(name)), *arguments]
    if os.geteuid() == 0:
        command = ["runuser", "-u", "postgres", "--", *command]
    # Its output is no pipe: the server would keep it open.
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        timeout=120,
    )


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A fresh, empty PostgreSQL."""
    postgres_program("initdb")
    with tempfile.TemporaryDirectory(
        prefix="visage-postgres-"
    ) as name:  # pytest's own folder is closed to others
        folder = Path(name)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        database = Postgres(folder=folder, port=free_port())
        initial = (
            "--auth=trust",
            "--no-sync",
            "--username=postgres",
            "--no-locale",
            "--encoding=UTF8",
        )
        run_as_postgres("initdb", "-D", str(folder / "data"), *initial)
        database.start()
        try:
            yield database
        finally:
            database.stop()


@dataclass(frozen=True, kw_only=True)
class Store:
    """A bucket: its root and the environment variables that lead to it."""

    root: str
    environment: Mapping[str, str]


@contextmanager
def s3(bucket: str) -> Iterator[Store]:
    """An empty bucket in an S3-compatible server of this process."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address=LOOPBACK, port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    secrets = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=bucket)
    try:
        yield Store(
            root=f"s3://{bucket}",
            environment=secrets | {"MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}"},
        )
    finally:
        client.close()
        server.stop()


@contextmanager
def mlflow_server(
    backend: str, artifacts: str, environment: Mapping[str, str], folder: Path
) -> Iterator[str]:
    """`mlflow server` on a database and an artifact root that it serves itself; its address.
    `folder` takes its log."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        LOOPBACK,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += ["--backend-store-uri", backend, "--artifacts-destination", artifacts]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "mlflow-server.log").open("wb") as log:
        server = subprocess.Popen(
            command,
            env={**os.environ, **quiet, **environment},
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
        )
        try:
            wait_for(f"http://{LOOPBACK}:{port}/health", server, folder / "mlflow-server.log")
            yield f"http://{LOOPBACK}:{port}"
        finally:
            end(server)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Returns as soon as `url` answers; fails with the server's last words where it ended or takes
    too long."""
    deadline = time.monotonic() + SERVER_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(
        f"{url} does not answer:\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}"
    )


def end(server: subprocess.Popen[bytes]) -> None:
    """Ends a server that was started in a session of its own, and all that it started."""
    os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(20)
