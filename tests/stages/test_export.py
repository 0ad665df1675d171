"""The export stage: what it writes, and that a missed parity or a foreign face table leaves nothing
behind."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.export import ExportSettings, export
from tests.small_model import small_config, small_model, some_crops
from visage.data.face_table import FaceTable
from visage.data.schemas import FACE_SCHEMA, METADATA_KEY
from visage.evaluation.drift import REFERENCE_FILE, Summary, drift
from visage.explain.score_map import pooled_features
from visage.inference.faces import CropPredictor
from visage.inference.onnx_engine import load_onnx
from visage.networks.vgg import ThinVGG
from visage.weights import load_model

SETTINGS = ExportSettings(
    dtype="float16",
    parity_faces=10,
    parity_tolerance=1e-3,
    int8=False,
    int8_faces=30,
    int8_tolerance=5.0,
    reference_faces=25,
)
IN_INT8 = dataclasses.replace(SETTINGS, int8=True)


def jpeg(crop: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(crop).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def face_table(folder: Path, num_test: int = 14, num_train: int = 40, **alignment: Any) -> Path:
    """Random crops: a shard of test faces and one of training faces."""
    config = small_config()
    preprocessing = {
        "alignment": dataclasses.asdict(config.alignment) | alignment,
        "detector": dataclasses.asdict(config.detector),
    }
    schema = FACE_SCHEMA.with_metadata({METADATA_KEY: json.dumps(preprocessing).encode()})
    folder.mkdir()
    for shard, (split, count) in enumerate({"test": num_test, "train": num_train}.items()):
        rows = [
            {
                "photo_id": f"{i:03}.jpg",
                "sha256": "",
                "jpeg": jpeg(crop.permute(1, 2, 0).numpy()),
                "box": [0.0] * 4,
                "landmarks": [0.0] * 10,
                "probability": 1.0,
                "num_faces": 1,
                "found": "mtcnn",
                "label": 30.0,
                "sigma": None,
                "person": None,
                "sex": None,
                "ethnicity": None,
                "split": split,
            }
            for i, crop in enumerate(some_crops(count))
        ]
        pq.write_table(
            pa.Table.from_pylist(rows, schema=schema), folder / f"part-{shard:05d}.parquet"
        )
    return folder


def silent(step: int, values: Any) -> None: ...


def test_a_model_becomes_an_exported_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, faces, target = (
        small_model(tmp_path / "model"),
        face_table(tmp_path / "faces"),
        tmp_path / "models" / "export",
    )
    seen: dict[str, float] = {}
    export(
        SETTINGS,
        model=model,
        faces=faces,
        export=target,
        report=lambda _, values: seen.update(values),
    )
    assert sorted(path.name for path in target.parent.iterdir()) == ["export"]
    assert sorted(path.name for path in target.iterdir()) == [
        "config.json",
        "model.onnx",
        "model.safetensors",
        "parity.json",
        "reference.json",
    ]
    parity = json.loads((target / "parity.json").read_text())
    assert parity["num_faces"] == 10
    assert 0 <= parity["max_abs_difference"] <= 1e-3
    assert parity["max_abs_rounding"] > 0
    assert parity.items() <= seen.items()
    assert str(target) in capsys.readouterr().out
    crops = FaceTable.open(faces, ["test"]).decode(np.arange(14))
    values = [
        p.predict_crops(crops).value
        for p in (
            CropPredictor(*load_model(target)),
            CropPredictor(*load_onnx(target / "model.onnx")),
        )
    ]
    np.testing.assert_allclose(*values, rtol=0, atol=1e-3)
    assert (target / "model.safetensors").stat().st_size < 0.53 * (
        model / "model.safetensors"
    ).stat().st_size


def test_a_second_export_takes_the_place_of_the_first(tmp_path: Path) -> None:
    model, faces, target = (
        small_model(tmp_path / "model"),
        face_table(tmp_path / "faces"),
        tmp_path / "export",
    )
    target.mkdir()
    (target / "stale.txt").write_text("from before")
    export(SETTINGS, model=model, faces=faces, export=target, report=silent)
    assert not (target / "stale.txt").exists()


def test_missed_parity_writes_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    model, faces, target = (
        small_model(tmp_path / "model"),
        face_table(tmp_path / "faces"),
        tmp_path / "export",
    )
    target.mkdir()
    (target / "config.json").write_text("the last good one")
    strict = dataclasses.replace(SETTINGS, parity_tolerance=-1.0)
    with pytest.raises(ValueError, match=r"export\.parity_tolerance"):
        export(strict, model=model, faces=faces, export=target, report=silent)
    assert [path.name for path in target.iterdir()] == ["config.json"]
    assert not (tmp_path / ".export.part").exists()


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"num_test": 0}, "no faces of split 'test'"),
        ({"num_train": 0}, "no faces of split 'train'"),
        ({"face_scale": 1.0}, r"'face_scale': 1\.0.*config says.*'face_scale': 0\.75"),
    ],
)
def test_faces_that_do_not_fit_are_refused(
    tmp_path: Path, table: dict[str, Any], complaint: str
) -> None:
    model, faces = small_model(tmp_path / "model"), face_table(tmp_path / "faces", **table)
    with pytest.raises(ValueError, match=complaint):
        export(SETTINGS, model=model, faces=faces, export=tmp_path / "export", report=silent)
    assert not (tmp_path / "export").exists()


def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    model, faces = small_model(tmp_path / "model"), face_table(tmp_path / "faces")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="sha256"):
        export(SETTINGS, model=model, faces=faces, export=tmp_path / "export", report=silent)


def test_int8_is_exported_beside_with_its_differences(tmp_path: Path) -> None:
    model, faces, target = (
        small_model(tmp_path / "model"),
        face_table(tmp_path / "faces"),
        tmp_path / "export",
    )
    seen: dict[str, float] = {}
    export(
        IN_INT8,
        model=model,
        faces=faces,
        export=target,
        report=lambda _, values: seen.update(values),
    )
    assert sorted(path.name for path in target.glob("model.*")) == [
        "model.int8.onnx",
        "model.onnx",
        "model.safetensors",
    ]
    crops = FaceTable.open(faces, ["test"]).decode(np.arange(14))
    places = np.unique(np.linspace(0, 13, 10).round().astype(int))
    rough, fine = (
        CropPredictor(*load_onnx(target / name)) for name in ("model.int8.onnx", "model.onnx")
    )
    assert rough.config == fine.config
    difference = np.abs(
        rough.predict_crops(crops, flip=False).value - fine.predict_crops(crops, flip=False).value
    )
    parity = json.loads((target / "parity.json").read_text())
    assert parity["int8_mean_abs_difference"] == pytest.approx(difference[places].mean(), abs=1e-6)
    assert parity["int8_max_abs_difference"] == pytest.approx(difference[places].max(), abs=1e-6)
    assert parity.items() <= seen.items()
    assert 0 < seen["int8.onnx_mb"] < 0.6 * seen["onnx_mb"]


def test_int8_too_far_off_writes_nothing(tmp_path: Path) -> None:
    model, faces = small_model(tmp_path / "model"), face_table(tmp_path / "faces")
    strict = dataclasses.replace(IN_INT8, int8_tolerance=0.0)
    with pytest.raises(
        ValueError,
        match=r"small: in int8 .* years on average, more than export\.int8_tolerance 0\.0",
    ):
        export(strict, model=model, faces=faces, export=tmp_path / "export", report=silent)
    assert not (tmp_path / "export").exists()


def test_the_reference_sums_up_the_exported_models_predictions_for_training_faces(
    tmp_path: Path,
) -> None:
    model, faces, target = (
        small_model(tmp_path / "model"),
        face_table(tmp_path / "faces"),
        tmp_path / "export",
    )
    export(SETTINGS, model=model, faces=faces, export=target, report=silent)
    document = json.loads((target / REFERENCE_FILE).read_text(encoding="utf-8"))
    reference = Summary.from_document(document, "reference")
    exported, config = load_model(target)
    places = np.unique(np.linspace(0, 39, 25).round().astype(int))
    crops = FaceTable.open(faces, ["train"]).decode(places)
    assert reference.weights == config.weights.sha256
    assert reference.totals().num_faces == 25
    assert reference.totals().value_sum == pytest.approx(
        CropPredictor(exported, config).predict_crops(crops).value.sum()
    )
    features = pooled_features(exported, config, crops).double().numpy()
    np.testing.assert_allclose(
        reference.totals().feature_sums, features.sum(0), rtol=1e-4, atol=1e-3
    )
    again = Summary.of(config, window_faces=25, block_faces=25)
    in_onnx = CropPredictor(*load_onnx(target / "model.onnx"), observe=again.add)
    in_onnx.predict_crops(crops)
    moved = drift(reference, again)
    assert moved.value_psi < 0.01
    assert moved.feature_distance < 0.01


def test_a_reference_of_no_face_is_refused() -> None:
    with pytest.raises(ValueError, match="reference_faces is 0"):
        dataclasses.replace(SETTINGS, reference_faces=0)


def test_int8_of_a_network_without_convolutions_to_quantise_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(tmp_path / "model")
    monkeypatch.setattr(ThinVGG, "quantised_modules", lambda _self: [])
    with pytest.raises(ValueError, match=r"network 'tiny' names no module .* export\.int8: false"):
        export(
            IN_INT8,
            model=model,
            faces=tmp_path / "nowhere",
            export=tmp_path / "export",
            report=silent,
        )
    assert not (tmp_path / "export").exists()
