"""The baseline stage on small faces: what it writes, what chooses its strength, and what it
refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.baseline import BaselineSettings, baseline
from tests.small_faces import ALIGNMENT, GRID, classic_settings, some_faces, write_faces
from visage.labels import LabelGrid

NUM_TRAIN, NUM_VAL, NUM_TEST = 40, 12, 10
PAIRS = [
    ("bif", "svr"),
    ("bif", "ohrank"),
    ("bif", "bfgs_ldl"),
    ("cnn", "svr"),
    ("cnn", "ohrank"),
    ("cnn", "bfgs_ldl"),
]


def rows_of_faces() -> list[dict[str, Any]]:
    return some_faces(NUM_TRAIN, NUM_VAL, NUM_TEST)


def run(
    folder: Path,
    backbone: Path,
    settings: BaselineSettings,
    rows: list[dict[str, Any]] | None = None,
    alignment: dict[str, Any] = ALIGNMENT,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Metrics document and predictions of a run in `folder`; one test photo of the manifest was
    rejected."""
    rows = rows_of_faces() if rows is None else rows
    faces = write_faces(folder / "faces", rows, alignment=alignment)
    photos = [{"photo_id": row["photo_id"], "split": row["split"]} for row in rows]
    lost = {"photo_id": "test/lost.jpg", "split": "test"}
    pq.write_table(pa.Table.from_pylist([*photos, lost]), folder / "manifest.parquet")
    (folder / "rejects.csv").write_text("photo_id,reason\ntest/lost.jpg,no face found\n")
    baseline(
        settings,
        faces=faces,
        backbone=backbone,
        manifest=folder / "manifest.parquet",
        rejects=folder / "rejects.csv",
        metrics=folder / "baseline" / "metrics.json",
        predictions=folder / "baseline" / "predictions.parquet",
        report=lambda *_: None,
    )
    document = json.loads((folder / "baseline" / "metrics.json").read_text())
    return document, pd.read_parquet(folder / "baseline" / "predictions.parquet")


@pytest.mark.parametrize(("features", "estimator"), PAIRS)
def test_every_pair_is_measured_on_all_test_faces(
    tmp_path: Path, backbone: Path, features: str, estimator: str
) -> None:
    document, predicted = run(
        tmp_path, backbone, classic_settings(features=features, estimator=estimator)
    )
    test = document["test"]
    assert list(document) == ["test", "test_unseen", "decision"]
    assert (test["num_faces"], test["num_photos"], test["num_rejected"]) == (
        NUM_TEST,
        NUM_TEST + 1,
        1,
    )
    assert len(predicted) == NUM_TEST
    error = predicted["prediction"] - predicted["label"]
    assert test["mae"]["value"] == pytest.approx(error.abs().mean(), abs=1e-6)
    assert test["bias"]["value"] == pytest.approx(error.mean(), abs=1e-6)
    assert predicted["prediction"].between(GRID.minimum, GRID.maximum).all()
    assert (predicted["low"] <= predicted["high"]).all()
    np.testing.assert_allclose(np.stack(predicted["probabilities"]).sum(axis=1), 1, atol=1e-5)
    model = document["decision"]["model"]
    assert model["name"] == f"{features} {estimator}"
    assert model["num_features"] == (128 if features == "cnn" else 4 * (49 + 25))
    assert (model["bif"] is None) == (features == "cnn")
    assert document["decision"]["decode"] == ("rank" if estimator == "ohrank" else "expectation")


def test_validation_alone_chooses_the_strength(tmp_path: Path, backbone: Path) -> None:
    """The strength of least validation error is taken; other test labels change no prediction."""
    settings = classic_settings(strengths=(1e-4, 0.1, 10.0, 1000.0))
    document, predicted = run(tmp_path / "one", backbone, settings)
    model = document["decision"]["model"]
    errors = {one["strength"]: one["val_mae"] for one in model["trials"]}
    assert list(errors) == list(settings.strengths)
    assert model["strength"] == min(errors, key=errors.__getitem__) != 1e-4
    relabelled = [
        row | {"label": 50.0} if row["split"] == "test" else row for row in rows_of_faces()
    ]
    _, others = run(tmp_path / "two", backbone, settings, relabelled)
    assert others["prediction"].tolist() == predicted["prediction"].tolist()
    alone, again = run(
        tmp_path / "three", backbone, dataclasses.replace(settings, strengths=(model["strength"],))
    )
    assert again["prediction"].tolist() == predicted["prediction"].tolist()
    assert alone["test"]["mae"] == document["test"]["mae"]


def test_a_trials_error_is_that_on_the_validation_faces(tmp_path: Path, backbone: Path) -> None:
    document, predicted = run(
        tmp_path, backbone, classic_settings(strengths=(10.0,), splits=("val",))
    )
    assert len(predicted) == NUM_VAL
    [one] = document["decision"]["model"]["trials"]
    assert one["val_mae"] == pytest.approx(document["val"]["mae"]["value"], abs=1e-4)


def test_the_backbones_features_predict_the_label(tmp_path: Path, backbone: Path) -> None:
    _, predicted = run(tmp_path, backbone, classic_settings(strengths=(100.0, 10_000.0)))
    train = [row["label"] for row in rows_of_faces() if row["split"] == "train"]
    assert (predicted["prediction"] - predicted["label"]).abs().mean() < 0.7 * (
        predicted["label"] - np.mean(train)
    ).abs().mean()


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, backbone: Path) -> None:
    for name in ("one", "two"):
        run(tmp_path / name, backbone, classic_settings(estimator="ohrank"))
    for file in ("metrics.json", "predictions.parquet"):
        first, second = (tmp_path / name / "baseline" / file for name in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()


def test_a_fit_that_was_cut_short_is_reported(
    tmp_path: Path, backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = classic_settings()
    settings = dataclasses.replace(
        settings, fit=dataclasses.replace(settings.fit, max_iterations=1)
    )
    document, _ = run(tmp_path, backbone, settings)
    assert "C 100 has not converged" in capsys.readouterr().out
    assert [one["converged"] for one in document["decision"]["model"]["trials"]] == [False, False]
    assert document["decision"]["model"]["converged"] is False


def test_bif_needs_no_backbone(tmp_path: Path) -> None:
    document, _ = run(tmp_path, tmp_path / "none", classic_settings(features="bif"))
    assert document["test"]["num_faces"] == NUM_TEST


def test_what_cannot_be_run_is_refused(tmp_path: Path, backbone: Path) -> None:
    with pytest.raises(
        ValueError, match=r"the backbone's alignment is .*0\.75.*the target's faces has .*1\.4"
    ):
        run(
            tmp_path / "other_scale",
            backbone,
            classic_settings(),
            alignment=ALIGNMENT | {"face_scale": 1.4},
        )
    grid = LabelGrid(minimum=0.0, step=10.0, maximum=20.0)
    with pytest.raises(ValueError, match=r"is off the grid 0\.0\.\.20\.0 .*widen baseline\.grid"):
        run(tmp_path / "grid", backbone, classic_settings(grid=grid))
    with pytest.raises(
        ValueError, match=r"features of 52 faces, 297 numbers each, take 0 MiB.*max_feature_mb is 0"
    ):
        run(tmp_path / "large", backbone, classic_settings(features="bif", max_feature_mb=0))
    with pytest.raises(ValueError, match="no face of split 'val'"):
        run(tmp_path / "val", backbone, classic_settings(), some_faces(NUM_TRAIN, 0, NUM_TEST))
    assert not list(tmp_path.glob("*/baseline"))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"splits": ()}, "splits is empty"),
        ({"strengths": ()}, "strengths is empty"),
        ({"strengths": (1.0, 0.0)}, r"strengths has 0\.0"),
        (
            {"fixed_sigma": 0.0},
            r"fixed_sigma is "
            r"0\.0",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        classic_settings(**changes)
