"""ThinAgeNet and TinyAgeNet as published: parameters counted, convolutions counted, shapes, and the
released start."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn

from visage.networks import ThinVGG, VGGConfig, build, initialise
from visage.networks.macs import count_macs
from visage.training.optim import parameter_groups

WIDTHS = {
    "thin": [32, 32, 64, 64, 128, 128, 128, 256, 256, 256, 256, 256, 256],
    "tiny": [16, 16, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 128],
}


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize(
    ("name", "num_labels", "published"),
    [
        ("thin", 101, 3_708_229),
        ("tiny", 101, 934_869),
        ("thin", 41, 3_692_809),
        ("thin", 61, 3_697_949),
    ],
)
@pytest.mark.parametrize("pooling", ["hybrid", "gap"])
def test_parameters_are_as_many_as_published(
    name: str, num_labels: int, published: int, pooling: str
) -> None:
    assert count(build(name, pooling, num_labels)) == published  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(WIDTHS))
def test_body_has_all_thirteen_convolutions_each_normalised(name: str) -> None:
    network = build(name, "hybrid", 101)
    assert [conv.out_channels for conv in convolutions(network)] == WIDTHS[name]
    for conv in convolutions(network):
        assert (conv.kernel_size, conv.stride, conv.padding, conv.bias) == (
            (3, 3),
            (1, 1),
            (1, 1),
            None,
        )
    norms = [
        module.num_features for module in network.modules() if isinstance(module, nn.BatchNorm2d)
    ]
    assert norms == WIDTHS[name]


def test_ports_that_lose_a_convolution_of_tiny_are_told_apart() -> None:
    """Well-known ports of TinyAgeNet have 12 convolutions and 897,877 parameters: block three has
    lost its third."""
    network = build("tiny", "hybrid", 101)
    third_of_block_three = convolutions(network)[6].weight.numel() + 2 * 64
    assert count(network) - third_of_block_three == 897_877
    assert len(convolutions(network)) == 13


@pytest.mark.parametrize(("pooling", "window"), [("hybrid", 2), ("gap", 1)])
def test_hybrid_pooling_keeps_the_fifth_max_pool(pooling: str, window: int) -> None:
    network = build("tiny", pooling, 101).eval()  # type: ignore[arg-type]
    initialise(network, torch.Generator().manual_seed(0))
    faces_BCHW = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps_BCHW = network.features(faces_BCHW)
        pooled_BC = network.pool(maps_BCHW)
        assert (maps_BCHW.shape, pooled_BC.shape) == ((2, 128, 14, 14), (2, 128))
        assert maps_BCHW.std() > 0.01  # else any two poolings are alike
        windows = maps_BCHW.unfold(2, window, window).unfold(3, window, window)
        torch.testing.assert_close(pooled_BC, windows.amax(dim=(-1, -2)).mean(dim=(2, 3)))
        logits_BK = network(faces_BCHW)
        assert logits_BK.shape == (2, 101)
        torch.testing.assert_close(logits_BK, network.head(pooled_BC))


@pytest.mark.parametrize("px", [32, 80, 96, 112])
def test_any_crop_from_32_pixels_has_an_answer(px: int) -> None:
    assert build("tiny", "hybrid", 41).eval()(torch.zeros(1, 3, px, px)).shape == (1, 41)


def test_start_is_the_released_ones() -> None:
    network = build("thin", "hybrid", 101)
    initialise(network, torch.Generator().manual_seed(0))
    for conv in convolutions(network):
        expected = math.sqrt(2 / (3 * 3 * conv.out_channels))
        tolerance = 4 / math.sqrt(
            2 * conv.weight.numel()
        )  # four standard errors of a standard deviation
        assert conv.weight.std().item() == pytest.approx(expected, rel=tolerance)
        assert abs(conv.weight.mean().item()) < 4 * expected / math.sqrt(conv.weight.numel())
    assert network.head.bias.abs().sum() == 0
    assert network.head.weight.abs().max() <= 1 / math.sqrt(256)
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()


def test_a_shared_head_has_one_weight_vector_that_decays_and_a_bias_for_each_output() -> None:
    network = build("tiny", "hybrid", 40, shared_head=True).eval()
    initialise(network, torch.Generator().manual_seed(0))
    assert count(network.head) == 128 + 40
    with torch.no_grad():
        network.head.bias += torch.arange(40)
        logits_BK = network(torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(
        logits_BK - torch.arange(40), logits_BK[:, :1].expand(3, 40), atol=1e-4, rtol=0
    )
    assert logits_BK[:, 0].std() > 0
    decayed = parameter_groups(network, 0.05)[0]["params"]
    assert any(parameter is network.head.vector_1C for parameter in decayed)  # type: ignore[attr-defined]


def test_start_comes_from_its_generator_alone() -> None:
    starts = []
    for seed, disturbance in ((3, 0), (3, 99), (4, 0)):
        torch.manual_seed(disturbance)
        network = build("tiny", "hybrid", 101)
        initialise(network, torch.Generator().manual_seed(seed))
        starts.append(torch.cat([value.flatten() for value in network.state_dict().values()]))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize(
    ("name", "pooling", "said"),
    [
        ("resnet", "hybrid", r"'resnet' is unknown; known: thin, tiny, vgg-RATE, vgg16"),
        ("vgg-wide", "hybrid", r"'vgg-wide' is unknown"),
        ("vgg-", "hybrid", r"'vgg-' is unknown"),
        ("0.5", "hybrid", r"'0\.5' is unknown"),
        ("vgg-0", "hybrid", "give a rate"),
        ("vgg-nan", "hybrid", "give a rate"),
        ("vgg-1.5", "hybrid", "give a rate"),
        ("vgg-0.50", "hybrid", r"write vgg-0\.5$"),
        ("vgg-.5", "hybrid", r"write vgg-0\.5$"),
        ("thin", "flatten", "'thin' has no pooling 'flatten'; it has: hybrid, gap"),
        ("vgg16", "hybrid", "'vgg16' has no pooling 'hybrid'; it has: flatten"),
        ("vgg16", "gap", "'vgg16' has no pooling 'gap'; it has: flatten"),
    ],
)
def test_unknown_network_or_pooling_is_refused_with_those_known(
    name: str, pooling: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        build(name, pooling, 101)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "rate"), [("thin", "vgg-0.5"), ("tiny", "vgg-0.25")])
def test_thin_and_tiny_are_rates_of_compression(name: str, rate: str) -> None:
    named, rated = (build(which, "hybrid", 101).state_dict() for which in (name, rate))
    assert {key: value.shape for key, value in named.items()} == {
        key: value.shape for key, value in rated.items()
    }


@pytest.mark.parametrize("rate", [0.015625, 0.1, 0.125, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("pooling", ["hybrid", "gap"])
def test_parameters_of_any_rate_of_compression(rate: float, pooling: str) -> None:
    """Weights 9 in x out, BatchNorm 2 x out, head."""
    widths = [
        round(rate * full)
        for full in (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    ]
    expected = sum(
        9 * a * b + 2 * b for a, b in zip([3, *widths[:-1]], widths, strict=True)
    ) + 101 * (widths[-1] + 1)
    assert count(build(f"vgg-{rate:g}", pooling, 101)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "pooling", "macs"),
    [("thin", "hybrid", 3.86e9), ("tiny", "hybrid", 0.975e9), ("vgg16", "flatten", 15.47e9)],
)
def test_multiply_accumulates_are_as_many_as_published(
    name: str, pooling: str, macs: float
) -> None:
    with torch.device("meta"):
        assert count_macs(build(name, pooling, 101), 224) == pytest.approx(macs, rel=1e-3)  # type: ignore[arg-type]


def test_multiply_accumulates_against_a_naive_count() -> None:
    """Output pixels x outputs x inputs x 9, layer by layer, and the head; the network is left as it
    was."""
    network = build("vgg-0.125", "gap", 101, shared_head=True)
    widths, sides = (
        [3, 8, 8, 16, 16, 32, 32, 32, *[64] * 6],
        [48, 48, 24, 24, 12, 12, 12, 6, 6, 6, 3, 3, 3],
    )
    naive = (
        sum(side**2 * a * b * 9 for side, a, b in zip(sides, widths[:-1], widths[1:], strict=True))
        + 64 * 101
    )
    assert count_macs(network, 48) == count_macs(network, 48) == naive
    assert network.training


def test_vgg_16_is_the_published_one() -> None:
    """134,674,341 parameters with a 101-way head: torchvision's own, its 1000-way head replaced."""
    with torch.device("meta"):
        network, theirs = build("vgg16", "flatten", 101), torchvision.models.vgg16(num_classes=101)
    assert count(network) == 134_674_341
    ours = [tuple(parameter.shape) for parameter in network.parameters()]
    assert ours == [tuple(parameter.shape) for parameter in theirs.parameters()]


def test_vgg_16_answers_as_torchvision_s_with_the_same_weights() -> None:
    network = build("vgg16", "flatten", 11).eval()
    with torch.device("meta"):
        theirs = torchvision.models.vgg16(num_classes=11).eval()
    theirs.load_state_dict(
        dict(zip(theirs.state_dict(), network.state_dict().values(), strict=True)), assign=True
    )
    with torch.inference_mode():
        for px in (32, 96, 224):
            faces_BCHW = torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(0))
            logits_BK = network(faces_BCHW)
            torch.testing.assert_close(logits_BK, theirs(faces_BCHW))
            torch.testing.assert_close(
                logits_BK, network.head(network.pool(network.features(faces_BCHW)))
            )
            assert network.features(faces_BCHW).shape == (2, 512, px // 16, px // 16)


def test_full_width_is_the_vgg_16_body() -> None:
    """13 convolutions of VGG-16-D hold 14,710,464 weights without their biases."""
    network = ThinVGG(VGGConfig(compression=1.0, pooling="hybrid", num_outputs=101))
    assert sum(conv.weight.numel() for conv in convolutions(network)) == 14_710_464
