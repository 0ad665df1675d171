"""What an evaluation says beyond the metrics: clusters, curves, reliability, names of bands."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.small_model import small_config
from visage.evaluation.bootstrap import Bootstrap
from visage.evaluation.evaluate import Answers, assess, band_name, reliability
from visage.evaluation.metrics import Scored, deviation_from_uniform
from visage.inference.calibration import tempered
from visage.labels import LabelGrid, central_interval, expectation
from visage.model_config import INTERVAL_MASS, CalibrationConfig

GRID = LabelGrid(minimum=0.0, step=1.0, maximum=100.0)
BOOTSTRAP = Bootstrap(num_resamples=60, interval=0.95, seed=1)


def calibrated_answers(size: int, width: float, person: bool) -> Answers:
    """Gaussians of standard deviation 8 times `width` around centres of which the labels are 8 away
    on average."""
    generator = np.random.default_rng(6)
    centre_N = generator.uniform(35, 65, size)
    label_N = centre_N + generator.normal(0, 8, size)
    density_NK = np.exp(-0.5 * ((GRID.labels() - centre_N[:, None]) / (8 * width)) ** 2)
    p_NK = torch.from_numpy(density_NK / density_NK.sum(axis=1, keepdims=True))
    low, high = central_interval(p_NK, GRID)
    points = Scored.of_points(label_N, expectation(p_NK, GRID).numpy())
    scored = Scored(
        **{**vars(points), "low_N": low.numpy(), "high_N": high.numpy(), "crps_N": np.zeros(size)}
    )
    return Answers(
        name="test",
        photo_id_N=np.array([f"{row}.jpg" for row in range(size)], dtype=object),
        sha256_N=np.array([f"{row:064x}" for row in range(size)], dtype=object),
        person_N=np.array(
            [f"person {row // 10}" if person else None for row in range(size)], dtype=object
        ),
        cluster_N=np.arange(size) // (10 if person else 1),
        attribute={
            "sex": np.array([None] * size, dtype=object),
            "ethnicity": np.array(["a", "b"] * (size // 2), dtype=object),
        },
        sigma_N=scored.sigma_N,
        scored=scored,
        probability_NK=p_NK.numpy().astype(np.float32),
    )


def test_reliability_is_the_diagonal_for_a_calibrated_model_and_tells_on_others() -> None:
    for mass, share in reliability(calibrated_answers(4000, 1.0, False), GRID, BOOTSTRAP).items():
        assert share.value == pytest.approx(mass, abs=0.03)
        assert share.low <= share.value <= share.high
    assert reliability(calibrated_answers(1000, 0.4, False), GRID, BOOTSTRAP)[0.8].value < 0.5
    assert reliability(calibrated_answers(1000, 2.5, False), GRID, BOOTSTRAP)[0.8].value > 0.95


def test_reliability_at_eighty_percent_is_the_coverage_that_is_reported() -> None:
    answers = calibrated_answers(500, 1.0, False)
    evaluation = assess(
        answers,
        small_config(grid=GRID, network=small_config().network),
        None,
        BOOTSTRAP,
        [5.0],
        10.0,
    )
    assert evaluation.reliability[0.8].value == pytest.approx(
        evaluation.figures["coverage_80"].value, abs=0.004
    )


def test_what_calibration_changed_is_reported() -> None:
    """Tempered by 2.5^2, Gaussians 0.4 times too narrow are as wide as they should be; undone, they
    are too narrow."""
    sure = calibrated_answers(1500, 0.4, False)
    config = small_config(grid=GRID)
    known = CalibrationConfig(
        temperature=2.5**2, mass=INTERVAL_MASS, offset=0.0, num_faces=100, flip=True
    )
    p_NK = tempered(torch.from_numpy(sure.probability_NK).double(), known.temperature)
    served = dataclasses.replace(sure, probability_NK=p_NK.numpy().astype(np.float32))

    plain = assess(sure, config, None, BOOTSTRAP, [5.0], 10.0)
    found = assess(served, config, known, BOOTSTRAP, [5.0], 10.0)
    assert plain.uncalibrated == {}
    for mass, before in found.uncalibrated.items():
        assert before.value == pytest.approx(plain.reliability[mass].value, abs=0.002)
        assert found.reliability[mass].value == pytest.approx(mass, abs=0.04)
    assert deviation_from_uniform(found.pit_N) < 0.04 < 0.1 < deviation_from_uniform(plain.pit_N)
    again = assess(served, config, None, BOOTSTRAP, [5.0], 10.0)
    np.testing.assert_array_equal(again.pit_N, found.pit_N)


def test_an_unknown_attribute_has_no_table_and_the_curve_passes_through_the_scores() -> None:
    evaluation = assess(
        calibrated_answers(200, 1.0, False), small_config(grid=GRID), None, BOOTSTRAP, [5.0], 10.0
    )
    assert list(evaluation.groups) == ["age", "ethnicity"]
    assert evaluation.cs_curve[5.0] == evaluation.figures["cs_5"]
    assert max(evaluation.cs_curve) == 20


def test_intervals_draw_people_where_they_are_known() -> None:
    """Faces of a person are drawn together: other intervals, the same values."""
    alone, people = (
        assess(
            calibrated_answers(200, 1.0, p), small_config(grid=GRID), None, BOOTSTRAP, [5.0], 10.0
        )
        for p in (False, True)
    )
    assert alone.figures["mae"].value == people.figures["mae"].value
    assert alone.figures["mae"].low != people.figures["mae"].low


@pytest.mark.parametrize(
    ("lower", "width", "step", "name"),
    [(20, 10, 1, "20-29"), (3, 1, 0.1, "3-3.9"), (30, 10, 10, "30"), (0, 5, 1, "0-4")],
)
def test_bands_are_named_by_their_first_and_last_label(
    lower: float, width: float, step: float, name: str
) -> None:
    assert band_name(lower, width, step) == name
