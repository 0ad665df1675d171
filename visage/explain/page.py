"""Score maps and occlusion of a model -> explain.json and the sections of explain.html.

Shapes: P places, H and W crop side in pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from visage.evaluation.bootstrap import Estimate
from visage.evaluation.html import Part, Picture, Section, Table, Words, settings_table
from visage.evaluation.metrics import FloatArray
from visage.explain.occlusion import squares
from visage.explain.plots import GroupView

# Costliest squares listed on the page.
NUM_SQUARES = 5

CLASS_MAPS = "Score maps (DLDL-v2, Eq. 23-24): bright places push the model towards its prediction."
SLOPES = (
    "Score maps: what the value gains where the network's last maps rise. Bright places push it "
    "up, dark ones pull it down. This model has no map for each label, as DLDL-v2's Eq. 23-24 want "
    "it."
)
HOW_TO_READ = (
    "Only differences within one map mean something, so each map has its own scale; they are as "
    "coarse as the network's last maps."
)
HOW_HIDDEN = (
    "A hidden place has the mean colour that the model normalises by. The loss is (MAE with the "
    "place hidden - MAE) / MAE, of the drawn faces; below 0 the model is better without the place. "
    "Brackets: percentile bootstrap over people, or pictures where people are unknown. In a small "
    "group a single face decides; look at the brackets."
)
PRIVATE = "This page shows faces of the data set: it is as private as they are."


def group_document(group: GroupView) -> dict[str, Any]:
    """A group's figures as plain JSON values: losses of squares and stripes, and the mean score
    within each square."""
    side = math.isqrt(len(group.squares))
    places = squares(len(group.score_HW), side)

    square_rows = []
    for number, (loss, place) in enumerate(zip(group.squares, places, strict=True)):
        row, column = divmod(number, side)
        where = {"row": row + 1, "column": column + 1}
        square_rows.append(where | plain(loss) | {"score": mean_score(group, place)})
    stripe_rows = [{"row": row} | plain(loss) for row, loss in enumerate(group.stripes, start=1)]

    return {
        "num_faces": group.num_faces,
        "mae": group.mae,
        "squares": square_rows,
        "stripes": stripe_rows,
    }


def mean_score(group: GroupView, where: tuple[slice, slice]) -> float:
    """The average of the group's score map in one place."""
    score_HW: FloatArray = group.score_HW
    return float(score_HW[where].mean())


def plain(loss: Estimate) -> dict[str, float | None]:
    """value, low and high; undefined ones are null."""
    return {
        name: value if math.isfinite(value) else None
        for name, value in dataclasses.asdict(loss).items()
    }


def loss_text(loss: Estimate) -> str:
    """12% (3% to 21%)"""
    if not math.isfinite(loss.value):
        return "undefined"
    return f"{loss.value:z.0%} ({loss.low:z.0%} to {loss.high:z.0%})"


def stripe_table(groups: Sequence[GroupView]) -> Table:
    """One row for each stripe, from the top, and one column for each group."""
    rows = []
    for place in range(len(groups[0].stripes)):
        losses = [loss_text(group.stripes[place]) for group in groups]
        rows.append([f"stripe {place + 1}", *losses])

    header = ["", *(group.name for group in groups)]
    return Table(caption="Stripes, from the top", header=header, rows=rows)


def square_table(groups: Sequence[GroupView]) -> Table:
    """The squares whose hiding costs the first group most."""
    losses = groups[0].squares
    side = math.isqrt(len(losses))
    order = sorted(range(len(losses)), key=lambda place: -losses[place].value)[:NUM_SQUARES]

    rows = []
    for place in order:
        texts = [loss_text(group.squares[place]) for group in groups]
        rows.append([f"row {place // side + 1}, column {place % side + 1}", *texts])

    caption = f"Squares that cost most, {side} x {side} in a crop"
    header = ["", *(group.name for group in groups)]
    return Table(caption=caption, header=header, rows=rows)


def sections(
    class_maps: bool,
    groups: Sequence[GroupView],
    drawn: Mapping[str, Picture],
    settings: Mapping[str, object],
) -> list[Section]:
    """The page's chapters; `class_maps` as `visage.explain.score_map.has_class_maps` found it."""
    how_to_read = Words(text=f"{CLASS_MAPS if class_maps else SLOPES} {HOW_TO_READ}")
    names = ("best_faces", "worst_faces", "highest_faces", "lowest_faces")
    sheets: list[Part] = [drawn[name] for name in names]
    hidden: list[Part] = [
        Words(text=HOW_HIDDEN),
        drawn["occlusion"],
        stripe_table(groups),
        square_table(groups),
    ]

    return [
        Section(
            title="Score maps",
            parts=[Words(text=PRIVATE), how_to_read, drawn["score_maps"], drawn["group_faces"]],
        ),
        Section(title="Hidden places", parts=hidden),
        Section(title="Single faces", parts=[drawn["faces"]]),
        Section(title="Best, worst, highest, lowest", parts=sheets),
        Section(title="Features", parts=[drawn["tsne"]]),
        Section(
            title="Settings",
            parts=[settings_table("Section explain of params.yaml", settings)],
            folded=True,
        ),
    ]
