"""A lock file holds among processes, ends with its holder, and names it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flows.pipeline.file_lock import Locked, file_lock
from tests.imports import REPOSITORY

HOLD = """
import subprocess, sys
from pathlib import Path
from flows.pipeline.file_lock import file_lock
with file_lock(Path(sys.argv[1]), wait=False) as descriptor:
    if len(sys.argv) > 2:
        child = subprocess.Popen(["sleep", sys.argv[2]], pass_fds=[descriptor])
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(lock: Path, *seconds: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock), *seconds],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def take(lock: Path, *, wait: bool = False) -> None:
    with file_lock(lock, wait=wait):
        pass


def test_the_holder_is_named_by_its_process(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with holder(lock) as process:
        with pytest.raises(Locked, match=rf"^in use by process {process.pid} since 20\d\d-"):
            take(lock)
        process.kill()
    with file_lock(lock, wait=False), pytest.raises(Locked, match=f"process {os.getpid()} since"):
        take(lock)


def test_a_holder_without_a_number_yet_is_another_process(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with holder(lock) as process:
        lock.write_text("", encoding="utf-8")
        with pytest.raises(Locked, match="in use by another process that has just begun"):
            take(lock)
        process.kill()


def test_a_lock_is_free_after_its_block_and_after_its_holder_was_killed(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with holder(lock) as process:
        process.kill()
    take(lock)
    take(lock)
    with pytest.raises(KeyError), file_lock(lock, wait=False):
        raise KeyError
    take(lock)


def test_who_waits_has_it_when_the_holder_ends(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with holder(lock) as process:
        threading.Timer(0.5, process.kill).start()
        start_s = time.monotonic()
        take(lock, wait=True)
        assert time.monotonic() - start_s > 0.4


def test_a_child_that_has_the_descriptor_holds_on_after_a_kill(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with holder(lock, "2") as process:
        process.kill()
    with pytest.raises(Locked):
        take(lock)
    take(lock, wait=True)
