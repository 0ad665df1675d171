"""Figures of an evaluation: arrays and estimates -> matplotlib figures -> PNG bytes.

Titles state the result, computed from the numbers shown. Colours are those of Okabe and Ito, which
colour-blind readers can distinguish; densities use viridis. No figure holds a photo. Figures are
made without pyplot, so nothing global is left.

Shapes: N faces, K labels, F faces shown one by one. Label units are named by `unit`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from visage.evaluation.bootstrap import Estimate, Group
from visage.evaluation.metrics import (
    PIT_BINS,
    FloatArray,
    Scored,
    bands,
    deviation_from_uniform,
    pit_histogram,
)
from visage.model_config import INTERVAL_MASS

BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
VERMILION = "#D55E00"
GREY = "#7F7F7F"

DOTS_PER_INCH = 130

SPLIT_TITLES = {"train": "training", "val": "validation"}

# What a training's columns measure.
CURVE_TITLES = {"top1": "share recognised (top-1)"}

# Smaller groups are drawn hollow: their intervals are too short to trust.
FEW_FACES = 30


def png(figure: Figure) -> bytes:
    """The figure as PNG, its title inside as text; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    about = {"Software": None, "Title": figure.get_suptitle()}
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata=about)
    return buffer.getvalue()


def canvas(title: str, width_in: float, height_in: float) -> Figure:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def dress(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def spans(estimates: Sequence[Estimate]) -> tuple[FloatArray, FloatArray]:
    """Values (G,) and the lengths (2, G) of their error bars."""
    numbers = [[e.value, e.low, e.high] for e in estimates]
    rows = np.array(numbers, dtype=np.float64).reshape(-1, 3)
    return rows[:, 0], np.clip(np.abs(rows[:, 1:] - rows[:, :1]).T, 0, None)


def firm(groups: Sequence[Group]) -> list[Group]:
    """The groups large enough to be called best or worst; all of them where none is."""
    return [group for group in groups if group.num_faces >= FEW_FACES] or list(groups)


def _mae_of(group: Group) -> float:
    return group.estimates["mae"].value


def predicted_vs_true(scored: Scored, mae: Estimate, unit: str) -> Figure:
    """Density of (label, prediction) with the diagonal and the median prediction of each label."""
    figure = canvas(
        f"Predictions are {mae.value:.2f} {unit} off on average (interval {mae.low:.2f} to "
        f"{mae.high:.2f}, {len(scored):,} faces)",
        6.6,
        5.6,
    )
    axes = figure.subplots()

    ends = [
        min(scored.label_N.min(), scored.prediction_N.min()),
        max(scored.label_N.max(), scored.prediction_N.max()),
    ]
    margin = 0.03 * (ends[1] - ends[0]) + 1e-6
    extent = (ends[0] - margin, ends[1] + margin, ends[0] - margin, ends[1] + margin)
    density = axes.hexbin(
        scored.label_N,
        scored.prediction_N,
        gridsize=45,
        extent=extent,
        mincnt=1,
        norm=LogNorm(),
        cmap="viridis",
    )
    bar = figure.colorbar(density, ax=axes, label="faces in a cell (log scale)", shrink=0.85)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(lambda faces, _: f"{faces:,.0f}")
    bar.ax.yaxis.set_minor_locator(NullLocator())

    axes.plot(ends, ends, color=GREY, linewidth=1.2, linestyle="--", label="exact")
    x, y = running_median(scored.label_N, scored.prediction_N, num_steps=20)
    axes.plot(
        x,
        y,
        color=VERMILION,
        linewidth=2,
        marker="o",
        markersize=3.5,
        label="median prediction",
    )

    axes.legend(frameon=False, loc="upper left")
    axes.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
    dress(axes, f"label ({unit})", f"prediction ({unit})")
    return figure


def running_median(
    x_N: FloatArray, y_N: FloatArray, num_steps: int
) -> tuple[FloatArray, FloatArray]:
    """Medians of x and y in `num_steps` equal slices of the range of x that hold at least ten
    faces."""
    edges = np.linspace(x_N.min(), x_N.max(), num_steps + 1)
    slice_N = np.clip(np.searchsorted(edges, x_N, side="right") - 1, 0, num_steps - 1)

    middles = []
    for index in range(num_steps):
        is_inside_N = slice_N == index
        if is_inside_N.sum() >= 10:
            middles.append((np.median(x_N[is_inside_N]), np.median(y_N[is_inside_N])))

    pairs = np.array(middles, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def error_by_band(groups: Sequence[Group], quantity: str, unit: str) -> Figure:
    """MAE and bias of every band of the label with intervals, above the number of faces."""
    worst = max(firm(groups), key=_mae_of)
    best = min(firm(groups), key=_mae_of)
    figure = canvas(
        f"Error by {quantity}: lowest at {best.name} ({_mae_of(best):.1f}), "
        f"highest at {worst.name} ({_mae_of(worst):.1f} {unit})",
        7,
        5.2,
    )
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])

    place = np.arange(len(groups))
    for name, colour, marker, label, shift in (
        ("mae", BLUE, "o", "mean absolute error", -0.08),
        ("bias", VERMILION, "s", "bias (above 0: predicted too high)", 0.08),
    ):
        value, span = spans([group.estimates[name] for group in groups])
        top.errorbar(
            place + shift,
            value,
            span,
            color=colour,
            marker=marker,
            linestyle="none",
            capsize=3,
            label=label,
        )
    top.axhline(0, color=GREY, linewidth=0.8)
    top.legend(frameon=False)
    dress(top, "", unit)

    bars = bottom.bar(place, [group.num_faces for group in groups], color=GREY)
    bottom.bar_label(bars, fontsize=7, fmt="{:,.0f}")
    bottom.margins(y=0.3)
    names = [group.name for group in groups]
    rotation = 45 if len(groups) > 8 else 0
    bottom.set_xticks(place, names, rotation=rotation)
    dress(bottom, f"labelled {quantity} ({unit})", "faces")
    return figure


def cs_curve(
    thresholds: Sequence[float], scores: Sequence[Estimate], marked: Sequence[float], unit: str
) -> Figure:
    """Share of faces within k label units against k, with its interval; `marked` thresholds are
    labelled with their value."""
    value = np.array([score.value for score in scores])
    enough = (k for k, share in zip(thresholds, value, strict=True) if share >= 0.5)
    half = next(enough, thresholds[-1])
    figure = canvas(f"Half of the faces are within {half:g} {unit} of their label", 6, 4.4)
    axes = figure.subplots()

    axes.fill_between(
        thresholds,
        [s.low for s in scores],
        [s.high for s in scores],
        color=BLUE,
        alpha=0.25,
        linewidth=0,
    )
    axes.plot(thresholds, value, color=BLUE, linewidth=2)

    for k in marked:
        share = float(np.interp(k, thresholds, value))
        axes.plot(k, share, color=VERMILION, marker="o")
        axes.annotate(
            f"CS@{k:g} = {share:.1%}",
            (k, share),
            xytext=(8, -10),
            textcoords="offset points",
            fontsize=9,
        )

    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    dress(axes, f"absolute error at most k ({unit})", "share of faces, CS@k")
    return figure


def group_errors(tables: Mapping[str, Sequence[Group]], overall: Estimate, unit: str) -> Figure:
    """MAE of every group with its interval, next to that of all faces; groups of fewer than 30
    faces are hollow."""
    rows = [(attribute, group) for attribute, groups in tables.items() for group in groups]
    worst = max(firm([group for _, group in rows]), key=_mae_of)
    attribute = next(attribute for attribute, group in rows if group is worst)
    figure = canvas(
        f"Hardest: {attribute} {worst.name}, {_mae_of(worst):.2f} {unit} off; all faces "
        f"{overall.value:.2f}",
        7,
        1.2 + 0.28 * len(rows),
    )
    axes = figure.subplots()

    axes.axvspan(overall.low, overall.high, color=GREY, alpha=0.25, linewidth=0)
    axes.axvline(overall.value, color=GREY, linewidth=1)

    colours = dict(zip(tables, (BLUE, VERMILION, GREEN, ORANGE), strict=False))
    for place, (attribute, group) in enumerate(rows):
        value, span = spans([group.estimates["mae"]])
        face = colours[attribute] if group.num_faces >= FEW_FACES else "white"
        axes.errorbar(
            value,
            [place],
            xerr=span,
            color=colours[attribute],
            marker="o",
            markerfacecolor=face,
            capsize=3,
        )

    names = [f"{attribute}: {g.name}  ({g.num_faces:,})" for attribute, g in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    dress(
        axes, f"mean absolute error ({unit}); grey: all faces; hollow: under {FEW_FACES} faces", ""
    )
    return figure


def reliability(
    masses: Sequence[float],
    covered: Sequence[Estimate],
    served: Estimate,
    before: Sequence[Estimate],
) -> Figure:
    """Share of labels inside the central interval of a given mass: on the diagonal where the model
    is calibrated.

    `served`: the share inside the predicted interval, of INTERVAL_MASS; `before`: the shares before
    calibration, none where there was none.
    """
    share = served.value
    if abs(share - INTERVAL_MASS) < 0.03:
        verdict = "as wide as they claim"
    elif share > INTERVAL_MASS:
        verdict = "too wide"
    else:
        verdict = "too narrow"

    figure = canvas(
        f"Intervals are {verdict}: those of {INTERVAL_MASS:.0%} hold {share:.1%} of the labels",
        6.2,
        5.2,
    )
    axes = figure.subplots()

    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2, label="as claimed")
    if before:
        value, span = spans(before)
        axes.errorbar(
            masses, value, span, color=ORANGE, marker="s", capsize=3, label="before calibration"
        )
    value, span = spans(covered)
    axes.errorbar(masses, value, span, color=BLUE, marker="o", capsize=3, label="central intervals")
    value, span = spans([served])
    axes.errorbar(
        [INTERVAL_MASS],
        value,
        span,
        color=VERMILION,
        marker="D",
        capsize=3,
        label="the predicted interval",
    )

    axes.legend(frameon=False, loc="upper left")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    dress(axes, "mass of the central interval", "share of labels inside it")
    return figure


def pit(pit_N: FloatArray) -> Figure:
    """Histogram of where labels fall in their distributions: level for a calibrated model, a U
    where it is too sure, a hill where it doubts too much, a slope where it is off to one side."""
    low, high, share = pit_histogram(pit_N)

    # One calibrated model in twenty exceeds it (Kolmogorov).
    chance = 1.36 / np.sqrt(len(pit_N))
    figure = canvas(
        f"Where labels fall in their distributions: {deviation_from_uniform(pit_N):.1%} off even "
        f"(by chance up to {chance:.1%})",
        6.6,
        4.2,
    )
    axes = figure.subplots()

    axes.bar(low, share, high - low, align="edge", color=BLUE, alpha=0.75, edgecolor="white")
    level = 1 / PIT_BINS
    spread = 1.96 * np.sqrt((1 - 1 / PIT_BINS) / PIT_BINS / len(pit_N))
    axes.axhspan(level - spread, level + spread, color=GREY, alpha=0.25, linewidth=0)
    axes.axhline(level, color=GREY, linestyle="--", linewidth=1.2)

    axes.set_xlim(0, 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
    dress(axes, "share of the distribution below the label (PIT); grey: chance", "share of labels")
    return figure


def confusion(scored: Scored, width: float, names: Mapping[float, str], unit: str) -> Figure:
    """Of the faces labelled in a band (row), the share predicted in each band (column)."""
    true_N = bands(scored.label_N, width)
    predicted_N = bands(scored.prediction_N, width)
    keys = sorted(set(true_N.tolist()) | set(predicted_N.tolist()))

    counts = []
    for key in keys:
        predicted_of_row = predicted_N[true_N == key]
        counts.append([(predicted_of_row == column).sum() for column in keys])
    count_GG = np.array(counts)
    share_GG = count_GG / np.clip(count_GG.sum(axis=1, keepdims=True), 1, None)

    figure = canvas(
        f"{np.trace(count_GG) / len(scored):.0%} of the faces are predicted in their own band",
        6.4,
        5.4,
    )
    axes = figure.subplots()
    picture = axes.imshow(share_GG, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, label="share of the row", shrink=0.85)

    for row, column in zip(*np.nonzero(share_GG >= 0.005), strict=True):
        ink = "white" if share_GG[row, column] > 0.6 else "black"
        axes.text(
            column,
            row,
            f"{share_GG[row, column]:.0%}",
            ha="center",
            va="center",
            color=ink,
            fontsize=8,
        )

    ticks = [names[key] for key in keys]
    axes.set_xticks(range(len(keys)), ticks, rotation=45)
    axes.set_yticks(range(len(keys)), ticks)
    axes.set(xlabel=f"predicted ({unit})", ylabel=f"labelled ({unit})")
    return figure


def learning_curves(stage: str, history: Mapping[str, FloatArray], unit: str) -> Figure:
    """Training and validation curves by epoch: one panel for every `train_x`, `val_x` pair of
    columns.

    `history` maps column names to numbers per epoch and has the column `epoch`; other columns are
    not drawn.
    """
    kinds = []
    for name in history:
        split, underscore, kind = name.partition("_")
        if split in ("train", "val") and underscore and kind not in kinds:
            kinds.append(kind)

    figure = canvas(f"{stage}: {course(history, unit)}", 4.2 * max(1, len(kinds)), 3.6)
    marker = "o" if len(history["epoch"]) < 15 else None

    for axes, kind in zip(np.ravel(figure.subplots(1, len(kinds))), kinds, strict=True):
        for split, colour, style in (("train", ORANGE, "--"), ("val", BLUE, "-")):
            if f"{split}_{kind}" in history:
                axes.plot(
                    history["epoch"],
                    history[f"{split}_{kind}"],
                    color=colour,
                    linestyle=style,
                    linewidth=1.8,
                    marker=marker,
                    markersize=3,
                    label=SPLIT_TITLES[split],
                )

        axes.legend(frameon=False)
        dress(axes, "epoch", f"MAE ({unit})" if kind == "mae" else CURVE_TITLES.get(kind, kind))
    return figure


def course(history: Mapping[str, FloatArray], unit: str) -> str:
    """The result of a training in words: its best validation epoch, or the top-1 of its last."""
    epochs = len(history["epoch"])

    if "val_mae" in history and np.isfinite(history["val_mae"]).any():
        best = int(np.nanargmin(history["val_mae"]))
        value = history["val_mae"][best]
        epoch = history["epoch"][best]
        return (
            f"lowest validation error {value:.2f} {unit} at epoch {epoch:g}, {epochs} epochs in all"
        )

    if "val_top1" in history:
        share = history["val_top1"][-1]
        return f"{share:.1%} of the validation photos recognised after {epochs} epochs"

    return f"{epochs} epochs"


def label_distributions(
    title: str,
    label_K: FloatArray,
    probability_FK: FloatArray,
    scored: Scored,
    unit: str,
) -> Figure:
    """The predictions for F faces, one panel a face: distribution, 80% interval, prediction, label.

    No photo is shown. A label with an ambiguity sigma is drawn as the band label +- sigma.
    """
    columns = min(4, len(scored))
    rows = -(-len(scored) // columns)
    figure = canvas(title, 2.6 * columns + 0.4, 2.1 * rows + 0.9)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()

    for face, axes in enumerate(panels):
        if face >= len(scored):
            axes.set_visible(False)
            continue

        label = scored.label_N[face]
        prediction = scored.prediction_N[face]
        sigma = scored.sigma_N[face]
        axes.axvspan(
            scored.low_N[face],
            scored.high_N[face],
            color=BLUE,
            alpha=0.12,
            linewidth=0,
            label="80% interval",
        )
        axes.fill_between(
            label_K, probability_FK[face], color=BLUE, alpha=0.45, step="mid", linewidth=0
        )
        if np.isfinite(sigma) and sigma > 0:
            axes.axvspan(label - sigma, label + sigma, color=VERMILION, alpha=0.15, linewidth=0)
        axes.axvline(prediction, color=BLUE, linewidth=1.4, label="prediction")
        axes.axvline(label, color=VERMILION, linewidth=1.4, linestyle="--", label="label")

        axes.set_title(f"label {label:.3g}, predicted {prediction:.3g}", fontsize=8)
        axes.set_yticks([])
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right", "left"]].set_visible(False)

    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower right", ncols=3, frameon=False, fontsize=8)
    figure.supxlabel(unit, fontsize=9)
    return figure
