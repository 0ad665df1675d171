"""What every test gets: a wiped environment, seeded randomness, and the way to the real data where
there is any."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

START_RAY = {
    "test_align_ray.py",
    "test_cluster.py",
    "test_scale_out.py",
    "test_sweep.py",
    "test_train_ray.py",
}
REPOSITORY = Path(__file__).resolve().parent.parent
pytest_plugins = ["tests.local_registry", "tests.prefect_server"]

settings.register_profile("visage", deadline=None, derandomize=True, database=None)
settings.load_profile("visage")


class Together(LoadFileScheduling):
    """Which tests share a process of `make test`: those of a file, for what it sets up once, and
    all that start Ray, which wait more than they work and would starve each other."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "ray" if file.rpartition("/")[2] in START_RAY else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    return Together(config, log)


@pytest.fixture(autouse=True)
def wiped_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings of the person who runs it."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "DVC_", "MLFLOW_", "PREFECT_", "RAY_")) and not name.endswith(
            ("TELEMETRY", "ANALYTICS", "ANALYTICS_ENABLED", "STATS_ENABLED")
        ):
            monkeypatch.delenv(name)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos: $VISAGE_DATA, else ../shared/data beside the repository."""
    folder = (
        Path(os.environ["VISAGE_DATA"])
        if "VISAGE_DATA" in os.environ
        else REPOSITORY.parent / "shared" / "data"
    )
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent (set VISAGE_DATA)")
    return folder
