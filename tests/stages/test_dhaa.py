"""DHAA goes through every stage, at a tiny share of its width: from a ResNet-18's backbone or file,
with the paper's loss and DLDL-v2's, killed and resumed, calibrated, measured head by head,
explained, exported in float and in int8."""

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
import torch
from safetensors.torch import save_file

from stages.calibrate import CalibrateSettings, calibrate
from stages.evaluate import evaluate
from stages.finetune import finetune
from stages.imported_weights import IMAGENET_NORMALISE, ImportSettings
from stages.pretrain import pretrain
from tests.small_faces import (
    RECIPE,
    finetune_settings,
    marked,
    pretrain_settings,
    some_faces,
    write_faces,
)
from tests.stages.test_evaluate import SETTINGS as EVALUATE
from visage.data.face_table import FaceTable
from visage.explain.score_map import pooled_features, score_map
from visage.inference.predict_table import faces_of
from visage.networks import NetworkSettings, any_options, build
from visage.weights import load_model, sha256_of

OPTIONS = any_options("dhaa") | {"template": "five_point_112", "face_scale": 0.75, "vector": 64}
DHAA = NetworkSettings(name="dhaa-0.125", options=OPTIONS)
RESNET = NetworkSettings(name="resnet18-0.125", options={})
# The paper's optimiser on batches of these few faces
SGD = dataclasses.replace(
    RECIPE, optimiser="sgd", momentum=0.9, nesterov=True, learning_rate=0.01, ema_decay=0.0
)


def settings(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "network": DHAA,
        "method": "dex",
        "init": "backbone",
        "recipes": {"small": SGD},
        "epochs": 2,
    }
    return finetune_settings(**(values | changes))


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faces(tmp_path_factory.mktemp("faces"), marked(some_faces(24, 8, 8)))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory, faces: Path) -> Path:
    """A ResNet-18 of the same share, pre-trained for an epoch."""
    folder = tmp_path_factory.mktemp("backbone")
    pretrain(
        pretrain_settings(network=RESNET, epochs=1),
        faces=faces,
        checkpoints=folder / "checkpoints",
        backbone=folder / "backbone",
        history=folder / "pretrain.csv",
        report=lambda *_: None,
    )
    return folder / "backbone"


def train(folder: Path, faces: Path, backbone: Path, **changes: Any) -> pd.DataFrame:
    finetune(
        settings(**changes),
        faces=faces,
        backbone=backbone,
        start=folder / "none",
        checkpoints=folder / "checkpoints",
        model=folder / "model",
        history=folder / "finetune.csv",
        report=lambda *_: None,
    )
    return pd.read_csv(folder / "finetune.csv")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, faces: Path, backbone: Path) -> Path:
    folder = tmp_path_factory.mktemp("model")
    train(folder, faces, backbone, epochs=6)
    return folder / "model"


def test_it_learns_from_a_resnet_s_backbone(tmp_path: Path, faces: Path, backbone: Path) -> None:
    history = train(tmp_path, faces, backbone, epochs=6)
    assert history["train_loss"].iloc[-1] < 0.95 * history["train_loss"].iloc[0]
    _, config = load_model(tmp_path / "model")
    assert (config.network.name, config.network.options) == ("dhaa-0.125", OPTIONS)
    document = json.loads((backbone / "backbone.json").read_text(encoding="utf-8"))
    assert config.training["start"]["sha256"] == document["weights"]["sha256"]


@pytest.mark.parametrize("method", ["dldl_v2", "coral"])
def test_other_losses_train_all_ten_heads(
    tmp_path: Path, faces: Path, backbone: Path, method: str
) -> None:
    """The sum of ten losses of one method; each head moves."""
    train(tmp_path, faces, backbone, method=method, epochs=1)
    own = load_model(tmp_path / "model")[0].state_dict()
    train(tmp_path / "other", faces, backbone, method=method, epochs=1, auxiliary_weight=0.0)
    without = load_model(tmp_path / "other" / "model")[0].state_dict()
    for name in own:
        if name.startswith("part_heads") and name.endswith("bias"):
            assert own[name].abs().max() > 0 == without[name].abs().max(), name


def test_a_killed_training_ends_in_the_same_weights(
    tmp_path: Path, faces: Path, backbone: Path
) -> None:
    class Killed(Exception):
        """In the place of a signal: after the first epoch's checkpoint."""

    def die(step: int, _row: Any) -> None:
        if step == 1:
            raise Killed

    train(tmp_path / "whole", faces, backbone)
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        finetune(
            settings(),
            faces=faces,
            backbone=backbone,
            start=folder / "none",
            checkpoints=folder / "checkpoints",
            model=folder / "model",
            history=folder / "finetune.csv",
            report=die,
        )
    train(folder, faces, backbone)
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "killed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_every_sub_network_starts_from_an_imported_resnet(tmp_path: Path, faces: Path) -> None:
    state = build(RESNET.name, {}, 5).state_dict()
    renamed = {name.replace("head.", "fc."): value for name, value in state.items()}
    save_file(renamed, tmp_path / "resnet.safetensors")
    file = tmp_path / "resnet.safetensors"
    recipe = dataclasses.replace(SGD, learning_rate=1e-12)
    train(
        tmp_path,
        faces,
        tmp_path / "none",
        init="import",
        imported=ImportSettings(file=str(file), sha256=sha256_of(file)),
        normalise=IMAGENET_NORMALISE,
        recipes={"small": recipe},
        epochs=1,
    )
    network, config = load_model(tmp_path / "model")
    own = network.state_dict()
    assert config.training["start"]["name"] == "resnet.safetensors"
    for part in ("g1", "l2"):
        torch.testing.assert_close(
            own[f"trunks.{part}.0.0.conv1.weight"], state["layer3.0.conv1.weight"]
        )
    halves = own["trunks.c3.0.0.conv1.weight"].chunk(2, dim=1)
    for half in halves:
        torch.testing.assert_close(2 * half, state["layer3.0.conv1.weight"])


def test_a_backbone_of_another_share_is_refused(
    tmp_path: Path, faces: Path, backbone: Path
) -> None:
    wider = NetworkSettings(name="dhaa-0.25", options=OPTIONS)
    with pytest.raises(ValueError, match=r"backbone's network is .*resnet18-0\.125.*dhaa-0\.25"):
        train(tmp_path, faces, backbone, network=wider)


# -------------------------------------------------------------------------------
# What becomes of the model
# -------------------------------------------------------------------------------


def test_each_of_its_ten_heads_is_measured(tmp_path: Path, faces: Path, model: Path) -> None:
    """The last head's figure is the prediction's own."""
    table = FaceTable.open(faces, ["test"])
    photos = [{"photo_id": name, "split": "test"} for name in table.photo_id]
    pq.write_table(pa.Table.from_pylist(photos), tmp_path / "manifest.parquet")
    (tmp_path / "rejects.csv").write_text("photo_id,reason\n", encoding="utf-8")
    names = {"metrics": "metrics.json", "groups": "groups.csv", "plots": "plots"}
    names |= {"predictions": "predictions.parquet", "html": "report.html"}
    names |= {"manifest": "manifest.parquet", "rejects": "rejects.csv"}
    names |= {"finetune_history": "none", "pretrain_history": "none", "validation": "none"}
    evaluate(
        dataclasses.replace(EVALUATE, splits=("test",)),
        model=model,
        faces=faces,
        report=lambda *_: None,
        **{name: tmp_path / file for name, file in names.items()},
    )
    measured = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["test"]
    parts = ["g1", "g2", "g3", "l1", "l2", "l3", "c1", "c2", "c3", "last"]
    assert list(measured["heads"]) == parts
    last = measured["heads"]["last"]
    assert last["value"] == pytest.approx(measured["mae"]["value"], abs=1e-3)
    assert len({one["value"] for one in measured["heads"].values()}) == 10
    assert (tmp_path / "plots" / "heads.png").stat().st_size > 1000
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Error of each head" in page


def test_it_is_calibrated_explained_and_embedded(tmp_path: Path, faces: Path, model: Path) -> None:
    network, config = load_model(model)
    table = FaceTable.open(faces, ["test"])
    crops = faces_of(table, np.arange(8), True)
    maps_Bhw = score_map(network, config, *crops, flip=True)
    assert maps_Bhw.shape == (8, 32, 32)
    assert float(maps_Bhw.std()) > 1e-9
    features_BC = pooled_features(network, config, *crops)
    assert features_BC.shape == (8, 3 * 64), "what t-SNE embeds"
    calibrate(
        CalibrateSettings(batch_size=8, min_faces=4, flip=True),
        model=model,
        faces=faces,
        calibrated=tmp_path / "calibrated",
        report=lambda *_: None,
    )
    calibration = load_model(tmp_path / "calibrated")[1].calibration
    assert calibration is not None
    assert calibration.num_faces == 8
