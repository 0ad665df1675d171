"""Registers the deployments of prefect.yaml and works on them until it is stopped.

    visage deploy [--register-only]          (or: make deploy)

With PREFECT_API_URL set, it uses that server. Otherwise it starts a Prefect server on the loopback
interface, whose pages show what ran. Then it creates the work pool `visage` and the deployments,
and starts a worker, which runs the flows in this working copy. Ctrl-C or SIGTERM stops worker and
server; a running flow is cancelled, and the next run finishes its work. `--register-only` is for a
worker that runs elsewhere.
"""

from __future__ import annotations

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
START_SECONDS = 120.0
STOP_SECONDS = 30.0
# A deployment may run once at a time, and Prefect holds that one place by a lease. By default the
# lease is in memory: with a killed server it is lost, its place is never free again, and every
# later night would be cancelled.
LEASE_STORAGE = "prefect.server.concurrency.lease_storage.filesystem"
LEASES = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASE_STORAGE}


def run_schedules(port: int, register_only: bool) -> None:
    """Registers the deployments and runs their schedules until Ctrl-C or SIGTERM. `port` is that of
    the server that is started where PREFECT_API_URL names none.

    Errors: ValueError; CalledProcessError of the step that failed.
    """
    signal.signal(signal.SIGTERM, _interrupt)

    try:
        if "PREFECT_API_URL" in os.environ:
            deploy(os.environ["PREFECT_API_URL"], work=not register_only)
        elif register_only:
            raise ValueError(
                "--register-only: set PREFECT_API_URL to the server that gets the deployments"
            )
        else:
            with _server(port) as address:
                deploy(address, work=True)
    except KeyboardInterrupt:
        print(
            "visage deploy: stopped; the schedules run again with the next visage deploy",
            file=sys.stderr,
        )


def deploy(address: str, *, work: bool) -> None:
    """Creates pool and deployments at a Prefect API; with `work`, runs a worker until it is
    stopped."""
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
        [*_prefect(), "--no-prompt", "deploy", "--all"],
        cwd=ROOT,
        env=environment,
        check=True,
    )

    if work:
        with _running([*_prefect(), "worker", "start", "--pool", POOL], environment) as worker:
            status = worker.wait()
            if status:
                raise subprocess.CalledProcessError(status, worker.args)


@contextmanager
def _server(port: int) -> Iterator[str]:
    """A Prefect server on the loopback interface while the block lasts; yields the address of its
    API."""
    address = f"http://127.0.0.1:{port}/api"
    if _answers(address):
        raise ValueError(
            f"{address}: a Prefect server is there already; set PREFECT_API_URL={address} to use it"
        )

    words = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
    # Without it the pages ask for the API at Prefect's own port, whichever port this server has.
    pages = {"PREFECT_UI_API_URL": address}
    with _running([*_prefect(), *words], os.environ | LEASES | pages) as server:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(address):
            if server.poll() is not None or time.monotonic() > deadline:
                raise ValueError(
                    f"{address}: the Prefect server did not start; its last lines above say why"
                )
            time.sleep(0.5)

        print(f"visage deploy: Prefect's pages are at http://127.0.0.1:{port}", file=sys.stderr)
        yield address


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


@contextmanager
def _running(words: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process while the block lasts. It has a session of its own, so that Ctrl-C reaches only
    this process, which then stops the other one."""
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
