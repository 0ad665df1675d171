"""The weights of fused models, learned from their predictions for validation faces.

`mae`: least absolute deviations on the simplex, a linear programme; `nll`: the likelihood of the
labels under the mixture, by expectation maximisation, which is convex; `epsilon_error`: sequential
quadratic programming from equal weights. Learned weights are kept only if they are better on faces
that they were not learned from: their cross-fitted error must be below that of equal weights, with
an interval of the difference that leaves out 0. Legend: M models, N faces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import linprog, minimize

from visage.evaluation.bootstrap import Bootstrap, Difference, paired_bootstrap
from visage.evaluation.metrics import ZERO_SIGMA

Floats = npt.NDArray[np.float64]
Objective = Literal["mae", "nll", "epsilon_error"]
EM_STEPS = 500
EM_TOLERANCE = 1e-9
# Smaller weights are none: they cost a forward pass and change nothing
LEAST_WEIGHT = 1e-4


@dataclass(frozen=True, kw_only=True)
class Known:
    """What weights are learned from: of M models and N faces the values and the probabilities of
    the label's own bin (M,N), of the faces label and sigma (N,)."""

    value_MN: Floats
    likelihood_MN: Floats
    label_N: Floats
    sigma_N: Floats

    def take(self, faces: npt.NDArray[np.intp]) -> Known:
        return Known(
            value_MN=self.value_MN[:, faces],
            likelihood_MN=self.likelihood_MN[:, faces],
            label_N=self.label_N[faces],
            sigma_N=self.sigma_N[faces],
        )


@dataclass(frozen=True, kw_only=True)
class Learned:
    """`weights` as they are used; `kept`: whether they are the learned ones. `difference`: the
    cross-fitted loss less that of equal weights, with its interval; None where nothing was learned.
    `reason` says in words what was decided."""

    weights: tuple[float, ...]
    kept: bool
    difference: Difference | None
    reason: str


def mae_weights(known: Known) -> Floats:
    """min sum_n |sum_m w_m v_mn - y_n| on the simplex: slack t_n >= +-(w v_n - y_n)."""
    num_models, num_faces = known.value_MN.shape
    cost = np.concatenate([np.zeros(num_models), np.ones(num_faces)])
    values_NM = known.value_MN.T
    slack_NN = -sparse.identity(num_faces)
    bounds_above = sparse.bmat([[values_NM, slack_NN], [-values_NM, slack_NN]], format="csr")
    right = np.concatenate([known.label_N, -known.label_N])
    sums_to_1 = np.concatenate([np.ones(num_models), np.zeros(num_faces)])[None]

    found = linprog(cost, A_ub=bounds_above, b_ub=right, A_eq=sums_to_1, b_eq=[1.0], method="highs")
    assert found.success, found.message
    return _on_simplex(found.x[:num_models])


def nll_weights(known: Known) -> Floats:
    """max sum_n ln sum_m w_m p_mn on the simplex, by EM from equal weights."""
    num_models, num_faces = known.likelihood_MN.shape
    weights_M = np.full(num_models, 1 / num_models)
    likelihood_MN = np.maximum(known.likelihood_MN, np.finfo(np.float64).tiny)
    for _ in range(EM_STEPS):
        share_MN = weights_M[:, None] * likelihood_MN
        share_MN /= share_MN.sum(axis=0)
        better_M = share_MN.sum(axis=1) / num_faces
        change = float(np.abs(better_M - weights_M).max())
        weights_M = better_M
        if change < EM_TOLERANCE:
            break
    return _on_simplex(weights_M)


def epsilon_weights(known: Known) -> Floats:
    """min mean_n 1 - exp(-(w v_n - y_n)^2 / (2 sigma_n^2)) on the simplex, from equal weights."""
    num_models = len(known.value_MN)

    def cost(weights_M: Floats) -> float:
        return float(epsilon_losses(weights_M, known).mean())

    found = minimize(
        cost,
        np.full(num_models, 1 / num_models),
        method="SLSQP",
        bounds=[(0.0, 1.0)] * num_models,
        constraints=[{"type": "eq", "fun": lambda weights_M: weights_M.sum() - 1}],
    )
    return _on_simplex(found.x)


def mae_losses(weights_M: Floats, known: Known) -> Floats:
    """Absolute errors (N,)."""
    found: Floats = np.abs(weights_M @ known.value_MN - known.label_N)
    return found


def nll_losses(weights_M: Floats, known: Known) -> Floats:
    """Minus the logarithm of each label's probability (N,)."""
    tiny = np.finfo(np.float64).tiny
    found: Floats = -np.log(np.maximum(weights_M @ known.likelihood_MN, tiny))
    return found


def epsilon_losses(weights_M: Floats, known: Known) -> Floats:
    """The epsilon-error of each face (N,)."""
    sigma_N = np.where(known.sigma_N == 0, ZERO_SIGMA, known.sigma_N)
    error_N = weights_M @ known.value_MN - known.label_N
    found: Floats = 1 - np.exp(-0.5 * (error_N / sigma_N) ** 2)
    return found


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """How weights are learned, and each face's loss with some weights."""

    learn: Callable[[Known], Floats]
    losses: Callable[[Floats, Known], Floats]


OBJECTIVES: Mapping[Objective, Criterion] = {
    "mae": Criterion(learn=mae_weights, losses=mae_losses),
    "nll": Criterion(learn=nll_weights, losses=nll_losses),
    "epsilon_error": Criterion(learn=epsilon_weights, losses=epsilon_losses),
}


def learned(
    known: Known,
    objective: Objective,
    *,
    cluster_N: npt.NDArray[np.int64],
    min_faces: int,
    num_folds: int,
    bootstrap: Bootstrap,
) -> Learned:
    """The weights of M models, learned if there are faces enough and it helps, else equal.

    `cluster_N` (N,) says who each face shows: people stay in one fold, and are what is resampled.
    """
    num_models, num_faces = known.value_MN.shape
    equal_M = np.full(num_models, 1 / num_models)
    equal = tuple(equal_M.tolist())
    if num_faces < min_faces:
        reason = f"{num_faces} validation faces, {min_faces} are wanted: equal weights"
        return Learned(weights=equal, kept=False, difference=None, reason=reason)

    criterion = OBJECTIVES[objective]
    fold_N = _folds(cluster_N, num_folds, bootstrap.seed)
    fitted_N = np.empty(num_faces)
    for fold in range(num_folds):
        inside = np.flatnonzero(fold_N == fold)
        weights_M = criterion.learn(known.take(np.flatnonzero(fold_N != fold)))
        fitted_N[inside] = criterion.losses(weights_M, known.take(inside))

    difference = paired_bootstrap(fitted_N, criterion.losses(equal_M, known), bootstrap, cluster_N)
    text = f"{difference.value:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"
    if not difference.high < 0:
        reason = f"cross-fitted {objective} less that of equal weights is {text}: equal weights"
        return Learned(weights=equal, kept=False, difference=difference, reason=reason)

    weights = tuple(criterion.learn(known).tolist())
    reason = f"cross-fitted {objective} less that of equal weights is {text}: learned weights"
    return Learned(weights=weights, kept=True, difference=difference, reason=reason)


def _folds(cluster_N: npt.NDArray[np.int64], num_folds: int, seed: int) -> npt.NDArray[np.int64]:
    """A fold for each face (N,), the same for all faces of a cluster."""
    names, code_N = np.unique(cluster_N, return_inverse=True)
    fold_of_cluster = np.arange(len(names)) % num_folds
    np.random.default_rng(seed).shuffle(fold_of_cluster)
    found: npt.NDArray[np.int64] = fold_of_cluster[code_N]
    return found


def _on_simplex(weights_M: Floats) -> Floats:
    """Weights without rounding errors and without those below `LEAST_WEIGHT`."""
    kept_M = np.where(weights_M < LEAST_WEIGHT, 0.0, weights_M)
    found: Floats = kept_M / kept_M.sum()
    return found
