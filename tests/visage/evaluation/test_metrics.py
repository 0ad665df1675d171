"""Metrics against three-line naive versions, and by property."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from visage.evaluation import metrics
from visage.evaluation.metrics import Scored, metric_set

YEARS = st.floats(0, 100, allow_subnormal=False)


@st.composite
def labelled_faces(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = draw(st.integers(1, 30))
    sigmas = st.one_of(st.just(0.0), st.just(math.nan), st.floats(0.1, 20))
    return (
        draw(arrays(np.float64, size, elements=YEARS)),
        draw(arrays(np.float64, size, elements=YEARS)),
        draw(arrays(np.float64, size, elements=sigmas)),
    )


def naive_epsilon(label: float, prediction: float, sigma: float) -> float:
    sigma = sigma if sigma > 0 else 1e-10
    return 1 - math.exp(-((prediction - label) ** 2) / (2 * sigma**2))


@given(labelled_faces())
def test_averages_equal_naive_loops(faces: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    label_N, prediction_N, sigma_N = faces
    scored = Scored.of_points(label_N, prediction_N, sigma_N)
    pairs = list(zip(label_N.tolist(), prediction_N.tolist(), strict=True))
    errors = [prediction - label for label, prediction in pairs]
    assert metrics.mae(scored) == pytest.approx(sum(map(abs, errors)) / len(errors), abs=1e-9)
    assert metrics.bias(scored) == pytest.approx(sum(errors) / len(errors), abs=1e-9)
    assert metrics.rmse(scored) == pytest.approx(
        math.sqrt(sum(e * e for e in errors) / len(errors)), abs=1e-9
    )
    for threshold in (0, 3, 5.5):
        share = sum(abs(error) <= threshold + 1e-9 for error in errors) / len(errors)
        assert metrics.cumulative_score(threshold)(scored) == pytest.approx(share, abs=1e-12)


@given(labelled_faces())
def test_epsilon_error_equals_the_naive_loop_over_faces_with_a_sigma(
    faces: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    known = [
        (y, yhat, s)
        for y, yhat, s in zip(*(column.tolist() for column in faces), strict=True)
        if s == s
    ]
    found = metrics.epsilon_error(Scored.of_points(*faces))
    if not known:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(
            sum(naive_epsilon(*face) for face in known) / len(known), abs=1e-9
        )


@given(labelled_faces())
def test_pearson_equals_numpy_wherever_numpy_is_defined(
    faces: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    label_N, prediction_N, _ = faces
    found = metrics.pearson(Scored.of_points(label_N, prediction_N))
    if len(label_N) < 2 or np.ptp(label_N) < 1e-3 or np.ptp(prediction_N) < 1e-3:
        return
    assert found == pytest.approx(float(np.corrcoef(label_N, prediction_N)[0, 1]), abs=1e-6)


@pytest.mark.parametrize(
    ("label", "prediction"),
    [([3.0] * 4, [1.0, 2, 3, 4]), ([1.0, 2, 3, 4], [0.1] * 4), ([5.0], [6.0])],
)
def test_pearson_of_a_constant_is_undefined(label: list[float], prediction: list[float]) -> None:
    assert math.isnan(metrics.pearson(Scored.of_points(label, prediction)))


@given(labelled_faces(), st.floats(0.1, 10), YEARS)
def test_pearson_ignores_scale_and_offset(
    faces: tuple[np.ndarray, np.ndarray, np.ndarray], scale: float, offset: float
) -> None:
    label_N, prediction_N, _ = faces
    if np.ptp(label_N) < 1e-2 or np.ptp(prediction_N) < 1e-2:
        return
    plain = metrics.pearson(Scored.of_points(label_N, prediction_N))
    moved = metrics.pearson(Scored.of_points(label_N, -scale * prediction_N + offset))
    assert moved == pytest.approx(-plain, abs=1e-5)


@given(labelled_faces())
def test_order_of_metrics(faces: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    scored = Scored.of_points(*faces)
    assert abs(metrics.bias(scored)) <= metrics.mae(scored) + 1e-9 <= metrics.rmse(scored) + 2e-9
    shares = [metrics.cumulative_score(threshold)(scored) for threshold in (1, 2, 5, 10, 100)]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_epsilon_error_by_hand() -> None:
    """One sigma away costs 1 - exp(-1/2); sigma 0 costs 1 unless exact; no sigma is left out."""
    scored = Scored.of_points([20, 20, 20, 20], [23, 20, 20.001, 90], [3, 0, 0, np.nan])
    assert metrics.epsilon_error(scored) == pytest.approx(
        (1 - math.exp(-0.5) + 0 + 1) / 3, abs=1e-12
    )


def test_cumulative_score_counts_the_threshold_itself_also_on_a_tenth_grid() -> None:
    scored = Scored.of_points([3.3, 3.0, 3.0], [3.6, 3.3, 3.4])
    assert metrics.cumulative_score(0.3)(scored) == pytest.approx(2 / 3)


def test_pit_is_uniform_for_labels_of_the_distributions_and_for_no_others() -> None:
    rng = np.random.default_rng(8)
    probability_NK, label_K = rng.dirichlet(np.full(11, 0.5), size=4000), np.linspace(1, 6, 11)
    place_N = (probability_NK.cumsum(axis=1) < rng.random((4000, 1))).sum(axis=1)
    level_N = rng.random(4000)

    def uneven(truth_N: np.ndarray) -> float:
        pit_N = metrics.pit(probability_NK, label_K, truth_N, level_N)
        assert ((pit_N >= 0) & (pit_N <= 1)).all()
        found = metrics.deviation_from_uniform(pit_N)
        assert found == pytest.approx(stats.kstest(pit_N, "uniform").statistic)
        return found

    assert uneven(label_K[place_N]) < 1.63 / math.sqrt(4000)  # 1 % point
    assert uneven(label_K[place_N] + rng.uniform(-0.2, 0.2, 4000)) < 1.63 / math.sqrt(
        4000
    )  # the same cells
    assert uneven(label_K[np.minimum(place_N + 1, 10)]) > 0.1
    assert uneven(np.full(4000, 3.5)) > 0.1


def test_pit_by_hand() -> None:
    """0.2 below the label's cell, 0.5 in it; labels beyond the grid belong to its ends."""
    p_NK, label_K = np.tile([0.2, 0.5, 0.3], (5, 1)), np.array([0.0, 1.0, 2.0])
    truth_N, level_N = np.array([1.0, 1.4, 0.6, -7.0, 9.0]), np.array([0.0, 0.5, 1.0, 0.5, 1.0])
    np.testing.assert_allclose(
        metrics.pit(p_NK, label_K, truth_N, level_N), [0.2, 0.45, 0.7, 0.1, 1.0]
    )
    low, high, share = metrics.pit_histogram(np.array([0.0, 0.01, 0.99, 1.0]))
    assert (low[0], high[-1]) == (0, 1)
    assert share.tolist() == [0.5, *[0.0] * 18, 0.5]


def with_intervals(low_N: list[float], high_N: list[float]) -> Scored:
    size = len(low_N)
    points = Scored.of_points(np.full(size, 30.0), np.full(size, 31.0))
    columns = {
        name: getattr(points, name)
        for name in ("label_N", "prediction_N", "sigma_N", "std_N", "crps_N")
    }
    return Scored(**columns, low_N=np.array(low_N), high_N=np.array(high_N))


def test_coverage_counts_the_ends_and_leaves_faces_without_an_interval_out() -> None:
    scored = with_intervals([30, 20, 31, np.nan], [35, 30, 40, np.nan])
    assert metrics.coverage(scored) == pytest.approx(2 / 3)


def test_metric_set_names_every_threshold() -> None:
    names = list(metric_set([3, 5, 0.5]))
    assert [name for name in names if name.startswith("cs_")] == ["cs_3", "cs_5", "cs_0.5"]


def test_scored_refuses_ragged_columns_and_missing_labels() -> None:
    with pytest.raises(ValueError, match="one number a face"):
        Scored.of_points([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="not finite"):
        Scored.of_points([1.0, np.nan], [1.0, 2.0])


def test_take_keeps_faces_together() -> None:
    scored = Scored.of_points([1, 2, 3], [4, 5, 7], [0.1, 0.2, 0.3]).take(
        np.array([False, True, True])
    )
    assert scored.error_N.tolist() == [3, 4]
    assert scored.sigma_N.tolist() == [0.2, 0.3]


def test_no_face_has_no_metric() -> None:
    assert math.isnan(metrics.mae(Scored.of_points([], [])))


@pytest.mark.parametrize(
    ("label", "width", "lower"),
    [(0, 10, 0), (9.99, 10, 0), (10, 10, 10), (116, 10, 110), (3.6, 0.3, 3.6), (0.9, 0.3, 0.9)],
)
def test_bands_are_half_open(label: float, width: float, lower: float) -> None:
    assert metrics.bands(np.array([label]), width)[0] == pytest.approx(lower)
