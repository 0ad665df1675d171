"""The one evaluation view: uint8 crops to normalised network input, for evaluation, export and
serving alike.

Legend: B batch, C colour channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visage.model_config import NormaliseConfig
from visage.networks.inputs import input_of, normalised
from visage.networks.protocol import FaceBatch

# The released code's
PAPER_NORMALISE = NormaliseConfig(mean=(0.5958, 0.4637, 0.4065), std=(0.2693, 0.2409, 0.2352))


def evaluation_view(crops_BCHW: Tensor, normalise: NormaliseConfig) -> Tensor:
    """uint8 crops (B,3,H,W) -> normalised float32 of the same shape: what evaluation, export and
    serving all see."""
    view_BCHW = input_of(crops_BCHW.to(torch.float32) / 255.0, normalise.input)
    return normalised(view_BCHW, normalise.mean, normalise.std)


def evaluation_faces(crops: FaceBatch, normalise: NormaliseConfig) -> FaceBatch:
    """uint8 crops and their landmarks -> the network's input; no landmark moves."""
    return crops._replace(view_BCHW=evaluation_view(crops.view_BCHW, normalise))
