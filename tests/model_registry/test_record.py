"""One reproduction, one run: on SQLite and a folder, and on PostgreSQL and S3 behind a server."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from model_registry.mlflow_client import artifact_root, connect, experiment
from model_registry.record import (
    Evidence,
    curve,
    find,
    finish,
    flat,
    lock_digest,
    numbers,
    recording,
)
from tests.services import Postgres, mlflow_server, postgres, s3

CODE = {"git_commit": "abc", "dirty": False}


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    """The files that a reproduction leaves, as small as they may be."""
    reports = tmp_path / "work" / "reports"
    (reports / "plots").mkdir(parents=True)
    files = {
        "params.yaml": "finetune: {epochs: 2}\n",
        "dvc.lock": "schema: '2.0'\n",
        "manifest.parquet": "photos",
        "reports/metrics.json": json.dumps(
            {"test": {"num_faces": 4, "mae": {"value": 5.0, "low": 4.0, "high": 6.0}}}
        ),
        "reports/groups.csv": "list,attribute\n",
        "reports/predictions.parquet": "rows",
        "reports/plots/cs.png": "picture",
        "reports/finetune.csv": "epoch,train_loss,val_mae\n1.0,3.5,9\n2.0,2.5,8\n",
        "reports/pretrain.csv": "\n",
    }
    for name, text in files.items():
        (tmp_path / "work" / name).write_text(text, encoding="utf-8")
    work = tmp_path / "work"
    return Evidence(
        settings={
            "labels": {"quantity": "age", "unit": "years"},
            "finetune": {"epochs": 2, "loss": {"lambda_": 1.0}},
        },
        params=work / "params.yaml",
        lock=work / "dvc.lock",
        metrics=reports / "metrics.json",
        groups=reports / "groups.csv",
        predictions=reports / "predictions.parquet",
        history=(reports / "finetune.csv", reports / "pretrain.csv"),
        reports={"plots": reports / "plots", "history/finetune.csv": reports / "finetune.csv"},
        manifests={"target": work / "manifest.parquet"},
    )


def record(evidence: Evidence, workspace: str = "here") -> str:
    with recording("visage", workspace) as run_id:
        return finish(run_id, evidence, CODE)


def check(run_id: str, evidence: Evidence, tmp_path: Path) -> None:
    client = connect()
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "labels.quantity": "age",
        "labels.unit": "years",
        "finetune.epochs": "2",
        "finetune.loss.lambda_": "1.0",
    }
    assert {
        name: run.data.metrics[name] for name in ("test.mae", "test.mae.low", "test.mae.high")
    } == {
        "test.mae": 5.0,
        "test.mae.low": 4.0,
        "test.mae.high": 6.0,
    }
    history = client.get_metric_history(run_id, "finetune.val_mae")
    assert [(point.step, point.value) for point in history] == [(1, 9.0), (2, 8.0)]
    assert run.data.tags["visage.lock"] == lock_digest(evidence.lock)
    assert run.data.tags["visage.git_commit"] == "abc"
    assert run.info.run_name.startswith("pipeline 20")
    assert run.data.tags["mlflow.source.name"] == "flows/reproduce.py"
    assert "| test | 5.00 (4.00 to 6.00) |  |  |" in run.data.tags["mlflow.note.content"]
    [data] = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == (
        "target",
        hashlib.md5(b"photos").hexdigest(),
    )  # DVC's
    names = {each.path for each in client.list_artifacts(run_id)}
    wanted = {
        "params.yaml",
        "dvc.lock",
        "metrics.json",
        "groups.csv",
        "predictions.parquet",
        "reports",
    }
    assert names == wanted | {"environment.txt"}
    place = mlflow.artifacts.download_artifacts(
        run_id=run_id, artifact_path="reports/plots", dst_path=str(tmp_path)
    )
    assert (Path(place) / "cs.png").read_text(encoding="utf-8") == "picture"
    assert [each.path for each in client.list_artifacts(run_id, "reports/history")] == [
        "reports/history/finetune.csv"
    ]


def test_a_run_holds_all_that_was_asked_for_and_is_recorded_once(
    local_registry: Path, evidence: Evidence
) -> None:
    first = record(evidence)
    check(first, evidence, local_registry)
    assert record(evidence) == first
    number = experiment("visage")
    assert [run.info.run_id for run in connect().search_runs([number])] == [first]
    evidence.lock.write_text("schema: '2.1'\n", encoding="utf-8")
    assert record(evidence) != first


@pytest.mark.usefixtures("local_registry")
def test_the_machine_is_watched_while_it_works(
    evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_registry.record.SAMPLING_SECONDS", 0.2)
    with recording("visage", "here") as run_id:
        time.sleep(1.5)
        finish(run_id, evidence, CODE)
    assert connect().get_run(run_id).data.metrics["system/system_memory_usage_percentage"] > 0


def test_what_died_is_taken_up_and_nothing_stands_twice(
    local_registry: Path, evidence: Evidence
) -> None:
    broken = replace(evidence, predictions=evidence.predictions.with_name("gone.parquet"))
    with pytest.raises(OSError, match="gone"):
        record(broken)
    [left] = connect().search_runs([experiment("visage")])
    assert left.info.status == "FAILED"
    with recording("visage", "elsewhere") as other:
        pass
    assert other != left.info.run_id
    assert record(evidence) == left.info.run_id
    check(left.info.run_id, evidence, local_registry)


@pytest.mark.parametrize("has_other_lock", [True, False])
def test_another_result_takes_a_new_run_where_one_was_half_written(
    local_registry: Path, evidence: Evidence, has_other_lock: bool
) -> None:
    """Its settings stand in the run already, those that no stage reads too, and MLflow refuses to
    change them."""
    broken = replace(evidence, predictions=evidence.predictions.with_name("gone.parquet"))
    others = {"finetune": {"epochs": 7, "loss": {"lambda_": 9.0}}}
    broken = replace(broken, settings=dict(broken.settings) | others)
    with pytest.raises(OSError, match="gone"):
        record(broken)
    [left] = connect().search_runs([experiment("visage")])
    if has_other_lock:
        evidence.lock.write_text("schema: '2.1'\n", encoding="utf-8")
    taken = record(evidence)
    assert taken != left.info.run_id
    check(taken, evidence, local_registry)
    assert connect().get_run(left.info.run_id).info.status == "FAILED"
    with recording("visage", "here") as fresh:
        assert fresh not in (taken, left.info.run_id)


@pytest.mark.usefixtures("local_registry")
def test_the_machine_is_watched_again_after_an_outage(
    evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_registry.record.SAMPLING_SECONDS", 0.2)
    original = MlflowClient.get_run

    def away(*_: object) -> None:
        raise MlflowException("the database restarts")

    with recording("visage", "here") as run_id:
        with monkeypatch.context() as outage:
            outage.setattr(MlflowClient, "get_run", away)
            time.sleep(1)
        assert MlflowClient.get_run is original
        before = len(connect().get_metric_history(run_id, "system/system_memory_usage_percentage"))
        time.sleep(1.5)
        finish(run_id, evidence, CODE)
    assert (
        len(connect().get_metric_history(run_id, "system/system_memory_usage_percentage")) > before
    )


def test_without_a_server_all_is_in_one_folder(local_registry: Path) -> None:
    where = connect().get_experiment(experiment("visage")).artifact_location
    assert where == (local_registry / ".mlflow" / "artifacts").as_uri()


def test_where_files_go_beside_a_server_or_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'a' / 'mlflow.db'}")
    assert artifact_root() == (tmp_path / "a" / "artifacts").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@127.0.0.1/registry")
    with pytest.raises(
        ValueError, match=r"database \(postgresql\).*MLFLOW_DEFAULT_ARTIFACT_ROOT"
    ) as refusal:
        artifact_root()
    assert "secret" not in str(refusal.value)
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", "s3://bucket")
    assert artifact_root() == "s3://bucket"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert artifact_root() is None


@pytest.mark.usefixtures("local_registry")
def test_a_run_that_was_cut_off_is_not_found(evidence: Evidence) -> None:
    with recording("visage", "here"):
        assert find("visage", lock_digest(evidence.lock)) is None


def test_names_and_numbers() -> None:
    assert flat({"a": {"b": {"c": 1}}, "d": [1, 2], "e": {}}) == {"a.b.c": 1, "d": [1, 2], "e": {}}
    metrics = {"test": {"mae": {"value": 1, "low": float("nan")}, "name": "x", "flag": True}}
    assert numbers(metrics) == {"test.mae": 1.0}


def test_an_empty_history_has_no_curve(evidence: Evidence) -> None:
    assert list(curve(evidence.history[1])) == []


@pytest.mark.slow
def test_postgresql_and_s3_and_a_restart_in_the_middle(
    tmp_path: Path, evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By environment variables alone; the database goes away while the evidence is written, and
    comes back."""
    with postgres() as database, s3("models") as store:
        with mlflow_server(database.uri, store.root, store.environment, tmp_path) as address:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            check(_restarted(database, evidence), evidence, tmp_path)
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", database.uri)
        monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", store.root)
        evidence.lock.write_text("another", encoding="utf-8")
        run_id = _restarted(database, evidence, "directly")
        check(run_id, evidence, tmp_path)
        assert connect().get_run(run_id).info.artifact_uri.startswith(store.root)


def _restarted(database: Postgres, evidence: Evidence, experiment_name: str = "visage") -> str:
    """Records while PostgreSQL stops at once and is away for three seconds."""

    def away() -> None:
        database.stop()
        time.sleep(3)
        database.start()

    with recording(experiment_name, "here") as run_id:
        outage = threading.Thread(target=away)
        outage.start()
        time.sleep(0.5)
        recorded = finish(run_id, evidence, CODE)
        outage.join()
    return recorded
