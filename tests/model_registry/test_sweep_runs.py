"""A sweep's runs in MLflow: parent and children, found again by a continued sweep."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from model_registry.mlflow_client import connect
from model_registry.sweep_runs import (
    REASON_TAG,
    end_sweep,
    end_trial,
    log_epoch,
    open_sweep,
    open_trial,
)

SETTINGS = {"sweep": {"seed": 0, "search": "optuna"}, "finetune": {"loss": {"lambda_": 1.0}}}
VALUES = {"finetune.loss.lambda_": 0.5}


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.chdir(tmp_path)
    return connect()


def test_a_trial_is_a_child_of_its_sweep(client: MlflowClient) -> None:
    parent = open_sweep("sweeps", "s1", SETTINGS)
    child = client.get_run(open_trial(parent, "t1", VALUES))
    assert client.get_run(parent).data.params == {
        "sweep.seed": "0",
        "sweep.search": "optuna",
        "finetune.loss.lambda_": "1.0",
    }
    assert child.data.tags[MLFLOW_PARENT_RUN_ID] == parent
    assert child.data.params == {"finetune.loss.lambda_": "0.5"}
    assert child.info.status == "RUNNING"


def test_what_is_taken_up_goes_on_in_the_same_runs(client: MlflowClient) -> None:
    """Everything twice, as after a stop: one parent, one child a trial, one value an epoch."""
    for _ in range(2):
        parent = open_sweep("sweeps", "s1", SETTINGS)
        for trial in ("t1", "t2"):
            run = open_trial(parent, trial, VALUES)
            assert client.get_run(run).info.status == "RUNNING"
            log_epoch(run, 1, {"val_mae": 5.0, "train_loss": math.nan})
            end_trial(run, "KILLED", "ended early after epoch 1")
        end_sweep(parent, {}, None)
    others = open_sweep("sweeps", "s2", SETTINGS)
    assert open_trial(others, "t1", VALUES) != run
    mine = [
        one
        for one in client.search_runs([client.get_run(run).info.experiment_id])
        if one.info.status != "RUNNING"
    ]
    assert sorted(one.info.status for one in mine) == ["FAILED", "KILLED", "KILLED"]
    ended = client.get_run(run)
    assert ended.data.tags[REASON_TAG] == "ended early after epoch 1"
    assert [(one.step, one.value) for one in client.get_metric_history(run, "val_mae")] == [
        (1, 5.0)
    ]
    assert "train_loss" not in ended.data.metrics


def test_a_trial_that_nobody_knows_any_more_is_ended_with_its_sweep(
    client: MlflowClient, tmp_path: Path
) -> None:
    (tmp_path / "results").mkdir()
    parent = open_sweep("sweeps", "s1", SETTINGS)
    known, lost = (open_trial(parent, name, VALUES) for name in ("t1", "t2"))
    other = open_trial(open_sweep("sweeps", "s2", SETTINGS), "t1", VALUES)
    end_trial(known, "FINISHED", "finished")
    end_sweep(parent, {}, tmp_path / "results")
    assert [client.get_run(run).info.status for run in (known, lost, other)] == [
        "FINISHED",
        "KILLED",
        "RUNNING",
    ]


def test_results_end_a_sweep(client: MlflowClient, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "trials.csv").write_text("trial\n", encoding="utf-8")
    parent = open_sweep("sweeps", "s1", SETTINGS)
    end_sweep(parent, {"faces_per_second": 7.0}, results)
    assert client.get_run(parent).info.status == "FINISHED"
    assert client.get_run(parent).data.metrics == {"faces_per_second": 7.0}
    assert [file.path for file in client.list_artifacts(parent, "sweep")] == ["sweep/trials.csv"]
