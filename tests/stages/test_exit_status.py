"""Exit statuses: faults that may pass differ from those that cannot, and a stage without enough
memory can be made to use less."""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.exit_status import (
    MICRO_BATCHES,
    ExitStatus,
    exit_status_of,
    exit_status_of_process,
    micro_batches,
    smaller,
)
from stages.settings import stage_main

IO, MEMORY, REFUSED, FAULT = (
    ExitStatus.IO_ERROR,
    ExitStatus.OUT_OF_MEMORY,
    ExitStatus.REFUSED,
    ExitStatus.FAULT,
)


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (ValueError("label 200"), REFUSED),
        (OSError(errno.ENOSPC, "No space left on device"), REFUSED),
        (PermissionError(errno.EACCES, "Permission denied"), REFUSED),
        (OSError(errno.EIO, "Input/output error"), IO),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), IO),
        (TimeoutError("timed out"), IO),
        (OSError(errno.ESTALE, "Stale file handle"), IO),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), MEMORY),
        (MemoryError(), MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MEMORY),
        (FileNotFoundError(errno.ENOENT, "No such file"), FAULT),
        (RuntimeError("shapes do not match"), FAULT),
        (KeyError("label"), FAULT),
    ],
)
def test_errors_end_as_the_table_says(error: Exception, ending: ExitStatus) -> None:
    assert exit_status_of(error) is ending


@pytest.mark.parametrize("allocate", [lambda: torch.empty(1 << 50), lambda: np.empty(1 << 50)])
def test_libraries_words_for_no_memory_are_known(allocate: object) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()  # type: ignore[operator]
    assert exit_status_of(caught.value) is MEMORY


def test_statuses_of_killed_processes() -> None:
    statuses = {
        0: ExitStatus.DONE,
        1: FAULT,
        2: REFUSED,
        74: IO,
        137: MEMORY,
        -9: MEMORY,
        -15: FAULT,
        143: FAULT,
        5: FAULT,
    }
    assert {status: exit_status_of_process(status) for status in statuses} == statuses


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """Nothing that matters."""

    number: int


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (OSError(errno.EIO, "it broke", "x.csv"), 74, "stages.probe: [Errno 5] it broke: 'x.csv'"),
        (MemoryError("2 GiB"), 137, "stages.probe: out of memory; lower batch_size: 2 GiB"),
        (OSError(errno.ENOSPC, "disk full", "x"), 2, "stages.probe: [Errno 28] disk full: 'x'"),
    ],
)
def test_a_stage_ends_with_a_line_and_the_status(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    status: int,
    line: str,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    (tmp_path / "params.yaml").write_text("probe: {number: 1}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["probe"])
    with pytest.raises(SystemExit) as ended:
        stage_main("probe", ProbeSettings, broken, [])
    assert ended.value.code == status
    assert capsys.readouterr().err == line + "\n"


def test_a_fault_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text("probe: {number: 1}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["probe"])
    with pytest.raises(ZeroDivisionError):
        stage_main("probe", ProbeSettings, lambda *_, **__: 1 // 0, [])


def test_memory_is_spared_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (micro_batches(), smaller(128)) == (1, 128)
    monkeypatch.setenv(MICRO_BATCHES, "4")
    assert (micro_batches(), smaller(128), smaller(3)) == (4, 32, 1)
