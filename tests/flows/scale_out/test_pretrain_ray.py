"""Pre-training on Ray when a process, a machine, the driver or the head node is lost, when a file
is damaged, or the disk is full."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from ray.train import WorkerGroupError

from flows.scale_out import pretrain_ray
from flows.scale_out.driver_process import DriverFailed, drive
from flows.scale_out.pretrain_ray import PROGRESS, REFUSED, PretrainOut
from tests.flows.two_nodes import ENVIRONMENT, environment, two_nodes
from tests.imports import REPOSITORY
from tests.small_faces import some_faces, write_faces

EPOCH = re.compile(r"\[(\d+)\] epoch")
OUT: dict[str, Any] = {
    "min_workers": 1,
    "num_workers": 2,
    "cpus_per_worker": 1,
    "gpus_per_worker": 0,
    "max_failures": 0,
    "resize_seconds": 60.0,
    "micro_batches": 1,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_workers", 0),
        ("num_workers", 0),
        ("cpus_per_worker", 0),
        ("gpus_per_worker", -1),
        ("micro_batches", 0),
    ],
)
def test_settings_that_train_nothing_are_refused(name: str, value: int) -> None:
    PretrainOut(**OUT)
    with pytest.raises(
        ValueError, match=rf"{name} is {value}|min_workers is 1: give 1 to num_workers, which is 0"
    ):
        PretrainOut(**OUT | {name: value})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpus_per_worker": 1}, "room for 0 .*2 CPU, 0 GPU; 1 CPU, 0 GPU.*lower gpus_per_worker,"),
        ({"cpus_per_worker": 8}, "room for 0 .*lower cpus_per_worker,"),
        (
            {"cpus_per_worker": 8, "gpus_per_worker": 2},
            "room for 0 .*lower cpus_per_worker or gpus_per_worker,",
        ),
        (
            {"cpus_per_worker": 2, "min_workers": 2},
            "min_workers is 2, .*cpus_per_worker 2 .*room for 1 .*min_workers,",
        ),
        (
            {"min_workers": 4, "num_workers": 4},
            "min_workers is 4, .*room for 3 .*lower min_workers,",
        ),
    ],
)
def test_workers_that_would_wait_for_ever_are_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, int], words: str
) -> None:
    has = [(2, True), (1, True), (64, False)]
    nodes = [
        {"Alive": alive, "Resources": {"CPU": float(cpus), "memory": 1e9}} for cpus, alive in has
    ]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    settings = PretrainOut(**OUT | changes)
    worker = {"CPU": settings.cpus_per_worker}
    if settings.gpus_per_worker:
        worker["GPU"] = settings.gpus_per_worker

    with pytest.raises(ValueError, match=words):
        pretrain_ray._refuse_what_does_not_fit(settings, worker)
    pretrain_ray._refuse_what_does_not_fit(PretrainOut(**OUT | {"min_workers": 2}), {"CPU": 1})


def test_a_node_holds_as_many_workers_as_its_scarcest_allows() -> None:
    nodes = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 7.5, "GPU": 4.0}, {"CPU": 64.0}]
    assert pretrain_ray.room_for({"CPU": 2, "GPU": 1}, nodes) == 5
    assert pretrain_ray.room_for({"CPU": 2}, nodes) == 8 + 3 + 32


@pytest.mark.parametrize(
    ("full", "unwritable"), [(PROGRESS, False), (PROGRESS, True), (REFUSED, True)]
)
def test_an_error_in_a_full_scratch_folder_reaches_the_user(
    tmp_path: Path, full: str, unwritable: bool
) -> None:
    """From the file that a process wrote, or where it could not write one, from its failure."""
    for name in {full} | ({REFUSED} if unwritable else set()):
        (tmp_path / name).symlink_to("/dev/full")

    errors: dict[int, Exception] = {}
    try:
        with pretrain_ray._refusals_kept(tmp_path):
            pretrain_ray._note(tmp_path, {"step": 1, "values": {}})
            raise ValueError("the checkpoint is damaged")
    except (OSError, ValueError) as error:
        errors[0] = error

    message = pretrain_ray._refusal(tmp_path, WorkerGroupError("", errors))
    assert message is not None
    cause = "No space left on device" if full == PROGRESS else "the checkpoint is damaged"
    assert cause in message
    remedy = f"could not write that down in the scratch folder {tmp_path}: make room there"
    assert (remedy in message) == unwritable


def test_a_refusal_that_was_left_empty_names_the_scratch_folder(tmp_path: Path) -> None:
    """A later group sees it, and ends without an error."""
    assert pretrain_ray._refusal(tmp_path, None) is None
    fault = WorkerGroupError("", {0: RuntimeError("a fault of the code")})
    assert pretrain_ray._refusal(tmp_path, fault) is None

    (tmp_path / REFUSED).touch()
    message = pretrain_ray._refusal(tmp_path, None)
    assert message is not None
    assert f"the scratch folder {tmp_path}: make room there" in message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_faces(tmp_path / "faces", some_faces(600, 12, 0), num_shards=5)
    return tmp_path


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, Any]]:
    with two_nodes() as nodes:
        yield nodes


class Job:
    """A driver process; its lines as they come."""

    def __init__(self, folder: Path, epochs: int, address: str | None) -> None:
        env = environment()
        if address:
            env["RAY_ADDRESS"] = address
        command = [sys.executable, "-u", "-m", "tests.flows.train_job", str(folder), str(epochs)]

        self.process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.append(line)

    def wait_for_epoch(self, number: int) -> None:
        self.wait(lambda: max(self.epochs(), default=0) >= number)

    def epochs(self) -> list[int]:
        """The epochs that it has printed."""
        found = [EPOCH.match(line) for line in self.lines]
        return [int(match[1]) for match in found if match]

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            assert self.process.poll() is None, "".join(self.lines)
            assert time.monotonic() < deadline, "".join(self.lines)
            time.sleep(0.1)

    def end(self) -> tuple[int, str]:
        status = self.process.wait(400)
        self._reader.join(20)
        return status, "".join(self.lines)


def workers_below(pids: list[int]) -> list[psutil.Process]:
    """Ray Train's processes of these nodes."""
    children = [child for pid in pids for child in psutil.Process(pid).children(recursive=True)]
    return [child for child in children if "RayTrainWorker" in "".join(child.cmdline())]


def kept_rows(folder: Path) -> list[dict[str, float]]:
    checkpoint = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    rows: list[dict[str, float]] = checkpoint["history"]
    return rows


@pytest.mark.slow
def test_what_a_person_must_correct_is_reported_at_once_and_then_it_goes_on(
    folder: Path, cluster: dict[str, Any]
) -> None:
    checkpoint = folder / "checkpoints" / "last.pt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"PK\x03\x04 half a file")

    status, text = Job(folder, 2, cluster["address"]).end()
    assert status == 2
    assert re.search(
        r"ended: .*last\.pt: this checkpoint cannot be read .*remove it to start over", text
    )
    assert text.count("processes, from the last checkpoint on") == 1  # not tried again

    checkpoint.unlink()
    full = checkpoint.with_name(".last.pt.part")
    full.symlink_to("/dev/full")
    status, text = Job(folder, 2, cluster["address"]).end()
    assert status == 2
    assert re.search(
        r"ended: .*checkpoint of epoch 1 cannot be written \(No space left on device\).*make room",
        text,
    )

    # The failure has removed the symbolic link.
    status, text = Job(folder, 2, cluster["address"]).end()
    assert status == 0
    assert pd.read_csv(folder / "history.csv")["processes"].tolist() == [2, 2]


@pytest.mark.faults
@pytest.mark.slow
def test_a_killed_process_and_then_a_lost_machine_cost_the_epoch_that_had_begun(
    folder: Path, cluster: dict[str, Any]
) -> None:
    job = Job(folder, 8, cluster["address"])
    job.wait_for_epoch(1)
    before = kept_rows(folder)

    workers_below(cluster["second"])[0].kill()
    job.wait_for_epoch(len(before) + 2)
    os.kill(cluster["second"][0], signal.SIGKILL)
    status, text = job.end()
    assert status == 0, text

    history = pd.read_csv(folder / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert history.iloc[: len(before)].to_dict("records") == [pytest.approx(row) for row in before]
    assert (history["processes"].iloc[0], history["processes"].iloc[-1]) == (2, 1)
    assert text.count("from the last checkpoint on") >= 3
    assert not (folder / "scratch" / "train").exists()


@pytest.mark.faults
@pytest.mark.slow
def test_a_lost_head_node_and_a_killed_driver_cost_the_epoch_that_had_begun(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the head node ends the driver, and its parent says what is kept. The same call
    continues the training, twice."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    lines: list[str] = []
    with two_nodes() as nodes:
        monkeypatch.setenv("RAY_ADDRESS", nodes["address"])

        def log(line: str) -> None:
            lines.append(line)
            if EPOCH.match(line):
                for pid in nodes["head"]:
                    os.kill(pid, signal.SIGKILL)

        words = [str(folder), "6"]
        with pytest.raises(
            DriverFailed, match=r"tests.flows.train_job .*\n1 epoch is kept; .*same command again"
        ):
            drive("tests.flows.train_job", words, root=REPOSITORY, kept="1 epoch is kept", log=log)

    monkeypatch.delenv("RAY_ADDRESS")
    first = kept_rows(folder)
    job = Job(folder, 6, None)
    job.wait_for_epoch(len(first) + 1)
    job.process.kill()
    job.end()
    second = kept_rows(folder)
    assert second[: len(first)] == first

    status, text = Job(folder, 6, None).end()
    assert status == 0, text
    history = pd.read_csv(folder / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    assert history.iloc[: len(second)].to_dict("records") == [pytest.approx(row) for row in second]
