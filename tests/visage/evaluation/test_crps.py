"""The CRPS against its two definitions, and in batches."""

from __future__ import annotations

import numpy as np
import pytest

from visage.evaluation.crps import batched_crps, crps
from visage.labels import LabelGrid


def distributions(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.dirichlet(np.full(11, 0.3), size=size), generator.uniform(-3, 14, size)


def test_crps_equals_the_double_sum_and_the_integral() -> None:
    probability_NK, truth_N = distributions(7, seed=1)
    label_K = np.linspace(0, 10, 11)
    found_N = crps(probability_NK.astype(np.float32), label_K, truth_N)
    fine = np.arange(-5, 16, 1e-3) + 5e-4
    for p_K, truth, found in zip(probability_NK, truth_N, found_N, strict=True):
        spread = sum(
            p * q * abs(a - b)
            for p, a in zip(p_K, label_K, strict=True)
            for q, b in zip(p_K, label_K, strict=True)
        )
        naive = sum(p * abs(a - truth) for p, a in zip(p_K, label_K, strict=True)) - spread / 2
        cdf = np.array([p_K[label_K <= x].sum() for x in fine])
        integral = ((cdf - (fine >= truth)) ** 2).sum() * 1e-3
        assert found == pytest.approx(naive, abs=1e-5)
        assert found == pytest.approx(integral, abs=5e-3)


def test_crps_of_a_point_is_the_absolute_error_and_a_wider_distribution_pays_less_when_wrong() -> (
    None
):
    label_K = np.linspace(0, 10, 11)
    point, wide = np.eye(11)[[4]], np.full((1, 11), 1 / 11)
    truth = np.array([9.5])
    assert crps(point, label_K, truth)[0] == pytest.approx(5.5)
    assert crps(wide, label_K, truth)[0] < 5.5


def test_crps_in_batches_is_crps(monkeypatch: pytest.MonkeyPatch) -> None:
    probability_NK, truth_N = distributions(50, seed=2)
    grid = LabelGrid(minimum=0.0, step=1.0, maximum=10.0)
    at_once = crps(probability_NK.astype(np.float32), grid.labels(), truth_N)
    monkeypatch.setattr("visage.evaluation.crps.BATCH", 7)
    np.testing.assert_allclose(
        batched_crps(probability_NK.astype(np.float32), grid, truth_N), at_once
    )
