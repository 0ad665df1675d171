"""The stage fuse: passes one model on, learns from validation faces alone, and its model goes
through calibration, evaluation and export like any other."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.fuse import fuse
from tests.small_faces import ALIGNMENT, fuse_settings, some_faces, write_faces
from tests.small_model import small_config, small_network
from visage.data.face_table import FaceTable
from visage.inference.faces import CropPredictor
from visage.model_config import CONFIG_FILE, ModelConfig
from visage.networks.fused import FusedNetwork
from visage.weights import load_model, save_model


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return write_faces(tmp_path / "faces", some_faces(24, 40, 4))


def model(folder: Path, seed: int, **changes: Any) -> Path:
    config = small_config(name=folder.name, **changes)
    assert dataclasses.asdict(config.alignment) == ALIGNMENT
    save_model(folder, small_network(config, seed), config, "float32")
    return folder


def run(tmp_path: Path, faces: Path, **changes: Any) -> Path:
    fused = tmp_path / "fused"
    fuse(
        fuse_settings(**changes),
        model=tmp_path / "own",
        members=tmp_path / "members",
        faces=faces,
        fused=fused,
        report=lambda *_: None,
    )
    return fused


def test_without_members_the_model_is_passed_on_byte_for_byte(tmp_path: Path, faces: Path) -> None:
    own = model(tmp_path / "own", 0)
    (tmp_path / "members").mkdir()
    (tmp_path / "members" / ".gitkeep").touch()
    fused = run(tmp_path, faces, rule="weights")
    files = {path.name: path.read_bytes() for path in own.iterdir()}
    assert {path.name: path.read_bytes() for path in fused.iterdir()} == files


@pytest.mark.parametrize("rule", ["mean", "weights", "gate", "kernel"])
def test_every_rule_makes_a_model_that_says_where_it_comes_from(
    tmp_path: Path, faces: Path, rule: str
) -> None:
    model(tmp_path / "own", 0)
    sigma = {"normalise": dataclasses.replace(small_config().normalise, input="grey")}
    for seed, name in enumerate(("one", "two"), 1):
        model(tmp_path / "members" / name, seed, **sigma)
    fused = run(tmp_path, faces, rule=rule, second_stream=("two",))
    network, config = load_model(fused)
    assert isinstance(network, FusedNetwork)
    assert config.name == "own-fused"
    assert config.network.options["rule"] == rule
    assert list(config.training["members"]) == ["model", "one", "two"]
    assert config.training["fused"]["rule"] == rule
    assert ("fuse" in config.data) == (rule != "mean")
    if rule == "kernel":
        assert network.options.num_remembered == 16
        assert network.remembered_NX.sum(dim=1).mean().item() == pytest.approx(3, abs=1e-3)
    assert ModelConfig.read(fused / CONFIG_FILE) == config
    assert json.loads(config.to_json())["network"]["options"]["members"][2]["normalise"]["input"]


@pytest.mark.parametrize("objective", ["mae", "nll"])
def test_test_faces_choose_nothing(tmp_path: Path, faces: Path, objective: str) -> None:
    """Other training and test faces give the same weights; other validation faces need not."""
    model(tmp_path / "own", 0)
    model(tmp_path / "members" / "one", 1)
    rows = some_faces(24, 40, 4)
    for row in rows:
        if row["split"] != "val":
            row["label"] = 100.0 - row["label"]
    others = write_faces(tmp_path / "others", rows)
    weights = []
    for which in (faces, others):
        fused = run(tmp_path, which, rule="weights", objective=objective)
        weights.append(load_model(fused)[1].network.options["weights"])
    assert weights[0] == weights[1]


def test_weights_are_learned_where_one_model_knows_and_the_other_does_not(
    tmp_path: Path, faces: Path
) -> None:
    """The model that predicts the labels gets all weight; it is made by moving the labels."""
    model(tmp_path / "own", 0)
    model(tmp_path / "members" / "one", 1)
    predictor = CropPredictor(*load_model(tmp_path / "own"))
    rows = some_faces(24, 40, 4)
    table = FaceTable.open(faces, ["val"])
    value_N = predictor.predict_crops(table.decode(np.arange(len(table)))).value
    known = dict(zip(table.photo_id, value_N, strict=True))
    for row in rows:
        if row["split"] == "val":
            row["label"] = float(known[row["photo_id"]])
    others = write_faces(tmp_path / "others", rows)
    config = load_model(run(tmp_path, others, rule="weights"))[1]
    assert config.network.options["weights"] == pytest.approx([1.0, 0.0], abs=1e-3)
    assert "learned weights" in config.training["fused"]["reason"]


def test_epsilon_error_wants_sigmas(tmp_path: Path, faces: Path) -> None:
    model(tmp_path / "own", 0)
    model(tmp_path / "members" / "one", 1)
    with pytest.raises(ValueError, match=r"no sigma; set labels\.epsilon_sigma"):
        run(tmp_path, faces, rule="weights", objective="epsilon_error")
    fused = run(tmp_path, faces, rule="weights", objective="epsilon_error", epsilon_sigma=5.0)
    assert sum(load_model(fused)[1].network.options["weights"]) == pytest.approx(1)
