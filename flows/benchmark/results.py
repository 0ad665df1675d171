"""Finished cells become the rows of tables: figures over seeds with intervals, and each row against
the reference.

A seed's figures are those of the predictions of all its folds together. Over several seeds the
interval is Student's t; for one seed it is the bootstrap over people (over pictures if no person is
known). Against the reference, each face's absolute errors are averaged over the seeds that both
rows have, and the differences are resampled person by person.
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
PREDICTIONS = "predictions.parquet"
HISTORY = "finetune.csv"
METRICS_FILE = "metrics.json"
FACES = "data/target/faces"

# One line for each face, by fold and photo_id: label, sigma, prediction, absolute error, cluster.
PredictionTable = pd.DataFrame


def refuse_unreadable(cells: Sequence[Cell], tables: Mapping[str, TableSettings]) -> None:
    """Raises ValueError, before anything runs, for an unknown metric or a stage that leaves no
    predictions."""
    for name in dict.fromkeys(cell.table for cell in cells):
        if odd := sorted(set(tables[name].metrics) - set(METRICS)):
            raise ValueError(
                f"table {name}: metric {odd[0]!r} is unknown; known: {', '.join(METRICS)}"
            )

    stages = {cell.step.stage.name: cell.step.stage for cell in cells}
    for stage in stages.values():
        if sum(Path(path).name == PREDICTIONS for path in stage.outputs) != 1:
            raise ValueError(
                f"stage {stage.name} leaves no {PREDICTIONS}; name one that does, such as evaluate"
            )


def predictions_by_seed(cells: Sequence[Cell]) -> dict[int, PredictionTable]:
    """The predictions of all folds for each finished seed of a row, on the first list of faces that
    evaluation has."""
    predictions = {}
    for seed, folds in _by_seed(cells).items():
        tables = [_predictions(cell) for cell in folds]
        predictions[seed] = pd.concat(tables).set_index(["fold", "photo_id"])
    return predictions


def _predictions(cell: Cell) -> pd.DataFrame:
    columns = ["photo_id", "label", "sigma", "split", "prediction"]
    table: pd.DataFrame = pq.read_table(_output(cell, PREDICTIONS), columns=columns).to_pandas()
    table = table[table["split"] == table["split"].iloc[0]].assign(fold=str(cell.fold))

    fixed = cell.params["labels"]["epsilon_sigma"]
    table["sigma"] = table["sigma"].astype(np.float64)
    if fixed is not None:
        table["sigma"] = table["sigma"].fillna(fixed)
    table["error"] = (table["prediction"] - table["label"]).abs()

    clusters = _clusters((cell.step.folder / FACES).resolve())
    return table.merge(clusters, on="photo_id", validate="many_to_one")


@cache
def _clusters(faces: Path) -> pd.DataFrame:
    """The person that each photo shows, or its picture if no person is known."""
    columns = ["photo_id", "person", "sha256"]
    paths = sorted(faces.glob("part-*.parquet"))
    table = pd.concat([pq.read_table(path, columns=columns).to_pandas() for path in paths])

    person_N = table["person"].astype(object).where(table["person"].notna(), None)
    cluster_N = who_is_shown(person_N, table["sha256"])
    return pd.DataFrame({"photo_id": table["photo_id"], "cluster": cluster_N})


def row_document(
    row: str,
    cells: Sequence[Cell],
    reference: Mapping[int, PredictionTable],
    table: TableSettings,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """One row of a table on one set as a document; unfinished seeds are left out."""
    predictions = predictions_by_seed(cells)
    if not predictions:
        return {"row": row, "seeds": []}

    first_seed = next(iter(predictions))
    first = [cell for cell in cells if cell.seed == first_seed]
    rule = _rule(first)

    metrics = {}
    for name in table.metrics:
        value = figure(predictions, METRICS[name], bootstrap)
        if value is not None:
            metrics[name] = value

    difference = None
    others = {seed: one for seed, one in reference.items() if seed in predictions}
    if others and row != table.reference:
        difference = against(predictions, others, bootstrap)

    return {
        "row": row,
        "seeds": list(predictions),
        "num_folds": len(first),
        "num_faces": len(predictions[first_seed]),
        **rule,
        "metrics": metrics,
        "against_reference": difference,
        "published": {name: list(values) for name, values in table.rows[row].published.items()},
        **_processor_hours([cell for cell in cells if cell.seed in predictions]),
    }


def _processor_hours(cells: Sequence[Cell]) -> dict[str, float]:
    """What a row's fine-tuning took on average, of all processors together; nothing where no
    training says it."""
    seconds = []
    for cell in cells:
        for step in cell.steps:
            for path in step.stage.outputs:
                if Path(path).name != HISTORY or not step.output(path).is_file():
                    continue
                history = pd.read_csv(step.output(path))
                if "processor_seconds" in history:
                    seconds.append(float(history["processor_seconds"].sum()))
    return {"processor_hours": float(np.mean(seconds)) / 3600} if seconds else {}


def _rule(cells: Sequence[Cell]) -> dict[str, Any]:
    """How the predictions were decoded, whether with flips, and whether every fit converged (a
    training always counts as converged)."""
    decisions = [read_json(_output(cell, METRICS_FILE))["decision"] for cell in cells]
    converged = all(decision["model"].get("converged", True) for decision in decisions)
    return {
        "decode": decisions[0]["decode"],
        "flip": decisions[0]["flip"],
        "converged": converged,
    }


def _output(cell: Cell, name: str) -> Path:
    """The only output of a cell's last step with this file name."""
    [path] = [path for path in cell.step.stage.outputs if Path(path).name == name]
    return cell.step.output(path)


def _by_seed(cells: Sequence[Cell]) -> dict[int, list[Cell]]:
    """The seeds of which every fold is finished; if the seed changes nothing (no training), only
    the first."""
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
    """A metric's mean over seeds, its interval, and the value of each seed; None if it is
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
    codes = cluster_codes(one["cluster"].tolist())
    estimates = estimate(scored[0], {"metric": metric}, bootstrap, codes)
    return {**asdict(estimates["metric"]), "values": values}


def against(
    predictions: Mapping[int, PredictionTable],
    reference: Mapping[int, PredictionTable],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """MAE minus the reference's, paired by face, over the common seeds; and the number of seeds in
    which it is lower."""
    mine = pd.concat([predictions[seed]["error"] for seed in reference], axis=1)
    theirs = pd.concat([reference[seed]["error"] for seed in reference], axis=1)
    # A face counts only if every seed of both rows has a prediction for it.
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
    """Table -> set -> its rows in the table's order; a row without finished seeds has none."""
    found: dict[str, dict[str, list[Any]]] = {}
    for name, data in dict.fromkeys((cell.table, cell.data) for cell in cells):
        own = [cell for cell in cells if (cell.table, cell.data) == (name, data)]
        table = tables[name]
        rows: dict[str, list[Cell]] = {}
        for row in table.rows:
            rows[row] = [cell for cell in own if cell.row == row]

        reference = predictions_by_seed(rows[table.reference])
        found.setdefault(name, {})[data] = [
            row_document(row, mine, reference, table, bootstrap) for row, mine in rows.items()
        ]

    return found
