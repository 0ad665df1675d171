"""Figures of a sweep: what is drawn is what was given."""

from __future__ import annotations

import numpy as np
import pytest

from visage.evaluation.plots import VERMILION, png
from visage.evaluation.sweep_plots import Dimension, Part, parallel_coordinates, sensitivity

LAMBDA = Dimension(
    name="lambda",
    place_T=np.array([0.01, 0.1, 1.0, 10.0]),
    ends=(0.01, 10.0),
    is_log=True,
    labels=(),
)
METHOD = Dimension(
    name="method",
    place_T=np.array([0.0, 1.0, 1.0, 0.0]),
    ends=(0.0, 1.0),
    is_log=False,
    labels=("er", "dldl"),
)
ERROR_T = np.array([4.0, 3.0, np.nan, 5.0])
IS_FINISHED_T = np.array([True, True, False, False])


def test_places_on_a_logarithmic_axis() -> None:
    assert LAMBDA.height(LAMBDA.place_T) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert LAMBDA.ticks()[1] == ["0.01", "0.1", "1", "10"]
    assert METHOD.ticks()[1] == ["er", "dldl"]


def test_a_line_a_trial_that_has_an_error() -> None:
    figure = parallel_coordinates([LAMBDA, METHOD], ERROR_T, IS_FINISHED_T, best=1, unit="years")
    axes = figure.axes[0]
    drawn = [
        np.asarray(line.get_ydata(), float)
        for line in axes.get_lines()
        if len(np.asarray(line.get_ydata())) == 3
    ]
    assert [line.tolist() for line in drawn] == [
        pytest.approx([0, 0, 0.5]),
        pytest.approx([1 / 3, 1, 0]),
        pytest.approx([1, 0, 1]),
        pytest.approx([1 / 3, 1, 0]),  # the best one again
    ]
    assert [line.get_linestyle() for line in axes.get_lines()[:3]] == ["-", "-", "--"]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "lambda",
        "method",
        "validation MAE (years)",
    ]
    assert "3.00 years" in figure.get_suptitle()
    assert png(figure).startswith(b"\x89PNG")


def test_means_with_their_intervals() -> None:
    parts = [
        Part(place=0.03, mean=3.5, low=3.0, high=4.0),
        Part(place=3.0, mean=5.0, low=np.nan, high=np.nan),
    ]
    figure = sensitivity([LAMBDA, METHOD], [parts, []], ERROR_T, IS_FINISHED_T, "years")
    axes = figure.axes[0]
    [line] = [
        line
        for line in axes.get_lines()
        if line.get_color() == VERMILION and line.get_marker() == "s"
    ]
    assert np.asarray(line.get_ydata()).tolist() == [3.5, 5.0]
    assert axes.get_xscale() == "log"
    assert "lambda 1.50" in figure.get_suptitle()
    assert axes.get_ylabel() == "validation MAE (years)"
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["er", "dldl"]
