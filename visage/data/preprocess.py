"""The one evaluation view: uint8 crops to normalised network input, for evaluation, export and
serving alike.

Legend: B batch, C colour channels, H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from visage.model_config import NormaliseConfig


GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, the weights of Torch7's and Pillow's grey


# Released code
PAPER_NORMALISE = NormaliseConfig(mean=(0.5958, 0.4637, 0.4065), std=(0.2693, 0.2409, 0.2352))


def evaluation_view(crops_BCHW: Tensor, normalise: NormaliseConfig) -> Tensor:
    """uint8 crops (B,3,H,W) -> normalised float32 of the same shape: what evaluation, export and
    serving all see."""
    view_BCHW = crops_BCHW.to(torch.float32) / 255.0
    mean_C, std_C = (view_BCHW.new_tensor(values) for values in (normalise.mean, normalise.std))
    return (view_BCHW - mean_C[:, None, None]) / std_C[:, None, None]
