"""One store with one small registered model for all tests of the room."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns of its own type hints
    import mlflow.pyfunc

from model_registry.store import LOCAL, connect
from tests.model_registry.served import Store, make_store
from tests.small_model import small_model


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Its address is in MLflow's hands while it is made; afterwards tests name it themselves."""
    folder = tmp_path_factory.mktemp("store")
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        yield make_store(folder, small_model(folder / "export"))
        mlflow.set_tracking_uri(before)


@pytest.fixture
def connected(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store, with MLflow and the environment pointing to it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    mlflow.set_tracking_uri(store.uri)
    return store


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables, which take seconds to make."""
    folder = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        connect().search_experiments()
    return folder / LOCAL / "mlflow.db"


@pytest.fixture
def local(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, whose registry is .mlflow, still empty."""
    (tmp_path / LOCAL).mkdir()
    shutil.copy(empty_database, tmp_path / LOCAL)
    monkeypatch.chdir(tmp_path)
    return tmp_path
