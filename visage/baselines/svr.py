"""Support vector regression on the labels, linear, by liblinear."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVR

from visage.baselines.linear import Examples, FitSettings, LinearModel
from visage.labels import LabelGrid


def fit_svr(
    examples: Examples, _grid: LabelGrid, strength: float, settings: FitSettings
) -> LinearModel:
    """1/2 w.w + C sum max(0, |w.x - y| - tube)^2, liblinear's default regression (-s 11), O = 1.

    The labels' mean is subtracted first and added to the constant's weight afterwards, so that
    regularisation pulls towards it and not towards 0. liblinear works on a float64 copy and one
    with indices: 24 bytes a feature in addition to ours.
    """
    target_N = examples.label_N.double().numpy()

    solver = LinearSVR(
        epsilon=settings.tube,
        C=strength,
        loss="squared_epsilon_insensitive",
        dual=False,
        fit_intercept=False,
        tol=settings.tolerance,
        max_iter=settings.max_iterations,
    )

    with warnings.catch_warnings():
        # `converged` says it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        solver.fit(examples.features_ND.numpy(), target_N - target_N.mean())

    weight_D = solver.coef_.ravel().astype(np.float64)
    weight_D[-1] += target_N.mean()
    weight_OD = torch.from_numpy(weight_D).to(examples.features_ND.dtype)[None]

    iterations = int(solver.n_iter_)
    return LinearModel(
        weight_OD=weight_OD,
        num_iterations=iterations,
        converged=iterations < settings.max_iterations,
    )
