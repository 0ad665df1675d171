"""What is shown in Prefect's pages is for everybody who sees them."""

from __future__ import annotations

import pytest

from flows.pipeline.artifacts import without_secrets


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://user:pass@word@host:5432/db", "postgresql://host:5432/db"),
        ("https://user:password@host/mlflow", "https://host/mlflow"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////somewhere/a@b/mlflow.db", "sqlite:////somewhere/a@b/mlflow.db"),
    ],
)
def test_addresses_are_shown_without_user_and_password(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown
