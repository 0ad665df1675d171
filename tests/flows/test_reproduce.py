"""The flow on a real Prefect server: tasks, retries, artifacts, and the workspace after a cancelled
or killed flow."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterTaskRunId

import flows.reproduce
from flows.pipeline.artifacts import RecordedRun, metric_rows, quality_text
from flows.pipeline.dvc_stages import Declared, declared
from flows.pipeline.stage_outputs import EVALUATION, EXPORT, outputs_of
from flows.pipeline.stage_runner import StageFailed
from flows.reproduce import code_of, reproduce
from stages.exit_status import MICRO_BATCHES
from tests.flows import toy_workspace
from tests.flows.pipeline.test_stage_runner import SLEEPS, is_alive, wait_for
from tests.imports import REPOSITORY
from visage.evaluation.plots import canvas, png

METRICS = {
    "test": {"num_faces": 9, "mae": {"value": 5.0, "low": 4.0, "high": 6.0}},
    "decision": {"flip": True},
}
QUALITY = {
    "success": True, "photos": 1200, "quarantined": 3,
    "checks": [
        {"check": "tiny", "claim": "no photo is tiny", "policy": "quarantine",
         "result": "quarantined", "found": 3},
        {"check": "group_balance", "claim": "splits are alike", "policy": "report",
         "result": "not run"},
    ],
}  # fmt: skip
FLOW = """
import sys
from pathlib import Path
import flows.reproduce
from tests.flows.test_reproduce import pretended
flows.reproduce.recorded = pretended
flows.reproduce.reproduce(Path(sys.argv[1]))
"""


@contextmanager
def pretended(_root: Path, _experiment: str) -> Iterator[Callable[[list[Declared]], RecordedRun]]:
    """Stands in for MLflow, which tests/model_registry/ tests."""
    yield lambda _stages: RecordedRun(
        run_id="abc", experiment_id="7", tracking_uri="http://127.0.0.1:5000/"
    )


@pytest.fixture
def server(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(flows.reproduce, "recorded", pretended)
    monkeypatch.setattr(flows.reproduce, "RETRY_PAUSES_S", [0.1, 0.1, 0.1])
    return prefect_server


def newest(key: str) -> Any:
    """The data of the newest artifact of a key."""
    found = asyncio.run(Artifact.aget(key))
    assert found is not None, key
    return json.loads(found.data) if found.type == "table" else found.data


def described(key: str) -> str | None:
    """The description of the newest artifact of a key."""
    found = asyncio.run(Artifact.aget(key))
    assert found is not None, key
    return found.description


def runs_of(task: str) -> list[Any]:
    """The server's task runs of a name, the newest first."""
    with get_client(sync_client=True) as client:
        every = client.read_task_runs()
    named = [run for run in every if run.name == task]
    return sorted(named, key=lambda run: run.expected_start_time, reverse=True)


def logs_of(run: UUID) -> list[str]:
    """The server's log of a task run."""
    wanted = LogFilter(task_run_id=LogFilterTaskRunId(any_=[run]))
    with get_client(sync_client=True) as client:
        return [log.message for log in client.read_logs(log_filter=wanted)]


# -------------------------------------------------------------------------------
# What the flow does
# -------------------------------------------------------------------------------


@pytest.mark.usefixtures("server")
def test_every_stage_is_a_task_and_nothing_stale_takes_seconds(tmp_path: Path) -> None:
    root = toy_workspace.make(tmp_path, {"first-stage": "print('a word')", "last-stage": ""})
    assert reproduce(root) == {"first-stage": "ran", "last-stage": "ran"}
    first = runs_of("first-stage")[0]
    last = runs_of("last-stage")[0]
    assert first.state_name == last.state_name == "Completed"
    wait_for(lambda: "a word" in logs_of(first.id))

    started = time.monotonic()
    assert reproduce(root) == {"first-stage": "fresh", "last-stage": "fresh"}
    # bench/reproduce.py measures the time; this limit finds a flow that hangs.
    assert time.monotonic() - started < 60
    link = "[MLflow run abc](http://127.0.0.1:5000/#/experiments/7/runs/abc)"
    assert newest("mlflow-run") == link


@pytest.mark.usefixtures("server")
def test_the_stage_that_always_runs_is_not_reported(tmp_path: Path) -> None:
    root = toy_workspace.make(tmp_path, {"code": "", "next": ""})
    assert reproduce(root) == {"next": "ran"}
    assert (root / "code.txt").is_file()


@pytest.mark.usefixtures("server")
def test_a_broken_connection_is_tried_again(tmp_path: Path) -> None:
    counts = "pathlib.Path('count').open('a').write('.'); "
    fails = "len(pathlib.Path('count').read_text()) < 3 and sys.exit(74)"
    root = toy_workspace.make(tmp_path, {"shaky": counts + fails})
    assert reproduce(root) == {"shaky": "ran"}
    assert (root / "count").read_text(encoding="utf-8") == "..."
    assert runs_of("shaky")[0].run_count == 3


@pytest.mark.usefixtures("server")
def test_out_of_memory_is_tried_again_in_smaller_batches(tmp_path: Path) -> None:
    parts = (
        f"text += (parts := os.environ.get('{MICRO_BATCHES}', '1')); parts < '4' and sys.exit(137)"
    )
    root = toy_workspace.make(tmp_path, {"large": parts})
    assert reproduce(root) == {"large": "ran"}
    assert (root / "large.txt").read_text(encoding="utf-8") == "4large\n"


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("status", [1, 2])
def test_bad_data_and_faults_are_not_tried_again(tmp_path: Path, status: int) -> None:
    fails = f"pathlib.Path('count').open('a').write('.'); print('no label'); sys.exit({status})"
    root = toy_workspace.make(tmp_path, {"fine": "", "bad": fails, "never": ""})
    with pytest.raises(StageFailed, match=rf"bad: exit status {status} .*no label"):
        reproduce(root)
    assert (root / "count").read_text(encoding="utf-8") == "."
    assert not (root / "never.txt").exists()
    assert runs_of("bad")[0].state_name == "Failed"


# -------------------------------------------------------------------------------
# What it shows
# -------------------------------------------------------------------------------


def with_results(root: Path, ends: str, files: dict[str, str]) -> Path:
    """A workspace with a stage that writes some of the pipeline's files."""
    for name, content in files.items():
        path = root / "made" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")

    program = f"import shutil; shutil.copytree('made', '.', dirs_exist_ok=True); {ends}"
    toy_workspace.make(root, {"evaluate": program})
    outs = ["reports/metrics.json", "reports/plots", "reports/validation/target.json"]
    with (root / "dvc.yaml").open("a", encoding="utf-8") as file:
        file.writelines(f"    - {out}\n" for out in outs)
    return root


@pytest.mark.usefixtures("server")
def test_results_are_shown(tmp_path: Path) -> None:
    files = {
        "reports/metrics.json": json.dumps(METRICS),
        "reports/validation/target.json": json.dumps(QUALITY),
    }
    picture = tmp_path / "made/reports/plots/cs_curve.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(png(canvas("Half of the faces are close", 1, 1)))
    reproduce(with_results(tmp_path, "", files))

    assert newest("metrics-evaluate") == [
        {"metric": "MAE (label units)", "test": "5.000 (4.000 to 6.000)"}
    ]
    picture = base64.b64encode((tmp_path / "reports/plots/cs_curve.png").read_bytes()).decode()
    assert newest("plot-cs-curve") == f"data:image/png;base64,{picture}"
    assert described("plot-cs-curve") == "Half of the faces are close"
    assert "1,200 photos, 3 of them quarantined" in newest("data-quality-target")


@pytest.mark.usefixtures("server")
def test_what_is_wrong_with_the_data_is_shown_when_they_are_refused(tmp_path: Path) -> None:
    verdict = json.dumps(QUALITY | {"success": False, "photos": 77})
    root = with_results(tmp_path, "sys.exit(2)", {"reports/validation/target.failed.json": verdict})
    with pytest.raises(StageFailed, match=r"evaluate: exit status 2"):
        reproduce(root)
    assert "**failed**" in newest("data-quality-target")
    assert "77 photos" in newest("data-quality-target")


def test_rows_and_pages_of_results() -> None:
    undefined = {"value": None, "low": None, "high": None}
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    lists = METRICS | {"unseen": {"mae": undefined, "cs_5": share}}
    assert metric_rows(lists, "years") == [
        {"metric": "MAE (years)", "test": "5.000 (4.000 to 6.000)", "unseen": "undefined"},
        {"metric": "CS@5 (within 5 years)", "unseen": "50.0% (40.0% to 60.0%)"},
    ]
    text = quality_text("target", QUALITY)
    assert "| tiny | no photo is tiny | quarantine | quarantined | 3 |" in text
    assert "| group_balance | splits are alike | report | not run |  |" in text


def test_evidence_is_what_dvc_yaml_says() -> None:
    found = flows.reproduce._evidence(REPOSITORY, declared(REPOSITORY))

    assert found.metrics == REPOSITORY / "reports/metrics.json"
    assert found.groups == REPOSITORY / "reports/groups.csv"
    assert found.predictions == REPOSITORY / "reports/predictions.parquet"
    assert {
        "plots",
        "report.html",
        "groups.csv",
        "history/finetune.csv",
        "validation/target.json",
    } <= set(found.reports)
    assert not any(name.startswith("explain") for name in found.reports), "its pictures are faces"
    assert {path.name for path in found.history} == {"pretrain.csv", "finetune.csv"}
    roles = ("identity", "target")
    assert dict(found.manifests) == {
        role: REPOSITORY / f"data/{role}/manifest.parquet" for role in roles
    }


def test_outputs_of_the_pipeline_are_found() -> None:
    found = outputs_of(REPOSITORY, declared(REPOSITORY))
    assert set(found.metrics) == {"baseline", EVALUATION}
    assert found.plots == (REPOSITORY / "reports/plots",)
    assert found.quality == {
        r: REPOSITORY / f"reports/validation/{r}.json" for r in ("identity", "target")
    }
    assert found.export == {EXPORT: REPOSITORY / "models/export"}


def test_code_that_differs_from_its_commit_is_dirty(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    assert code_of(tmp_path) == {"git_commit": "unknown", "dirty": "false"}
    git("init", "-q")
    (tmp_path / "a.py").write_text("1", encoding="utf-8")
    (tmp_path / "dvc.lock").write_text("1", encoding="utf-8")
    git("add", ".")
    git("-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "-qm", "x")

    (tmp_path / "dvc.lock").write_text("2", encoding="utf-8")
    assert code_of(tmp_path)["dirty"] == "false"
    assert len(code_of(tmp_path)["git_commit"]) == 40

    (tmp_path / "a.py").write_text("2", encoding="utf-8")
    assert code_of(tmp_path)["dirty"] == "true"


# -------------------------------------------------------------------------------
# Killed and cancelled
# -------------------------------------------------------------------------------


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_or_cancelled_flow_is_finished_by_the_next(tmp_path: Path, number: int) -> None:
    root = toy_workspace.make(tmp_path, {"a": "", "b": SLEEPS, "c": ""})
    flow = subprocess.Popen(
        [sys.executable, "-c", FLOW, str(root)],
        cwd=REPOSITORY,
        env=dict(os.environ),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )

    wait_for((root / "pid").exists, 60)
    stage = int((root / "pid").read_text(encoding="utf-8"))
    flow.send_signal(number)
    assert flow.wait(30) != 0
    wait_for(lambda: not is_alive(stage), 3)

    (root / "go").touch()
    assert reproduce(root) == {"a": "fresh", "b": "ran", "c": "ran"}
    assert (root / "c.txt").read_text(encoding="utf-8") == "a\nb\nc\n"
