"""One process at a time in a working copy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flows.pipeline.workspace import Busy, only_one
from tests.imports import REPOSITORY

HOLD = """
import sys
from pathlib import Path
from flows.pipeline.workspace import only_one
with only_one(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_learns_which_process_is_at_work(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with (
            pytest.raises(Busy, match=rf"in use by process {process.pid} since 20"),
            only_one(tmp_path),
        ):
            pass
        process.kill()


def test_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
    with only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass
