"""Weights of fused models against brute force, and the guard that keeps them only where they
help."""

from __future__ import annotations

import numpy as np
import pytest

from visage.evaluation.bootstrap import Bootstrap
from visage.evaluation.fusion_weights import OBJECTIVES, Known, Objective, learned

BOOTSTRAP = Bootstrap(num_resamples=400, interval=0.95, seed=0)


def some_known(num_faces: int, spreads: tuple[float, ...], seed: int = 0) -> Known:
    """Models whose errors are normal with these deviations."""
    rng = np.random.default_rng(seed)
    label_N = rng.uniform(20, 60, num_faces)
    error_MN = rng.normal(0, 1, (len(spreads), num_faces)) * np.array(spreads)[:, None]
    likelihood_MN = np.exp(-0.5 * (error_MN / 3) ** 2) + 1e-6
    return Known(
        value_MN=label_N + error_MN,
        likelihood_MN=likelihood_MN / likelihood_MN.max(),
        label_N=label_N,
        sigma_N=np.full(num_faces, 3.0),
    )


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_two_models_against_all_weights_in_a_row(objective: Objective) -> None:
    known = some_known(150, (3.0, 5.0))
    criterion = OBJECTIVES[objective]
    found = criterion.learn(known)
    assert found.sum() == pytest.approx(1)
    weights = np.linspace(0, 1, 1001)
    costs = [criterion.losses(np.array([one, 1 - one]), known).mean() for one in weights]
    assert criterion.losses(found, known).mean() <= min(costs) + 1e-5


def test_a_much_better_model_is_kept_and_equal_ones_are_not() -> None:
    people = np.arange(400)
    arguments = {"min_faces": 200, "num_folds": 5, "bootstrap": BOOTSTRAP}
    better = learned(some_known(400, (2.0, 9.0)), "mae", cluster_N=people, **arguments)
    assert better.kept
    assert better.weights[0] > 0.8
    assert better.difference is not None
    assert better.difference.high < 0

    same = learned(some_known(400, (4.0, 4.0)), "mae", cluster_N=people, **arguments)
    assert not same.kept
    assert same.weights == (0.5, 0.5)
    assert "equal weights" in same.reason


def test_few_faces_learn_nothing() -> None:
    found = learned(
        some_known(199, (2.0, 9.0)),
        "mae",
        cluster_N=np.arange(199),
        min_faces=200,
        num_folds=5,
        bootstrap=BOOTSTRAP,
    )
    assert (found.weights, found.kept, found.difference) == ((0.5, 0.5), False, None)
    assert found.reason == "199 validation faces, 200 are wanted: equal weights"
