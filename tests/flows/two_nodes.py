"""A Ray cluster of two nodes with a CPU each, in a process of its own: `python -m
tests.flows.two_nodes`.

It prints one line of JSON: the address, and the processes of the head node (GCS first) and of the
second one (its raylet). It ends when its standard input ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from tests.imports import REPOSITORY
from tests.services import free_port

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # a lost head node is noticed in seconds
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "OMP_NUM_THREADS": "1",
}


def environment() -> dict[str, str]:
    """For this cluster and for drivers that use it."""
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}


@contextlib.contextmanager
def two_nodes() -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.flows.two_nodes"]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    try:
        yield json.loads(next(line for line in process.stdout if line.startswith("{")))
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(60)


def main() -> None:
    from ray.cluster_utils import Cluster

    head_node = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=head_node)
    second = cluster.add_node(num_cpus=1)

    def pid(node: Any, kind: str) -> int:
        return int(node.all_processes[kind][0].process.pid)

    head = cluster.head_node
    document = {
        "address": cluster.address,
        "head": [pid(head, "gcs_server"), pid(head, "raylet")],
        "second": [pid(second, "raylet")],
    }
    print(json.dumps(document), flush=True)

    sys.stdin.read()
    # Tests kill nodes, so a node may be gone already.
    with contextlib.suppress(Exception):
        cluster.shutdown()


if __name__ == "__main__":
    main()
