"""Faces with labels become a model: its start, its phases, its config, and what is refused before
anything is trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import stages.finetune
from stages.exit_status import MICRO_BATCHES
from stages.finetune import FinetuneSettings, finetune
from tests.small_faces import (
    ALIGNMENT,
    DETECTOR,
    GRID,
    LOSS,
    RECIPE,
    TINY,
    finetune_settings,
    some_faces,
    write_faces,
)
from visage.data.face_table import FaceTable
from visage.data.normalisation import own_normalise
from visage.data.preprocess import evaluation_faces
from visage.inference.loading import load
from visage.labels import LabelGrid
from visage.methods import METHODS
from visage.model_config import NormaliseConfig
from visage.networks import FaceBatch, NetworkSettings
from visage.weights import load_model

THIN = NetworkSettings(name="thin", options={"pooling": "hybrid"})
OTHER_NORMALISE = NormaliseConfig(mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return write_faces(tmp_path / "faces", some_faces())


def run(
    folder: Path,
    faces: Path,
    settings: FinetuneSettings,
    backbone: Path | None = None,
    start: Path | None = None,
) -> pd.DataFrame:
    """The history after a run in `folder`."""
    finetune(
        settings,
        faces=faces,
        backbone=backbone or folder / "none",
        start=start or folder / "none",
        checkpoints=folder / "checkpoints",
        model=folder / "model",
        history=folder / "finetune.csv",
        report=lambda *_: None,
    )
    return pd.read_csv(folder / "finetune.csv")


# -------------------------------------------------------------------------------
# What comes out
# -------------------------------------------------------------------------------


def test_model_carries_what_it_needs(tmp_path: Path, faces: Path) -> None:
    settings = finetune_settings()
    history = run(tmp_path, faces, settings)
    network, config = load_model(tmp_path / "model")
    assert (config.grid, config.method, config.decode, config.normalise) == (
        GRID,
        "dldl_v2",
        "expectation",
        settings.normalise,
    )
    assert dataclasses.asdict(config.alignment) == ALIGNMENT
    assert dataclasses.asdict(config.detector) == DETECTOR | {
        "thresholds": tuple(DETECTOR["thresholds"])
    }  # type: ignore[arg-type]
    assert (config.data["train"]["num_faces"], config.data["val"]["num_faces"]) == (20, 6)
    assert config.training["recipe"]["name"] == "small"
    assert (
        config.training["schedule"] == settings.schedule
    )  # of the stage, not of the recipe, which has one too
    assert config.training["loss"] == {"lambda_": 1.0, "kl_reduction": "sum", "min_sigma": 0.5}
    assert (config.network.name, config.network.options) == ("tiny", {"pooling": "hybrid"})
    assert (config.training["init"], config.training["start"]) == ("scratch", None)
    figures = {"epoch", "train_loss", "learning_rate", "val_mae"}
    assert set(history) == figures | {"seconds", "processor_seconds"}
    assert config.metrics == {"val": {"val_mae": history["val_mae"].iloc[-1]}}
    assert network.head.out_features == GRID.num_labels


def test_a_run_in_small_parts_is_noted_in_the_config(
    tmp_path: Path, faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = finetune_settings(epochs=1)
    run(tmp_path / "undivided", faces, settings)
    monkeypatch.setenv(MICRO_BATCHES, "2")
    history = run(tmp_path / "parts", faces, settings)
    configs = [load_model(tmp_path / name / "model")[1] for name in ("undivided", "parts")]
    assert [config.training["micro_batches"] for config in configs] == [1, 2]
    assert configs[0].training["recipe"] == configs[1].training["recipe"]
    assert history["micro_batches"].tolist() == [2.0]


def test_validation_figure_is_the_saved_models_error(tmp_path: Path, faces: Path) -> None:
    history = run(tmp_path, faces, finetune_settings())
    network, config = load_model(tmp_path / "model")
    table = FaceTable.open(faces, ["val"])
    with torch.inference_mode():
        crops = FaceBatch(table.decode(np.arange(6)), None)
        p_BK = network(evaluation_faces(crops, config.normalise)).logits_BK.softmax(1)
    value_B = (p_BK @ torch.from_numpy(GRID.labels()).float()).numpy()
    assert history["val_mae"].iloc[-1] == pytest.approx(
        np.abs(value_B - table.label).mean(), abs=1e-4
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_predicts(tmp_path: Path, faces: Path, method: str) -> None:
    history = run(tmp_path, faces, finetune_settings(method=method, epochs=8, augmentation="none"))
    assert history["train_loss"].iloc[4:].min() < history["train_loss"].iloc[0]
    predictor, table = load(tmp_path / "model", runtime="torch"), FaceTable.open(faces, ["val"])
    assert predictor.config.method == method
    value_N = predictor.predict_crops(table.decode(np.arange(6)), flip=False).value
    assert history["val_mae"].iloc[-1] == pytest.approx(
        np.abs(value_N - table.label).mean(), abs=1e-3
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vgg-0.125", {"pooling": "gap"}),
        ("resnet18-0.25", {}),
        pytest.param("vgg16", {}, marks=pytest.mark.slow),  # 134 million parameters
    ],
)
def test_every_network_trains_and_comes_back(
    tmp_path: Path, faces: Path, name: str, options: dict[str, str]
) -> None:
    network = NetworkSettings(name=name, options=options)
    history = run(tmp_path, faces, finetune_settings(network=network, epochs=1))
    predictor, table = load(tmp_path / "model", runtime="torch"), FaceTable.open(faces, ["val"])
    assert (predictor.config.network.name, predictor.config.network.options) == (name, options)
    value_N = predictor.predict_crops(table.decode(np.arange(6)), flip=False).value
    assert history["val_mae"].iloc[-1] == pytest.approx(
        np.abs(value_N - table.label).mean(), abs=1e-3
    )


def test_two_stages_are_of_dldl_v2_alone(tmp_path: Path, faces: Path) -> None:
    with pytest.raises(
        ValueError, match=r"finetune\.schedule: two_stage .* ranking has no stages; set it to joint"
    ):
        run(tmp_path, faces, finetune_settings(method="ranking", schedule="two_stage"))


def test_same_settings_same_bytes_other_seed_others(tmp_path: Path, faces: Path) -> None:
    weights = []
    for number, seed in enumerate((1, 1, 2)):
        run(tmp_path / str(number), faces, finetune_settings(seed=seed, epochs=1))
        weights.append((tmp_path / str(number) / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("changes", [{"num_workers": 0}, {"num_workers": 3}, {"cache_mb": 0}])
def test_how_faces_are_read_changes_nothing(
    tmp_path: Path, faces: Path, changes: dict[str, Any]
) -> None:
    for name, settings in (
        ("plain", finetune_settings(epochs=1)),
        ("other", finetune_settings(epochs=1, **changes)),
    ):
        run(tmp_path / name, faces, settings)
    first, second = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "other")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_faces_may_come_from_somewhere_else(tmp_path: Path, faces: Path) -> None:
    """Who trains many models hands their faces over; it is asked for the training and the
    validation split alone."""
    asked = []

    def open_faces(folder: Path, splits: Sequence[str], cache_mb: int) -> FaceTable:
        asked.append((folder, list(splits)))
        return FaceTable.open(faces, splits, cache_mb).shareable()

    run(tmp_path / "own", faces, finetune_settings(epochs=1))
    folder, settings = tmp_path / "given", finetune_settings(epochs=1)
    finetune(
        settings,
        faces=tmp_path / "nowhere",
        backbone=folder,
        start=folder,
        checkpoints=folder / "checkpoints",
        model=folder / "model",
        history=folder / "history.csv",
        report=lambda *_: None,
        open_faces=open_faces,
    )
    assert asked == [(tmp_path / "nowhere", ["train"]), (tmp_path / "nowhere", ["val"])]
    first, second = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("own", "given")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_epochs_of_a_second_stage_are_reported_after_those_of_the_first(
    tmp_path: Path, faces: Path
) -> None:
    reported: list[tuple[int, float]] = []
    settings = finetune_settings(schedule="two_stage")
    finetune(
        settings,
        faces=faces,
        backbone=tmp_path,
        start=tmp_path,
        checkpoints=tmp_path / "checkpoints",
        model=tmp_path / "model",
        history=tmp_path / "history.csv",
        report=lambda step, row: reported.append((step, row["epoch"])),
    )
    assert reported == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]


def test_labels_are_learnt(tmp_path: Path) -> None:
    """Brightness shows the label: a few epochs are far better than the mean label, and brighter is
    older."""
    recipe = dataclasses.replace(RECIPE, learning_rate=5e-3)
    settings = finetune_settings(epochs=12, recipes={"small": recipe}, augmentation="none")
    rows = some_faces(64, 16, 0)
    history = run(tmp_path, write_faces(tmp_path / "faces", rows), settings)
    assert history["train_loss"].iloc[-1] < 0.5 * history["train_loss"].iloc[0]
    labels = np.array([row["label"] for row in rows if row["split"] == "val"])
    assert history["val_mae"].iloc[-1] < 0.6 * np.abs(labels - labels.mean()).mean()
    network, config = load_model(tmp_path / "model")
    greys_BCHW = torch.tensor([80, 110, 140, 170, 200], dtype=torch.uint8)[
        :, None, None, None
    ].expand(5, 3, 32, 32)
    greys = evaluation_faces(FaceBatch(greys_BCHW, None), config.normalise)
    p_BK = network(greys).logits_BK.softmax(1)
    value_B = p_BK @ torch.from_numpy(GRID.labels()).float()
    assert value_B.tolist() == sorted(value_B.tolist())


# -------------------------------------------------------------------------------
# Its start
# -------------------------------------------------------------------------------


def start_of(
    folder: Path, faces: Path, settings: FinetuneSettings, backbone: Path
) -> dict[str, torch.Tensor]:
    """The state before the first step."""
    folder.mkdir(exist_ok=True)
    table = FaceTable.open(faces, ["train"])
    start = stages.finetune._start(settings, table, backbone, folder / "none")
    return stages.finetune._network(settings, start).state_dict()


@pytest.mark.parametrize("method", METHODS)
def test_trunk_comes_from_the_backbone_and_the_head_does_not(
    tmp_path: Path, faces: Path, backbone: Path, method: str
) -> None:
    trained = load_file(backbone / "backbone.safetensors")
    scratch = start_of(tmp_path, faces, finetune_settings(method=method), backbone)
    started = start_of(tmp_path, faces, finetune_settings(method=method, init="backbone"), backbone)
    trunk = [name for name in started if not name.startswith("head.")]
    assert len(trunk) == len(started) - 2 == 13 * 6
    assert all(torch.equal(started[name], trained[name]) for name in trunk)
    assert not any(
        torch.equal(scratch[name], trained[name]) for name in trunk if name.endswith("0.weight")
    )
    assert trained["head.weight"].shape == (4, 128)
    assert all(torch.equal(started[name], scratch[name]) for name in started if name not in trunk)


@pytest.mark.parametrize(
    ("key", "settings", "alignment"),
    [
        ("network", finetune_settings(init="backbone", network=THIN), ALIGNMENT),
        ("normalise", finetune_settings(init="backbone", normalise=OTHER_NORMALISE), ALIGNMENT),
        ("alignment", finetune_settings(init="backbone"), ALIGNMENT | {"face_scale": 1.4}),
    ],
)
def test_backbone_of_other_make_is_refused(
    tmp_path: Path, backbone: Path, key: str, settings: FinetuneSettings, alignment: dict[str, Any]
) -> None:
    faces = write_faces(tmp_path / "faces", some_faces(), alignment=alignment)
    with pytest.raises(ValueError, match=rf"the backbone's {key} is .*finetune\.init: scratch"):
        run(tmp_path, faces, settings, backbone)


def test_absent_or_damaged_backbone_is_refused(tmp_path: Path, faces: Path, backbone: Path) -> None:
    settings = finetune_settings(init="backbone")
    with pytest.raises(ValueError, match=r"backbone\.json: missing"):
        run(tmp_path, faces, settings, tmp_path / "nowhere")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "backbone.json").write_bytes((backbone / "backbone.json").read_bytes())
    (damaged / "backbone.safetensors").write_bytes(
        (backbone / "backbone.safetensors").read_bytes()[:-8]
    )
    with pytest.raises(ValueError, match=r"backbone\.safetensors: truncated or edited"):
        run(tmp_path, faces, settings, damaged)


# -------------------------------------------------------------------------------
# Its phases
# -------------------------------------------------------------------------------


def test_two_stages_are_kl_alone_then_a_zeroed_bias_then_all(
    tmp_path: Path, faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lambdas: list[float] = []
    biases: list[float] = []
    plain_fit, method = stages.finetune.fit, METHODS["dldl_v2"]

    def watched_loss(*arguments: Any) -> torch.Tensor:
        lambdas.append(arguments[4].lambda_)
        return method.loss(*arguments)

    def watched_fit(network: Any, *arguments: Any, **rest: Any) -> Any:
        biases.append(network.head.bias.abs().sum().item())
        return plain_fit(network, *arguments, **rest)

    monkeypatch.setitem(METHODS, "dldl_v2", dataclasses.replace(method, loss=watched_loss))
    monkeypatch.setattr("stages.finetune.fit", watched_fit)
    history = run(
        tmp_path, faces, finetune_settings(schedule="two_stage", loss=LOSS | {"lambda_": 3.0})
    )
    assert lambdas == [0.0] * 6 + [3.0] * 6  # 20 faces by 8 are 3 steps, 2 epochs a phase
    assert biases == [0.0, 0.0]
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    rates = history["learning_rate"].tolist()
    assert rates[2:] == rates[:2]  # the second phase has a schedule of its own


def test_second_phase_goes_on_from_the_model_of_the_first(tmp_path: Path, faces: Path) -> None:
    """Each phase by itself, the second from the first one's average with its bias zeroed, gives the
    same weights."""
    loss = LOSS | {"lambda_": 3.0}
    run(tmp_path / "both", faces, finetune_settings(schedule="two_stage", loss=loss))
    run(tmp_path / "first", faces, finetune_settings(loss=loss | {"lambda_": 0.0}))
    first = load_model(tmp_path / "first" / "model")[0]
    torch.nn.init.zeros_(first.head.bias)
    settings = finetune_settings(seed=1, loss=loss)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.finetune._network", lambda *_: first)
        run(tmp_path / "second", faces, settings)
    both, second = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("both", "second")
    )
    assert all(torch.equal(both[name], second[name]) for name in both)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "er"},
        {"network": dataclasses.replace(TINY, options={"pooling": "gap"})},
        {"decode": "median"},
        {"augmentation": "extended"},
    ],
)
def test_every_choice_trains(tmp_path: Path, faces: Path, changes: dict[str, Any]) -> None:
    history = run(tmp_path, faces, finetune_settings(epochs=1, **changes))
    assert np.isfinite(history.to_numpy()).all()
    load_model(tmp_path / "model")


def test_sigma_of_the_faces_goes_before_the_fixed_one(tmp_path: Path) -> None:
    """A fixed sigma has no say where each face has its own."""
    rows = some_faces()
    for row in rows:
        row["sigma"] = 15.0
    faces = write_faces(tmp_path / "faces", rows)
    own, fixed = (
        run(tmp_path / str(sigma), faces, finetune_settings(epochs=1, fixed_sigma=sigma))
        for sigma in (3.0, 30.0)
    )
    assert own["train_loss"].tolist() == fixed["train_loss"].tolist()


def test_intervals_train_as_distributions_and_only_where_a_method_can(tmp_path: Path) -> None:
    """A wide interval says less than a value: its loss at the start differs, and DEX refuses."""
    rows = some_faces()
    wide = [row | {"half_width": 20.0} for row in rows]
    losses = []
    for name, some in (("values", rows), ("intervals", wide)):
        faces = write_faces(tmp_path / name, some)
        losses.append(run(tmp_path / name, faces, finetune_settings(epochs=1))["train_loss"][0])
    assert losses[1] < losses[0] - 0.1

    with pytest.raises(
        ValueError, match="intervals, which dex cannot learn from; set it to dldl_v2 or dldl"
    ):
        run(tmp_path, write_faces(tmp_path / "dex", wide), finetune_settings(method="dex"))


@pytest.mark.parametrize("kind", ["rgb", "grey", "sobel"])
def test_measured_normalisation_is_the_faces_own_and_then_the_start_s(
    tmp_path: Path, faces: Path, kind: Any
) -> None:
    given = dataclasses.replace(OTHER_NORMALISE, input=kind)
    settings = finetune_settings(epochs=1, normalise=given, measure_normalise=True)
    run(tmp_path / "first", faces, settings)
    first = load_model(tmp_path / "first" / "model")[1].normalise
    assert first == own_normalise(FaceTable.open(faces, ["train"]), kind)
    assert first != given

    others = write_faces(tmp_path / "others", some_faces(seed=1))
    started = dataclasses.replace(settings, init="model")
    run(tmp_path / "second", others, started, start=tmp_path / "first" / "model")
    assert load_model(tmp_path / "second" / "model")[1].normalise == first

    other_kind = dataclasses.replace(given, input="sobel" if kind == "rgb" else "rgb")
    with pytest.raises(ValueError, match="the model's normalise is"):
        run(
            tmp_path / "third",
            others,
            dataclasses.replace(started, normalise=other_kind),
            start=tmp_path / "first" / "model",
        )


# -------------------------------------------------------------------------------
# Refusals
# -------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [-3.0, 100.5, None])
def test_label_off_the_grid_is_refused_by_its_photo(tmp_path: Path, label: float | None) -> None:
    rows = some_faces()
    photo = [row for row in rows if row["split"] == "train"][7]
    photo["label"] = label
    with pytest.raises(
        ValueError,
        match=rf"{photo['photo_id']}: label .* off the grid 0\.0\.\.100\.0 \(1 such faces\)",
    ):
        run(tmp_path, write_faces(tmp_path / "faces", rows), finetune_settings())


def test_grid_too_narrow_for_the_faces_is_refused(tmp_path: Path, faces: Path) -> None:
    grid = LabelGrid(minimum=40.0, step=1.0, maximum=60.0)
    with pytest.raises(
        ValueError,
        match=r"train/\d+\.jpg: label .* off the grid 40\.0\.\.60\.0 .*widen finetune\.grid",
    ):
        run(tmp_path, faces, finetune_settings(grid=grid))


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (LOSS | {"lamda": 1.0}, r"loss: unknown key 'lamda'; known keys: kl_reduction, "),
        ({"kl_reduction": "sum", "min_sigma": 0.5}, r"loss: missing key 'lambda_'"),
        (LOSS | {"kl_reduction": "max"}, r"loss\.kl_reduction: 'max' is not one of"),
        (LOSS | {"lambda_": -1.0}, r"loss: lambda_ is -1\.0: give 0 or more"),
    ],
)
def test_loss_settings_that_the_method_cannot_take_are_refused(
    tmp_path: Path, faces: Path, loss: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run(tmp_path, faces, finetune_settings(loss=loss))


def test_settings_of_other_methods_change_nothing(tmp_path: Path, faces: Path) -> None:
    """They stay in params.yaml, so that a sweep over methods need not take them out."""
    for name, loss in (("all", LOSS), ("none", {})):
        run(tmp_path / name, faces, finetune_settings(method="dex", loss=loss, epochs=1))
    first, second = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("all", "none")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert load_model(tmp_path / "all" / "model")[1].training["loss"] == {}


@pytest.mark.parametrize("name", ["method", "decode", "recipe", "augmentation"])
def test_unknown_name_is_refused_with_those_known(tmp_path: Path, faces: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"finetune\.{name}: 'unheard of' is unknown; known: "):
        run(tmp_path, faces, finetune_settings(**{name: "unheard of"}))
    assert not (tmp_path / "model").exists()


def test_too_few_faces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fewer than 2 training faces"):
        run(tmp_path, write_faces(tmp_path / "faces", some_faces(1, 2, 2)), finetune_settings())


def test_checkpoints_of_other_settings_are_not_taken(tmp_path: Path, faces: Path) -> None:
    run(tmp_path, faces, finetune_settings(epochs=1))
    run(tmp_path, faces, finetune_settings(epochs=1, loss=LOSS | {"lambda_": 0.0}))
    run(tmp_path / "fresh", faces, finetune_settings(epochs=1, loss=LOSS | {"lambda_": 0.0}))
    first, second = (
        load_file(folder / "model" / "model.safetensors")
        for folder in (tmp_path, tmp_path / "fresh")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (
        json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))["training"][
            "loss"
        ]["lambda_"]
        == 0
    )
