"""A real process on loopback: slow senders, odd bytes, a stop; and what it imports."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.services import free_port
from tests.visage.server.requests import drawn_photos

PHOTO = drawn_photos(1)[0]
SECONDS_TO_START = 120
NUM_SLOW = 40


class Server:
    """A server process, its port and its log."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.port = free_port()
        self.log = log
        words = ["-m", "visage.cli", "serve", "--model", str(folder), "--port", str(self.port)]
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *words], cwd=REPOSITORY, stdout=stream, stderr=stream
            )

    def send(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "image/jpeg"} if body else {})
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text.startswith(b"{") else text
        finally:
            connection.close()

    def wait(self) -> None:
        end = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError):
                if self.send("GET", "/ready")[0] == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(f"not ready after {SECONDS_TO_START} s")


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(folder, tmp_path_factory.mktemp("log") / "server.log")
    try:
        running.wait()
        yield running
    finally:
        running.process.terminate()
        running.process.wait(timeout=60)


def test_forty_slow_senders_keep_nobody_out(server: Server) -> None:
    """Half a request each, from the same address as the one who wants an answer."""
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(PHOTO)}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        for _ in range(NUM_SLOW):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            slow.sendall(head + PHOTO[: len(PHOTO) // 2])
        wait_until_arriving(server, NUM_SLOW)
        for _ in range(5):
            status, document = server.send("POST", "/predict", PHOTO)
            assert status == 200, document
            assert document["predictions"][0]["faces"]


def wait_until_arriving(server: Server, count: int) -> None:
    wanted = f"visage_requests_arriving {float(count)}".encode()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if wanted in server.send("GET", "/metrics")[1]:
            return
        time.sleep(0.05)
    raise AssertionError("the slow senders never arrived")


def test_odd_bytes_do_not_fill_the_log(server: Server) -> None:
    before = server.log.stat().st_size
    for _ in range(300):
        with socket.create_connection(("127.0.0.1", server.port)) as odd:
            odd.sendall(b"\x00\xff nonsense\r\n\r\n")
            assert b"400" in odd.recv(1000)
    for _ in range(50):
        assert server.send("POST", "/predict", b"\xff\xd8\xff" + bytes(500))[0] == 400
    assert server.send("POST", "/predict", PHOTO)[0] == 200
    assert server.log.stat().st_size - before < 3_000


def test_a_stopped_server_ends_with_its_requests_answered(folder: Path, tmp_path: Path) -> None:
    server = Server(folder, tmp_path / "server.log")
    try:
        server.wait()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) in (0, -signal.SIGTERM)
    finally:
        server.process.kill()
        server.process.wait()


@pytest.mark.parametrize("model", ["nobody", "tests"])
def test_no_model_ends_it_with_one_line(model: str) -> None:
    command = [sys.executable, "-m", "visage.cli", "serve", "--model", model]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert model in done.stderr


def test_the_program_starts_without_what_only_the_pipeline_needs() -> None:
    absent = ("mlflow", "pandas", "pyarrow", "matplotlib", "prefect")
    code = f"import sys, visage.server.run; print(sorted(set({absent}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
