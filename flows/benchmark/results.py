"""Finished cells become the rows of tables: figures over seeds with intervals, and each row against
the reference.

A seed's figures are those of the predictions of all its folds together. Over several seeds the
interval is Student's t; of one seed it is the bootstrap over people (pictures where nobody is
known). Against the reference, each face's absolute errors are averaged over the seeds that both
rows have, and the differences are drawn together with the person.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from flows.benchmark.grid import Cell, TableSettings
from stages.settings import read_json
from visage.evaluation.bootstrap import (
    Bootstrap,
    cluster_codes,
    estimate,
    paired_bootstrap,
    student,
    who_is_shown,
)
from visage.evaluation.metrics import Metric, Scored, epsilon_error, mae, pearson, rmse

METRICS: dict[str, Metric] = {
    "mae": mae,
    "rmse": rmse,
    "pearson": pearson,
    "epsilon_error": epsilon_error,
}
PREDICTIONS, METRICS_FILE, FACES = "predictions.parquet", "metrics.json", "data/target/faces"
PredictionTable = (
    pd.DataFrame
)  # a line a face, by fold and photo_id: label, sigma, prediction, absolute error, cluster


def refuse_unreadable(cells: Sequence[Cell], tables: Mapping[str, TableSettings]) -> None:
    """ValueError, before anything runs, for a metric that is not known or a stage that leaves no
    predictions."""
    for name in dict.fromkeys(cell.table for cell in cells):
        if odd := sorted(set(tables[name].metrics) - set(METRICS)):
            raise ValueError(
                f"table {name}: metric {odd[0]!r} is unknown; known: {', '.join(METRICS)}"
            )
    for stage in {cell.step.stage.name: cell.step.stage for cell in cells}.values():
        if sum(Path(path).name == PREDICTIONS for path in stage.outputs) != 1:
            raise ValueError(
                f"stage {stage.name} leaves no {PREDICTIONS}; name one that does, such as evaluate"
            )


def predictions_by_seed(cells: Sequence[Cell]) -> dict[int, PredictionTable]:
    """Of each finished seed of a row, what all folds predicted on the first list of faces that
    evaluation knows."""
    return {
        seed: pd.concat([_predictions(cell) for cell in folds]).set_index(["fold", "photo_id"])
        for seed, folds in _by_seed(cells).items()
    }


def _predictions(cell: Cell) -> pd.DataFrame:
    columns = ["photo_id", "label", "sigma", "split", "prediction"]
    table: pd.DataFrame = pq.read_table(_output(cell, PREDICTIONS), columns=columns).to_pandas()
    table = table[table["split"] == table["split"].iloc[0]].assign(fold=str(cell.fold))
    fixed = cell.params["labels"]["epsilon_sigma"]
    table["sigma"] = table["sigma"].astype(np.float64)
    if fixed is not None:
        table["sigma"] = table["sigma"].fillna(fixed)
    table["error"] = (table["prediction"] - table["label"]).abs()
    return table.merge(
        _clusters((cell.step.folder / FACES).resolve()), on="photo_id", validate="many_to_one"
    )


@cache
def _clusters(faces: Path) -> pd.DataFrame:
    """Who, or else which picture, each photo shows."""
    paths = sorted(faces.glob("part-*.parquet"))
    table = pd.concat(
        [
            pq.read_table(path, columns=["photo_id", "person", "sha256"]).to_pandas()
            for path in paths
        ]
    )
    person_N = table["person"].astype(object).where(table["person"].notna(), None)
    return pd.DataFrame(
        {"photo_id": table["photo_id"], "cluster": who_is_shown(person_N, table["sha256"])}
    )


def row_document(
    row: str,
    cells: Sequence[Cell],
    reference: Mapping[int, PredictionTable],
    table: TableSettings,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """One row of a table on one set as a document; what is not finished is left out."""
    predictions = predictions_by_seed(cells)
    if not predictions:
        return {"row": row, "seeds": []}
    first = [cell for cell in cells if cell.seed == next(iter(predictions))]
    others = {seed: one for seed, one in reference.items() if seed in predictions}
    return {
        "row": row,
        "seeds": list(predictions),
        "num_folds": len(first),
        "num_faces": len(predictions[first[0].seed]),
        **_rule(first),
        "metrics": {
            name: value
            for name in table.metrics
            if (value := figure(predictions, METRICS[name], bootstrap))
        },
        "against_reference": None
        if row == table.reference or not others
        else against(predictions, others, bootstrap),
        "published": {name: list(values) for name, values in table.rows[row].published.items()},
    }


def _rule(cells: Sequence[Cell]) -> dict[str, Any]:
    """How the answers were decoded, whether with flips, and whether every fit had come to its end
    (trainings have)."""
    decisions = [read_json(_output(cell, METRICS_FILE))["decision"] for cell in cells]
    rule = {name: decisions[0][name] for name in ("decode", "flip")}
    return {
        **rule,
        "converged": all(decision["model"].get("converged", True) for decision in decisions),
    }


def _output(cell: Cell, name: str) -> Path:
    """The one output of a cell's last step that has this file name."""
    [path] = [path for path in cell.step.stage.outputs if Path(path).name == name]
    return cell.step.output(path)


def _by_seed(cells: Sequence[Cell]) -> dict[int, list[Cell]]:
    """Seeds of which every fold is finished; where the seed changes nothing (no training), the
    first alone."""
    seeds: dict[int, list[Cell]] = {}
    for cell in cells:
        seeds.setdefault(cell.seed, []).append(cell)
    seen: set[tuple[str, ...]] = set()
    kept = {}
    for seed, folds in seeds.items():
        keys = tuple(cell.step.key for cell in folds)
        if keys not in seen and all(cell.step.done is not None for cell in folds):
            kept[seed] = folds
        seen.add(keys)
    return kept


def figure(
    predictions: Mapping[int, PredictionTable], metric: Metric, bootstrap: Bootstrap
) -> dict[str, Any] | None:
    """A metric's mean over seeds, its interval, and the seeds' own values; None where it is
    undefined."""
    scored = [
        Scored.of_points(one["label"], one["prediction"], one["sigma"])
        for one in predictions.values()
    ]
    values = [metric(one) for one in scored]
    if not all(map(math.isfinite, values)):
        return None
    if len(values) > 1:
        return {**asdict(student(values, bootstrap.interval)), "values": values}
    [one] = predictions.values()
    found = estimate(scored[0], {"it": metric}, bootstrap, cluster_codes(one["cluster"].tolist()))[
        "it"
    ]
    return {**asdict(found), "values": values}


def against(
    predictions: Mapping[int, PredictionTable],
    reference: Mapping[int, PredictionTable],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """MAE minus the reference's, paired by face, over the common seeds; and in how many of them it
    is lower."""
    mine, theirs = (
        pd.concat([one[seed]["error"] for seed in reference], axis=1)
        for one in (predictions, reference)
    )
    both = pd.DataFrame(
        {"mine": mine.mean(axis=1, skipna=False), "theirs": theirs.mean(axis=1, skipna=False)}
    ).dropna()
    cluster = next(iter(reference.values()))["cluster"].loc[both.index]
    difference = paired_bootstrap(
        both["mine"].to_numpy(),
        both["theirs"].to_numpy(),
        bootstrap,
        cluster_codes(cluster.tolist()),
    )
    num_better = int((mine.mean().to_numpy() < theirs.mean().to_numpy()).sum())
    return {
        **asdict(difference),
        "num_faces": len(both),
        "num_seeds": len(reference),
        "num_seeds_better": num_better,
    }


def document(
    cells: Sequence[Cell], tables: Mapping[str, TableSettings], bootstrap: Bootstrap
) -> dict[str, dict[str, list[Any]]]:
    """Table -> set -> its rows in the table's order; rows that are not finished say so."""
    found: dict[str, dict[str, list[Any]]] = {}
    for name, data in dict.fromkeys((cell.table, cell.data) for cell in cells):
        own = [cell for cell in cells if (cell.table, cell.data) == (name, data)]
        table = tables[name]
        rows = {row: [cell for cell in own if cell.row == row] for row in table.rows}
        reference = predictions_by_seed(rows[table.reference])
        found.setdefault(name, {})[data] = [
            row_document(row, mine, reference, table, bootstrap) for row, mine in rows.items()
        ]
    return found
