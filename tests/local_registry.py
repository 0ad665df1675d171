"""An MLflow of one's own for a test: SQLite and a folder in a working directory of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables, which take seconds to make."""
    from model_registry.mlflow_client import LOCAL, connect

    folder = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        connect().search_experiments()
    return folder / LOCAL / "mlflow.db"


@pytest.fixture
def local_registry(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, whose registry is .mlflow, still empty."""
    folder = tmp_path / empty_database.parent.name
    folder.mkdir()
    shutil.copy(empty_database, folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path
