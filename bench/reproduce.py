"""Overhead of the flow over plain `dvc repro`, on a workspace of 13 stages that do nothing.

    python -m bench.reproduce                # a few minutes
    python -m bench.reproduce --turns 5

The stages write text files with the names of the pipeline's outputs, so that the flow also records
and shows them. The sides take turns, each as a process from start to end, first with all stages
stale, then with all fresh. The flow runs with a running Prefect server, and without one, when
Prefect starts a server for the flow. MLflow writes to SQLite. Figures are medians. Processor time
is that of all processes; it depends less on other load.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
NUM_OTHERS = 12
FLOW = (
    "import sys; from pathlib import Path; from flows.reproduce import main; "
    "main(Path(sys.argv[1]), [])"
)
METRICS = {"test": {"num_faces": 100, "mae": {"value": 5.0, "low": 4.0, "high": 6.0}}}
EVALUATE = {
    "cmd": "mkdir -p reports/plots && cp metrics reports/metrics.json && cp start "
    "reports/groups.csv && "
    "cp start reports/predictions.parquet",
    "deps": ["metrics", f"s{NUM_OTHERS - 1}"],
    "outs": [
        "reports/metrics.json",
        "reports/plots",
        "reports/groups.csv",
        "reports/predictions.parquet",
    ],
}


def workspace(root: Path) -> Path:
    """A chain of stages that do nothing."""
    stages: dict[str, object] = {
        f"s{n}": {
            "cmd": f"cp start s{n}",
            "deps": ["start", *([f"s{n - 1}"] if n else [])],
            "outs": [f"s{n}"],
        }
        for n in range(NUM_OTHERS)
    }
    files = {
        "dvc.yaml": json.dumps({"stages": stages | {"evaluate": EVALUATE}}),
        "params.yaml": "{}",
        "metrics": json.dumps(METRICS),
        ".dvc/config": "[core]\n    no_scm = True\n    analytics = false\n",
    }

    (root / ".dvc" / "tmp").mkdir(parents=True)
    for name, text in files.items():
        (root / name).write_text(text, encoding="utf-8")
    return root


def seconds(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Wall and processor time of a process; its output is shown only if it fails."""
    started, before = time.perf_counter(), _processor_seconds()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started, _processor_seconds() - before


def _processor_seconds() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


@contextmanager
def prefect_server(environment: dict[str, str]) -> Iterator[str]:
    """The address of a Prefect server on the loopback interface."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]

    words = f"-m prefect server start --host 127.0.0.1 --port {port}".split()
    command = [sys.executable, *words]
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2):
                    break
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.5)

        yield f"http://127.0.0.1:{port}/api"
    finally:
        server.terminate()
        server.wait()


def measured(folder: Path, turns: int) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(side, state of the stages) -> wall and processor times."""
    plain = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PREFECT_HOME": str(folder / "prefect"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    }
    plain.pop("PREFECT_API_URL", None)
    flow = [sys.executable, "-c", FLOW]

    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with prefect_server(plain) as address:
        sides = {
            "dvc repro": ([sys.executable, "-m", "dvc", "repro"], plain),
            "flow, a server runs": (flow, plain | {"PREFECT_API_URL": address}),
            "flow, no server": (flow, plain),
        }
        roots = {
            side: workspace(folder / side.replace(" ", "-").replace(",", "")) for side in sides
        }

        # The first turn is not counted: it creates the databases of Prefect and MLflow.
        for turn in range(turns + 1):
            for side, (command, environment) in sides.items():
                (roots[side] / "start").write_text(str(turn), encoding="utf-8")
                words = [*command, str(roots[side])] if command is flow else command
                place = REPOSITORY if command is flow else roots[side]

                for state in ("stale", "fresh"):
                    taken = seconds(words, place, environment)
                    if turn > 0:
                        times.setdefault((side, state), []).append(taken)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.reproduce", description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        times = measured(Path(folder), arguments.turns)

    print(f"{NUM_OTHERS + 1} stages, median of {arguments.turns}\n")
    print("| side | stages | seconds | over dvc repro | processor, s |\n|---|---|---|---|---|")
    for (side, state), those in times.items():
        wall, processor = (statistics.median(column) for column in zip(*those, strict=True))
        plain = statistics.median(one for one, _ in times["dvc repro", state])
        print(f"| {side} | {state} | {wall:.1f} | {wall - plain:+.1f} | {processor:.1f} |")


if __name__ == "__main__":
    main()
