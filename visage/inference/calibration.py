"""A config's calibration is applied: temperature scaling of the distributions, and a conformal
offset of the intervals, so that they hold the share of labels that they state.

The value does not change: it is decoded before, from the method's own distribution. The
distribution, its deviation and the interval are those of the tempered distribution.
`visage.evaluation.calibrate` finds the numbers, on the mean of face and mirror image or not (the
config's `flip`). They are applied to predictions made in the other way too. Legend: B batch, K
labels of the grid.
"""

from __future__ import annotations

from visage.labels import Array, LabelGrid, central_interval, library_of
from visage.model_config import INTERVAL_MASS, CalibrationConfig


def tempered(p_BK: Array, temperature: float) -> Array:
    """p^(1/T), renormalised (Guo et al. 2017, whose logits are ln p here): wider above T = 1,
    narrower below."""
    xp = library_of(p_BK)
    power_BK = (p_BK / xp.amax(p_BK, axis=1, keepdims=True)) ** (1 / temperature)
    tempered_BK: Array = power_BK / xp.sum(power_BK, axis=1, keepdims=True)
    return tempered_BK


def calibrated(
    p_BK: Array, value_B: Array, grid: LabelGrid, calibration: CalibrationConfig | None
) -> tuple[Array, Array, Array]:
    """Distributions (B,K) and their decoded values -> tempered distributions (B,K), ends of the
    interval (B,) each.

    The interval is the tempered distribution's central one of INTERVAL_MASS, moved out by the
    offset, held to the grid and stretched to its value, so that low <= value <= high whatever the
    offset is.
    """
    xp = library_of(p_BK)
    offset = 0.0
    if calibration is not None:
        p_BK = tempered(p_BK, calibration.temperature)
        offset = calibration.offset

    low_B, high_B = central_interval(p_BK, grid, INTERVAL_MASS)
    low_B = xp.minimum(xp.clip(low_B - offset, min=grid.minimum), value_B)
    high_B = xp.maximum(xp.clip(high_B + offset, max=grid.maximum), value_B)
    return p_BK, low_B, high_B
