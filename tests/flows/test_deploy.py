"""The server that `make deploy` starts."""

from __future__ import annotations

from importlib import import_module

from prefect.settings import Settings

from flows.deploy import LEASES


def test_its_leases_outlive_it() -> None:
    """Prefect has the setting, and the storage exists."""
    [(variable, module)] = LEASES.items()
    assert variable == "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
    assert "lease_storage" in type(Settings().server.concurrency).model_fields
    assert hasattr(import_module(module), "ConcurrencyLeaseStorage")
