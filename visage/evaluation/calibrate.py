"""Predictions for validation faces -> a model's calibration: a temperature, and an offset that
widens its intervals.

The temperature is the one whose tempered distributions have the least mean CRPS. The CRPS is a
proper score like the likelihood. But it is in label units, so that wrong labels (web-collected ages
have many) cannot govern it. And it does not depend on the grid's cells, so that labels between two
of the grid's need no rounding.

The interval is then conformal (Romano, Patterson, Candes 2019, "Conformalized quantile regression",
section 4): of faces like the validation faces, at least the claimed share is inside, whatever the
model is. The temperature is fitted on the same faces. This costs the guarantee little, because it
is one number against hundreds of faces. Legend: N faces, K labels of the grid; label units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar

from visage.evaluation.crps import FloatArray, batches, crps
from visage.inference.calibration import calibrated, tempered
from visage.labels import LabelGrid, central_interval
from visage.model_config import INTERVAL_MASS, CalibrationConfig

Floats32 = npt.NDArray[np.float32]

# Its inverse is the least temperature. A model further off needs another training.
MAX_TEMPERATURE = 8.0

# Slack: without it, rounding could push 0.8 * (n + 1) past an integer.
TIE = 1e-9

# Fewer faces have no such quantile.
LEAST_FACES = math.ceil(INTERVAL_MASS / (1 - INTERVAL_MASS) - TIE)


def fit_calibration(
    probability_NK: Floats32, label_N: FloatArray, grid: LabelGrid, *, flip: bool
) -> CalibrationConfig:
    """The calibration of untempered predictions for at least LEAST_FACES labelled faces."""
    temperature = fit_temperature(probability_NK, label_N, grid)
    offset = conformal_quantile(lack(probability_NK, label_N, grid, temperature))
    return CalibrationConfig(
        temperature=temperature,
        mass=INTERVAL_MASS,
        offset=offset,
        num_faces=len(label_N),
        flip=flip,
    )


def fit_temperature(probability_NK: Floats32, label_N: FloatArray, grid: LabelGrid) -> float:
    """The temperature of least mean CRPS, searched on a logarithmic scale between 1/8 and 8."""
    end = math.log(MAX_TEMPERATURE)

    def cost(log_temperature: float) -> float:
        return mean_crps(probability_NK, label_N, grid, math.exp(log_temperature))

    found = minimize_scalar(
        cost,
        bounds=(-end, end),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return round(math.exp(found.x), 4)


def mean_crps(
    probability_NK: Floats32, label_N: FloatArray, grid: LabelGrid, temperature: float
) -> float:
    """The mean CRPS of the tempered distributions."""
    parts = []
    for rows, p_BK in _tempered_batches(probability_NK, temperature):
        parts.append(crps(p_BK.numpy(), grid.labels(), label_N[rows]))
    return float(np.concatenate(parts).mean())


def lack(
    probability_NK: Floats32, label_N: FloatArray, grid: LabelGrid, temperature: float
) -> FloatArray:
    """max(low - y, y - high) of the tempered central interval, (N,): how far outside a label is,
    below 0 inside."""
    parts = []
    for rows, p_BK in _tempered_batches(probability_NK, temperature):
        low_B, high_B = central_interval(p_BK, grid, INTERVAL_MASS)
        label_B = label_N[rows]
        parts.append(np.maximum(low_B.numpy() - label_B, label_B - high_B.numpy()))
    return np.concatenate(parts)


def conformal_quantile(score_N: FloatArray) -> float:
    """The ceil((n + 1) mass)-th smallest score; at least LEAST_FACES are needed."""
    place = math.ceil((len(score_N) + 1) * INTERVAL_MASS - TIE)
    return float(np.sort(score_N)[place - 1])


def _tempered_batches(
    probability_NK: Floats32, temperature: float
) -> Iterator[tuple[slice, torch.Tensor]]:
    for rows in batches(len(probability_NK)):
        yield rows, tempered(torch.from_numpy(probability_NK[rows]).double(), temperature)


def figures(
    probability_NK: Floats32,
    value_N: FloatArray,
    label_N: FloatArray,
    grid: LabelGrid,
    calibration: CalibrationConfig | None,
) -> dict[str, float]:
    """Mean CRPS and the interval's coverage of untempered predictions, calibrated or (None) not."""
    cost_N = np.empty(len(label_N))
    inside_N = np.empty(len(label_N), dtype=bool)

    for rows in batches(len(label_N)):
        label_B = label_N[rows]
        raw_BK = torch.from_numpy(probability_NK[rows]).double()
        value_B = torch.from_numpy(value_N[rows])
        p_BK, low_B, high_B = calibrated(raw_BK, value_B, grid, calibration)
        cost_N[rows] = crps(p_BK.numpy(), grid.labels(), label_B)
        inside_N[rows] = (low_B.numpy() <= label_B) & (label_B <= high_B.numpy())

    return {"crps": float(cost_N.mean()), "coverage": float(inside_N.mean())}
