"""The estimators by name, and the choice of their strength C on the validation faces.

All three are linear maps of the features; they differ in what is fitted and in how outputs become a
distribution. Legend: B faces, D features with the constant, O outputs, K labels of the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from visage.baselines.bfgs_ldl import fit_bfgs_ldl
from visage.baselines.linear import Examples, FitSettings, LinearModel
from visage.baselines.ohrank import fit_ohrank
from visage.baselines.svr import fit_svr
from visage.encodings import narrowest
from visage.inference.faces import Predictions, predictions_of
from visage.labels import DECODERS, LabelGrid
from visage.methods import ranking_probabilities, softmax_probabilities


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """`fit(examples, grid, C, settings)`; `probabilities(outputs, grid)`, (B,K); `decode`: an entry
    of DECODERS."""

    fit: Callable[[Examples, LabelGrid, float, FitSettings], LinearModel]
    probabilities: Callable[[Tensor, LabelGrid], Tensor]
    decode: str


def narrowest_probabilities(outputs_B1: Tensor, grid: LabelGrid) -> Tensor:
    """SVR's value, held to the grid, as the narrowest distribution of that expectation (as metric
    regression's)."""
    return narrowest(outputs_B1[:, 0].clamp(grid.minimum, grid.maximum), grid)


# OHRank's decision values count as logits: `rank` of the distribution is then its own rule l[1 +
# #(w.x > 0)]. They are no calibrated probabilities, so the spread is far too wide (LOG.md).
ESTIMATORS: dict[str, Estimator] = {
    "svr": Estimator(fit=fit_svr, probabilities=narrowest_probabilities, decode="expectation"),
    "ohrank": Estimator(fit=fit_ohrank, probabilities=ranking_probabilities, decode="rank"),
    "bfgs_ldl": Estimator(
        fit=fit_bfgs_ldl, probabilities=softmax_probabilities, decode="expectation"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A strength C, the model fitted with it, and its mean absolute error on the validation faces,
    in label units."""

    strength: float
    model: LinearModel
    error: float


def predict(
    estimator: Estimator, model: LinearModel, features_BD: Tensor, grid: LabelGrid
) -> Predictions:
    """Features as the model was fitted on -> value, deviation, interval and distribution of each
    face."""
    p_BK = estimator.probabilities(model(features_BD).double(), grid).numpy()
    return predictions_of(p_BK, DECODERS[estimator.decode](p_BK, grid), grid, None)


def trial(
    estimator: Estimator,
    strength: float,
    train: Examples,
    validation: Examples,
    grid: LabelGrid,
    settings: FitSettings,
) -> Trial:
    """One fit and its validation error."""
    model = estimator.fit(train, grid, strength, settings)
    value_B = predict(estimator, model, validation.features_ND, grid).value
    error = abs(value_B - validation.label_N.numpy()).mean()
    return Trial(strength=strength, model=model, error=float(error))


def best(trials: Sequence[Trial]) -> Trial:
    """The least error; of equals, the most regularised."""
    return min(trials, key=lambda one: (one.error, one.strength))
