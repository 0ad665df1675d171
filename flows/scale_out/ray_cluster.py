"""The Ray on which a job runs: the cluster at RAY_ADDRESS, or one of this machine for as long as
the job runs.

A cluster's nodes need the working copy, its data and its results at the same path as the driver (a
shared file system) and the environment of requirements.lock; nothing else is set up here. See
docs/cluster.md.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ADDRESS = "RAY_ADDRESS"
MODE = "RAY_AUTH_MODE"
TOKEN = "RAY_AUTH_TOKEN"
PATIENCE_SECONDS = 10.0  # for the head node to take a connection


class NoCluster(RuntimeError):
    """No Ray answers at the address."""


@contextmanager
def connected(object_store_bytes: int | None = None) -> Iterator[None]:
    """Connects to Ray while the block lasts; prints in one line where it runs and where its
    dashboard is.

    `object_store_bytes` is for a Ray of this machine; a cluster's nodes have their own size.
    Errors: NoCluster.
    """
    import ray as untyped

    ray: Any = untyped
    address = os.environ.get(ADDRESS)
    options: dict[str, Any]
    if address:
        _refuse_silence(address)
        options = {"address": address}
    else:
        options = {
            "address": "local",
            "object_store_memory": object_store_bytes,
            "include_dashboard": True,
        }

    context = ray.init(**options, logging_level=logging.WARNING)
    try:
        has = resources()
        print(
            f"Ray: {address or 'this machine'}, {has['nodes']:g} nodes, {has['cpus']:g} CPUs, "
            f"{has['gpus']:g} GPUs; dashboard {context.dashboard_url or 'none'}",
            flush=True,
        )
        yield
    finally:
        ray.shutdown()


def lock() -> None:
    """Sets a secret for the Ray that this process and its children start; call it before Ray is
    imported.

    Without a secret, anyone who reaches Ray's ports can run code here. Ray itself would write one
    into the home directory.
    """
    if MODE not in os.environ:
        os.environ |= {MODE: "token", TOKEN: os.environ.get(TOKEN, secrets.token_hex(32))}


def _refuse_silence(address: str) -> None:
    """NoCluster where no process listens: Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS):
            pass
    except (OSError, ValueError) as error:
        raise NoCluster(
            f"{ADDRESS}={address}: no Ray answers there ({error}); give host:port of a head node, "
            f"as ray start --head prints it, or unset {ADDRESS} to work on this machine alone"
        ) from error


def resources() -> dict[str, float]:
    """Nodes that are alive, CPUs and GPUs of the Ray that this process is connected to."""
    import ray as untyped

    ray: Any = untyped
    total = ray.cluster_resources()
    num_alive = sum(bool(node["Alive"]) for node in ray.nodes())

    return {
        "nodes": float(num_alive),
        "cpus": total.get("CPU", 0.0),
        "gpus": total.get("GPU", 0.0),
    }
