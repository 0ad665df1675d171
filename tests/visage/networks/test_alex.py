"""The second stream's network: parameters and operations as counted by hand for its sizes."""

from __future__ import annotations

import pytest
import torch

from visage.networks import FaceBatch, build, initialise
from visage.networks.operations import count_macs


@pytest.mark.parametrize(
    ("name", "options", "num_parameters"),
    [
        ("bn_alex", {"wide": 4096, "pooled_px": 7}, 72_262_453),
        ("bn_alex", {"wide": 4096, "pooled_px": 6}, 58_630_965),
        ("bn_alex-0.25", {"wide": 256, "pooled_px": 2}, 394_765),
    ],
)
def test_parameters_with_85_labels(
    name: str, options: dict[str, object], num_parameters: int
) -> None:
    with torch.device("meta"):
        network = build(name, options, 85)
    assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters


def test_operations_at_256_pixels() -> None:
    with torch.device("meta"):
        network = build("bn_alex", {"wide": 4096, "pooled_px": 7}, 85)
    assert count_macs(network, 256) == pytest.approx(1.49e9, rel=5e-3)


@pytest.mark.parametrize(("px", "pooled_px"), [(256, 7), (227, 6), (96, 2)])
def test_each_size_has_maps_of_its_own_and_needs_no_averaging(px: int, pooled_px: int) -> None:
    network = build("bn_alex-0.25", {"wide": 256, "pooled_px": pooled_px}, 11).eval()
    initialise(network, torch.Generator().manual_seed(0))
    faces = FaceBatch(torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(1)), None)
    with torch.inference_mode():
        maps_BChw = network.forward_features(faces)
        pooled_BChw = torch.nn.functional.max_pool2d(maps_BChw, 3, 2)
        outputs = network(faces)
    assert pooled_BChw.shape[-2:] == (pooled_px, pooled_px)
    assert outputs.features_BC.shape == (2, 256)
    assert outputs.logits_BK.shape == (2, 11)


def test_crops_of_another_size_are_averaged_to_the_maps_wanted() -> None:
    network = build("bn_alex-0.25", {"wide": 256, "pooled_px": 2}, 11).eval()
    with torch.inference_mode():
        logits_BK = network(FaceBatch(torch.randn(1, 3, 64, 64), None)).logits_BK
    assert logits_BK.shape == (1, 11)
