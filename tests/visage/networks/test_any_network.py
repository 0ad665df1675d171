"""A new network is three places: its file, its entry in NETWORKS, its test. ResNet-18, DHAA and two
toys from a temporary package then predict, are exported with parity, quantised, explained and
observed.
"""

from __future__ import annotations

import importlib
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.small_model import small_config, small_network, some_crops, some_landmarks
from visage.baselines.features import trunk_extractor
from visage.explain.score_map import has_class_maps, pooled_features, score_map
from visage.export.int8 import measure_int8, write_int8
from visage.export.onnx_file import export_model, measure_parity
from visage.export.quantisable import check_quantisable
from visage.inference.faces import CropPredictor
from visage.inference.onnx_engine import INT8_FILE, ONNX_FILE, load_onnx
from visage.model_config import ModelConfig, NetworkConfig
from visage.networks import NETWORKS, FaceBatch, Family, Network, any_options

TOY = '''
    """Two networks of three convolutions: one pools its maps, the other looks at the landmarks."""

    import torch
    from torch import nn

    from visage.networks.head import build_head
    from visage.networks.protocol import FaceBatch, Network

    STRIDE = 4


    class Toy(Network):
        def __init__(self, *, num_outputs, shared_head):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 5, stride=2, padding=2)
            self.second = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(12)
            self.third = nn.Conv2d(12, 12, 3, padding=1)
            self.num_features = 12
            self.head = build_head(self.num_features, num_outputs, shared_head)

        def forward_features(self, faces):
            maps_BChw = self.norm(self.second(self.first(faces.view_BCHW).relu())).relu()
            return maps_BChw + self.third(maps_BChw)

        def forward_head(self, maps_BChw, landmarks_B52):
            return maps_BChw.mean(dim=(2, 3))


    class ToyAtLandmarks(Toy):
        needs_landmarks = True

        def __init__(self, *, num_outputs, shared_head):
            super().__init__(num_outputs=num_outputs, shared_head=shared_head)
            self.num_features = 5 * 12
            self.head = build_head(self.num_features, num_outputs, shared_head)

        def forward_head(self, maps_BChw, landmarks_B52):
            places = landmarks_B52 * (2 / (STRIDE * maps_BChw.shape[3])) - 1
            seen = nn.functional.grid_sample(maps_BChw, places[:, None], align_corners=False)
            return seen.flatten(1)
'''
NAMES = ("resnet18-0.25", "dhaa-0.125", "toy", "toy_at_landmarks")
OPTIONS = {"dhaa-0.125": any_options("dhaa") | {"branches": "global_local", "vector": 64}}
NUM_QUANTISED = {"resnet18-0.25": 19, "dhaa-0.125": 67, "toy": 2, "toy_at_landmarks": 2}


@pytest.fixture(scope="module", autouse=True)
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The toys' file, in a package of its own, and their entries."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "toy_package").mkdir()
    (folder / "toy_package" / "toy.py").write_text(textwrap.dedent(TOY), encoding="utf-8")
    sys.path.insert(0, str(folder))
    toy = importlib.import_module("toy_package.toy")
    NETWORKS["toy"] = Family(build=toy.Toy, options={})
    NETWORKS["toy_at_landmarks"] = Family(build=toy.ToyAtLandmarks, options={})
    yield
    del NETWORKS["toy"], NETWORKS["toy_at_landmarks"]
    sys.path.remove(str(folder))


@pytest.fixture(params=NAMES)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    options = OPTIONS.get(request.param, {})
    return small_config(network=NetworkConfig(name=request.param, options=options, num_outputs=11))


@pytest.fixture
def network(config: ModelConfig) -> Network:
    return small_network(config)


def some_faces(count: int, seed: int = 0) -> FaceBatch:
    return FaceBatch(some_crops(count, seed), some_landmarks(count, seed))


def test_it_predicts_and_its_mirror_image_is_as_old(config: ModelConfig, network: Network) -> None:
    crops, landmarks = some_faces(7)
    predictor = CropPredictor(network, config)
    predicted = predictor.predict_crops(crops, landmarks)
    assert np.ptp(predicted.value) > 1

    mirrored = landmarks[:, [1, 0, 2, 4, 3]] * torch.tensor([-1, 1]) + torch.tensor([32, 0])
    again = predictor.predict_crops(crops.flip(3), mirrored)
    np.testing.assert_allclose(again.value, predicted.value, atol=1e-3)

    one = [predictor.predict_crops(crops[[face]], landmarks[[face]]).value for face in range(7)]
    np.testing.assert_allclose(np.concatenate(one), predicted.value, atol=1e-9)


def test_landmarks_are_asked_for_where_they_are_needed(
    config: ModelConfig, network: Network
) -> None:
    crops, landmarks = some_faces(4)
    predictor = CropPredictor(network, config)
    if not network.needs_landmarks:
        plain, with_them = predictor.predict_crops(crops), predictor.predict_crops(crops, landmarks)
        np.testing.assert_array_equal(plain.value, with_them.value)
        return
    with pytest.raises(ValueError, match="model 'small' needs the five landmarks of each crop"):
        predictor.predict_crops(crops)
    with pytest.raises(ValueError, match="two-stage baselines see crops alone"):
        trunk_extractor(network, config.normalise)
    moved = predictor.predict_crops(crops, landmarks + 4).value
    assert np.abs(moved - predictor.predict_crops(crops, landmarks).value).max() > 0.1


@pytest.mark.parametrize(
    "odd", [torch.zeros(3, 5, 2), torch.zeros(4, 10), torch.zeros(4, 5, 2).int()]
)
def test_landmarks_of_another_kind_are_refused(
    config: ModelConfig, network: Network, odd: torch.Tensor
) -> None:
    with pytest.raises(ValueError, match=re.escape("give float32 (4, 5, 2), pixels of the crop")):
        CropPredictor(network, config).predict_crops(some_crops(4), odd)


def test_onnx_gives_the_values_and_features_of_torch(
    config: ModelConfig, network: Network, tmp_path: Path
) -> None:
    export_model(network, config, tmp_path, "float32")
    batches = [some_faces(count, seed=count) for count in (1, 3, 7)]
    parity = measure_parity(tmp_path, CropPredictor(network, config), batches)
    assert (parity.num_faces, parity.max_abs_rounding) == (11, 0)
    assert parity.max_abs_difference < 5e-4

    engine, found = load_onnx(tmp_path / ONNX_FILE)
    assert (engine.needs_landmarks, engine.gives_features) == (network.needs_landmarks, True)
    assert found == ModelConfig.read(tmp_path / "config.json")
    inputs = [each.name for each in onnx.load(tmp_path / ONNX_FILE).graph.input]
    assert inputs == ["crops", "landmarks"][: 1 + network.needs_landmarks]
    for faces in batches:
        expected = pooled_features(network, config, *faces).numpy()
        assert expected.std() > 1e-3
        np.testing.assert_allclose(engine.answer(*faces)[1], expected, atol=1e-4)

    summed = [
        sums(CropPredictor(*model, observe=(total := Total()).add), batches, total)
        for model in ((network, config), (engine, found))
    ]
    np.testing.assert_allclose(*summed, rtol=1e-4, atol=1e-3)


class Total:
    """Sums of values and features that a predictor was observed to give."""

    def __init__(self) -> None:
        self.sums: list[np.ndarray] = []

    def add(self, value_N: np.ndarray, features_NC: np.ndarray) -> None:
        self.sums.append(np.array([value_N.sum(), *features_NC.sum(axis=0)]))


def sums(predictor: CropPredictor, batches: list[FaceBatch], total: Total) -> np.ndarray:
    for faces in batches:
        predictor.predict_crops(*faces)
    return np.sum(total.sums, axis=0)


def test_its_convolutions_but_the_first_are_in_int8(
    config: ModelConfig, network: Network, tmp_path: Path
) -> None:
    check_quantisable(config.network.name, network)
    written = export_model(network, config, tmp_path, "float32")
    ranges = [some_faces(32, seed) for seed in (7, 8)]
    write_int8(network, written, ranges, tmp_path / INT8_FILE)

    model = onnx.load(tmp_path / INT8_FILE)
    maker = {name: node.op_type for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    quantised = [node for node in convolutions if maker.get(node.input[1]) == "DequantizeLinear"]
    assert len(quantised) == NUM_QUANTISED[config.network.name] == len(convolutions) - 1
    assert all(maker[node.input[0]] == "DequantizeLinear" for node in quantised)
    assert "BatchNormalization" not in maker.values()
    for node in model.graph.node:
        if node.op_type in ("Gemm", "GridSample"):
            assert "DequantizeLinear" not in {maker.get(node.input[1])}

    crops, landmarks = some_faces(200, seed=3)
    rough, fine = (
        CropPredictor(*load_onnx(tmp_path / name)).predict_crops(crops, landmarks).value
        for name in (INT8_FILE, ONNX_FILE)
    )
    assert np.corrcoef(rough, fine)[0, 1] > 0.9
    found = measure_int8(tmp_path / INT8_FILE, tmp_path / ONNX_FILE, [some_faces(50, seed=4)])
    assert 1e-3 < found.mean_abs_difference < 0.3 * fine.std()


def test_it_has_score_maps(config: ModelConfig, network: Network) -> None:
    crops, landmarks = some_faces(3)
    found = score_map(network, config, crops, landmarks, flip=True)
    assert found.shape == (3, *crops.shape[2:])
    assert float(found.std()) > 1e-6
    assert has_class_maps(network, config) == (not network.needs_landmarks)


def test_a_network_that_names_nothing_to_quantise_is_refused(
    config: ModelConfig, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(network), "quantised_modules", lambda _self: [])
    name = config.network.name
    with pytest.raises(ValueError, match=rf"network '{name}' names no module .*int8: false"):
        write_int8(network, config, [], tmp_path / INT8_FILE)
    monkeypatch.setattr(type(network), "quantised_modules", lambda _self: ["head.weight"])
    with pytest.raises(ValueError, match=r"name 'head\.weight', which is no convolution"):
        check_quantisable(name, network)
    assert not list(tmp_path.iterdir())
