"""The kinds of input against naive formulas, and one model of each as torch and as ONNX."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.small_faces import EXTENDED, NOTHING
from tests.small_model import small_config, small_network, some_crops
from visage.data.augment import training_view
from visage.data.mirror import mirrored
from visage.data.preprocess import PAPER_NORMALISE, evaluation_view
from visage.export.onnx_file import export_model, measure_parity
from visage.inference.faces import CropPredictor
from visage.model_config import ModelConfig, NetworkConfig, NormaliseConfig
from visage.networks.protocol import FaceBatch
from visage.weights import load_model

KERNEL_X = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))
TINY = NetworkConfig(name="tiny", options={"pooling": "hybrid"}, num_outputs=11)
ALEX = NetworkConfig(name="bn_alex-0.25", options={"wide": 256, "pooled_px": 2}, num_outputs=11)
OWN = {
    "grey": NormaliseConfig(mean=(0.5,) * 3, std=(0.25,) * 3, input="grey"),
    "sobel": NormaliseConfig(mean=(0.1,) * 3, std=(0.1,) * 3, input="sobel"),
}


def naive_grey(crop_CHW: np.ndarray) -> np.ndarray:
    red, green, blue = crop_CHW.astype(np.float64) / 255
    return 0.299 * red + 0.587 * green + 0.114 * blue


def naive_sobel(grey_HW: np.ndarray) -> np.ndarray:
    height, width = grey_HW.shape
    found = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            across = down = 0.0
            for i in range(3):
                for j in range(3):
                    row = min(max(y + i - 1, 0), height - 1)
                    column = min(max(x + j - 1, 0), width - 1)
                    across += KERNEL_X[i][j] / 4 * grey_HW[row, column]
                    down += KERNEL_X[j][i] / 4 * grey_HW[row, column]
            found[y, x] = math.hypot(across, down)
    return found


@pytest.mark.parametrize("kind", list(OWN))
def test_inputs_against_naive_formulas(kind: str) -> None:
    crops_BCHW = torch.randint(0, 256, (2, 3, 9, 7), generator=torch.Generator().manual_seed(3))
    view_BCHW = evaluation_view(crops_BCHW.to(torch.uint8), OWN[kind])
    for crop_CHW, view_CHW in zip(crops_BCHW.numpy(), view_BCHW.numpy(), strict=True):
        expected_HW = naive_grey(crop_CHW)
        if kind == "sobel":
            expected_HW = naive_sobel(expected_HW)
        expected_HW = (expected_HW - OWN[kind].mean[0]) / OWN[kind].std[0]
        for channel_HW in view_CHW:
            np.testing.assert_allclose(channel_HW, expected_HW, atol=1e-5)


def test_an_edge_from_black_to_white_has_length_one() -> None:
    crops_BCHW = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    crops_BCHW[..., 4:] = 255
    plain = NormaliseConfig(mean=(0.0,) * 3, std=(1.0,) * 3, input="sobel")
    view_BCHW = evaluation_view(crops_BCHW, plain)
    expected = torch.tensor([0.0, 0, 0, 1, 1, 0, 0, 0])
    torch.testing.assert_close(view_BCHW, expected.expand(1, 3, 8, 8))


@pytest.mark.parametrize("kind", list(OWN))
def test_the_mirror_image_s_input_is_the_input_s_mirror_image(kind: str) -> None:
    crops = FaceBatch(some_crops(3), None)
    turned_BCHW = evaluation_view(mirrored(crops.view_BCHW)[0], OWN[kind])
    torch.testing.assert_close(turned_BCHW, evaluation_view(crops.view_BCHW, OWN[kind]).flip(-1))


@pytest.mark.parametrize("kind", list(OWN))
def test_training_without_augmentation_sees_what_evaluation_sees(kind: str) -> None:
    crops = FaceBatch(some_crops(4), None)
    generator = torch.Generator().manual_seed(0)
    view_BCHW, _ = training_view(crops, NOTHING, OWN[kind], generator)
    expected_BCHW = evaluation_view(crops.view_BCHW, OWN[kind])
    torch.testing.assert_close(view_BCHW, expected_BCHW, atol=2e-4, rtol=0)

    augmented_BCHW, _ = training_view(crops, EXTENDED, OWN[kind], generator)
    assert torch.equal(augmented_BCHW[:, 0], augmented_BCHW[:, 2])
    assert (augmented_BCHW - expected_BCHW).abs().mean() > 0.01


@pytest.mark.parametrize("kind", list(OWN))
@pytest.mark.parametrize("network", [TINY, ALEX], ids=["tiny", "bn_alex"])
def test_a_model_carries_its_input_into_its_files(
    kind: str, network: NetworkConfig, tmp_path: Path
) -> None:
    config = small_config(normalise=OWN[kind], network=network)
    crops_BCHW = some_crops(7)
    own = small_network(config)
    export_model(own, config, tmp_path, "float32")

    original = CropPredictor(own, config)
    batches = [FaceBatch(crops_BCHW[:count], None) for count in (1, 3, 7)]
    parity = measure_parity(tmp_path, original, batches)
    assert parity.max_abs_difference < 1e-3
    assert load_model(tmp_path)[1].normalise == OWN[kind]

    as_rgb = dataclasses.replace(config, normalise=PAPER_NORMALISE)
    other = CropPredictor(own, as_rgb).predict_crops(crops_BCHW).probabilities
    assert not np.allclose(other, original.predict_crops(crops_BCHW).probabilities)


def test_a_config_from_before_there_were_inputs_is_one_of_rgb() -> None:
    config = small_config()
    document: dict[str, Any] = dataclasses.asdict(config)
    text = config.to_json().replace(',\n  "input": "rgb"', "")
    assert '"input"' not in text
    assert ModelConfig.from_json(text, "here") == config
    assert document["normalise"]["input"] == "rgb"
