"""BFGS-LDL: the maximum-entropy model of label distributions, fitted by a quasi-Newton method (Geng
2013)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor

from visage.baselines.linear import Examples, FitSettings, LinearModel
from visage.encodings import gaussian
from visage.labels import LabelGrid
from visage.methods import kl_divergence

# Pairs of steps and gradient changes that stand for the Hessian: scipy's default.
NUM_CORRECTIONS = 10


def fit_bfgs_ldl(
    examples: Examples, grid: LabelGrid, strength: float, settings: FitSettings
) -> LinearModel:
    """p(k|x) ~ exp(w_k.x): least 1/2 |W|^2 + C sum KL(target || p), targets as in Eq. 1; O = K.

    By L-BFGS, since the full inverse Hessian of K D weights (Geng's BFGS) is beyond memory for BIF:
    (101 x 6753)^2. Geng does not regularise; a very large C comes to that.
    """
    p_NK = gaussian(examples.label_N, examples.sigma_N.clamp_min(settings.min_sigma), grid)
    shape = (grid.num_labels, examples.features_ND.shape[1])
    dtype = examples.features_ND.dtype

    def value_and_slope(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        weight_KD = torch.from_numpy(flat).view(shape).to(dtype)
        value, slope_KD = objective(weight_KD, examples.features_ND, p_NK, strength)
        return value, slope_KD.double().numpy().ravel()

    start = np.zeros(shape[0] * shape[1])
    steepest = float(np.abs(value_and_slope(start)[1]).max())
    found = minimize(
        value_and_slope,
        start,
        jac=True,
        method="L-BFGS-B",
        options={
            "maxiter": settings.max_iterations,
            "maxfun": 2 * settings.max_iterations,
            "maxcor": NUM_CORRECTIONS,
            "gtol": settings.tolerance * steepest,
            "ftol": float(torch.finfo(dtype).eps) / 10,
        },
    )

    weight_KD = torch.from_numpy(found.x).view(shape).to(dtype)
    return LinearModel(
        weight_OD=weight_KD,
        num_iterations=int(found.nit),
        converged=bool(found.success),
    )


def objective(
    weight_KD: Tensor, features_ND: Tensor, p_NK: Tensor, strength: float
) -> tuple[float, Tensor]:
    """The value to minimise, divided by C N so that its size depends on neither, and its gradient
    (K,D)."""
    logits_NK = features_ND @ weight_KD.T
    share = 1 / (strength * len(features_ND))
    value = kl_divergence(p_NK, logits_NK, "sum") + share * 0.5 * weight_KD.square().sum()
    slope_NK = (torch.softmax(logits_NK, dim=1) - p_NK) / len(features_ND)
    return float(value), slope_NK.T @ features_ND + share * weight_KD
