"""The results of a sweep's trials: tables, figures and the best setting, as files.

trials.csv has a row for each trial. sensitivity.csv and sensitivity.md have a row for each value of
a dimension, or for each part of its range. best.args has the arguments for `dvc exp run`. All
figures are of validation faces.
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

from flows.sweep.search import result_of
from flows.sweep.space import LAMBDA, SIGMA, STEP, ChoiceSettings, LogRangeSettings, Plan, setting
from flows.sweep.trial import CHECKPOINTS, EPOCH, EPOCHS, HISTORY, METRIC, VALUES
from visage.atomic import atomic_folder
from visage.evaluation.bootstrap import student
from visage.evaluation.plots import png
from visage.evaluation.sweep_plots import Dimension, Part, parallel_coordinates, sensitivity

NUM_PARTS = 4  # of a range
# What lambda weighs, by the reduction of the KL divergence.
SCALES = {
    "sum": "lambda weighs |y-hat - y| against the KL divergence summed over the K labels "
    "(paper); against its average (released code) the same weight is lambda / K",
    "mean": "lambda weighs |y-hat - y| against the KL divergence averaged over the K labels "
    "(released code); against its sum (paper) the same weight is K lambda",
}
STATUS_LEFT = ("ended early", "diverged", "failed")
STATUS = {"FINISHED": "finished", "KILLED": "ended early", "FAILED": "diverged"}


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A trial that ended. `epochs` has a row for each epoch, none where the first one did not end.
    `reason` is a sentence for people."""

    name: str
    values: Mapping[str, Any]
    status: str
    reason: str
    epochs: pd.DataFrame


def epochs_of(folder: Path) -> pd.DataFrame:
    """The epochs of a trial's folder, as its training wrote them."""
    for name in (HISTORY, EPOCHS):
        if (folder / name).is_file():
            return pd.read_csv(folder / name)
    return pd.DataFrame({EPOCH: [], METRIC: [], "seconds": []})


def epochs_in(folder: Path) -> int:
    """The number of epochs of all trials in a sweep's folder."""
    return sum(len(epochs_of(file.parent)) for file in folder.glob(f"*/{EPOCHS}"))


def ended_trials(plan: Plan, folder: Path, results: Any) -> list[Ended]:
    """The trials of Tune's ResultGrid, in the order in which they began. The checkpoints of those
    that did not fail are deleted."""
    found = []
    for result in results:
        name = Path(result.path).name

        if result.error is None:
            run_status, reason = result_of(result.metrics, plan.max_epochs)
            status = STATUS[run_status]
            shutil.rmtree(folder / name / CHECKPOINTS, ignore_errors=True)
        else:
            status = "failed"
            reason = str(result.error)

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
    """A row for each trial. `lambda_sum` and `lambda_mean` are the same weight with the KL
    divergence summed over the K labels (paper) and averaged over them (released code):
    lambda_sum = K lambda_mean."""
    return pd.DataFrame([_row(plan, one) for one in ended])


def _row(plan: Plan, one: Ended) -> dict[str, Any]:
    settings = plan.trial_settings(one.values)
    num_labels = settings.grid.num_labels
    loss = settings.loss
    lambda_sum = loss["lambda_"] * (num_labels if loss["kl_reduction"] == "mean" else 1)
    # At a fixed lambda_mean a finer step means a larger lambda_sum: a row has both.
    lambda_mean = lambda_sum / num_labels
    val_mae = one.epochs.set_index(EPOCH)[METRIC]
    known = val_mae.dropna()
    last_val_mae = known.iloc[-1] if len(known) else math.nan

    return {
        "trial": one.name,
        **one.values,
        "num_labels": num_labels,
        "lambda_sum": lambda_sum,
        "lambda_mean": lambda_mean,
        "epochs": len(one.epochs),
        "best_val_mae": known.min(),
        "last_val_mae": last_val_mae,
        "grace_val_mae": val_mae.get(plan.settings.grace_epochs, math.nan),
        "seconds": one.epochs["seconds"].sum(),
        "status": one.status,
        "reason": one.reason,
    }


def best_of(table: pd.DataFrame) -> pd.Series | None:
    """The finished trial with the lowest error after its last epoch, whose weights are the ones
    that finetune keeps; None where no trial finished."""
    finished = table[table["status"] == "finished"]
    if finished.empty:
        return None
    # A stable sort: of equal errors the trial that began first is the best.
    return finished.sort_values("last_val_mae", kind="stable").iloc[0]


def best_arguments(plan: Plan, best: pd.Series) -> str:
    """The best setting as arguments of `dvc exp run`, one value per line."""
    return "".join(f"-S {path}={_yaml(best[path])}\n" for path in plan.space)


def _yaml(value: Any) -> str:
    plain = value.item() if hasattr(value, "item") else value
    return plain if isinstance(plain, str) else json.dumps(plain)


# -------------------------------------------------------------------------------
# How much each dimension matters
# -------------------------------------------------------------------------------


def parts_table(plan: Plan, table: pd.DataFrame) -> pd.DataFrame:
    """A row for each value of a dimension, or for each quarter of its range.

    It has the mean error of the finished trials after their last epoch, and the mean error of all
    trials after the grace epochs, before any trial is ended early; with Student's t intervals over
    the trials. With `lines`, a dimension has the trials of its own line.
    """
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
            for status in ("finished", *STATUS_LEFT):
                row[status] = int((some["status"] == status).sum())
            # ASHA selected the finished trials, so their mean is biased; after the grace epochs
            # nothing is selected yet.
            row |= _mean("val_mae", some[some["status"] == "finished"]["last_val_mae"])
            row |= _mean("grace_val_mae", some["grace_val_mae"])
            rows.append(row)

    return pd.DataFrame(rows)


def _own_line(plan: Plan, table: pd.DataFrame, path: str) -> pd.DataFrame:
    if plan.settings.search != "lines":
        return table
    others = [table[other] == setting(plan.params, other) for other in plan.space if other != path]
    return table[np.logical_and.reduce(others)] if others else table


def _parts(plan: Plan, table: pd.DataFrame, path: str) -> list[tuple[str, Any, Any, pd.Series]]:
    """(name, low end, high end, which trials) of each value or quarter of a dimension."""
    dimension = plan.space[path]
    column = table[path]
    if isinstance(dimension, ChoiceSettings):
        values = plan.listed_values(path)
        return [(_named(plan, path, value), value, value, column == value) for value in values]

    spread = np.geomspace if isinstance(dimension, LogRangeSettings) else np.linspace
    edges = spread(dimension.low, dimension.high, NUM_PARTS + 1)
    part = np.clip(np.searchsorted(edges, column, side="right") - 1, 0, NUM_PARTS - 1)

    found = []
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        mask = pd.Series(part == number, index=table.index)
        found.append((f"{low:.3g} to {high:.3g}", low, high, mask))
    return found


def _named(plan: Plan, path: str, value: Any) -> str:
    """A value as the paper's Table 7 writes it: a step with its number of labels."""
    if path == STEP:
        return f"{value:g} ({plan.trial_settings({path: value}).grid.num_labels})"
    return str(value)


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
    """The sensitivity tables in the form of the paper's Table 7, as markdown, with the number of
    trials behind them."""
    base = plan.trial_settings({})
    counts = ", ".join(
        f"{number} {status}" for status, number in table["status"].value_counts().items()
    )
    text = (
        f"{len(table)} trials ({counts}), {plan.max_epochs} epochs each. "
        f"Mean absolute error on validation faces, {base.unit}; "
        f"means over trials with 95 % intervals. {SCALES[base.loss['kl_reduction']]}.\n"
    )

    best = best_of(table)
    if best is not None:
        text += f"\nBest: {best['last_val_mae']:.3f} with {_values(plan, best)}.\n"

    for path, rows in parts.groupby("dimension", sort=False):
        text += _sensitivity_table(plan, str(path), rows)
    return text


def _values(plan: Plan, trial: pd.Series) -> str:
    return ", ".join(f"{path} = {_yaml(trial[path])}" for path in plan.space)


def _sensitivity_table(plan: Plan, path: str, rows: pd.DataFrame) -> str:
    name = {LAMBDA: "lambda", STEP: "step (K)"}.get(path, path)
    text = (
        f"\n| {name} | trials | finished | MAE, finished "
        f"| MAE after {plan.settings.grace_epochs} epochs, all |\n"
        "|---|---|---|---|---|\n"
    )

    for _, row in rows.iterrows():
        finished_mae = _with_interval(row, "val_mae")
        grace_mae = _with_interval(row, "grace_val_mae")
        text += (
            f"| {row['value']} | {row['trials']} | {row['finished']} "
            f"| {finished_mae} | {grace_mae} |\n"
        )

    spread = rows["val_mae"].max() - rows["val_mae"].min()
    return text + f"\nFrom the lowest mean to the highest: {spread:.3f}.\n"


def _with_interval(row: pd.Series, name: str) -> str:
    mean = row[name]
    low = row[f"{name}_low"]
    high = row[f"{name}_high"]
    if math.isnan(mean):
        return ""
    if math.isnan(low):
        return f"{mean:.3f}"
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


# -------------------------------------------------------------------------------
# Figures
# -------------------------------------------------------------------------------


def drawn(plan: Plan, table: pd.DataFrame, path: str) -> Dimension:
    """A dimension as the figures take it: numbers at their place, on a logarithmic axis where they
    spread widely, and other values at their index."""
    dimension = plan.space[path]
    name = path.removeprefix("finetune.").removeprefix("labels.")
    if path in (STEP, SIGMA):
        name = f"{name} ({plan.trial_settings({}).unit})"

    if not isinstance(dimension, ChoiceSettings):
        return Dimension(
            name=name,
            place_T=table[path].to_numpy(float),
            ends=(dimension.low, dimension.high),
            is_log=isinstance(dimension, LogRangeSettings),
            labels=(),
        )

    values = plan.listed_values(path)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low = float(min(values))
        high = float(max(values))
        return Dimension(
            name=name,
            place_T=table[path].to_numpy(float),
            ends=(low, high),
            is_log=low > 0 and high / low >= 8,
            labels=(),
        )

    index_of = {value: index for index, value in enumerate(values)}
    return Dimension(
        name=name,
        place_T=table[path].map(index_of).to_numpy(float),
        ends=(0.0, len(values) - 1.0),
        is_log=False,
        labels=tuple(map(str, values)),
    )


def figures_of(
    plan: Plan, table: pd.DataFrame, parts: pd.DataFrame, best: pd.Series
) -> dict[str, bytes]:
    """File name -> PNG."""
    unit = plan.trial_settings({}).unit
    error_T = table["last_val_mae"].to_numpy(float)
    is_finished_T = (table["status"] == "finished").to_numpy()
    place = int(np.flatnonzero(table["trial"] == best["trial"])[0])

    dimensions = []
    means = []
    for path in plan.space:
        dimension = drawn(plan, table, path)
        rows = parts[(parts["dimension"] == path) & (parts["finished"] > 0)]
        dimensions.append(dimension)
        means.append([_part(dimension, row) for _, row in rows.iterrows()])

    return {
        "parallel.png": png(parallel_coordinates(dimensions, error_T, is_finished_T, place, unit)),
        "sensitivity.png": png(sensitivity(dimensions, means, error_T, is_finished_T, unit)),
    }


def _part(dimension: Dimension, row: pd.Series) -> Part:
    if dimension.labels:
        place = float(dimension.labels.index(row["value"]))
    elif dimension.is_log:
        place = math.sqrt(row["low"] * row["high"])
    else:
        place = (row["low"] + row["high"]) / 2

    return Part(place=place, mean=row["val_mae"], low=row["val_mae_low"], high=row["val_mae_high"])


# -------------------------------------------------------------------------------
# Files
# -------------------------------------------------------------------------------


def write_results(plan: Plan, table: pd.DataFrame, results: Path) -> None:
    """Writes all files; those of the previous sweep are removed."""
    parts = parts_table(plan, table)
    best = best_of(table)

    files = {
        "trials.csv": table.to_csv(index=False).encode(),
        "sensitivity.csv": parts.to_csv(index=False).encode(),
        "sensitivity.md": page(plan, table, parts).encode(),
    }
    if best is not None:
        files["best.args"] = best_arguments(plan, best).encode()
        files |= figures_of(plan, table, parts, best)

    with atomic_folder(results) as part:
        for name, content in files.items():
            (part / name).write_bytes(content)


def closing(plan: Plan, table: pd.DataFrame, results: Path, throughput: Mapping[str, float]) -> str:
    """The summary that ends the terminal's output."""
    counts = "  ".join(
        f"{status} {number}" for status, number in table["status"].value_counts().items()
    )
    best = best_of(table)
    if best is None:
        found = "no trial finished"
    else:
        found = f"best: val MAE {best['last_val_mae']:.3f} with {_values(plan, best)}"

    return (
        f"{len(table)} trials: {counts}; {throughput['epochs']:g} epochs in "
        f"{throughput['seconds']:.0f} s, {throughput['faces_per_second']:.0f} faces/s, "
        f"{throughput['trials_per_hour']:.1f} trials/h\n"
        f"{found}\n"
        f"results: {results}"
    )
