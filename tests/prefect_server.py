"""A real Prefect server on the loopback interface, one for all tests of a session that use it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import free_port, wait_for

STOP_SECONDS = 20.0


@pytest.fixture(scope="session")
def running_prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The server's PREFECT_ settings, for its clients; it is stopped at the end of the session."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    settings = {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    log = home / "server.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            command,
            env=os.environ | settings,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/api/health", server, log)
        yield settings | {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    finally:
        _stop(server)


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGINT)
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def prefect_server(
    running_prefect_server: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The API's address, set for this test: in the environment of what it starts, and for flows in
    its own process."""
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    for name, value in running_prefect_server.items():
        monkeypatch.setenv(name, value)
    address = running_prefect_server["PREFECT_API_URL"]
    with temporary_settings(
        {PREFECT_API_URL: address, PREFECT_HOME: Path(running_prefect_server["PREFECT_HOME"])}
    ):
        yield address
        APILogWorker.drain_all(timeout=10)  # the last lines leave before the server does
