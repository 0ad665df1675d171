"""The evaluate stage on a small model and random crops: every file, its numbers against naive ones,
its refusals."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.evaluate import EvaluateSettings, evaluate
from tests.small_model import small_config, small_model, some_crops
from visage.data.face_table import FaceTable
from visage.data.schemas import FACE_SCHEMA, METADATA_KEY
from visage.evaluation.evaluate import unseen
from visage.inference.loading import load
from visage.model_config import CalibrationConfig, ModelConfig

SETTINGS = EvaluateSettings(
    splits=("test",),
    decode="expectation",
    flip=True,
    batch_size=16,
    num_resamples=100,
    interval=0.95,
    seed=3,
    cs_thresholds=(3.0, 30.0),
    band_width=10.0,
    epsilon_sigma=None,
    with_dedup=True,
)
NUM_TEST, NUM_TRAIN = 40, 20


def face(row: int, split: str, crop: np.ndarray) -> dict[str, Any]:
    """One row of the face table; test faces 0 and 1 are one picture, 2 and 3 are one with two
    labels."""
    buffer = io.BytesIO()
    Image.fromarray(crop).save(buffer, "JPEG", quality=90)
    jpeg = buffer.getvalue()
    return {
        "photo_id": f"{split}/{row:03d}.jpg",
        "sha256": hashlib.sha256(jpeg).hexdigest(),
        "jpeg": jpeg,
        "box": [0.0, 0.0, 32.0, 32.0],
        "landmarks": [0.0] * 10,
        "probability": 1.0,
        "num_faces": 1,
        "found": "frame" if row % 10 == 9 else "mtcnn",
        "label": float(row // 2 * 2 + (row == 3)),
        "sigma": None if row % 2 else 4.0,
        "person": None,
        "sex": ("female", "male")[row % 2],
        "ethnicity": None,
        "split": split,
    }


def face_rows() -> list[dict[str, Any]]:
    crops = some_crops(NUM_TEST + NUM_TRAIN, seed=5).permute(0, 2, 3, 1).numpy()
    crops[1], crops[3] = crops[0], crops[2]
    crops[NUM_TEST] = crops[4]  # the first training face is test face 4
    test = [face(row, "test", crops[row]) for row in range(NUM_TEST)]
    return test + [face(row, "train", crops[NUM_TEST + row]) for row in range(NUM_TRAIN)]


def write_faces(
    folder: Path, rows: list[dict[str, Any]], alignment: dict[str, Any] | None = None
) -> None:
    config = small_config()
    preprocessing = {
        "alignment": alignment or asdict(config.alignment),
        "detector": asdict(config.detector),
    }
    folder.mkdir()
    for shard in range(2):
        table = pa.Table.from_pylist(
            rows[shard::2], FACE_SCHEMA.with_metadata({METADATA_KEY: json.dumps(preprocessing)})
        )
        pq.write_table(table, folder / f"part-{shard:05d}.parquet")


@dataclass(frozen=True)
class Run:
    """A folder with all inputs, and how to evaluate in it."""

    folder: Path

    def evaluate(self, settings: EvaluateSettings = SETTINGS, out: str = "reports") -> Path:
        reports = self.folder / out
        inputs = {
            "manifest": "manifest.parquet",
            "rejects": "rejects.csv",
            "finetune_history": "finetune.csv",
        }
        inputs |= {
            "model": "model",
            "faces": "faces",
            "pretrain_history": "absent.csv",
            "validation": "target.json",
        }
        outputs = {
            "metrics": "metrics.json",
            "groups": "groups.csv",
            "predictions": "predictions.parquet",
        }
        outputs |= {"plots": "plots", "html": "report.html"}
        paths = {name: self.folder / file for name, file in inputs.items()}
        paths |= {name: reports / file for name, file in outputs.items()}
        evaluate(settings, **paths, report=lambda *_: None)
        return reports


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("evaluate")
    small_model(folder / "model")
    rows = face_rows()
    write_faces(folder / "faces", rows)
    lost = [
        {"photo_id": f"test/{name}.jpg", "split": "test"} for name in ("blank", "dirty", "torn")
    ]
    photos = [{"photo_id": row["photo_id"], "split": row["split"]} for row in rows]
    pq.write_table(pa.Table.from_pylist([*photos, *lost]), folder / "manifest.parquet")
    with (folder / "rejects.csv").open("w", newline="") as file:
        names = ("test/blank.jpg", "test/torn.jpg", "train/other.jpg")
        csv.writer(file).writerows(
            [("photo_id", "reason"), *((name, "no <face> found") for name in names)]
        )
    (folder / "finetune.csv").write_text(
        "epoch,train_loss,learning_rate,val_mae,seconds\n1,2,0.1,9,1\n2,1,0.1,8,1\n"
    )
    check = {
        "check": "label_range",
        "claim": "labels in range",
        "result": "passed",
        "found": 0,
        "quarantined": 0,
    }
    document = {
        "photos": 63,
        "quarantined": 1,
        "checks": [check],
        "facts": {"people": {"across_splits": 7}},
    }
    (folder / "target.json").write_text(json.dumps(document))
    return Run(folder)


@pytest.fixture(scope="module")
def reports(run: Run) -> Path:
    return run.evaluate(out="reports")


def predictions(reports: Path) -> pd.DataFrame:
    return pd.read_parquet(reports / "predictions.parquet")


def metrics(reports: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((reports / "metrics.json").read_text())
    return document


def test_predictions_are_the_predictors_for_every_test_face(run: Run, reports: Path) -> None:
    table = FaceTable.open(run.folder / "faces", ["test"])
    expected = load(run.folder / "model", runtime="torch").predict_crops(
        table.decode(np.arange(len(table))), flip=True
    )
    found = predictions(reports)
    assert found["photo_id"].tolist() == table.photo_id.tolist()
    assert len(found) == NUM_TEST
    for column, value in (
        ("prediction", expected.value),
        ("std", expected.std),
        ("low", expected.low),
        ("high", expected.high),
    ):
        np.testing.assert_allclose(found[column], value, atol=1e-4)
    np.testing.assert_allclose(np.stack(found["probabilities"]), expected.probabilities, atol=1e-5)
    schema = pq.read_schema(reports / "predictions.parquet")
    assert str(schema.field("probabilities").type) == "fixed_size_list<element: float>[11]"
    assert found["sigma"].isna().sum() == NUM_TEST / 2


def test_metrics_are_those_of_the_predictions(reports: Path) -> None:
    table, document = predictions(reports), metrics(reports)["test"]
    error = table["prediction"] - table["label"]
    sigma = table["sigma"]
    naive = {
        "mae": error.abs().mean(),
        "rmse": math.sqrt((error**2).mean()),
        "bias": error.mean(),
        "pearson": np.corrcoef(table["label"], table["prediction"])[0, 1],
        "cs_3": (error.abs() <= 3).mean(),
        "cs_30": (error.abs() <= 30).mean(),
        "epsilon_error": (
            1 - np.exp(-(error**2) / (2 * sigma**2))
        ).mean(),  # pandas leaves faces without sigma out
        "coverage_80": (
            (table["low"] <= table["label"]) & (table["label"] <= table["high"])
        ).mean(),
        "mean_std": table["std"].mean(),
    }
    for name, value in naive.items():
        assert document[name]["value"] == pytest.approx(value, abs=1e-6), name
        assert document[name]["low"] <= document[name]["value"] <= document[name]["high"], name
    assert document["num_with_sigma"] == NUM_TEST / 2
    assert 0 < document["pit_max_deviation"] < 1


def test_missing_photos_are_counted_and_named(reports: Path) -> None:
    counts = {
        key: value for key, value in metrics(reports)["test"].items() if key.startswith("num_")
    }
    assert counts == {
        "num_faces": 40,
        "num_with_sigma": 20,
        "num_photos": 43,
        "num_quarantined": 1,
        "num_found_frame": 4,
        "num_rejected": 2,
    }
    page = (reports / "report.html").read_text()
    assert "test/torn.jpg" in page
    assert "train/other.jpg" not in page


def test_the_unseen_list_leaves_copies_and_contradictions_out(reports: Path) -> None:
    """0 and 1 are copies with one label (one stays), 2 and 3 contradict (none stays), 4 is a
    training picture."""
    table = predictions(reports)
    kept = table[~table["photo_id"].isin([f"test/{row:03d}.jpg" for row in (1, 2, 3, 4)])]
    document = metrics(reports)["test_unseen"]
    assert document["num_faces"] == len(kept) == NUM_TEST - 4
    assert document["mae"]["value"] == pytest.approx(
        (kept["prediction"] - kept["label"]).abs().mean(), abs=1e-6
    )


def test_unseen_by_hand() -> None:
    kept_N = unseen(["a", "b", "a", "c", "c", "d"], np.array([1.0, 2, 1, 3, 4, 5]), elsewhere={"d"})
    assert kept_N.tolist() == [True, True, False, False, False, False]


def test_groups_hold_every_face_once_per_attribute_that_is_known(reports: Path) -> None:
    table = pd.read_csv(reports / "groups.csv")
    mae = table[(table["list"] == "test") & (table["metric"] == "mae")]
    assert mae.groupby("attribute")["num_faces"].sum().to_dict() == {
        "age": NUM_TEST,
        "sex": NUM_TEST,
    }
    ages = mae[mae["attribute"] == "age"]
    assert ages["group"].tolist() == ["0", "10", "20", "30"]
    predicted = predictions(reports)
    women = predicted[predicted["sex"] == "female"]
    found = table[
        (table["list"] == "test")
        & (table["metric"] == "coverage_80")
        & (table["group"] == "female")
    ]
    inside = (women["low"] <= women["label"]) & (women["label"] <= women["high"])
    assert found["value"].item() == pytest.approx(inside.mean(), rel=1e-4)
    page = (reports / "report.html").read_text()
    assert page.count("labels inside the 80% interval") == 3  # of all, by age, by sex
    found = mae.loc[mae["group"] == "female", "value"].item()
    assert found == pytest.approx((women["prediction"] - women["label"]).abs().mean(), rel=1e-4)


def test_decision_names_rule_model_and_data(run: Run, reports: Path) -> None:
    decision = metrics(reports)["decision"]
    config = hashlib.sha256((run.folder / "model" / "config.json").read_bytes()).hexdigest()
    assert (decision["decode"], decision["flip"], decision["seed"]) == ("expectation", True, 3)
    assert decision["model"]["config_sha256"] == config
    assert decision["data"]["test"]["num_faces"] == NUM_TEST


def test_the_page_needs_nothing_else_and_shows_every_picture(reports: Path) -> None:
    page = (reports / "report.html").read_text()
    assert not re.search(r"<script|<link|https?://|url\(", page)
    pictures = sorted(path.stem for path in (reports / "plots").glob("*.png"))
    assert len(re.findall(r'src="data:image/png;base64,', page)) == len(pictures)
    assert {
        "predicted_vs_true",
        "cs_curve",
        "reliability",
        "pit",
        "learning_finetune",
        "worst_cases",
    } <= set(pictures)
    assert "learning_pretrain" not in pictures
    assert "no &lt;face&gt; found" in page
    for word in (
        "label_range",
        "across splits",
        "&#34;method&#34;: &#34;dldl_v2&#34;",
        "test_unseen",
        "By sex",
        "Not calibrated",
        "How good?",
        "For whom is it bad?",
        "How sure is it?",
        "expectation of the distribution",
    ):
        assert word in page, word


def test_plot_tables_hold_what_dvc_draws(reports: Path) -> None:
    points, bands, curve = (
        pd.read_csv(reports / "plots" / f"{name}.csv")
        for name in ("predicted_vs_true", "error_by_label", "cs_curve")
    )
    assert len(points) == NUM_TEST
    assert bands["num_faces"].sum() == NUM_TEST
    assert curve["error"].tolist() == sorted(curve["error"])
    assert curve["share"].is_monotonic_increasing
    reliability, pit = (
        pd.read_csv(reports / "plots" / f"{name}.csv") for name in ("reliability", "pit")
    )
    assert list(reliability) == ["mass", "share", "low", "high"]  # a model without calibration
    assert reliability["mass"].between(0, 1).all()
    assert pit["share"].sum() == pytest.approx(1)
    error = (points["prediction"] - points["label"]).abs()
    assert curve["share"].iloc[-1] == pytest.approx((error <= 20).mean(), abs=1e-5)


def test_the_same_inputs_give_the_same_bytes(run: Run, reports: Path) -> None:
    again = run.evaluate(out="again")
    for path in sorted(reports.rglob("*")):
        if path.is_file():
            assert (again / path.relative_to(reports)).read_bytes() == path.read_bytes(), path.name


def test_rule_flip_fixed_sigma_and_several_splits_are_obeyed(run: Run) -> None:
    changes: dict[str, Any] = {
        "decode": "argmax",
        "flip": False,
        "epsilon_sigma": 2.0,
        "num_resamples": 5,
    }
    reports = run.evaluate(
        replace(SETTINGS, splits=("test", "train"), with_dedup=False, **changes), "other"
    )
    document, both = metrics(reports), predictions(reports)
    assert list(document) == ["test", "train", "decision"]
    assert both["split"].value_counts().to_dict() == {"test": NUM_TEST, "train": NUM_TRAIN}
    grid = np.arange(0, 101, 10)
    np.testing.assert_allclose(
        both["prediction"], grid[np.stack(both["probabilities"]).argmax(axis=1)], atol=1e-6
    )
    table = both[both["split"] == "test"]
    assert document["test"]["num_with_sigma"] == table["sigma"].notna().sum() == NUM_TEST / 2
    sigma = np.where(table["sigma"].isna(), 2.0, table["sigma"])
    cost = 1 - np.exp(-((table["prediction"] - table["label"]) ** 2) / (2 * sigma**2))
    assert document["test"]["epsilon_error"]["value"] == pytest.approx(cost.mean(), abs=1e-6)


def test_a_calibrated_model_is_measured_as_it_is_served(run: Run, reports: Path) -> None:
    """The same values and errors, other intervals; the page and the tables say what was changed."""
    config = ModelConfig.read(run.folder / "model" / "config.json")
    known = CalibrationConfig(temperature=1.5, mass=0.8, offset=7.5, num_faces=664, flip=True)
    try:
        replace(config, calibration=known).write(run.folder / "model" / "config.json")
        after = run.evaluate(replace(SETTINGS, num_resamples=5), out="calibrated")
    finally:
        config.write(run.folder / "model" / "config.json")
    old, new = predictions(reports), predictions(after)
    np.testing.assert_array_equal(new["prediction"], old["prediction"])
    assert (new["high"] - new["low"] > old["high"] - old["low"]).all()
    assert (
        metrics(after)["test"]["coverage_80"]["value"]
        > metrics(reports)["test"]["coverage_80"]["value"]
    )
    reliability = [pd.read_csv(folder / "plots" / "reliability.csv") for folder in (reports, after)]
    np.testing.assert_allclose(reliability[1]["share_before"], reliability[0]["share"], atol=1e-5)
    page = (after / "report.html").read_text()
    assert (
        "664 validation faces, flip averaged: temperature 1.500, both ends of the 80% interval "
        "moved out by 7.50" in page
    )


def test_faces_cut_in_another_way_are_refused(tmp_path: Path) -> None:
    small_model(tmp_path / "model")
    write_faces(
        tmp_path / "faces", face_rows(), asdict(small_config().alignment) | {"face_scale": 0.5}
    )
    with pytest.raises(ValueError, match=r"alignment is .*0\.5.*config says .*0\.75"):
        Run(tmp_path).evaluate()
    assert not (tmp_path / "reports").exists()


def test_an_empty_split_and_a_face_without_a_label_are_refused(tmp_path: Path) -> None:
    small_model(tmp_path / "model")
    rows = face_rows()
    rows[7]["label"] = None
    write_faces(tmp_path / "faces", rows)
    with pytest.raises(ValueError, match="no face of split 'val'"):
        Run(tmp_path).evaluate(replace(SETTINGS, splits=("val",)))
    with pytest.raises(ValueError, match=r"test/007\.jpg: this test face has no label"):
        Run(tmp_path).evaluate()


def test_without_a_rule_of_its_own_it_takes_the_models(run: Run) -> None:
    reports = run.evaluate(replace(SETTINGS, decode=None, num_resamples=5), "own")
    config = ModelConfig.read(run.folder / "model" / "config.json")
    assert metrics(reports)["decision"]["decode"] == config.decode


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"splits": ()}, "splits is empty"),
        ({"decode": "mode"}, "'mode' is unknown"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"band_width": -1.0}, "band_width is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(SETTINGS, **change)
