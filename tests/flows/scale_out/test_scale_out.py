"""A stage on Ray as a person types it: what comes before is made, DVC takes the result, MLflow
hears of its speed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from flows.pipeline.dvc_stages import before, declared, stale
from flows.scale_out.flow import scale_out
from model_registry.mlflow_client import connect, experiment
from tests.imports import REPOSITORY
from tests.test_pipeline import run, small, workspace


def test_what_comes_before_a_stage_is_what_its_inputs_come_from() -> None:
    stages = declared(REPOSITORY)
    first = ["settings", "code"]
    assert before(stages, "download@target") == first
    assert before(stages, "align@identity") == [*first, "download@identity", "validate@identity"]
    assert before(stages, "pretrain") == [
        *first,
        "download@identity",
        "validate@identity",
        "align@identity",
    ]

    sections = ("settings", "code", "download", "validate", "align", "pretrain")
    expected = [stage.name for stage in stages if stage.name.partition("@")[0] in sections]
    assert before(stages, "finetune") == expected


@pytest.mark.usefixtures("prefect_server")
def test_a_stage_that_does_not_run_on_ray_is_refused_before_anything_runs() -> None:
    with pytest.raises(
        ValueError, match=r"'finetune' does not run on Ray; these do: align@identity, .*pretrain"
    ):
        scale_out("finetune")


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_dvc_takes_the_result_and_mlflow_the_rate(
    local_registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = workspace(local_registry / "workspace", small)
    monkeypatch.chdir(root)
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    params["scale_out"]["pretrain"] |= {"num_workers": 1}
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for stage in ("align@identity", "pretrain"):
        scale_out(stage, root)
        assert stage not in stale(root)
    runs = connect().search_runs([experiment(params["scale_out"]["experiment"])])
    by_stage = {each.data.params["stage"]: each.data.metrics for each in runs}
    assert by_stage["align@identity"]["photos"] == 8 * 6
    assert by_stage["align@identity"]["photos_per_second"] > 0
    assert by_stage["pretrain"]["faces_per_second"] > 0
    assert by_stage["pretrain"]["nodes"] == 1

    shard = root / "data/identity/faces/part-00000.parquet"
    on_ray = hashlib.sha256(shard.read_bytes()).hexdigest()
    shard.unlink()
    run(root, "dvc", "repro", "--single-item", "--force", "align@identity")
    assert hashlib.sha256(shard.read_bytes()).hexdigest() == on_ray
