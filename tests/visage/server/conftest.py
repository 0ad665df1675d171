"""One small model and one application for all tests of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.small_model import small_model
from tests.visage.server.requests import application


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("served") / "export")


@pytest.fixture(scope="session")
def app(folder: Path) -> Any:
    return application(folder)
