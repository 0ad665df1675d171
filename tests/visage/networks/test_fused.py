"""Fused networks: each rule against a naive computation, one file of all members, and what does not
go together."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.fuse import Member, built, equal_options, fused_model
from tests.small_faces import fuse_settings
from tests.small_model import small_config, small_network, some_crops, some_landmarks
from visage.data.augment import UNCHANGED
from visage.explain.score_map import coarse_score_map
from visage.export.onnx_file import export_model, measure_parity
from visage.inference.faces import CropPredictor
from visage.labels import LabelGrid
from visage.model_config import ModelConfig, NetworkConfig, NormaliseConfig
from visage.networks import FaceBatch, NetworkSettings
from visage.networks.fused import FusedNetwork, plain_options, resampling
from visage.weights import load_model, save_model

YEARS = LabelGrid(minimum=0.0, step=10.0, maximum=100.0)
NARROW = LabelGrid(minimum=20.0, step=5.0, maximum=60.0)
SOBEL = NormaliseConfig(mean=(0.1,) * 3, std=(0.1,) * 3, input="sobel")


def member(name: str, seed: int, **changes: Any) -> Member:
    config = small_config(**changes)
    return Member(name=name, network=small_network(config, seed), config=config)


def members() -> list[Member]:
    """Three members that differ in network, grid, method and input."""
    narrow = NetworkConfig(name="resnet18-0.25", options={}, num_outputs=NARROW.num_labels)
    return [
        member("one", 0),
        member("two", 1, network=narrow, grid=NARROW),
        member("three", 2, normalise=SOBEL, method="dex"),
    ]


def folders(path: Path, some: list[Member]) -> dict[str, Path]:
    for one in some:
        save_model(path / one.name, one.network, one.config, "float32")
    return {one.name: path / one.name for one in some}


def fused(tmp_path: Path, some: list[Member], **changes: Any) -> tuple[FusedNetwork, ModelConfig]:
    settings = fuse_settings(**changes)
    return fused_model(settings, folders(tmp_path, some), None, lambda *_: None)


def alone(one: Member, crops_BCHW: torch.Tensor) -> np.ndarray:
    return CropPredictor(one.network, one.config).predict_crops(crops_BCHW, flip=False).value


def test_the_mean_has_the_mean_of_the_values_whatever_the_grids(tmp_path: Path) -> None:
    """Labels between those of the fused grid are shared out so that expectations stay."""
    network, config = fused(tmp_path, members())
    assert config.grid == LabelGrid(minimum=0.0, step=5.0, maximum=100.0)
    crops_BCHW = some_crops(7)
    values = [alone(one, crops_BCHW) for one in members()]
    found = CropPredictor(network, config).predict_crops(crops_BCHW, flip=False)
    assert np.abs(found.value - np.mean(values, axis=0)).max() < 1e-5
    assert np.std(values, axis=0).min() > 1e-3
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-6)


def with_rule(some: list[Member], **changes: Any) -> FusedNetwork:
    options = equal_options(fuse_settings(second_stream=("three",), rule="gate"), some)
    return built(dataclasses.replace(options, **changes), some)


def fused_values(network: FusedNetwork, crops_BCHW: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        p_BK = network(FaceBatch(crops_BCHW / 255, None)).logits_BK.softmax(dim=1)
    return p_BK.double() @ network.options.grid.labels_as(p_BK.double())


def test_learned_weights_weigh_the_values() -> None:
    some = members()
    crops_BCHW = some_crops(5)
    weights = (0.7, 0.0, 0.3)
    network = with_rule(some, rule="weights", weights=weights, threshold=None)
    naive = sum(w * alone(one, crops_BCHW) for w, one in zip(weights, some, strict=True))
    np.testing.assert_allclose(fused_values(network, crops_BCHW).numpy(), naive, atol=1e-3)


@pytest.mark.parametrize("threshold", [0.0, 2.0, 5.0, 1000.0])
def test_the_gate_takes_the_first_stream_where_the_streams_differ(threshold: float) -> None:
    some = members()
    crops_BCHW = some_crops(16)
    network = with_rule(some, threshold=threshold)
    one, two, three = (alone(each, crops_BCHW) for each in some)
    first = (one + two) / 2
    naive = np.where(np.abs(first - three) <= threshold, (first + three) / 2, first)
    np.testing.assert_allclose(fused_values(network, crops_BCHW).numpy(), naive, atol=1e-3)


def test_the_vote_against_a_loop() -> None:
    some = members()
    crops_BCHW = some_crops(6)
    network = with_rule(
        some,
        rule="kernel",
        weights=(1 / 3,) * 3,
        threshold=None,
        width=0.4,
        neighbours=4,
        num_remembered=9,
    )
    generator = torch.Generator().manual_seed(5)
    rows_NX = torch.rand(network.remembered_NX.shape, generator=generator)
    network.remembered_NX = rows_NX / rows_NX.sum(dim=1, keepdim=True) * 3
    network.remembered_label_N = torch.rand(9, generator=generator) * 100

    with torch.inference_mode():
        features_BC = network.forward_head(crops_BCHW / 255, None)
        all_BX = torch.cat(network.distributions(features_BC, torch.float64), dim=1)
    naive = []
    for row_X in all_BX:
        distances = [(row_X - other).abs().sum().item() for other in network.remembered_NX]
        near = np.argsort(distances)[:4]
        weights = np.exp(-np.array(distances)[near] / 0.4)
        naive.append((weights * network.remembered_label_N.numpy()[near]).sum() / weights.sum())
    np.testing.assert_allclose(fused_values(network, crops_BCHW).numpy(), naive, atol=1e-2)


def test_a_zoom_about_the_middle_is_the_resampled_view(tmp_path: Path) -> None:
    assert torch.allclose(resampling(32, 32, 1.0), torch.eye(32), atol=1e-6)
    row = torch.full((32,), 3.0)
    assert torch.allclose(resampling(32, 16, 1.0) @ row, torch.full((16,), 3.0))
    smaller = resampling(32, 32, 0.5) @ row
    assert smaller[16] == pytest.approx(3.0)
    assert smaller[0] == smaller[31] == 0
    ramp = torch.arange(32.0)
    zoomed = resampling(32, 32, 2.0) @ ramp
    assert zoomed[16].item() == pytest.approx(15.75, abs=1e-4)
    assert (zoomed[1:] - zoomed[:-1])[4:-4].mean().item() == pytest.approx(0.5, abs=1e-3)

    plain, config = fused(tmp_path / "one", members())
    several, own = fused(tmp_path / "three", members(), zooms=(1.0, 0.95, 1.05))
    crops_BCHW = some_crops(4)
    assert several.num_features == 3 * plain.num_features
    values = [
        CropPredictor(network, which).predict_crops(crops_BCHW).value
        for network, which in ((plain, config), (several, own))
    ]
    assert 0 < np.abs(values[0] - values[1]).max() < 20


def test_crops_of_different_sizes_are_resized_from_the_largest(tmp_path: Path) -> None:
    small = member("small", 3)
    how = dataclasses.replace(small.config.alignment, crop_px=48)
    large = member("large", 4, alignment=how)
    network, config = fused(tmp_path, [small, large])
    assert config.alignment.crop_px == 48
    crops_BCHW = torch.nn.functional.interpolate(
        some_crops(3).float(), size=48, mode="bilinear"
    ).to(torch.uint8)
    found = CropPredictor(network, config).predict_crops(crops_BCHW, flip=False)

    matrix = resampling(48, 32, 1.0)
    resized = (matrix @ crops_BCHW.float() @ matrix.mT).round().to(torch.uint8)
    expected = (alone(small, resized) + alone(large, crops_BCHW)) / 2
    assert np.abs(found.value - expected).max() < 1.0


@pytest.mark.parametrize("rule", ["mean", "gate", "kernel"])
def test_one_file_holds_all_members(tmp_path: Path, rule: str) -> None:
    some = members()
    network, config = fused(tmp_path / "members", some, zooms=(1.0, 1.05))
    if rule != "mean":
        own: dict[str, Any] = {"threshold": 5.0, "zooms": (1.0, 1.05)}
        if rule == "kernel":
            own = {"rule": rule, "weights": (1 / 3,) * 3, "threshold": None, "width": 0.5}
            own |= {"neighbours": 3, "num_remembered": 8}
        network = with_rule(some, **own)
        if rule == "kernel":
            network.remembered_NX = torch.rand(network.remembered_NX.shape)
            network.remembered_label_N = torch.arange(8) * 10.0
        shape = dataclasses.replace(config.network, options=plain_options(network.options))
        config = dataclasses.replace(config, network=shape)
    export_model(network, config, tmp_path, "float32")
    crops_BCHW = some_crops(7)
    batches = [FaceBatch(crops_BCHW[:count], None) for count in (1, 3, 7)]
    parity = measure_parity(tmp_path, CropPredictor(network, config), batches)
    assert parity.max_abs_difference < 1e-3
    loaded, written = load_model(tmp_path)
    assert isinstance(loaded, FusedNetwork)
    assert written.normalise == UNCHANGED

    seen: list[np.ndarray] = []
    observed = CropPredictor(loaded, written, observe=lambda _, features: seen.append(features))
    observed.predict_crops(crops_BCHW)
    assert seen[0].shape == (7, network.num_features)
    maps_Bhw = coarse_score_map(loaded, written, crops_BCHW, flip=True)
    assert maps_Bhw.ndim == 3
    assert torch.isfinite(maps_Bhw).all()


def test_the_score_map_of_equal_members_is_theirs(tmp_path: Path) -> None:
    one = member("one", 0)
    network, config = fused(tmp_path, [one, member("same", 0)])
    crops_BCHW = some_crops(3)
    torch.testing.assert_close(
        coarse_score_map(network, config, crops_BCHW, flip=False),
        coarse_score_map(one.network, one.config, crops_BCHW, flip=False),
        atol=1e-4,
        rtol=1e-4,
    )


def test_landmarks_reach_the_members_that_need_them(tmp_path: Path) -> None:
    """They move with a zoom; members that need none make none needed."""
    some = members()
    assert not fused(tmp_path, some)[0].needs_landmarks
    network = with_rule(some, zooms=(1.0, 2.0))
    landmarks_B52 = some_landmarks(2)
    faces = FaceBatch(some_crops(2) / 255, landmarks_B52)
    seen = network.seen_by(0, 1, faces).landmarks_B52
    assert seen is not None
    torch.testing.assert_close(seen - 16, 2 * (landmarks_B52 - 16))


def test_a_fused_network_is_not_trained() -> None:
    with pytest.raises(ValueError, match="made of trained models by the stage fuse"):
        NetworkSettings(name="fused", options={})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantity": "attractiveness"}, "two: quantity is attractiveness, that of one is age"),
        ({"unit": "points"}, "two: unit is points"),
        (
            {"alignment": dataclasses.replace(small_config().alignment, face_scale=1.0)},
            r"two: face_scale is 1\.0",
        ),
    ],
)
def test_models_that_do_not_go_together_are_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        fused(tmp_path, [member("one", 0), member("two", 1, **changes)])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rule": "gate"}, "wants members in both streams"),
        ({"rule": "gate", "second_stream": ("four",)}, "'four' is none of the members"),
        ({"rule": "weights"}, "weights are chosen on validation faces"),
        ({"zooms": (3.0,)}, r"each of 0\.5 to 2"),
    ],
)
def test_settings_that_fuse_nothing_are_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        fused(tmp_path, members(), **changes)
