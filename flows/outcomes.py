"""Finished cells become the rows of tables: figures over seeds with intervals, and each row against the reference.

A seed's figures are those of the predictions of all its folds together. Over several seeds the interval is Student's t;
of one seed it is the bootstrap over people (pictures where nobody is known). Against the reference, each face's
absolute errors are averaged over the seeds that both rows have, and the differences are drawn together with the person.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from flows.cells import Cell, TableSettings
from stages.settings import read_json
from visage.bootstrap import Bootstrap, cluster_codes, estimate, paired_bootstrap, student
from visage.metrics import Metric, Scored, epsilon_error, mae, pearson, rmse

METRICS: dict[str, Metric] = {"mae": mae, "rmse": rmse, "pearson": pearson, "epsilon_error": epsilon_error}
PREDICTIONS, METRICS_FILE, FACES = "predictions.parquet", "metrics.json", "data/target/faces"


@dataclass(frozen=True, kw_only=True)
class Told:
    """What one seed of a row answered: a line a face with fold, photo_id, cluster, label, sigma, prediction."""

    faces: pd.DataFrame

    @property
    def scored(self) -> Scored:
        return Scored.of_points(self.faces["label"], self.faces["prediction"], self.faces["sigma"])

    @property
    def error(self) -> pd.Series[float]:
        """Absolute errors by fold and photo."""
        keys = pd.MultiIndex.from_frame(self.faces[["fold", "photo_id"]])
        return pd.Series((self.faces["prediction"] - self.faces["label"]).abs().to_numpy(), keys)


def refuse_unreadable(cells: Sequence[Cell], tables: Mapping[str, TableSettings]) -> None:
    """ValueError, before anything runs, for a metric that is not known or a stage that leaves no predictions."""
    for name in dict.fromkeys(cell.table for cell in cells):
        if odd := sorted(set(tables[name].metrics) - set(METRICS)):
            raise ValueError(f"table {name}: metric {odd[0]!r} is unknown; known: {', '.join(METRICS)}")
    for stage in {cell.step.stage.name: cell.step.stage for cell in cells}.values():
        if sum(Path(path).name == PREDICTIONS for path in stage.outputs) != 1:
            raise ValueError(f"stage {stage.name} leaves no {PREDICTIONS}; name one that does, such as evaluate")


def told_by(cells: Sequence[Cell]) -> Told:
    """The predictions of a row's folds with one seed, on the first list of faces that evaluation knows."""
    return Told(faces=pd.concat([_predictions(cell) for cell in cells], ignore_index=True))


def _predictions(cell: Cell) -> pd.DataFrame:
    columns = ["photo_id", "label", "sigma", "split", "prediction"]
    table: pd.DataFrame = pq.read_table(_output(cell, PREDICTIONS), columns=columns).to_pandas()
    table = table[table["split"] == table["split"].iloc[0]].assign(fold=str(cell.fold))
    fixed = cell.params["evaluate"]["epsilon_sigma"]
    table["sigma"] = table["sigma"].astype(np.float64)
    if fixed is not None:
        table["sigma"] = table["sigma"].fillna(fixed)
    return table.merge(_clusters(cell.step.folder / FACES), on="photo_id", validate="many_to_one")


def _clusters(faces: Path) -> pd.DataFrame:
    """Who, or else which picture, each photo shows."""
    parts = [
        pq.read_table(path, columns=["photo_id", "person", "sha256"]) for path in sorted(faces.glob("part-*.parquet"))
    ]
    table: pd.DataFrame = pd.concat([part.to_pandas() for part in parts], ignore_index=True)
    table["cluster"] = table["person"].fillna(table["sha256"])
    return table[["photo_id", "cluster"]]


def outcome(cells: Sequence[Cell], reference: Sequence[Cell], table: TableSettings, bootstrap: Bootstrap) -> Any:
    """One row of a table on one set as a document; what is not finished is left out, None where nothing is."""
    seeds = _by_seed(cells)
    if not seeds:
        return None
    told = {seed: told_by(folds) for seed, folds in seeds.items()}
    others = {seed: told_by(folds) for seed, folds in _by_seed(reference).items() if seed in told}
    first = next(iter(told.values()))
    is_reference = cells[0].row == reference[0].row
    return {
        "row": cells[0].row,
        "seeds": list(seeds),
        "num_folds": len(next(iter(seeds.values()))),
        "num_faces": len(first.faces),
        **_rule(next(iter(seeds.values()))),
        "metrics": {name: value for name in table.metrics if (value := figure(told, METRICS[name], bootstrap))},
        "against_reference": None if is_reference or not others else against(told, others, bootstrap),
        "published": {name: list(values) for name, values in table.rows[cells[0].row].published.items()},
    }


def _rule(cells: Sequence[Cell]) -> dict[str, Any]:
    """How the answers were decoded, whether with flips, and whether every fit had come to its end (trainings have)."""
    decisions = [read_json(_output(cell, METRICS_FILE))["decision"] for cell in cells]
    trials = [one for decision in decisions for one in decision["model"].get("trials") or []]
    chosen = [one for one in trials if one["strength"] in {d["model"].get("strength") for d in decisions}]
    rule = {name: decisions[0][name] for name in ("decode", "flip")}
    return {**rule, "converged": all(one["converged"] for one in chosen)}


def _output(cell: Cell, name: str) -> Path:
    """The one output of a cell's last step that has this file name."""
    [path] = [path for path in cell.step.stage.outputs if Path(path).name == name]
    return cell.step.output(path)


def _by_seed(cells: Sequence[Cell]) -> dict[int, list[Cell]]:
    """Seeds of which every fold is finished; where the seed changes nothing (no training), the first alone."""
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


def figure(told: Mapping[int, Told], metric: Metric, bootstrap: Bootstrap) -> dict[str, Any] | None:
    """A metric's mean over seeds, its interval, and the seeds' own values; None where it is undefined."""
    values = [metric(one.scored) for one in told.values()]
    if not all(map(math.isfinite, values)):
        return None
    if len(values) > 1:
        return {**asdict(student(values, bootstrap.interval)), "values": values}
    [one] = told.values()
    found = estimate(one.scored, {"it": metric}, bootstrap, cluster_codes(one.faces["cluster"].tolist()))["it"]
    return {**asdict(found), "values": values}


def against(told: Mapping[int, Told], reference: Mapping[int, Told], bootstrap: Bootstrap) -> dict[str, Any]:
    """MAE minus the reference's, paired by face, over the common seeds; and in how many of them it is lower."""
    mine, theirs = (pd.concat([one[seed].error for seed in reference], axis=1) for one in (told, reference))
    both = (
        mine.mean(axis=1, skipna=False).to_frame("a").join(theirs.mean(axis=1, skipna=False).rename("b"), how="inner")
    )
    both = both.dropna()
    faces = next(iter(reference.values())).faces
    cluster = faces.set_index(pd.MultiIndex.from_frame(faces[["fold", "photo_id"]]))["cluster"].loc[both.index]
    difference = paired_bootstrap(
        both["a"].to_numpy(), both["b"].to_numpy(), bootstrap, cluster_codes(cluster.tolist())
    )
    better = sum(told[seed].error.mean() < reference[seed].error.mean() for seed in reference)
    return {**asdict(difference), "num_faces": len(both), "num_seeds": len(reference), "num_seeds_better": int(better)}


def document(
    cells: Sequence[Cell], tables: Mapping[str, TableSettings], bootstrap: Bootstrap
) -> dict[str, dict[str, list[Any]]]:
    """Table -> set -> its rows in the table's order; rows that are not finished say so."""
    found: dict[str, dict[str, list[Any]]] = {}
    for name, data in dict.fromkeys((cell.table, cell.data) for cell in cells):
        own = [cell for cell in cells if (cell.table, cell.data) == (name, data)]
        reference = [cell for cell in own if cell.row == tables[name].reference]
        rows = []
        for row in tables[name].rows:
            mine = [cell for cell in own if cell.row == row]
            rows.append(outcome(mine, reference, tables[name], bootstrap) or {"row": row, "seeds": []})
        found.setdefault(name, {})[data] = rows
    return found
