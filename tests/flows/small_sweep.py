"""A sweep small enough for tests: crops on which an epoch takes part of a second, and the driver as
a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.sweep.space import SweepSettings
from tests.imports import REPOSITORY
from tests.small_faces import finetune_settings, some_faces, write_faces, write_params

QUIET = {
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
PATIENCE_SECONDS = 400.0  # a machine that is busy with other things takes ten times as long
WORDS = [
    "--params",
    "params.yaml",
    "--faces",
    "faces",
    "--backbone",
    "none",
    "--start",
    "none",
    "--results",
    "reports/sweep",
]
SPACE: dict[str, Any] = {
    "finetune.loss.lambda_": {"kind": "loguniform", "low": 0.01, "high": 10.0},
    "labels.grid.step": {"kind": "choice", "values": [5.0, 10.0, 20.0]},
    "labels.fixed_sigma": {"kind": "uniform", "low": 5.0, "high": 20.0},
}


def sweep_settings(**changes: Any) -> SweepSettings:
    """Three drawn trials; `changes` replaces fields."""
    values: dict[str, Any] = {
        "search": "optuna",
        "space": SPACE,
        "num_samples": 3,
        "seed": 0,
        "epochs": 4,
        "grace_epochs": 2,
        "reduction_factor": 2,
        "cpus_per_trial": 1.0,
        "gpus_per_trial": 0.0,
        "max_concurrent": None,
        "max_failures": 2,
        "experiment": "sweeps",
        "folder": "runs/sweep",
    }
    return SweepSettings(**(values | changes))


def make(root: Path, *, num_faces: int = 80, **changes: Any) -> Path:
    """Faces and settings of a sweep in a folder. Its test faces are no pictures and have no labels:
    a sweep that opened them would fail."""
    rows = some_faces(num_faces, 20, 4)
    for row in rows:
        if row["split"] == "test":
            row.update({"jpeg": b"no picture", "label": None})
    write_faces(root / "faces", rows)

    settings = finetune_settings(augmentation="none", num_workers=0)
    write_params(root / "params.yaml", finetune=settings, sweep=sweep_settings(**changes))
    return root


class Driver:
    """The driver's process; its output is in a file, so that a test can watch it."""

    def __init__(self, root: Path, *before: str, **environment: str) -> None:
        self._log = root / "driver.log"

        with self._log.open("ab") as log:
            self._from = log.tell()

            command = [*before, sys.executable, "-m", "flows.sweep.driver", *WORDS]
            self.process = subprocess.Popen(
                command,
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | QUIET | {"PYTHONPATH": str(REPOSITORY)} | environment,
            )

    def said(self) -> str:
        """Its output since its start."""
        return self._log.read_bytes()[self._from :].decode()

    def until(self, enough: Callable[[str], bool], seconds: float = PATIENCE_SECONDS) -> str:
        """Waits for a certain output; returns the output by then."""
        deadline = time.monotonic() + seconds
        while not enough(self.said()):
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)
        return self.said()

    def end(self, seconds: float = PATIENCE_SECONDS) -> str:
        """Waits for its end; returns its output."""
        self.process.wait(seconds)
        return self.said()


def sweep_folder(root: Path) -> Path:
    """The folder to which the trials write."""
    [folder] = (root / "runs" / "sweep").iterdir()
    return folder


@contextmanager
def driving(root: Path, *before: str, **environment: str) -> Iterator[Driver]:
    """A driver that does not outlive its test."""
    driver = Driver(root, *before, **environment)
    try:
        yield driver
    finally:
        driver.process.kill()
        driver.process.wait()
