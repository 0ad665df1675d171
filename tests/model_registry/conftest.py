"""One store with one small registered model for all tests of the room."""

from __future__ import annotations

from collections.abc import Iterator

import mlflow
import pytest

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
