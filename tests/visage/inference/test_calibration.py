"""Calibration: what it does to one prediction, what it finds in known miscalibration, and that its
intervals hold the stated share."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from visage.evaluation.calibrate import (
    LEAST_FACES,
    conformal_quantile,
    figures,
    fit_calibration,
    fit_temperature,
)
from visage.inference.calibration import calibrated, tempered
from visage.labels import DECODERS, LabelGrid, central_interval, expectation
from visage.model_config import INTERVAL_MASS, CalibrationConfig

GRID = LabelGrid(minimum=0.0, step=1.0, maximum=100.0)
COARSE = LabelGrid(minimum=1.0, step=0.5, maximum=6.0)


def config(temperature: float, offset: float) -> CalibrationConfig:
    return CalibrationConfig(
        temperature=temperature, mass=INTERVAL_MASS, offset=offset, num_faces=100, flip=True
    )


def drawn_predictions(size: int, width: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Distributions (N,K) that claim `width` times the deviation of 4 to 10 with which their labels
    are spread."""
    rng = np.random.default_rng(seed)
    centre_N, deviation_N = rng.uniform(30, 70, size), rng.uniform(4, 10, size)
    label_N = np.round(np.clip(centre_N + rng.normal(0, deviation_N), 0, 100))
    density_NK = np.exp(
        -0.5 * ((GRID.labels() - centre_N[:, None]) / (width * deviation_N[:, None])) ** 2
    )
    return (density_NK / density_NK.sum(axis=1, keepdims=True)).astype(np.float32), label_N


def values(probability_NK: np.ndarray) -> np.ndarray:
    return expectation(torch.from_numpy(probability_NK).double(), GRID).numpy()


def drawn(probability_NK: np.ndarray, seed: int) -> np.ndarray:
    """One label of each distribution."""
    level_N1 = np.random.default_rng(seed).random((len(probability_NK), 1))
    place_N = (probability_NK.cumsum(axis=1) < level_N1).sum(axis=1)
    return GRID.labels()[place_N.clip(0, GRID.num_labels - 1)]


def test_tempering_is_the_power_and_its_inverse_undoes_it() -> None:
    p_BK = torch.from_numpy(np.random.default_rng(0).dirichlet(np.full(11, 0.5), 7))
    np.testing.assert_allclose(tempered(p_BK, 1.0), p_BK, atol=1e-15)
    naive = p_BK.numpy() ** (1 / 1.7)
    np.testing.assert_allclose(
        tempered(p_BK, 1.7), naive / naive.sum(axis=1, keepdims=True), atol=1e-14
    )
    np.testing.assert_allclose(tempered(tempered(p_BK, 1.7), 1 / 1.7), p_BK, atol=1e-14)
    np.testing.assert_allclose(tempered(p_BK, 1e6), 1 / 11, atol=1e-4)
    assert torch.equal(tempered(p_BK, 0.001).argmax(1), p_BK.argmax(1))


def test_temperature_1_and_offset_0_change_nothing() -> None:
    probability_NK, _ = drawn_predictions(50, 1.0)
    p_BK = torch.from_numpy(probability_NK).double()
    value_B = expectation(p_BK, GRID)
    for calibration in (None, config(1.0, 0.0)):
        got = calibrated(p_BK, value_B, GRID, calibration)
        for mine, plain in zip(got, (p_BK, *central_interval(p_BK, GRID, 0.8)), strict=True):
            np.testing.assert_allclose(mine, plain, atol=1e-7)
    assert calibrated(p_BK, value_B, GRID, None)[0] is p_BK


def test_the_offset_moves_both_ends_as_far_as_the_grid_goes() -> None:
    p_BK = torch.from_numpy(drawn_predictions(50, 1.0)[0]).double()
    value_B = expectation(p_BK, GRID)
    _, low_B, high_B = calibrated(p_BK, value_B, GRID, None)
    _, wider_low_B, wider_high_B = calibrated(p_BK, value_B, GRID, config(1.0, 2.5))
    np.testing.assert_allclose(wider_low_B, low_B - 2.5, atol=1e-9)
    np.testing.assert_allclose(wider_high_B, high_B + 2.5, atol=1e-9)
    _, least_B, most_B = calibrated(p_BK, value_B, GRID, config(1.0, 1000.0))
    assert (set(least_B.tolist()), set(most_B.tolist())) == ({0.0}, {100.0})
    _, low_B, high_B = calibrated(p_BK, value_B, GRID, config(1.0, -1000.0))
    assert torch.equal(low_B, value_B)
    assert torch.equal(high_B, value_B)


@given(
    arrays(np.float64, (3, COARSE.num_labels), elements=st.floats(0, 1, allow_subnormal=False)),
    st.sampled_from(sorted(DECODERS)),
    st.floats(0.125, 8),
    st.floats(-200, 200),
)
def test_no_interval_is_ever_inverted_or_off_the_grid(
    weight_BK: np.ndarray, decode: str, temperature: float, offset: float
) -> None:
    weight_BK = weight_BK + 1e-12 * np.eye(3, COARSE.num_labels)  # no row of nothing
    p_BK = torch.from_numpy(weight_BK / weight_BK.sum(axis=1, keepdims=True))
    value_B = DECODERS[decode](p_BK, COARSE)
    p_BK, low_B, high_B = calibrated(p_BK, value_B, COARSE, config(temperature, offset))
    np.testing.assert_allclose(p_BK.sum(dim=1), 1, atol=1e-9)
    assert bool((low_B <= value_B).all())
    assert bool((value_B <= high_B).all())
    assert float(low_B.min()) >= COARSE.minimum - 1e-9
    assert float(high_B.max()) <= COARSE.maximum + 1e-9


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_of_tempered_labels_is_found(temperature: float) -> None:
    """Labels drawn from p^(1/T), renormalised: T is what is missing."""
    probability_NK, _ = drawn_predictions(6000, 1.0)
    label_N = drawn(
        tempered(torch.from_numpy(probability_NK).double(), temperature).numpy(), seed=1
    )
    assert fit_temperature(probability_NK, label_N, GRID) == pytest.approx(temperature, rel=0.07)


@pytest.mark.parametrize("size", [LEAST_FACES, 9, 10, 34, 99, 240])
def test_the_conformal_quantile_is_the_one_that_covers_the_next(size: int) -> None:
    """Of n + 1 exchangeable scores, each as likely the last, at least 80 % are not above the
    quantile of the others."""
    scores = np.random.default_rng(size).normal(size=size + 1)
    held = [scores[i] <= conformal_quantile(np.delete(scores, i)) for i in range(size + 1)]
    assert 0.8 <= np.mean(held) < 0.8 + 1 / (size + 1)
    assert (
        conformal_quantile(scores[:size])
        == np.sort(scores[:size])[math.ceil(round((size + 1) * 0.8, 9)) - 1]
    )


@pytest.mark.parametrize("width", [0.4, 0.7, 1.0, 1.6, 3.0])
def test_intervals_of_a_miscalibrated_model_hold_what_they_claim(width: float) -> None:
    """Over- and under-confident models, 800 validation faces, 20,000 others: within the error of
    both samples."""
    probability_NK, label_N = drawn_predictions(20_800, width, seed=3)
    fitted = fit_calibration(probability_NK[:800], label_N[:800], GRID, flip=True)
    rest = (probability_NK[800:], values(probability_NK[800:]), label_N[800:], GRID)
    before, after = figures(*rest, None), figures(*rest, fitted)
    error = math.sqrt(0.8 * 0.2 * (1 / 800 + 1 / 20_000))
    assert after["coverage"] == pytest.approx(0.8, abs=3 * error)
    if width == 1.0:
        assert after["crps"] == pytest.approx(before["crps"], rel=0.005)
    else:
        assert abs(before["coverage"] - 0.8) > 3 * error
        assert after["crps"] < before["crps"]
    assert (fitted.temperature > 1.3) == (width < 0.9)


def test_a_model_that_is_off_and_skewed_is_covered_all_the_same() -> None:
    """No temperature corrects a bias and a heavy tail. The offset does: it is conformal."""
    probability_NK, _ = drawn_predictions(12_000, 0.6, seed=4)
    tail_N = stats.t(1.2).rvs(size=12_000, random_state=np.random.default_rng(5))
    label_N = np.clip(values(probability_NK) + 8 + 0.5 * tail_N, 0, 100)
    fitted = fit_calibration(probability_NK[:2000], label_N[:2000], GRID, flip=True)
    rest = (probability_NK[2000:], values(probability_NK[2000:]), label_N[2000:], GRID)
    error = math.sqrt(0.16 * (1 / 2000 + 1 / 10_000))
    assert figures(*rest, fitted)["coverage"] == pytest.approx(0.8, abs=3 * error)
    assert abs(figures(*rest, replace(fitted, offset=0.0))["coverage"] - 0.8) > 6 * error


def test_a_method_that_knows_no_doubt_gets_its_interval_from_the_offset() -> None:
    """Metric regression: two neighbouring labels, no deviation; as wide as its errors are."""
    rng = np.random.default_rng(7)
    value_N = rng.uniform(20, 80, 6000)
    p_NK = np.clip(1 - np.abs(value_N[:, None] - GRID.labels()), 0, None).astype(np.float32)
    label_N = value_N + rng.normal(0, 5, 6000)
    fitted = fit_calibration(p_NK[:1000], label_N[:1000], GRID, flip=True)
    # 6.4, less the half cells of the two labels
    assert fitted.offset == pytest.approx(5 * stats.norm.ppf(0.9), abs=0.8)
    after = figures(p_NK[1000:], value_N[1000:], label_N[1000:], GRID, fitted)
    assert after["coverage"] == pytest.approx(0.8, abs=3 * math.sqrt(0.16 * (1 / 1000 + 1 / 5000)))


def test_answers_are_scored_in_batches_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    probability_NK, label_N = drawn_predictions(101, 0.5, seed=6)
    whole = fit_calibration(probability_NK, label_N, GRID, flip=True)
    expected = figures(probability_NK, values(probability_NK), label_N, GRID, whole)
    monkeypatch.setattr("visage.evaluation.crps.BATCH", 10)
    parts = fit_calibration(probability_NK, label_N, GRID, flip=True)
    assert parts.temperature == whole.temperature
    assert parts.offset == pytest.approx(whole.offset)
    assert figures(probability_NK, values(probability_NK), label_N, GRID, whole) == pytest.approx(
        expected
    )
