"""Registers the deployments of prefect.yaml and works on them until it is stopped.

    python -m flows.deploy [--register-only]          (or: make deploy)

Without PREFECT_API_URL it starts a Prefect server of its own on the loopback interface, whose pages
tell what ran; with it, that server is used. Then the work pool `visage`, the deployments, and a
worker, which runs the flows in this working copy. Ctrl-C or SIGTERM stops worker and server; a flow
that was running is cancelled, and the next run finishes its work. `--register-only` is for a worker
that runs elsewhere.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from flows.pipeline.workspace import ROOT

POOL = "visage"
SERVER_PORT = 4200
START_SECONDS, STOP_SECONDS = 120.0, 30.0
# Prefect holds the one place of a deployment by a lease. In memory, as by default, a lease is lost
# with a server that is killed, its place is never free again, and every later night would be
# cancelled.
LEASES = {
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"
}


def main() -> None:
    """The command line; a step that fails ends it with its status and one line."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.deploy", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument(
        "--register-only", action="store_true", help="no worker; needs PREFECT_API_URL"
    )
    parser.add_argument(
        "--port", type=int, default=SERVER_PORT, help="of the server that is started here"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if "PREFECT_API_URL" in os.environ:
            deploy(os.environ["PREFECT_API_URL"], work=not arguments.register_only)
        elif arguments.register_only:
            raise ValueError(
                "--register-only: set PREFECT_API_URL to the server that shall know the deployments"
            )
        else:
            with _server(arguments.port) as address:
                deploy(address, work=True)
    except KeyboardInterrupt:
        print(
            "flows.deploy: stopped; the schedules run again with the next make deploy",
            file=sys.stderr,
        )
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"flows.deploy: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def deploy(address: str, *, work: bool) -> None:
    """Pool and deployments at a Prefect API; then a worker until it is stopped."""
    environment = os.environ | {"PREFECT_API_URL": address, "PWD": str(ROOT)}
    look = subprocess.run(
        [*_prefect(), "work-pool", "inspect", POOL],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
    )
    if look.returncode != 0:
        subprocess.run(
            [*_prefect(), "work-pool", "create", POOL, "--type", "process"],
            cwd=ROOT,
            env=environment,
            check=True,
        )
    subprocess.run(
        [*_prefect(), "--no-prompt", "deploy", "--all"], cwd=ROOT, env=environment, check=True
    )
    if work:
        with _running([*_prefect(), "worker", "start", "--pool", POOL], environment) as worker:
            if status := worker.wait():
                raise subprocess.CalledProcessError(status, worker.args)


@contextmanager
def _server(port: int) -> Iterator[str]:
    """A Prefect server on the loopback interface while the block lasts; yields its API's address."""
    address = f"http://127.0.0.1:{port}/api"
    if _answers(address):
        raise ValueError(
            f"{address}: a Prefect server is there already; set PREFECT_API_URL={address} to use it"
        )
    words = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with _running([*_prefect(), *words], os.environ | LEASES) as server:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(address):
            if server.poll() is not None or time.monotonic() > deadline:
                raise ValueError(
                    f"{address}: the Prefect server did not start; its last lines above say why"
                )
            time.sleep(0.5)
        print(f"flows.deploy: Prefect's pages are at http://127.0.0.1:{port}", file=sys.stderr)
        yield address


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


@contextmanager
def _running(words: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, so that Ctrl-C reaches this one alone, which then stops it
    in good order."""
    process = subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _prefect() -> list[str]:
    return [sys.executable, "-m", "prefect"]


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
