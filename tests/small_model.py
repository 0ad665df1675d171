"""A model small enough for tests of what surrounds it: TinyAgeNet's form at 32 px on a grid of 11
labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visage.detection.align import template
from visage.labels import LabelGrid
from visage.model_config import (
    CONFIG_FORMAT,
    AlignmentConfig,
    DetectorConfig,
    ModelConfig,
    NetworkConfig,
    NormaliseConfig,
    WeightsConfig,
)
from visage.networks import FaceBatch, Network, initialise
from visage.weights import build_network, save_model

CROP_PX = 32


def small_config(**changes: Any) -> ModelConfig:
    """A config of the small network; `changes` replaces fields."""
    grid = LabelGrid(minimum=0.0, step=10.0, maximum=100.0)
    fields: dict[str, Any] = {
        "format": CONFIG_FORMAT,
        "name": "small",
        "quantity": "age",
        "unit": "years",
        "network": NetworkConfig(
            name="tiny", options={"pooling": "hybrid"}, num_outputs=grid.num_labels
        ),
        "grid": grid,
        "method": "dldl_v2",
        "decode": "expectation",
        "alignment": AlignmentConfig(
            template="five_point_112", crop_px=CROP_PX, face_scale=0.75, jpeg_quality=90
        ),
        "detector": DetectorConfig(
            min_face_px=20,
            thresholds=(0.6, 0.7, 0.7),
            factor=0.709,
            max_side_px=1024,
            landmark_passes=2,
        ),
        "normalise": NormaliseConfig(mean=(0.6, 0.5, 0.4), std=(0.3, 0.25, 0.2)),
        "weights": WeightsConfig(
            file="model.safetensors", sha256="", dtype="float32", num_parameters=0
        ),
        "calibration": None,
        "training": {"epochs": 1},
        "data": {},
        "metrics": {},
        "terms": "none",
        "code": {"git_commit": "unknown"},
    }
    return ModelConfig(**(fields | changes))


def some_crops(count: int, seed: int = 0) -> Tensor:
    """Smooth random crops, uint8 (count,3,CROP_PX,CROP_PX)."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 255
    return torch.nn.functional.interpolate(coarse, size=CROP_PX, mode="bilinear").to(torch.uint8)


def some_landmarks(count: int, seed: int = 0) -> Tensor:
    """Five points about the template's, float32 (count,5,2), pixels of the crop."""
    how = small_config().alignment
    template_52 = template(how.template, CROP_PX, how.face_scale)
    moves = torch.randn(count, 5, 2, generator=torch.Generator().manual_seed(seed))
    return torch.from_numpy(template_52).float() + moves * CROP_PX / 50


@torch.no_grad()
def small_network(config: ModelConfig, seed: int = 0) -> Network:
    """The config's network with random weights, BatchNorm statistics of random crops, and outputs
    that differ."""
    network = build_network(config, "small")
    initialise(network, torch.Generator().manual_seed(seed))
    faces = FaceBatch(some_crops(64, seed=1).float() / 128 - 1, some_landmarks(64, seed=1))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(faces)
    network.eval()
    spread = network(faces).logits_BK.std()
    next(network.head.parameters()).div_(spread)  # the weights; bias is 0
    return network


def small_model(folder: Path, dtype: Any = "float32", **changes: Any) -> Path:
    """A model folder with the small network."""
    config = small_config(**changes)
    save_model(folder, small_network(config), config, dtype)
    return folder
