"""Alignment, pre-training and a sweep on a cluster of two nodes on this machine (synthetic faces).

    visage cluster-demo          (or: make cluster-demo)

Works in a clone of the last commit, runs/cluster-demo, with the small settings of
presets/cluster_demo.yaml. Each node is what `ray start` makes of a machine, with one CPU.
docs/cluster.md describes the same with real machines.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flows.pipeline.workspace import ROOT
from flows.scale_out.ray_cluster import ADDRESS, lock

FOLDER = ROOT / "runs" / "cluster-demo"
JOBS = (
    ("scale-out", "align@identity"),
    ("scale-out", "align@target"),
    ("scale-out", "pretrain"),
    ("sweep",),
)
STARTED = "Ray runtime started."
START_SECONDS = 120.0
STOP_SECONDS = 30.0


def free_port() -> int:
    """A port on which no process listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def node(log: Path, *words: str) -> Iterator[None]:
    """A node as `ray start` makes it, for as long as the block lasts. Errors: RuntimeError that
    names the log."""
    ray = str(Path(sys.executable).parent / "ray")
    command = [ray, "start", "--num-cpus=1", "--block", *words]

    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(command, stdout=file, stderr=file) as process,
    ):
        try:
            deadline = time.monotonic() + START_SECONDS
            while STARTED not in log.read_text(encoding="utf-8"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{' '.join(command)} did not start a node; see {log}")
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def two_nodes(logs: Path) -> Iterator[str]:
    """Starts a head node and a second node; yields the head's address."""
    port = free_port()
    dashboard_port = free_port()
    head_words = ["--head", f"--port={port}", f"--dashboard-port={dashboard_port}"]
    lock()

    with ExitStack() as nodes:
        nodes.enter_context(node(logs / "head.log", *head_words))
        nodes.enter_context(node(logs / "second.log", f"--address=127.0.0.1:{port}"))
        yield f"127.0.0.1:{port}"


def clone(folder: Path) -> None:
    """Replaces `folder` with a clone of the last commit, with the demo's settings."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    preset = [sys.executable, "-m", "stages.presets", "use", "cluster_demo"]
    subprocess.run(preset, cwd=folder, check=True)


def run_demo() -> int:
    """The jobs one after the other; returns the status of the one that failed, else 0."""
    # sys.exit leaves the blocks below, so that the nodes end with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    clone(FOLDER)

    with two_nodes(FOLDER) as address:
        print(f"two nodes at {address}", flush=True)
        for job in JOBS:
            print(f"== visage {' '.join(job)}", flush=True)
            command = [sys.executable, "-m", "visage.cli", *job]
            done = subprocess.run(command, cwd=FOLDER, env=os.environ | {ADDRESS: address})
            if done.returncode != 0:
                return done.returncode

    print(f"done; all results are in {FOLDER.relative_to(ROOT)}")
    return 0
