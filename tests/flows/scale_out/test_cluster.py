"""A cluster on this machine, and the description of one of several."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from flows.pipeline.dvc_stages import declared
from flows.scale_out.cluster_demo import JOBS, two_nodes
from flows.scale_out.ray_cluster import ADDRESS
from tests.imports import REPOSITORY


def test_rays_launcher_takes_the_description() -> None:
    config = yaml.safe_load((REPOSITORY / "docs" / "cluster.yaml").read_text(encoding="utf-8"))
    validate_config(prepare_config(config))
    # Without it the head node starts no workers.
    assert any("--autoscaling-config=" in words for words in config["head_start_ray_commands"])


def test_the_demo_names_stages_that_are_there() -> None:
    names = {stage.name for stage in declared(REPOSITORY)}
    assert {job[1] for job in JOBS if job[0] == "scale-out"} <= names


@pytest.mark.slow
def test_two_nodes_start_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "from flows.scale_out.ray_cluster import connected\nwith connected(): pass"
    command = [sys.executable, "-c", program]

    with two_nodes(tmp_path) as address:
        monkeypatch.setenv(ADDRESS, address)
        said = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout
    assert f"Ray: {address}, 2 nodes, 2 CPUs" in said

    # The nodes have ended, so that no Ray is at the address now.
    after = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False)
    assert after.returncode != 0
