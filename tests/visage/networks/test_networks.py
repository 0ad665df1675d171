"""ThinAgeNet and TinyAgeNet as published: parameters counted, convolutions counted, shapes, and the
released start."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn

from visage.networks import FaceBatch, Network, build, check, initialise
from visage.networks.operations import count_macs
from visage.networks.vgg import ThinVGG
from visage.training.optim import parameter_groups

HYBRID = {"pooling": "hybrid"}
WIDTHS = {
    "thin": [32, 32, 64, 64, 128, 128, 128, 256, 256, 256, 256, 256, 256],
    "tiny": [16, 16, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 128],
}


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def some_faces(count: int, px: int) -> FaceBatch:
    generator = torch.Generator().manual_seed(0)
    return FaceBatch(torch.randn(count, 3, px, px, generator=generator), None)


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
    assert count(build(name, {"pooling": pooling}, num_labels)) == published


@pytest.mark.parametrize("name", list(WIDTHS))
def test_body_has_all_thirteen_convolutions_each_normalised(name: str) -> None:
    network = build(name, HYBRID, 101)
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
    network = build("tiny", HYBRID, 101)
    third_of_block_three = convolutions(network)[6].weight.numel() + 2 * 64
    assert count(network) - third_of_block_three == 897_877
    assert len(convolutions(network)) == 13


@pytest.mark.parametrize(("pooling", "window"), [("hybrid", 2), ("gap", 1)])
def test_hybrid_pooling_keeps_the_fifth_max_pool(pooling: str, window: int) -> None:
    network = build("tiny", {"pooling": pooling}, 101).eval()
    initialise(network, torch.Generator().manual_seed(0))
    faces = some_faces(2, 224)
    with torch.inference_mode():
        maps_BCHW = network.forward_features(faces)
        pooled_BC = network.forward_head(maps_BCHW, None)
        assert (maps_BCHW.shape, pooled_BC.shape) == ((2, 128, 14, 14), (2, 128))
        assert maps_BCHW.std() > 0.01  # else any two poolings are alike
        windows = maps_BCHW.unfold(2, window, window).unfold(3, window, window)
        torch.testing.assert_close(pooled_BC, windows.amax(dim=(-1, -2)).mean(dim=(2, 3)))
        outputs = network(faces)
        assert outputs.logits_BK.shape == (2, 101)
        assert outputs.auxiliary == ()
        torch.testing.assert_close(outputs.features_BC, pooled_BC)
        torch.testing.assert_close(outputs.logits_BK, network.head(pooled_BC))


@pytest.mark.parametrize("px", [32, 80, 96, 112])
def test_any_crop_from_32_pixels_has_an_answer(px: int) -> None:
    network = build("tiny", HYBRID, 41).eval()
    assert network(some_faces(1, px)).logits_BK.shape == (1, 41)


def test_start_is_the_released_ones() -> None:
    network = build("thin", HYBRID, 101)
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
    network = build("tiny", HYBRID, 40, shared_head=True).eval()
    initialise(network, torch.Generator().manual_seed(0))
    assert count(network.head) == 128 + 40
    with torch.no_grad():
        network.head.bias += torch.arange(40)
        logits_BK = network(some_faces(3, 32)).logits_BK
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
        network = build("tiny", HYBRID, 101)
        initialise(network, torch.Generator().manual_seed(seed))
        starts.append(torch.cat([value.flatten() for value in network.state_dict().values()]))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            "resnet",
            {},
            "'resnet' is unknown; known: thin, tiny, vgg-SHARE, vgg16, resnet18, resnet18-SHARE, "
            "dhaa, dhaa-SHARE, bn_alex, bn_alex-SHARE",
        ),
        ("vgg", HYBRID, "'vgg' is unknown"),
        ("vgg-wide", HYBRID, "'vgg-wide' is unknown"),
        ("vgg-", HYBRID, "'vgg-' is unknown"),
        ("thin-0.5", HYBRID, r"'thin-0\.5' is unknown"),
        ("0.5", HYBRID, r"'0\.5' is unknown"),
        ("vgg-0", HYBRID, "give a share"),
        ("vgg-nan", HYBRID, "give a share"),
        ("vgg-1.5", HYBRID, "give a share"),
        ("vgg-0.50", HYBRID, r"write vgg-0\.5$"),
        ("vgg-.5", HYBRID, r"write vgg-0\.5$"),
        ("resnet18-1", {}, "write resnet18$"),
        ("resnet18-0.001", {}, "give a share of 0.015625 to 1 of resnet18's channels"),
        ("thin", {"pooling": "flatten"}, "'thin': pooling is 'flatten'; give hybrid or gap"),
        ("thin", {}, "'thin' needs the option 'pooling': hybrid or gap"),
        ("thin", HYBRID | {"width": 3}, "'thin' has no option 'width'; its options: pooling"),
        ("vgg16", HYBRID, "'vgg16' has no option 'pooling'; its options: none"),
    ],
)
def test_unknown_network_or_option_is_refused_with_those_known(
    name: str, options: dict[str, object], said: str
) -> None:
    for refusing in (lambda: build(name, options, 101), lambda: check(name, options)):
        with pytest.raises(ValueError, match=said):
            refusing()


@pytest.mark.parametrize(("name", "rate"), [("thin", "vgg-0.5"), ("tiny", "vgg-0.25")])
def test_thin_and_tiny_are_rates_of_compression(name: str, rate: str) -> None:
    named, rated = (build(which, HYBRID, 101).state_dict() for which in (name, rate))
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
    assert count(build(f"vgg-{rate:g}", {"pooling": pooling}, 101)) == expected


@pytest.mark.parametrize(
    ("name", "options", "published"),
    [
        ("thin", HYBRID, 3.86e9),
        ("tiny", HYBRID, 0.975e9),
        ("vgg16", {}, 15.47e9),
        ("resnet18", {}, 1.814e9),
    ],
)
def test_multiply_accumulates_are_as_many_as_published(
    name: str, options: dict[str, object], published: float
) -> None:
    with torch.device("meta"):
        assert count_macs(build(name, options, 101), 224) == pytest.approx(published, rel=1e-3)


def test_multiply_accumulates_against_a_naive_count() -> None:
    """Output pixels x outputs x inputs x 9, layer by layer, and the head."""
    network = build("vgg-0.125", {"pooling": "gap"}, 101, shared_head=True)
    widths = [3, 8, 8, 16, 16, 32, 32, 32, *[64] * 6]
    sides = [48, 48, 24, 24, 12, 12, 12, 6, 6, 6, 3, 3, 3]
    naive = 64 * 101
    for side, num_in, num_out in zip(sides, widths[:-1], widths[1:], strict=True):
        naive += side**2 * num_in * num_out * 9
    assert count_macs(network, 48) == naive


def test_vgg_16_is_the_published_one() -> None:
    """134,674,341 parameters with a 101-way head: torchvision's own, its 1000-way head replaced."""
    with torch.device("meta"):
        network, theirs = build("vgg16", {}, 101), torchvision.models.vgg16(num_classes=101)
    assert count(network) == 134_674_341
    ours = [tuple(parameter.shape) for parameter in network.parameters()]
    assert ours == [tuple(parameter.shape) for parameter in theirs.parameters()]


def test_vgg_16_answers_as_torchvision_s_with_the_same_weights() -> None:
    network = build("vgg16", {}, 11).eval()
    with torch.device("meta"):
        theirs = torchvision.models.vgg16(num_classes=11).eval()
    theirs.load_state_dict(
        dict(zip(theirs.state_dict(), network.state_dict().values(), strict=True)), assign=True
    )
    with torch.inference_mode():
        for px in (32, 96, 224):
            faces = some_faces(2, px)
            maps_BChw = network.forward_features(faces)
            logits_BK = network(faces).logits_BK
            torch.testing.assert_close(logits_BK, theirs(faces.view_BCHW))
            torch.testing.assert_close(
                logits_BK, network.head(network.forward_head(maps_BChw, None))
            )
            assert maps_BChw.shape == (2, 512, px // 16, px // 16)


def test_full_width_is_the_vgg_16_body() -> None:
    """13 convolutions of VGG-16-D hold 14,710,464 weights without their biases."""
    network = ThinVGG(share=1.0, pooling="hybrid", num_outputs=101, shared_head=False)
    assert sum(conv.weight.numel() for conv in convolutions(network)) == 14_710_464


def test_resnet_18_is_torchvision_s() -> None:
    """11,176,512 parameters of the trunk, 11,228,325 with 101 labels, under torchvision's names."""
    with torch.device("meta"):
        network, theirs = build("resnet18", {}, 101), torchvision.models.resnet18(num_classes=101)
    head = {"head.weight": "fc.weight", "head.bias": "fc.bias"}
    ours = {head.get(name, name): value.shape for name, value in network.state_dict().items()}

    assert count(network) == 11_228_325
    assert count(network) - count(network.head) == 11_176_512
    assert ours == {name: value.shape for name, value in theirs.state_dict().items()}


@pytest.mark.parametrize("px", [33, 64, 96])
def test_resnet_18_computes_what_torchvision_s_does_with_the_same_weights(px: int) -> None:
    network, theirs = build("resnet18", {}, 101), torchvision.models.resnet18()
    initialise(network, torch.Generator().manual_seed(0))
    state = network.state_dict()
    trunk = {name: value for name, value in state.items() if not name.startswith("head.")}
    theirs.fc = nn.Identity()  # type: ignore[assignment]
    theirs.load_state_dict(trunk)
    faces = some_faces(3, px)
    for training in (True, False):  # the first moves both networks' running statistics
        features_BC = network.train(training)(faces).features_BC
        assert features_BC.std() > 0.01
        assert torch.equal(features_BC, theirs.train(training)(faces.view_BCHW))
    maps_BChw = network.forward_features(faces)
    assert maps_BChw.shape == (3, 512, -(-px // 32), -(-px // 32))


@pytest.mark.parametrize("share", [1 / 64, 0.25, 0.3, 0.75])
def test_parameters_of_any_share_of_resnet_18(share: float) -> None:
    """Weights k x k in x out, two numbers a channel of BatchNorm, head."""
    first, *rest = (round(share * full) for full in (64, 64, 128, 256, 512))
    expected = 49 * 3 * first + 2 * first
    num_in = first
    for number, width in enumerate(rest):
        shortcut = num_in * width + 2 * width if number > 0 else 0
        expected += 9 * num_in * width + 3 * 9 * width * width + 4 * 2 * width + shortcut
        num_in = width
    network = build(f"resnet18-{share:.12g}", {}, 101)
    assert count(network) == expected + 101 * (num_in + 1)
    assert network(some_faces(2, 64)).features_BC.shape == (2, network.num_features)


@pytest.mark.parametrize("name", ["resnet18", "resnet18-0.25"])
def test_every_convolution_of_resnet_18_but_the_first_is_quantised(name: str) -> None:
    with torch.device("meta"):
        network: Network = build(name, {}, 101)
    found = [network.get_submodule(module) for module in network.quantised_modules()]
    assert found == convolutions(network)[1:]
    assert convolutions(network)[0].in_channels == 3
