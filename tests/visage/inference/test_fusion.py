"""An ensemble's label, spread and sigma against a mixture that is really drawn from."""

from __future__ import annotations

import numpy as np
import pytest

from visage.inference.fusion import combined


def test_sigma_is_that_of_the_mixture() -> None:
    rng = np.random.default_rng(0)
    values, stds = (
        np.array([[30.0, 10.0], [36.0, 10.0], [33.0, 40.0]]),
        np.array([[2.0, 1.0], [4.0, 0.0], [3.0, 5.0]]),
    )
    which = rng.integers(0, 3, 200_000)
    drawn = rng.normal(values[which], stds[which])
    label, spread, sigma = combined(values, stds)
    assert label == pytest.approx(drawn.mean(0), rel=0.01)
    assert sigma == pytest.approx(drawn.std(0), rel=0.01)
    assert spread == pytest.approx(values.std(0))


def test_one_model_speaks_for_itself() -> None:
    label, spread, sigma = combined(np.array([[30.0]]), np.array([[2.5]]))
    assert (label.item(), spread.item(), sigma.item()) == (30.0, 0.0, 2.5)


def test_models_that_agree_add_no_spread() -> None:
    _, spread, sigma = combined(np.full((4, 1), 30.0), np.full((4, 1), 3.0))
    assert (spread.item(), sigma.item()) == (0.0, pytest.approx(3.0))
