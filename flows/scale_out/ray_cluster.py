"""The Ray that a job runs on: the cluster that RAY_ADDRESS names, else one of this machine, for as
long as the job is.

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

ADDRESS, MODE, TOKEN = "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
PATIENCE_SECONDS = 10.0  # for the head node to take a connection


class NoCluster(RuntimeError):
    """Nobody answers at the address."""


@contextmanager
def connected(object_store_bytes: int | None = None) -> Iterator[None]:
    """Ray while the block lasts; says in one line where it runs and where its dashboard is.

    `object_store_bytes`: of a Ray of this machine's own; a cluster's nodes have theirs. Errors:
    NoCluster.
    """
    import ray as untyped

    ray: Any = untyped
    address = os.environ.get(ADDRESS)
    if address:
        _refuse_silence(address)
    own: dict[str, Any] = {
        "address": "local",
        "object_store_memory": object_store_bytes,
        "include_dashboard": True,
    }
    context = ray.init(**({"address": address} if address else own), logging_level=logging.WARNING)
    try:
        has = resources()
        print(
            f"Ray: {address or 'this machine'}, {has['nodes']:g} nodes, {has['cpus']:g} CPUs, "
            f"{has['gpus']:g} GPUs; "
            f"dashboard {context.dashboard_url or 'none'}",
            flush=True,
        )
        yield
    finally:
        ray.shutdown()


def lock() -> None:
    """A secret of its own for the Ray that this process and its children start, to be called before
    Ray is imported: without one, whoever reaches Ray's ports may run code here. Ray itself would
    write one into the home directory."""
    if MODE not in os.environ:
        os.environ |= {MODE: "token", TOKEN: os.environ.get(TOKEN, secrets.token_hex(32))}


def _refuse_silence(address: str) -> None:
    """Ray itself would wait for minutes where nobody listens."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS):
            pass
    except (OSError, ValueError) as error:
        raise NoCluster(
            f"{ADDRESS}={address}: no Ray answers there ({error}); give host:port of a head node, "
            f"as ray start --head "
            f"says it, or unset {ADDRESS} to work on this machine alone"
        ) from error


def resources() -> dict[str, float]:
    """Nodes that are alive, CPUs and GPUs of the Ray that this process is connected to."""
    import ray as untyped

    ray: Any = untyped
    total = ray.cluster_resources()
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    return {"nodes": float(nodes), "cpus": total.get("CPU", 0.0), "gpus": total.get("GPU", 0.0)}
