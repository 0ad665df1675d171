"""Figures of a search over settings: arrays -> matplotlib figures.

Colours are Okabe and Ito's and viridis, which colour-blind readers can distinguish; lines and
markers differ in form, too.
Shapes: T trials, G parts of a dimension's range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from visage.evaluation.metrics import FloatArray
from visage.evaluation.plots import BLUE, GREY, VERMILION, canvas, dress

BoolArray = npt.NDArray[np.bool_]

# So many values of a choice are written at their places.
FEW = 12


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One setting over all trials. `place_T`: its values as numbers, or the numbers of `labels`
    where it has names. `ends`: of what was searched. `is_log`: drawn on a logarithmic axis."""

    name: str
    place_T: FloatArray
    ends: tuple[float, float]
    is_log: bool
    labels: tuple[str, ...]

    def height(self, place: FloatArray) -> FloatArray:
        """Places -> 0 to 1 along the axis."""
        low, high = self.ends
        values = np.asarray(place, np.float64)
        if self.is_log:
            low = np.log(low)
            high = np.log(high)
            values = np.log(values)

        length = high - low if high > low else 1.0
        return np.asarray((values - low) / length, np.float64)

    def ticks(self) -> tuple[FloatArray, list[str]]:
        """Places and words to write along the axis."""
        if self.labels:
            return np.arange(len(self.labels), dtype=np.float64), list(self.labels)

        known = np.unique(self.place_T)
        if len(known) <= FEW and np.isin(self.ends, known).all():
            return known, [f"{value:g}" for value in known]

        spread = np.geomspace if self.is_log else np.linspace
        places = spread(self.ends[0], self.ends[1], 4)
        return places, [f"{value:.3g}" for value in places]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A value or part of a dimension's range: where it is drawn, the mean error of its finished
    trials, its interval (not a number where it has fewer than two)."""

    place: float
    mean: float
    low: float
    high: float


def parallel_coordinates(
    dimensions: Sequence[Dimension],
    error_T: FloatArray,
    is_finished_T: BoolArray,
    best: int,
    unit: str,
) -> Figure:
    """A line a trial through its settings to its error; those that were ended early are dashed, the
    best is wide."""
    kept = np.isfinite(error_T)
    figure = canvas(
        f"The best of {len(error_T)} trials is {error_T[best]:.2f} {unit} off on validation faces",
        2.2 + 1.9 * (len(dimensions) + 1),
        4.6,
    )
    axes = figure.subplots()

    finished = error_T[kept & is_finished_T]
    scale = Normalize(finished.min(), max(finished.max(), finished.min() + 1e-9), clip=True)
    colours = ScalarMappable(scale, "viridis")

    low = float(error_T[kept].min())
    high = float(error_T[kept].max())
    length = high - low if high > low else 1.0
    heights = [one.height(one.place_T) for one in dimensions]
    heights.append((error_T - low) / length)
    x = np.arange(len(heights))
    y_TD = np.stack(heights, axis=1)

    for trial in np.flatnonzero(kept):
        look: dict[str, Any] = {"color": colours.to_rgba(error_T[trial]), "linewidth": 1.5}
        if not is_finished_T[trial]:
            look = {"color": GREY, "linestyle": "--", "linewidth": 0.8, "alpha": 0.6}
        axes.plot(x, y_TD[trial], **look)
    axes.plot(x, y_TD[best], color=VERMILION, linewidth=3.5, marker="o", label="best")
    axes.plot(
        [],
        [],
        color=GREY,
        linestyle="--",
        linewidth=0.8,
        label="ended early: error after its last epoch",
    )

    for place, dimension in enumerate(dimensions):
        ticks, words = dimension.ticks()
        _scale_at(axes, place, list(zip(dimension.height(ticks), words, strict=True)))
    errors = [((error - low) / length, f"{error:.2f}") for error in np.linspace(low, high, 4)]
    _scale_at(axes, len(dimensions), errors)

    names = [dimension.name for dimension in dimensions]
    axes.set_xticks(x, [*names, f"validation MAE ({unit})"])
    axes.set_yticks([])
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.set_xlim(-0.3, len(heights) - 0.6)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    figure.colorbar(
        colours, ax=axes, label=f"finished trials: validation MAE ({unit})", shrink=0.85
    )
    return figure


def _scale_at(axes: Axes, x: float, ticks: Sequence[tuple[float, str]]) -> None:
    """A vertical axis with words at their heights."""
    axes.axvline(x, color="black", linewidth=0.8)
    for height, word in ticks:
        axes.annotate(
            word,
            (x, height),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=8,
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        )


def sensitivity(
    dimensions: Sequence[Dimension],
    parts: Sequence[Sequence[Part]],
    error_T: FloatArray,
    is_finished_T: BoolArray,
    unit: str,
) -> Figure:
    """A panel a dimension: every trial's error against its setting, and each part's mean with its
    95 % interval."""
    spreads = []
    for one, own in zip(dimensions, parts, strict=True):
        means = [part.mean for part in own]
        if means:
            spreads.append(f"{one.name} {max(means) - min(means):.2f}")
    words = ", ".join(spreads)

    figure = canvas(
        f"From the best mean to the worst, in {unit}: {words}", 1.0 + 3.4 * len(dimensions), 4.2
    )
    panels = np.atleast_1d(figure.subplots(1, len(dimensions), sharey=True))
    finished = is_finished_T & np.isfinite(error_T)
    early = ~is_finished_T & np.isfinite(error_T)

    for axes, one, own in zip(panels, dimensions, parts, strict=True):
        axes.plot(
            one.place_T[early],
            error_T[early],
            color=GREY,
            marker="o",
            markerfacecolor="none",
            linestyle="none",
            markersize=4,
            label="ended early",
        )
        axes.plot(
            one.place_T[finished],
            error_T[finished],
            color=BLUE,
            marker="o",
            linestyle="none",
            markersize=4,
            alpha=0.7,
            label="finished",
        )

        place = np.array([part.place for part in own])
        mean = np.array([part.mean for part in own])
        below = [part.mean - part.low for part in own]
        above = [part.high - part.mean for part in own]
        span = np.nan_to_num(np.array([below, above]))
        axes.errorbar(
            place,
            mean,
            span,
            color=VERMILION,
            marker="s",
            capsize=4,
            linewidth=1.5,
            label="mean of the finished, 95 % interval",
        )

        if one.is_log:
            axes.set_xscale("log")
        axes.set_xticks(*one.ticks())
        axes.minorticks_off()
        height = f"validation MAE ({unit})" if axes is panels[0] else ""
        dress(axes, one.name, height)

    panels[0].legend(frameon=False, fontsize=8)
    return figure
