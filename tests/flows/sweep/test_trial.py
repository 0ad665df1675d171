"""A trial: stages.finetune with other settings, what it reports, how it resumes after a stop."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from flows.sweep.trial import EPOCHS, HISTORY, Cores, TrialPaths, for_a_person, run_trial
from stages.finetune import FinetuneSettings, finetune
from tests.imports import REPOSITORY
from tests.small_faces import LOSS, finetune_settings, some_faces, write_faces
from visage.data.face_table import FaceTable

NUM_EPOCHS = 4


class Stopped(Exception):
    """Stands for a worker that ends."""


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, FaceTable]:
    faces = write_faces(tmp_path / "faces", some_faces())
    return {split: FaceTable.open(faces, [split], 1).shareable() for split in ("train", "val")}


def settings_of(**changes: Any) -> FinetuneSettings:
    return finetune_settings(epochs=NUM_EPOCHS, augmentation="none", num_workers=0, **changes)


def run(
    folder: Path,
    tables: Mapping[str, FaceTable],
    settings: FinetuneSettings | None = None,
    stop_after: int = 99,
) -> list[dict[str, Any]]:
    """What a trial in `folder` reported; its worker ends after `stop_after` epochs."""
    reported: list[dict[str, Any]] = []

    def report(values: Mapping[str, Any]) -> None:
        reported.append(dict(values))
        if len(reported) == stop_after:
            raise Stopped

    folder.mkdir(exist_ok=True)
    none = folder / "none"
    paths = TrialPaths(folder=folder, backbone=none, start=none, faces=none)
    with suppress(Stopped):
        run_trial(settings or settings_of(), NUM_EPOCHS, paths, tables, report)
    return reported


def epochs_of(reported: list[dict[str, Any]]) -> list[int]:
    return [row["epoch"] for row in reported]


def same_weights(one: Path, other: Path) -> bool:
    first = load_file(one / "model" / "model.safetensors")
    second = load_file(other / "model" / "model.safetensors")
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_trial_is_finetune_itself(tmp_path: Path, tables: dict[str, FaceTable]) -> None:
    """The same weights, bit for bit, as the stage's on the same faces, and every epoch's validation
    error is reported."""
    reported = run(tmp_path / "trial", tables)
    stage = tmp_path / "stage"
    finetune(
        settings_of(),
        faces=tmp_path / "faces",
        backbone=stage,
        start=stage,
        checkpoints=stage / "checkpoints",
        model=stage / "model",
        history=stage / "history.csv",
        report=lambda *_: None,
    )

    history = pd.read_csv(stage / "history.csv")
    assert same_weights(tmp_path / "trial", stage)
    assert epochs_of(reported) == [1, 2, 3, 4]
    assert [row["val_mae"] for row in reported] == pytest.approx(history["val_mae"].tolist())


@pytest.mark.parametrize("changes", [{}, {"schedule": "two_stage"}])
def test_a_stopped_trial_goes_on_after_its_last_epoch(
    tmp_path: Path, tables: dict[str, FaceTable], changes: dict[str, Any]
) -> None:
    settings = settings_of(**changes)
    if changes:
        settings = dataclasses.replace(settings, epochs=2)

    unstopped = run(tmp_path / "unstopped", tables, settings)
    assert epochs_of(run(tmp_path / "trial", tables, settings, stop_after=3)) == [1, 2, 3]
    seconds = pd.read_csv(tmp_path / "trial" / EPOCHS)["seconds"]
    rest = run(tmp_path / "trial", tables, settings)

    # 3 is reported again, because the decision on it may be lost.
    assert epochs_of(rest) == [3, 4]
    history = pd.read_csv(tmp_path / "trial" / HISTORY)
    assert history["seconds"].iloc[:3].tolist() == seconds.tolist()
    assert rest[-1]["val_mae"] == unstopped[-1]["val_mae"]
    assert same_weights(tmp_path / "unstopped", tmp_path / "trial")


def test_a_trial_that_ended_silently_reports_its_last_epoch(
    tmp_path: Path, tables: dict[str, FaceTable]
) -> None:
    run(tmp_path / "trial", tables, stop_after=4)
    assert epochs_of(run(tmp_path / "trial", tables)) == [4]


@pytest.mark.parametrize("damage", [b"", b"no checkpoint"])
def test_a_damaged_checkpoint_costs_one_epoch(
    tmp_path: Path, tables: dict[str, FaceTable], damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "unstopped", tables)
    run(tmp_path / "trial", tables, stop_after=3)
    (tmp_path / "trial" / "checkpoints" / "phase-0.pt").write_bytes(damage)

    assert epochs_of(run(tmp_path / "trial", tables)) == [3, 3, 4]
    said = capsys.readouterr().out
    assert "cannot be read" in said
    assert "going on from the checkpoint before it" in said
    assert same_weights(tmp_path / "unstopped", tmp_path / "trial")


def test_a_trial_whose_checkpoints_are_all_damaged_is_started_over(
    tmp_path: Path, tables: dict[str, FaceTable], capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "trial", tables, stop_after=3)
    for path in (tmp_path / "trial").glob("*/phase-0*.pt"):
        path.write_bytes(b"")
    assert epochs_of(run(tmp_path / "trial", tables)) == [3, 1, 2, 3, 4]
    assert "remove it to start over: removed" in capsys.readouterr().out


def test_a_loss_that_is_no_number_is_reported_and_is_no_error(
    tmp_path: Path, tables: dict[str, FaceTable]
) -> None:
    settings = settings_of(loss=LOSS | {"lambda_": 1e300})
    last = run(tmp_path / "trial", tables, settings)[-1]
    assert math.isnan(last["val_mae"])
    assert "training loss is" in last["diverged"]
    assert "epoch" not in last


def test_what_a_person_must_correct_is_known_by_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = RuntimeError("unexpected pos")
    full.__context__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "checkpoint")
    assert "No space left on device: 'checkpoint'" in (for_a_person(full, tmp_path) or "")

    without = RuntimeError("unexpected pos")
    assert for_a_person(without, tmp_path) is None
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5000}))
    assert "No space left on device (5000 bytes are free): unexpected pos" in (
        for_a_person(without, tmp_path) or ""
    )


# -------------------------------------------------------------------------------
# Cores
# -------------------------------------------------------------------------------

PINS = """
import os, sys, threading
from flows.sweep.trial import pin
cores = pin(1)
seen = []
thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
thread.start(); thread.join()
assert seen == [set(cores)] if cores else True
print(*cores, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: nothing to share out")
def test_trials_at_the_same_time_have_distinct_cores(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    environment = os.environ | {
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }

    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PINS], env=environment, stdin=PIPE, stdout=PIPE, text=True
        )
        for _ in range(len(allowed) + 1)
    ]

    lines = [process.stdout.readline().split() for process in processes if process.stdout]
    for process in processes:
        process.communicate()

    assert sorted(int(word) for line in lines for word in line) == allowed
    assert lines.count([]) == 1  # the last one gets the system's choice
    assert [process.returncode for process in processes] == [0] * len(processes)


def test_cores_are_kept_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    number = len(os.sched_getaffinity(0))
    one = Cores()
    other = Cores()
    assert one.take(number) == one.take(number) == sorted(os.sched_getaffinity(0))
    assert other.take(1) == []
    one.release()
    assert len(other.take(1)) == 1
    other.release()
