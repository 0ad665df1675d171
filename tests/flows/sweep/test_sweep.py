"""Sweeps on a real Ray: what they write, what trials share, and what is kept after a kill.

Every sweep runs in its driver's process, as flows/sweep/flow.py starts it, on a Ray of its own or
on a cluster of two nodes.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from mlflow import MlflowClient

from model_registry.sweep_runs import SWEEP_TAG, TRIAL_TAG
from tests.flows.small_sweep import driving, make, sweep_folder
from tests.flows.two_nodes import ENVIRONMENT, two_nodes
from tests.small_faces import CROP_PX

pytestmark = pytest.mark.slow
LAMBDA = "finetune.loss.lambda_"
LINE = re.compile(r"^(\w+) \(.*\)  epoch (\d+)/\d+  ", re.MULTILINE)


def epochs_printed(said: str) -> dict[str, list[int]]:
    """Trial -> the epochs of its lines, in their order."""
    epochs: dict[str, list[int]] = {}
    for trial, epoch in LINE.findall(said):
        epochs.setdefault(trial, []).append(int(epoch))
    return epochs


def has_reached(said: str, epoch: int) -> bool:
    return any(max(epochs) >= epoch for epochs in epochs_printed(said).values())


def goes_on(before: dict[str, list[int]], after: dict[str, list[int]]) -> bool:
    """Whether no epoch is trained twice; the last one may be reported twice."""
    return all(min(after[trial]) >= max(before[trial]) for trial in set(before) & set(after))


def runs_of(root: Path) -> list[Any]:
    """MLflow's runs of a sweep's experiment, parent and children."""
    client = MlflowClient(f"sqlite:///{root / '.mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("sweeps")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def children(process: subprocess.Popen[bytes], name: str) -> list[psutil.Process]:
    """The processes below the driver whose title begins with `name`."""
    return [
        one
        for one in psutil.Process(process.pid).children(recursive=True)
        if " ".join(one.cmdline()).startswith(name)
    ]


def store_of(worker: psutil.Process) -> tuple[int, int]:
    """Bytes of Ray's object store that a process has mapped, and those of them that no other
    process has."""
    maps = [one for one in worker.memory_maps(grouped=False) if "plasma" in one.path]
    mapped_bytes = sum(one.rss for one in maps)
    own_bytes = sum(one.private_clean + one.private_dirty for one in maps)
    return mapped_bytes, own_bytes


def table_of(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "reports" / "sweep" / "trials.csv")


# -------------------------------------------------------------------------------
# One machine
# -------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_sweep_whose_driver_is_stopped_and_killed_goes_on(tmp_path: Path) -> None:
    """The same command resumes the trials after their last epoch, and the search, ASHA and MLflow's
    runs where they were."""
    root = make(tmp_path, num_faces=200, num_samples=4, epochs=8)
    before: dict[str, list[int]] = {}
    for number, epoch in ((signal.SIGINT, 2), (signal.SIGKILL, 5)):
        with driving(root) as driver:
            driver.until(functools.partial(has_reached, epoch=epoch))
            time.sleep(3)  # Tune's state is on disk every second
            driver.process.send_signal(number)
            said = driver.end()
        assert driver.process.returncode != 0, said
        assert not (root / "reports").exists(), "half a sweep has no results"
        assert goes_on(before, epochs_printed(said))
        before = epochs_printed(said)

    with driving(root) as last:
        said = last.end()
    assert last.process.returncode == 0, said
    assert "resuming the sweep" in said
    assert goes_on(before, epochs_printed(said))

    table = table_of(root)
    assert len(table) == 4
    begun_last = set(before) - set(table["trial"])  # Tune did not yet know of them
    assert all(max(before[trial]) <= 2 for trial in begun_last), "no more than a moment is lost"
    finished = table[table["status"] == "finished"]
    assert set(finished["epochs"]) == {8}
    assert set(table["status"]) <= {"finished", "ended early"}

    runs = runs_of(root)
    [parent] = [run for run in runs if run.data.tags[TRIAL_TAG] == ""]
    assert len({run.data.tags[TRIAL_TAG] for run in runs}) == len(runs)
    status = {"finished": "FINISHED", "ended early": "KILLED"}
    expected = dict.fromkeys(begun_last, "KILLED")
    for _, row in table.iterrows():
        expected[row["trial"]] = status[row["status"]]
    children_of_run = [run for run in runs if run is not parent]
    assert {run.data.tags[TRIAL_TAG]: run.info.status for run in children_of_run} == expected
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["faces_per_second"] > 0

    best = finished.sort_values("last_val_mae").iloc[0]
    words = (root / "reports" / "sweep" / "best.args").read_text(encoding="utf-8")
    assert f"-S {LAMBDA}={float(best[LAMBDA])!r}\n" in words


def test_failing_and_diverging_trials(tmp_path: Path) -> None:
    """Two trials map the same faces. A killed worker costs its trial only the current epoch. A loss
    that is no number is reported and not tried again."""
    space = {LAMBDA: {"kind": "choice", "values": [1.0, 1e300, 2.0]}}
    root = make(tmp_path, num_faces=200, search="grid", space=space, epochs=6, max_concurrent=None)

    with driving(root) as driver:
        driver.until(functools.partial(has_reached, epoch=2))
        workers = children(driver.process, "ray::ImplicitFunc")
        faces = [store_of(worker) for worker in workers]
        for worker in workers:
            worker.kill()
        said = driver.end()
    assert driver.process.returncode == 0, said
    assert re.search(r"failed \(.*(died|dead|killed)", said), said
    assert "it resumes after its last epoch" in said
    assert len(faces) == 2
    for mapped_bytes, own_bytes in faces:
        assert mapped_bytes >= 200 * 3 * CROP_PX**2
        assert own_bytes == 0, "a copy of its own"
    for trial, epochs in epochs_printed(said).items():
        assert epochs == list(range(1, 7)), f"{trial}: {said}"

    table = table_of(root).set_index(LAMBDA)
    assert table["status"].to_dict() == {1.0: "finished", 1e300: "diverged", 2.0: "finished"}
    assert "training loss is" in table.loc[1e300, "reason"]
    assert said.count("diverged") == 2  # when it happens, and in the count at the end
    assert "diverged" not in (root / "reports" / "sweep" / "best.args").read_text(encoding="utf-8")
    assert sorted(run.info.status for run in runs_of(root)) == [
        "FAILED",
        "FINISHED",
        "FINISHED",
        "FINISHED",
    ]


def has_own_mounts() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(
    not has_own_mounts(), reason="no mount of one's own is allowed here, so no small disk"
)
def test_a_full_disk_is_said_and_the_sweep_goes_on_when_there_is_room(tmp_path: Path) -> None:
    space = {LAMBDA: {"kind": "choice", "values": [1.0]}}
    root = make(tmp_path, search="lines", space=space, epochs=3)
    (root / "runs").mkdir()
    program = (
        'mount -t tmpfs -o size=26m tmpfs runs; "$@"; echo status $?; '
        'mount -o remount,size=200m runs; "$@"'
    )

    with driving(root, "unshare", "-rm", "sh", "-c", program, "sh") as driver:
        said = driver.end()
    assert driver.process.returncode == 0, said
    full, rest = said.split("status 2")
    refusal = full.strip().splitlines()[-1]
    assert re.search(r"flows\.sweep\.flow: trial \w+: .*No space left on device", refusal)
    assert "resuming the sweep" in rest
    [epochs] = epochs_printed(rest).values()
    assert epochs in ([1, 2, 3], [2, 3])  # whether Tune had noted the first one
    assert table_of(root)["status"].tolist() == ["finished"]


# -------------------------------------------------------------------------------
# Two nodes
# -------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_node_and_then_the_head_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial of a lost node continues on another one. Without its head node the driver ends, and
    the same command finishes the sweep on a new Ray."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    space = {LAMBDA: {"kind": "choice", "values": [1.0, 2.0]}}
    root = make(tmp_path, num_faces=300, search="grid", space=space, epochs=12)

    with two_nodes() as nodes, driving(root, RAY_ADDRESS=nodes["address"]) as driver:
        both = driver.until(lambda said: len(epochs_printed(said)) == 2)
        assert "2 nodes, 2 CPUs" in both
        os.kill(nodes["second"][0], signal.SIGKILL)
        driver.until(lambda said: "it resumes" in said)
        for pid in nodes["head"]:
            os.kill(pid, signal.SIGKILL)
        said = driver.end()
    assert driver.process.returncode != 0

    with driving(root) as second:
        rest = second.end()
    assert second.process.returncode == 0, rest
    assert epochs_printed(rest)
    assert goes_on(epochs_printed(said), epochs_printed(rest))
    assert table_of(root)["status"].tolist() == ["finished"] * 2
    assert SWEEP_TAG in runs_of(root)[0].data.tags
    assert len(runs_of(root)) == 3
    assert sweep_folder(root).is_dir()
