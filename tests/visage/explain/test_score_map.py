"""Score maps against the paper's two sums written out, against finite differences, and on a network
that looks at one place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.one_place import COLUMN, PLACES, ROW, OnePlace, one_place_config
from tests.small_model import CROP_PX, small_config, small_network, some_crops
from visage.data.preprocess import evaluation_view
from visage.explain.score_map import (
    coarse_map,
    has_class_maps,
    map_weights,
    pooled_features,
    scaled_up,
    score_map,
)
from visage.inference.faces import CropPredictor
from visage.inference.torch_engine import Inference
from visage.labels import expectation
from visage.methods import METHODS
from visage.model_config import ModelConfig, NetworkConfig
from visage.networks import FaceBatch, Network

PER_LABEL = [
    name for name, method in METHODS.items() if method.head_width(small_config().grid) == 11
]
OTHERS = [name for name in METHODS if name not in PER_LABEL]


def config_of(method: str, pooling: Any) -> ModelConfig:
    width = METHODS[method].head_width(small_config().grid)
    return small_config(
        method=method,
        network=NetworkConfig(name="tiny", options={"pooling": pooling}, num_outputs=width),
    )


def network_of(config: ModelConfig) -> Network:
    network = small_network(config)
    nn.init.uniform_(network.head.bias, -1, 1, generator=torch.Generator().manual_seed(3))  # type: ignore[arg-type]
    return network


def class_maps(network: Network, config: ModelConfig, crops_BCHW: Tensor) -> Tensor:
    """A of Eq. 23 as it is printed, (B,K,h,w), float64."""
    view_BCHW = evaluation_view(crops_BCHW, config.normalise)
    F_BCHW = network.forward_features(FaceBatch(view_BCHW, None)).detach().double()
    w_KC, b_K = network.head.weight.detach().double(), network.head.bias.detach().double()
    rows = [
        sum(w_KC[k, j] * F_BCHW[:, j] for j in range(w_KC.shape[1])) + b_K[k]
        for k in range(len(b_K))
    ]
    return torch.stack(rows, dim=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", ["hybrid", "gap"])
@pytest.mark.parametrize("method", PER_LABEL)
def test_score_map_is_the_papers_double_sum(method: str, pooling: str) -> None:
    config, crops = config_of(method, pooling), some_crops(3)
    network = network_of(config)
    p_BK = torch.from_numpy(
        CropPredictor(network, config).predict_crops(crops, flip=False).probabilities
    )
    naive = (p_BK[:, :, None, None] * class_maps(network, config, crops)).sum(dim=1)
    found = coarse_map(Inference(network, config, torch.float64), FaceBatch(crops, None))
    assert found.shape == (3, CROP_PX // 16, CROP_PX // 16)
    torch.testing.assert_close(found.double(), naive, rtol=1e-4, atol=1e-4)
    assert float(naive.std()) > 1e-3


def test_mean_of_class_maps_is_the_logits_without_max_pooling() -> None:
    """Zhou et al. 2016: what makes a class map a share of the logit; hybrid pooling breaks it by
    its maximum."""
    config, crops = config_of("dldl_v2", "gap"), some_crops(3)
    network = network_of(config)
    with torch.no_grad():
        logits_BK = network(FaceBatch(evaluation_view(crops, config.normalise), None)).logits_BK
        score_B = coarse_map(
            Inference(network, config, torch.float64), FaceBatch(crops, None)
        ).mean(dim=(1, 2))
    torch.testing.assert_close(
        class_maps(network, config, crops).mean(dim=(2, 3)).float(), logits_BK, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        score_B, (torch.softmax(logits_BK, dim=1) * logits_BK).sum(dim=1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("method", OTHERS)
def test_outputs_that_are_no_labels_weigh_by_the_slope_of_the_expectation(method: str) -> None:
    """With average pooling a map's mean is then the slope of the value along the features: (1 + t)
    f at t = 0."""
    config, crops = config_of(method, "gap"), some_crops(3)
    network = network_of(config)
    inference = Inference(network, config, torch.float64)
    f_BC = pooled_features(network, config, crops).double()

    def value_B(t: float) -> Tensor:
        return expectation(inference.probabilities(f_BC * (1 + t)), config.grid).detach()

    slope_B = (value_B(1e-5) - value_B(-1e-5)) / 2e-5
    assert float(slope_B.abs().min()) > 1e-3
    torch.testing.assert_close(
        coarse_map(inference, FaceBatch(crops, None)).mean(dim=(1, 2)).double(),
        slope_B,
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("method", ["dldl_v2", "ranking"])
def test_mirrored_face_has_the_mirrored_map(method: str) -> None:
    config, crops = config_of(method, "hybrid"), some_crops(3)
    network = network_of(config)
    found, mirrored = (
        score_map(network, config, crops, flip=True),
        score_map(network, config, crops.flip(3), flip=True),
    )
    torch.testing.assert_close(mirrored, found.flip(2), rtol=1e-4, atol=1e-5)
    one_view = score_map(network, config, crops, flip=False)
    assert (found - one_view).abs().max() > 1e-3
    other_view = score_map(network, config, crops.flip(3), flip=False).flip(2)
    torch.testing.assert_close(found, (one_view + other_view) / 2, rtol=1e-4, atol=1e-5)


def test_maps_have_the_crops_size_and_type_and_leave_the_network_alone() -> None:
    config = small_config()
    network = network_of(config).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = score_map(network, config, some_crops(2), flip=True)
    assert (found.shape, found.dtype, found.requires_grad) == (
        (2, CROP_PX, CROP_PX),
        torch.float32,
        False,
    )
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert pooled_features(network, config, some_crops(2)).shape == (2, network.num_features)


def test_scaling_up_lays_each_value_over_the_middle_of_its_cell() -> None:
    coarse = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    found = scaled_up(coarse, 12)
    torch.testing.assert_close(found[:, 1::3, 1::3], coarse)
    torch.testing.assert_close(found[:, 1, 2], (2 * coarse[:, 0, 0] + coarse[:, 0, 1]) / 3)
    assert scaled_up(coarse, 30).shape == (2, 30, 30)


@pytest.mark.parametrize("flip", [False, True])
def test_a_network_that_looks_at_one_place_is_seen_doing_so(flip: bool) -> None:
    """Bright faces make it say old, by the brightness of one place: there, and with flip at the
    mirrored place too."""
    config = one_place_config()
    crops = torch.full((2, 3, CROP_PX, CROP_PX), 250, dtype=torch.uint8)
    found = score_map(OnePlace(config), config, crops, flip=flip)
    cell = CROP_PX // PLACES
    mean_B44 = found.unfold(1, cell, cell).unfold(2, cell, cell).mean(dim=(3, 4))
    best = {
        divmod(place, PLACES)
        for place in mean_B44[0].flatten().topk(2 if flip else 1).indices.tolist()
    }
    assert best == {(ROW, COLUMN)} | ({(ROW, PLACES - 1 - COLUMN)} if flip else set())


def test_a_head_that_does_not_see_the_maps_is_explained_by_slopes() -> None:
    """VGG-16 has wide layers in between: a map counts what the value gains when all its places rise
    by 1."""
    config = small_config(network=NetworkConfig(name="vgg16", options={}, num_outputs=11))
    network = network_of(config)
    nn.init.uniform_(network.head.weight, -1e-3, 1e-3, generator=torch.Generator().manual_seed(4))  # type: ignore[arg-type]
    inference, crops = Inference(network, config, torch.float64), some_crops(2)
    maps_BChw = inference.maps(crops, None)
    weight_BC, _ = map_weights(inference, maps_BChw, None)

    def value_B(channel: int, rise: float) -> Tensor:
        raised_BChw = maps_BChw.index_add(
            1, torch.tensor([channel]), torch.full_like(maps_BChw[:, :1], rise)
        )
        return expectation(
            inference.probabilities(inference.network.forward_head(raised_BChw, None)), config.grid
        ).detach()

    for channel in weight_BC.abs().sum(dim=0).topk(3).indices.tolist():
        slope_B = (value_B(channel, 1e-2) - value_B(channel, -1e-2)) / 2e-2
        torch.testing.assert_close(
            weight_BC[:, channel], slope_B, rtol=0.1, atol=1e-4
        )  # kinks of ReLU
    assert score_map(network, config, crops, flip=True).shape == (2, *crops.shape[2:])


@pytest.mark.parametrize(
    ("method", "network", "expected"),
    [
        ("dldl_v2", "tiny", True),
        ("dex", "resnet18-0.25", True),
        ("ranking", "tiny", False),
        ("coral", "tiny", False),
        ("mr_l1", "resnet18-0.25", False),
        ("dldl_v2", "vgg16", False),
    ],
)
def test_which_models_have_class_maps(method: str, network: str, expected: bool) -> None:
    width = METHODS[method].head_width(small_config().grid)
    options = {"pooling": "hybrid"} if network == "tiny" else {}
    shape = NetworkConfig(name=network, options=options, num_outputs=width)
    config = small_config(method=method, network=shape)
    assert has_class_maps(network_of(config), config) == expected


class Mixed(OnePlace):
    """As many features as maps, but not the maps' own: a layer is in between."""

    def forward_head(self, maps_BChw: Tensor, landmarks_B52: Tensor | None) -> Tensor:
        return super().forward_head(maps_BChw, landmarks_B52) ** 2


def test_a_layer_between_maps_and_head_takes_the_class_maps_away() -> None:
    config = one_place_config()
    assert has_class_maps(OnePlace(config), config)
    assert not has_class_maps(Mixed(config), config)
