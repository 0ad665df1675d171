"""A config's calibration is applied: temperature scaling of the distributions, and a conformal
offset of the intervals, so that they hold the share of labels that they state.

The value does not change: it is decoded before, from the method's own distribution. The
distribution, its deviation and the interval are those of the tempered distribution.
`visage.evaluation.calibrate` finds the numbers, on the mean of face and mirror image or not (the
config's `flip`). They are applied to predictions made in the other way too. Legend: B batch, K
labels of the grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visage.labels import LabelGrid, central_interval
from visage.model_config import INTERVAL_MASS, CalibrationConfig


def tempered(p_BK: Tensor, temperature: float) -> Tensor:
    """p^(1/T), renormalised (Guo et al. 2017, whose logits are ln p here): wider above T = 1,
    narrower below."""
    power_BK = (p_BK / p_BK.amax(dim=1, keepdim=True)) ** (1 / temperature)
    return power_BK / power_BK.sum(dim=1, keepdim=True)


def calibrated(
    p_BK: Tensor, value_B: Tensor, grid: LabelGrid, calibration: CalibrationConfig | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Distributions (B,K) and their decoded values -> tempered distributions (B,K), ends of the
    interval (B,) each.

    The interval is the tempered distribution's central one of INTERVAL_MASS, moved out by the
    offset, held to the grid and stretched to its value, so that low <= value <= high whatever the
    offset is.
    """
    offset = 0.0
    if calibration is not None:
        p_BK = tempered(p_BK, calibration.temperature)
        offset = calibration.offset

    low_B, high_B = central_interval(p_BK, grid, INTERVAL_MASS)
    low_B = torch.minimum((low_B - offset).clamp_min(grid.minimum), value_B)
    high_B = torch.maximum((high_B + offset).clamp_max(grid.maximum), value_B)
    return p_BK, low_B, high_B
