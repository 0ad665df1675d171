"""Figures: what is drawn are the numbers given, titles say the finding, and the same figure gives
the same bytes."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from visage.evaluation import plots
from visage.evaluation.bootstrap import Bootstrap, Estimate, Group, by_group, estimate
from visage.evaluation.metrics import Scored, bands, metric_set

LABELS = np.arange(101.0)
BOOTSTRAP = Bootstrap(num_resamples=50, interval=0.95, seed=1)


def scored(size: int = 200) -> Scored:
    generator = np.random.default_rng(3)
    label_N = np.round(generator.uniform(1, 79, size))
    prediction_N = np.clip(label_N + generator.normal(0, 5, size), 0, 100)
    return Scored(
        label_N=label_N,
        prediction_N=prediction_N,
        sigma_N=np.where(generator.random(size) < 0.5, np.nan, 3.0),
        std_N=np.full(size, 5.0),
        low_N=prediction_N - 6,
        high_N=prediction_N + 6,
        crps_N=np.full(size, 2.0),
    )


def title(figure: Figure) -> str:
    return str(figure.get_suptitle())


def group(name: str, num_faces: int, error: float) -> Group:
    figures = {
        "mae": Estimate(value=error, low=error - 1, high=error + 2),
        "bias": Estimate(value=-1, low=-2, high=0),
    }
    return Group(name=name, num_faces=num_faces, estimates=figures)


def every_figure() -> dict[str, Figure]:
    faces = scored()
    figures = estimate(faces, metric_set([3]), BOOTSTRAP)
    groups = by_group(faces, bands(faces.label_N, 10).tolist(), metric_set([3]), BOOTSTRAP)
    names = {float(lower): f"{lower}s" for lower in range(0, 110, 10)}
    history = {
        "epoch": np.arange(3.0),
        "train_loss": np.ones(3),
        "val_mae": np.array([9.0, 7.0, 8.0]),
    }
    probability_NK = np.full((5, 101), 1 / 101)
    return {
        "predicted_vs_true": plots.predicted_vs_true(faces, figures["mae"], "years"),
        "error_by_band": plots.error_by_band(groups, "age", "years"),
        "cs_curve": plots.cs_curve([0, 3, 6], [figures["cs_3"]] * 3, [3], "years"),
        "group_errors": plots.group_errors({"age": groups}, figures["mae"], "years"),
        "reliability": plots.reliability(
            [0.5, 0.8], [figures["cs_3"]] * 2, figures["coverage_80"], [figures["mae"]] * 2
        ),
        "pit": plots.pit(np.linspace(0.01, 0.8, 200)),
        "confusion": plots.confusion(faces, 10, names, "years"),
        "learning_curves": plots.learning_curves("finetune", history, "years"),
        "label_distributions": plots.label_distributions(
            "five", LABELS, probability_NK, faces.take(np.arange(5)), "y"
        ),
    }


@pytest.mark.parametrize("name", list(every_figure()))
def test_a_figure_is_a_picture_of_its_own_with_a_title_and_the_same_bytes_again(name: str) -> None:
    figure = every_figure()[name]
    picture = plots.png(figure)
    with Image.open(io.BytesIO(picture)) as opened:
        assert min(opened.size) > 300
        assert len(set(opened.convert("L").resize((64, 64)).get_flattened_data())) > 5
    assert title(figure)
    assert plots.png(every_figure()[name]) == picture


def test_titles_name_the_best_and_worst_band_among_those_with_enough_faces() -> None:
    groups = [
        group("0-9", 3, 1.0),
        group("10-19", 50, 4.0),
        group("20-29", 80, 3.0),
        group("90-99", 2, 20.0),
    ]
    assert title(plots.error_by_band(groups, "age", "years")) == (
        "Error by age: lowest at 20-29 (3.0), highest at 10-19 (4.0 years)"
    )
    overall = Estimate(value=3.5, low=3, high=4)
    assert "age 10-19, 4.00 years" in title(plots.group_errors({"age": groups}, overall, "years"))


def test_error_bars_reach_from_low_to_high() -> None:
    axes = plots.error_by_band(
        [group("0-9", 50, 4.0), group("10-19", 50, 6.0)], "age", "years"
    ).axes[0]
    bars = axes.containers[0].lines[2][0].get_segments()
    assert [segment[:, 1].tolist() for segment in bars] == [[3, 6], [5, 8]]


def test_the_reliability_title_reads_the_eighty_percent_interval() -> None:
    def read(share: float) -> str:
        half = Estimate(value=0.5, low=0.5, high=0.5)
        return title(
            plots.reliability([0.5], [half], Estimate(value=share, low=share, high=share), [])
        )

    assert "too narrow" in read(0.6)
    assert "too wide" in read(0.95)
    assert "as wide as they claim" in read(0.81)


def test_the_pit_title_tells_the_unevenness_and_what_chance_makes() -> None:
    """100 values in the lower half: half of them are missing above; 1.36 / sqrt(100)."""
    figure = plots.pit(np.arange(0.0025, 0.5, 0.005))
    assert re.search(r"50\.[23]% off even", title(figure))
    assert "up to 13.6%" in title(figure)
    assert [round(bar.get_height(), 3) for bar in figure.axes[0].patches[:20]] == [0.1] * 10 + [
        0.0
    ] * 10


def test_confusion_rows_are_shares_of_the_labelled_band() -> None:
    faces = Scored.of_points([5, 6, 7, 15], [5, 6, 17, 18])
    figure = plots.confusion(faces, 10, {0.0: "0-9", 10.0: "10-19"}, "years")
    assert title(figure).startswith("75% ")
    assert np.asarray(figure.axes[0].images[0].get_array()).tolist() == [[2 / 3, 1 / 3], [0, 1]]


def test_learning_curves_name_the_best_validation_epoch_and_live_without_one() -> None:
    history = {
        "epoch": np.array([1.0, 2.0, 3.0]),
        "train_mae": np.array([9.0, 8, 7]),
        "val_mae": np.array([8.0, 6, 7]),
    }
    assert "6.00 years at epoch 2, 3 epochs" in title(
        plots.learning_curves("finetune", history, "years")
    )
    del history["val_mae"]
    assert title(plots.learning_curves("pretrain", history, "years")) == "pretrain: 3 epochs"
    history["val_top1"] = np.array([0.1, 0.5, 0.825])
    assert "82.5% of the validation photos recognised after 3" in title(
        plots.learning_curves("pretrain", history, "years")
    )


def test_label_distributions_draw_one_panel_a_face() -> None:
    faces = scored(5)
    figure = plots.label_distributions("worst", LABELS, np.full((5, 101), 0.01), faces, "years")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == [
        f"label {label:.3g}, predicted {prediction:.3g}"
        for label, prediction in zip(faces.label_N, faces.prediction_N, strict=True)
    ]


def test_running_median_leaves_thin_slices_out() -> None:
    x, y = plots.running_median(
        np.array([0.0] * 12 + [1.0] * 9 + [2.0] * 11), np.arange(32.0), num_steps=4
    )
    assert x.tolist() == [0, 2]
    assert y.tolist() == [5.5, 26]
