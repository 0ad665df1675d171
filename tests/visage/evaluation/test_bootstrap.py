"""Bootstrap intervals against a naive resampling loop, theory, and their own settings."""

from __future__ import annotations

import math

import numpy as np
import pytest

from visage.evaluation import bootstrap as bootstrap_module
from visage.evaluation.bootstrap import (
    Bootstrap,
    Estimate,
    by_group,
    cluster_codes,
    cluster_sums,
    estimate,
    paired_bootstrap,
    student,
)
from visage.evaluation.metrics import Scored, mae, metric_set, pearson

BOOTSTRAP = Bootstrap(num_resamples=400, interval=0.9, seed=7)


def faces(size: int, seed: int) -> Scored:
    generator = np.random.default_rng(seed)
    label_N = generator.uniform(10, 70, size)
    sigma_N = np.where(generator.random(size) < 0.2, np.nan, generator.uniform(0.5, 5, size))
    return Scored.of_points(label_N, label_N + generator.normal(1, 5, size), sigma_N)


def naive_draws(units: list[np.ndarray], settings: Bootstrap) -> list[np.ndarray]:
    """The same draws as rows of faces: units with replacement."""
    generator = np.random.default_rng(settings.seed)
    drawn = generator.integers(0, len(units), size=(settings.num_resamples, len(units)))
    return [np.concatenate([units[unit] for unit in row]) for row in drawn]


@pytest.mark.parametrize("clustered", [False, True])
def test_estimates_equal_a_loop_over_resamples(clustered: bool) -> None:
    scored = faces(60, seed=3)
    person_N = [f"person {row % 13}" for row in range(60)]
    names = list(dict.fromkeys(person_N))
    units = (
        [np.flatnonzero(np.array(person_N) == name) for name in names]
        if clustered
        else list(np.arange(60)[:, None])
    )
    metrics = metric_set([3, 5])
    found = estimate(scored, metrics, BOOTSTRAP, cluster_codes(person_N) if clustered else None)
    samples = [scored.take(rows) for rows in naive_draws(units, BOOTSTRAP)]
    for name in ("mae", "rmse", "pearson", "epsilon_error", "bias", "cs_3", "cs_5"):
        low, high = np.quantile([metrics[name](sample) for sample in samples], [0.05, 0.95])
        assert found[name] == Estimate(
            value=pytest.approx(metrics[name](scored), abs=1e-12),
            low=pytest.approx(low, abs=1e-9),
            high=pytest.approx(high, abs=1e-9),
        )


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = faces(50, seed=1)
    at_once = estimate(scored, {"mae": mae}, BOOTSTRAP)
    monkeypatch.setattr(bootstrap_module, "CHUNK_DRAWS", 120)
    pieces = estimate(scored, {"mae": mae}, BOOTSTRAP)
    assert vars(pieces["mae"]) == pytest.approx(vars(at_once["mae"]), abs=1e-12)


def test_an_interval_of_the_mean_is_as_wide_as_theory_says() -> None:
    scored = faces(2000, seed=5)
    found = estimate(scored, {"mae": mae}, Bootstrap(num_resamples=2000, interval=0.95, seed=1))[
        "mae"
    ]
    standard_error = np.abs(scored.error_N).std() / math.sqrt(2000)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * standard_error, rel=0.08)
    assert found.low < found.value < found.high


def test_drawing_people_widens_the_interval_when_their_pictures_err_alike() -> None:
    generator = np.random.default_rng(2)
    person_N = np.repeat(np.arange(40), 10)
    scored = Scored.of_points(np.zeros(400), generator.normal(0, 5, 40)[person_N])
    plain = estimate(scored, {"mae": mae}, BOOTSTRAP)["mae"]
    clustered = estimate(scored, {"mae": mae}, BOOTSTRAP, person_N)["mae"]
    assert clustered.value == plain.value
    assert clustered.high - clustered.low > 2 * (plain.high - plain.low)


def test_a_face_without_a_person_stands_for_itself() -> None:
    summand_NS = np.arange(4.0)[:, None]
    assert cluster_sums(summand_NS, cluster_codes(["a", None, "a", None])).ravel().tolist() == [
        2,
        1,
        3,
    ]
    assert cluster_sums(summand_NS, cluster_codes([0, 1, 0, 1])).ravel().tolist() == [2, 4]
    assert cluster_codes(["b", "a", "b", None, None]).tolist() == [0, 1, 0, 2, 3]


def test_undefined_metrics_stay_undefined_without_a_warning() -> None:
    found = estimate(Scored.of_points([5, 5], [1, 2]), metric_set([3]), BOOTSTRAP)
    assert all(
        math.isnan(end)
        for name in ("pearson", "crps", "coverage_80", "epsilon_error")
        for end in vars(found[name]).values()
    )


def test_resamples_in_which_a_correlation_is_undefined_are_left_out() -> None:
    found = estimate(Scored.of_points([1, 2, 3], [1, 2, 4]), {"pearson": pearson}, BOOTSTRAP)[
        "pearson"
    ]
    assert -1 <= found.low <= found.high <= 1


def test_one_face_has_an_interval_of_no_width() -> None:
    assert estimate(Scored.of_points([20], [26]), {"mae": mae}, BOOTSTRAP)["mae"] == Estimate(
        value=6, low=6, high=6
    )


def test_paired_difference_is_sharper_than_two_intervals_and_has_the_right_sign() -> None:
    generator = np.random.default_rng(4)
    hardness_N = generator.exponential(6, 500)
    error_a_N, error_b_N = (
        hardness_N + generator.normal(0, 0.3, 500),
        -hardness_N - 0.2 + generator.normal(0, 0.3, 500),
    )
    found = paired_bootstrap(error_a_N, error_b_N, BOOTSTRAP)
    assert found.value == pytest.approx(np.abs(error_a_N).mean() - np.abs(error_b_N).mean())
    assert found.low < found.value < found.high < 0
    assert found.share_below == 1
    swapped = paired_bootstrap(error_b_N, error_a_N, BOOTSTRAP)
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx(
        (-found.value, -found.high, -found.low), abs=1e-6
    )
    assert paired_bootstrap(error_a_N, error_a_N, BOOTSTRAP).share_below == 0


def test_by_group_counts_every_face_once_and_equals_the_group_alone() -> None:
    scored = faces(90, seed=8)
    group_N = [[20.0, 10.0, None][row % 3] for row in range(90)]
    table = by_group(scored, group_N, {"mae": mae}, BOOTSTRAP, name=lambda lower: f"from {lower:g}")
    assert [(group.name, group.num_faces) for group in table] == [
        ("from 10", 30),
        ("from 20", 30),
        ("unknown", 30),
    ]
    assert table[0].estimates == estimate(scored.take(np.arange(1, 90, 3)), {"mae": mae}, BOOTSTRAP)


def test_refusals_name_the_value() -> None:
    with pytest.raises(ValueError, match="num_resamples is 0"):
        Bootstrap(num_resamples=0, interval=0.95, seed=1)
    with pytest.raises(ValueError, match="interval is 95"):
        Bootstrap(num_resamples=10, interval=95, seed=1)
    with pytest.raises(ValueError, match="no face to evaluate"):
        estimate(Scored.of_points([], []), {"mae": mae}, BOOTSTRAP)
    with pytest.raises(ValueError, match="same faces twice"):
        paired_bootstrap(np.zeros(3), np.zeros(2), BOOTSTRAP)


def test_students_interval_of_three_values() -> None:
    """4.303 is Student's t for 2 degrees of freedom and 95 %."""
    found = student([4.0, 5.0, 6.0], 0.95)
    assert [found.value, found.low, found.high] == pytest.approx(
        [5.0, 5 - 4.302653 / 3**0.5, 5 + 4.302653 / 3**0.5]
    )
