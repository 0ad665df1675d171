"""Pictures of what a model looks at: average faces with score maps, heat maps of occlusion, sheets
of faces, t-SNE.

Unlike those of `visage.evaluation.plots` these show faces: a picture made of real photos is as
private as the photos are. Shapes: F faces, N faces of a scatter, G groups, P places, K labels, H
and W crop side in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from visage.evaluation.bootstrap import Estimate
from visage.evaluation.metrics import FloatArray
from visage.evaluation.plots import BLUE, VERMILION, canvas

Pixels = npt.NDArray[np.uint8]

# Colour maps.
HEAT = "inferno"
LOSS = "RdBu_r"
SCATTER = "viridis"

# Of a score map over a grey face.
MAP_ALPHA = 0.55

SHEET_COLUMNS = 8

# The colours end at this quantile of all places' losses: one extreme place must not pale the
# others.
LOSS_QUANTILE = 0.98


@dataclass(frozen=True, kw_only=True)
class GroupView:
    """Faces of one group as they look on average: face (H,W,3) from 0 to 1, score map (H,W), MAE in
    label units, and what covering each square (row by row, top row first) and each stripe (from the
    top) costs relative to it."""

    name: str
    num_faces: int
    mae: float
    face_HW3: FloatArray
    score_HW: FloatArray
    squares: Sequence[Estimate]
    stripes: Sequence[Estimate]


def show_face(axes: Axes, face: Pixels | FloatArray) -> None:
    """A face without ticks."""
    axes.imshow(face)
    axes.set_axis_off()


def show_score(axes: Axes, face: Pixels | FloatArray, score_HW: npt.NDArray[np.floating]) -> None:
    """A score map over the face in grey, from its own lowest to its own highest score."""
    axes.imshow(np.asarray(face, np.float64).mean(axis=2), cmap="gray")
    axes.imshow(score_HW, cmap=HEAT, alpha=MAP_ALPHA)
    axes.set_axis_off()


def score_bar(figure: Figure, axes: Sequence[Axes]) -> None:
    """The colours of score maps, which have no common unit."""
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), HEAT),
        ax=axes,
        aspect=30,
        shrink=0.8,
        fraction=0.04,
        pad=0.01,
    )
    bar.set_ticks([0, 1], labels=["lowest", "highest"], fontsize=8)
    bar.set_label("score within each map", fontsize=8)


def score_maps(groups: Sequence[GroupView], unit: str) -> Figure:
    """Fig. 6, averaged: the mean face of each group above its mean score map."""
    figure = canvas("Where the score maps of each group are highest", 1.5 * len(groups) + 0.8, 3.7)
    panels = figure.subplots(2, len(groups), squeeze=False)

    for (top, bottom), group in zip(panels.T, groups, strict=True):
        top.set_title(f"{group.name}\n{group.num_faces:,} faces, MAE {group.mae:.3g}", fontsize=8)
        show_face(top, group.face_HW3)
        show_score(bottom, group.face_HW3, group.score_HW)

    score_bar(figure, panels.ravel().tolist())
    figure.supxlabel(f"mean faces above, mean score maps below; MAE in {unit}", fontsize=8)
    return figure


def occlusion(groups: Sequence[GroupView], unit: str) -> Figure:
    """Fig. 8: mean face, relative loss of hidden squares, and of hidden stripes, one column a
    group."""
    figure = canvas(costliest(groups[0]), max(7.4, 1.75 * len(groups) + 0.9), 5.9)
    faces, *rows = figure.subplots(3, len(groups), squeeze=False)
    for axes, group in zip(faces, groups, strict=True):
        axes.set_title(f"{group.name}\n{group.num_faces:,} faces, MAE {group.mae:.3g}", fontsize=8)
        show_face(axes, group.face_HW3)

    side = math.isqrt(len(groups[0].squares))
    for panels, what, columns in zip(rows, ("square", "stripe"), (side, 1), strict=True):
        losses = [group.squares if what == "square" else group.stripes for group in groups]
        limit = limit_of(losses)
        for axes, loss in zip(panels, losses, strict=True):
            heat_map(axes, table_of(loss, columns), limit)

        bar = figure.colorbar(
            ScalarMappable(Normalize(-limit, limit), LOSS),
            ax=panels.tolist(),
            aspect=18,
            fraction=0.04,
            pad=0.01,
        )
        bar.ax.yaxis.set_major_formatter(lambda loss, _: f"{100 * loss:+.3g}%")
        bar.ax.tick_params(labelsize=7)
        bar.set_label(f"change of MAE, {what} hidden", fontsize=8)

    figure.supxlabel(f"numbers: per cent of the group's MAE, which is in {unit}", fontsize=8)
    return figure


def costliest(group: GroupView) -> str:
    """In words, which hidden square and stripe cost most."""
    square_loss = table_of(group.squares, 1)[:, 0]
    stripe_loss = table_of(group.stripes, 1)[:, 0]
    square = int(np.argmax(np.nan_to_num(square_loss, nan=-1.0)))
    stripe = int(np.argmax(np.nan_to_num(stripe_loss, nan=-1.0)))
    row, column = divmod(square, math.isqrt(len(square_loss)))

    return (
        f"Costliest to hide: square in row {row + 1}, column {column + 1} "
        f"({square_loss[square]:+.0%} of the MAE), "
        f"stripe {stripe + 1} ({stripe_loss[stripe]:+.0%})"
    )


def table_of(losses: Sequence[Estimate], columns: int) -> FloatArray:
    """Losses of places as they are in the crop, (rows, columns)."""
    return np.array([loss.value for loss in losses]).reshape(-1, columns)


def limit_of(losses: Sequence[Sequence[Estimate]]) -> float:
    """Where the colours of heat maps that are to be compared end, above 0."""
    values = np.abs([loss.value for group in losses for loss in group])
    known = values[np.isfinite(values)]
    end = float(np.quantile(known, LOSS_QUANTILE)) if known.size else 0.0
    return max(end, 0.01)


def heat_map(axes: Axes, loss_RC: FloatArray, limit: float) -> None:
    """Relative losses in per cent, written into their cells; a single column is drawn as wide as
    the crop."""
    rows, columns = loss_RC.shape
    axes.imshow(loss_RC, cmap=LOSS, vmin=-limit, vmax=limit, extent=(0, rows, rows, 0))
    for row, column in zip(*np.nonzero(np.isfinite(loss_RC)), strict=True):
        loss = loss_RC[row, column]
        ink = "white" if abs(loss) > 0.65 * limit else "black"
        axes.text(
            (column + 0.5) * rows / columns,
            row + 0.5,
            f"{round(100 * loss)}",
            ha="center",
            va="center",
            fontsize=5.5,
            color=ink,
        )
    axes.set_axis_off()


def face_sheet(
    title: str,
    faces_FHW3: Pixels,
    score_FHW: npt.NDArray[np.floating],
    label_K: FloatArray,
    p_FK: npt.NDArray[np.float32],
    label_F: FloatArray | None,
    value_F: FloatArray,
    unit: str,
) -> Figure:
    """Single faces, one a column: the crop, its score map, the predicted distribution with
    prediction and label."""
    figure = canvas(title, max(3.6, 1.35 * len(faces_FHW3) + 0.6), 4.7)
    panels = figure.subplots(3, len(faces_FHW3), squeeze=False)

    for face, (crop, score, curve) in enumerate(panels.T):
        show_face(crop, faces_FHW3[face])
        show_score(score, faces_FHW3[face], score_FHW[face])
        lines = [] if label_F is None else [f"label {label_F[face]:.3g}"]
        crop.set_title("\n".join([*lines, f"predicted {value_F[face]:.3g}"]), fontsize=8)

        curve.fill_between(label_K, p_FK[face], color=BLUE, alpha=0.45, step="mid", linewidth=0)
        curve.axvline(value_F[face], color=BLUE, linewidth=1.2, label="prediction")
        if label_F is not None:
            curve.axvline(
                label_F[face], color=VERMILION, linewidth=1.2, linestyle="--", label="label"
            )
        curve.set(yticks=[], xlim=(label_K[0], label_K[-1]), ylim=(0, None))
        curve.tick_params(labelsize=7)
        curve.spines[["top", "right", "left"]].set_visible(False)

    score_bar(figure, panels[:2].ravel().tolist())
    handles, names = panels[2, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower right", ncols=2, frameon=False, fontsize=8)
    figure.supxlabel(unit, fontsize=8)
    return figure


def group_rows(
    names: Sequence[str],
    faces: Sequence[Pixels],
    scores: Sequence[npt.NDArray[np.floating]],
    values: Sequence[FloatArray],
    unit: str,
) -> Figure:
    """Fig. 6: a few single faces of each group with their predictions, their score maps below.

    One entry a group: faces (F,H,W,3), score maps (F,H,W), predictions (F,); groups may have
    different numbers of faces.
    """
    columns = max(len(value_F) for value_F in values)
    figure = canvas("Single faces of each group", 1.2 * columns + 1.4, 2.6 * len(names) + 0.6)
    panels = figure.subplots(2 * len(names), columns, squeeze=False)
    for axes in panels.ravel():
        axes.set_axis_off()

    for group, name in enumerate(names):
        top = panels[2 * group]
        bottom = panels[2 * group + 1]
        for face, value in enumerate(values[group]):
            show_face(top[face], faces[group][face])
            top[face].set_title(f"{value:.3g}", fontsize=8)
            show_score(bottom[face], faces[group][face], scores[group][face])
        top[0].annotate(
            name,
            (-0.1, 0),
            xycoords="axes fraction",
            rotation=90,
            ha="right",
            va="center",
            fontsize=9,
        )

    # Beside the first group alone: over all of them the bar would be as tall as the sheet.
    score_bar(figure, panels[:2].ravel().tolist())
    figure.supxlabel(f"predictions in {unit}; rows: groups by label", fontsize=8)
    return figure


def contact_sheet(
    title: str,
    photos: Sequence[Pixels],
    faces_FHW3: Pixels,
    score_FHW: npt.NDArray[np.floating],
    label_F: FloatArray,
    value_F: FloatArray,
    poor_error: float,
    unit: str,
) -> Figure:
    """Fig. 4, 5 and 7: each face as the photo that came in, as aligned, and with its score map,
    under its prediction and its label; one that is more than `poor_error` label units off is
    written in another colour."""
    columns = min(SHEET_COLUMNS, len(faces_FHW3))
    rows = -(-len(faces_FHW3) // columns)
    figure = canvas(title, max(5.0, 1.25 * columns), 3.9 * rows + 0.55)
    panels = figure.subplots(3 * rows, columns, squeeze=False)
    for axes in panels.ravel():
        axes.set_axis_off()

    for face, photo in enumerate(photos):
        row, column = divmod(face, columns)
        above, crop, score = panels[3 * row : 3 * row + 3, column]
        is_poor = abs(value_F[face] - label_F[face]) > poor_error
        above.set_title(
            f"{value_F[face]:.3g} ({label_F[face]:.3g})",
            fontsize=9,
            color=VERMILION if is_poor else "black",
        )
        show_face(above, photo)
        show_face(crop, faces_FHW3[face])
        show_score(score, faces_FHW3[face], score_FHW[face])

    figure.supxlabel(
        f"prediction (label) in {unit}, orange: more than {poor_error:g} off; photo, aligned face, "
        "score map",
        fontsize=8,
    )
    return figure


def embedding(
    place_N2: FloatArray, label_N: FloatArray, error_N: FloatArray, quantity: str, unit: str
) -> Figure:
    """t-SNE of pooled features, coloured by label and by absolute error (colours end at its 95th
    percentile)."""
    figure = canvas(f"What the head sees of {len(place_N2):,} faces, laid out by t-SNE", 9.4, 3.8)
    error_end = max(float(np.quantile(error_N, 0.95)), 1e-9)

    for axes, colour_N, name, colours, end in zip(
        figure.subplots(1, 2),
        (label_N, error_N),
        (f"label: {quantity}", "absolute error"),
        (SCATTER, HEAT + "_r"),
        (float(label_N.max()), error_end),
        strict=True,
    ):
        order = np.argsort(colour_N, kind="stable")
        dots = axes.scatter(
            *place_N2[order].T,
            c=colour_N[order],
            s=9,
            cmap=colours,
            linewidths=0,
            vmin=float(colour_N.min()),
            vmax=end,
        )
        extend = "max" if end < colour_N.max() else "neither"
        bar = figure.colorbar(dots, ax=axes, shrink=0.85, extend=extend)
        bar.set_label(f"{name} ({unit})", fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
    return figure
