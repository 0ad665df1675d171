"""What came of a sweep's trials: tables, figures and the best setting, as files.

trials.csv has a row a trial; sensitivity.csv and sensitivity.md a row for each value of a
dimension, or part of its range; best.args what `dvc exp run` takes. All figures are of validation
faces.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flows.sweep.search import outcome
from flows.sweep.space import LAMBDA, SIGMA, STEP, ChoiceSettings, LogRangeSettings, Plan, setting
from flows.sweep.trial import CHECKPOINTS, EPOCH, EPOCHS, HISTORY, METRIC, VALUES
from visage.atomic import atomic_folder
from visage.evaluation.bootstrap import student
from visage.evaluation.plots import png
from visage.evaluation.sweep_plots import Dimension, Part, parallel_coordinates, sensitivity

NUM_PARTS = 4  # of a range
STATUS_LEFT = ("ended early", "diverged", "failed")
STATUS = {"FINISHED": "finished", "KILLED": "ended early", "FAILED": "diverged"}


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A trial that ended. `epochs`: a row each; empty where it never came to one. `reason`: in
    words."""

    name: str
    values: Mapping[str, Any]
    status: str
    reason: str
    epochs: pd.DataFrame


def epochs_of(folder: Path) -> pd.DataFrame:
    """The epochs of a trial's folder, as its training wrote them down."""
    for name in (HISTORY, EPOCHS):
        if (folder / name).is_file():
            return pd.read_csv(folder / name)
    return pd.DataFrame({EPOCH: [], METRIC: [], "seconds": []})


def epochs_in(folder: Path) -> int:
    """The epochs of all trials that a sweep's folder holds."""
    return sum(len(epochs_of(file.parent)) for file in folder.glob(f"*/{EPOCHS}"))


def ended_trials(plan: Plan, folder: Path, results: Any) -> list[Ended]:
    """The trials of Tune's ResultGrid, in the order in which they began; the checkpoints of those
    that are done go."""
    found = []
    for result in results:
        name = Path(result.path).name
        status, reason = "failed", str(result.error)
        if result.error is None:
            ending, reason = outcome(result.metrics, plan.max_epochs)
            status = STATUS[ending]
            shutil.rmtree(folder / name / CHECKPOINTS, ignore_errors=True)
        found.append(
            Ended(
                name=name,
                values=result.config[VALUES],
                status=status,
                reason=reason,
                epochs=epochs_of(folder / name),
            )
        )
    return found


def trials_table(plan: Plan, ended: Sequence[Ended]) -> pd.DataFrame:
    """A row a trial. `lambda_sum` and `lambda_mean`: the same weight with the KL divergence summed
    over the K labels (paper) and averaged over them (released code): lambda_sum = K lambda_mean."""
    return pd.DataFrame([_row(plan, one) for one in ended])


def _row(plan: Plan, one: Ended) -> dict[str, Any]:
    settings = plan.trial_settings(one.values)
    num_labels = settings.grid.num_labels
    lambda_sum = settings.loss["lambda_"] * (
        num_labels if settings.loss["kl_reduction"] == "mean" else 1
    )
    row: dict[str, Any] = {"trial": one.name, **one.values, "num_labels": num_labels}
    row |= {
        "lambda_sum": lambda_sum,
        "lambda_mean": lambda_sum / num_labels,
        "epochs": len(one.epochs),
    }
    val_mae = one.epochs.set_index(EPOCH)[METRIC]
    known = val_mae.dropna()
    row |= {"best_val_mae": known.min(), "last_val_mae": known.iloc[-1] if len(known) else math.nan}
    row |= {"grace_val_mae": val_mae.get(plan.settings.grace_epochs, math.nan)}
    return row | {
        "seconds": one.epochs["seconds"].sum(),
        "status": one.status,
        "reason": one.reason,
    }


def best_of(table: pd.DataFrame) -> pd.Series | None:
    """The finished trial with the lowest error after its last epoch, which is what finetune
    keeps."""
    finished = table[table["status"] == "finished"]
    return None if finished.empty else finished.sort_values("last_val_mae", kind="stable").iloc[0]


def best_arguments(plan: Plan, best: pd.Series) -> str:
    """The best setting as `dvc exp run` takes it, a line a value."""
    return "".join(f"-S {path}={_yaml(best[path])}\n" for path in plan.space)


def _yaml(value: Any) -> str:
    plain = value.item() if hasattr(value, "item") else value
    return plain if isinstance(plain, str) else json.dumps(plain)


# -------------------------------------------------------------------------------
# How much each dimension matters
# -------------------------------------------------------------------------------


def parts_table(plan: Plan, table: pd.DataFrame) -> pd.DataFrame:
    """A row for each value of a dimension, or quarter of its range: the mean error of its finished
    trials after their last epoch, and of all its trials after the grace epochs, which early endings
    have not touched; Student's t intervals over the trials. Of `lines`, a dimension has the trials
    of its own line."""
    rows = []
    for path in plan.space:
        own = _own_line(plan, table, path)
        for name, low, high, mask in _parts(plan, own, path):
            some = own[mask]
            row: dict[str, Any] = {
                "dimension": path,
                "value": name,
                "low": low,
                "high": high,
                "trials": len(some),
            }
            row |= {
                status: int((some["status"] == status).sum())
                for status in ("finished", *STATUS_LEFT)
            }
            row |= _mean("val_mae", some[some["status"] == "finished"]["last_val_mae"])
            rows.append(row | _mean("grace_val_mae", some["grace_val_mae"]))
    return pd.DataFrame(rows)


def _own_line(plan: Plan, table: pd.DataFrame, path: str) -> pd.DataFrame:
    if plan.settings.search != "lines":
        return table
    others = [table[other] == setting(plan.params, other) for other in plan.space if other != path]
    return table[np.logical_and.reduce(others)] if others else table


def _parts(plan: Plan, table: pd.DataFrame, path: str) -> list[tuple[str, Any, Any, pd.Series]]:
    """(name, low end, high end, which trials) of each value or quarter of a dimension."""
    dimension, column = plan.space[path], table[path]
    if isinstance(dimension, ChoiceSettings):
        values = plan.listed_values(path)
        return [(_named(plan, path, value), value, value, column == value) for value in values]
    spread = np.geomspace if isinstance(dimension, LogRangeSettings) else np.linspace
    edges = spread(dimension.low, dimension.high, NUM_PARTS + 1)
    part = np.clip(np.searchsorted(edges, column, side="right") - 1, 0, NUM_PARTS - 1)
    return [
        (f"{low:.3g} to {high:.3g}", low, high, pd.Series(part == number, index=table.index))
        for number, (low, high) in enumerate(itertools.pairwise(edges))
    ]


def _named(plan: Plan, path: str, value: Any) -> str:
    """A value as Table 7 writes it: steps with their number of labels."""
    return (
        f"{value:g} ({plan.trial_settings({path: value}).grid.num_labels})"
        if path == STEP
        else str(value)
    )


def _mean(name: str, values: pd.Series) -> dict[str, float]:
    known = values.dropna().tolist()
    if len(known) < 2:
        return {
            name: known[0] if known else math.nan,
            f"{name}_low": math.nan,
            f"{name}_high": math.nan,
        }
    found = student(known, 0.95)
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def page(plan: Plan, table: pd.DataFrame, parts: pd.DataFrame) -> str:
    """The sensitivity tables in the form of the paper's Table 7, as markdown, with what they rest
    on."""
    base = plan.trial_settings({})
    scale = {
        "sum": "lambda weighs |y-hat - y| against the KL divergence summed over the K labels "
        "(paper); against its "
        "average (released code) the same weight is lambda / K",
        "mean": "lambda weighs |y-hat - y| against the KL divergence averaged over the K labels "
        "(released code); "
        "against its sum (paper) the same weight is K lambda",
    }[base.loss["kl_reduction"]]
    counts = ", ".join(
        f"{number} {status}" for status, number in table["status"].value_counts().items()
    )
    text = f"{len(table)} trials ({counts}), {plan.max_epochs} epochs each. Mean absolute error on validation faces, "
    text += f"{base.unit}; means over trials with 95 % intervals. {scale}.\n"
    best = best_of(table)
    if best is not None:
        values = ", ".join(f"{path} = {_yaml(best[path])}" for path in plan.space)
        text += f"\nBest: {best['last_val_mae']:.3f} with {values}.\n"
    for path, rows in parts.groupby("dimension", sort=False):
        name = {LAMBDA: "lambda", STEP: "step (K)"}.get(str(path), str(path))
        text += f"\n| {name} | trials | finished | MAE, finished | MAE after {plan.settings.grace_epochs} epochs, all |\n"
        text += "|---|---|---|---|---|\n"
        for _, row in rows.iterrows():
            figures = " | ".join(_with_interval(row, name) for name in ("val_mae", "grace_val_mae"))
            text += f"| {row['value']} | {row['trials']} | {row['finished']} | {figures} |\n"
        text += f"\nFrom the lowest mean to the highest: {rows['val_mae'].max() - rows['val_mae'].min():.3f}.\n"
    return text


def _with_interval(row: pd.Series, name: str) -> str:
    if math.isnan(row[name]):
        return ""
    ends = (
        ""
        if math.isnan(row[f"{name}_low"])
        else f" [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
    )
    return f"{row[name]:.3f}{ends}"


# -------------------------------------------------------------------------------
# Figures
# -------------------------------------------------------------------------------


def drawn(plan: Plan, table: pd.DataFrame, path: str) -> Dimension:
    """A dimension as the figures take it."""
    dimension, name = plan.space[path], path.removeprefix("finetune.").removeprefix("labels.")
    if path in (STEP, SIGMA):
        name = f"{name} ({plan.trial_settings({}).unit})"
    if not isinstance(dimension, ChoiceSettings):
        ends, is_log = (dimension.low, dimension.high), isinstance(dimension, LogRangeSettings)
        return Dimension(
            name=name, place_T=table[path].to_numpy(float), ends=ends, is_log=is_log, labels=()
        )
    values = plan.listed_values(path)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        ends = (float(min(values)), float(max(values)))
        is_log = ends[0] > 0 and ends[1] / ends[0] >= 8
        return Dimension(
            name=name, place_T=table[path].to_numpy(float), ends=ends, is_log=is_log, labels=()
        )
    places = table[path].map({value: place for place, value in enumerate(values)}).to_numpy(float)
    labels = tuple(map(str, values))
    return Dimension(
        name=name, place_T=places, ends=(0.0, len(values) - 1.0), is_log=False, labels=labels
    )


def figures_of(
    plan: Plan, table: pd.DataFrame, parts: pd.DataFrame, best: pd.Series
) -> dict[str, bytes]:
    """File name -> PNG."""
    unit = plan.trial_settings({}).unit
    error_T, is_finished_T = (
        table["last_val_mae"].to_numpy(float),
        (table["status"] == "finished").to_numpy(),
    )
    dimensions = [drawn(plan, table, path) for path in plan.space]
    means = [
        [
            _part(one, row)
            for _, row in parts[parts["dimension"] == path].iterrows()
            if row["finished"]
        ]
        for path, one in zip(plan.space, dimensions, strict=True)
    ]
    place = int(np.flatnonzero(table["trial"] == best["trial"])[0])
    return {
        "parallel.png": png(parallel_coordinates(dimensions, error_T, is_finished_T, place, unit)),
        "sensitivity.png": png(sensitivity(dimensions, means, error_T, is_finished_T, unit)),
    }


def _part(dimension: Dimension, row: pd.Series) -> Part:
    if dimension.labels:
        place = float(dimension.labels.index(row["value"]))
    else:
        place = (
            math.sqrt(row["low"] * row["high"])
            if dimension.is_log
            else (row["low"] + row["high"]) / 2
        )
    return Part(place=place, mean=row["val_mae"], low=row["val_mae_low"], high=row["val_mae_high"])


# -------------------------------------------------------------------------------
# Files
# -------------------------------------------------------------------------------


def write_results(plan: Plan, table: pd.DataFrame, results: Path) -> None:
    """Writes all files, those of the sweep before removed."""
    parts, best = parts_table(plan, table), best_of(table)
    files = {
        "trials.csv": table.to_csv(index=False).encode(),
        "sensitivity.csv": parts.to_csv(index=False).encode(),
    }
    files |= {"sensitivity.md": page(plan, table, parts).encode()}
    if best is not None:
        files |= {
            "best.args": best_arguments(plan, best).encode(),
            **figures_of(plan, table, parts, best),
        }
    with atomic_folder(results) as part:
        for name, content in files.items():
            (part / name).write_bytes(content)


def closing(plan: Plan, table: pd.DataFrame, results: Path, throughput: Mapping[str, float]) -> str:
    """The last words in the terminal."""
    counts = "  ".join(
        f"{status} {number}" for status, number in table["status"].value_counts().items()
    )
    best = best_of(table)
    found = (
        "no trial finished"
        if best is None
        else (
            f"best: val MAE {best['last_val_mae']:.3f} with "
            + ", ".join(f"{path} = {_yaml(best[path])}" for path in plan.space)
        )
    )
    return (
        f"{len(table)} trials: {counts}; {throughput['epochs']:g} epochs in "
        f"{throughput['seconds']:.0f} s, "
        f"{throughput['faces_per_second']:.0f} faces/s, {throughput['trials_per_hour']:.1f} "
        f"trials/h\n{found}\n"
        f"results: {results}"
    )
