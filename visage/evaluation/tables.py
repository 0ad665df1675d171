"""Evaluations -> the tables in reports/: metrics, groups, predictions, and the plots' data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from visage.evaluation.evaluate import ATTRIBUTES, Answers, Evaluation, Unanswered
from visage.evaluation.metrics import deviation_from_uniform, pit_histogram
from visage.model_config import ModelConfig

# Rows of the scatter plot's table: as many as one can show.
MAX_POINTS = 5000


def metrics_document(
    evaluations: Iterable[Evaluation], losses: Mapping[str, Unanswered], decision: Mapping[str, Any]
) -> dict[str, Any]:
    """One entry for each list of faces: counts, the PIT's greatest distance from uniform (0 for a
    calibrated model and many faces), and value, low, high of every metric. An undefined metric is
    left out."""
    document: dict[str, Any] = {}
    for evaluation in evaluations:
        name = evaluation.answers.name
        scored = evaluation.answers.scored

        counts = {
            "num_faces": len(scored),
            "num_with_sigma": int(np.isfinite(evaluation.answers.sigma_N).sum()),
        }
        if name in losses:
            counts |= losses[name].counts()
        spread = {"pit_max_deviation": deviation_from_uniform(evaluation.pit_N)}
        figures = {
            key: dataclasses.asdict(figure)
            for key, figure in evaluation.figures.items()
            if math.isfinite(figure.value)
        }
        document[name] = counts | spread | figures

    return document | {"decision": dict(decision)}


def group_rows(evaluations: Iterable[Evaluation]) -> pd.DataFrame:
    """One row for each list of faces, attribute, group and metric."""
    rows = []
    for evaluation in evaluations:
        for attribute, table in evaluation.groups.items():
            for group in table:
                head = {
                    "list": evaluation.answers.name,
                    "attribute": attribute,
                    "group": group.name,
                    "num_faces": group.num_faces,
                }
                rows += [
                    head | {"metric": metric, **dataclasses.asdict(figure)}
                    for metric, figure in group.estimates.items()
                    if math.isfinite(figure.value)
                ]

    return pd.DataFrame(rows)


def prediction_schema(num_labels: int) -> pa.Schema:
    """The columns of predictions.parquet, in label units; `low` and `high` are the ends of the 80 %
    interval.

    `sha256` of the photo says which faces two models share, and `person` which faces the bootstrap
    draws together.
    """
    text = pa.string()
    real = pa.float64()
    columns = {
        "photo_id": text,
        "sha256": text,
        "person": text,
        "label": real,
        "sigma": real,
        "split": text,
    }
    columns |= dict.fromkeys(ATTRIBUTES, text)
    columns |= dict.fromkeys(("prediction", "std", "low", "high"), real)

    return pa.schema(columns | {"probabilities": pa.list_(pa.float32(), num_labels)})


def prediction_rows(answers: Answers) -> pa.Table:
    """One row for each face, in the faces' order; sigma is null where unknown."""
    scored = answers.scored
    num_labels = answers.probability_NK.shape[1]

    columns = {
        "photo_id": pa.array(answers.photo_id_N, pa.string()),
        "sha256": pa.array(answers.sha256_N, pa.string()),
        "person": pa.array(answers.person_N, pa.string()),
        "label": scored.label_N,
        "sigma": pa.array(answers.sigma_N, mask=np.isnan(answers.sigma_N)),
        "split": pa.array([answers.name] * len(scored), pa.string()),
        **{name: pa.array(values, pa.string()) for name, values in answers.attribute.items()},
        "prediction": scored.prediction_N,
        **{name: getattr(scored, f"{name}_N") for name in ("std", "low", "high")},
        "probabilities": pa.FixedSizeListArray.from_arrays(
            pa.array(answers.probability_NK.ravel()), num_labels
        ),
    }
    return pa.table(columns, schema=prediction_schema(num_labels))


def plot_tables(evaluation: Evaluation, config: ModelConfig, seed: int) -> dict[str, pd.DataFrame]:
    """What `dvc plots show` draws, by file name: at most `MAX_POINTS` random points, error by band,
    CS curve, coverage of central intervals (and before calibration), PIT histogram."""
    scored = evaluation.answers.scored
    rows = np.arange(len(scored))
    if len(rows) > MAX_POINTS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_POINTS, replace=False))

    by_band = []
    for group in evaluation.groups[config.quantity]:
        mae = group.estimates["mae"]
        row = {
            "label": group.name,
            "num_faces": group.num_faces,
            "mae": mae.value,
            "mae_low": mae.low,
            "mae_high": mae.high,
            "bias": group.estimates["bias"].value,
        }
        by_band.append(row)

    curve = [
        {"error": error, "share": s.value, "low": s.low, "high": s.high}
        for error, s in evaluation.cs_curve.items()
    ]
    pit = dict(zip(("low", "high", "share"), pit_histogram(evaluation.pit_N), strict=True))

    return {
        "predicted_vs_true": pd.DataFrame(
            {"label": scored.label_N[rows], "prediction": scored.prediction_N[rows]}
        ),
        "error_by_label": pd.DataFrame(by_band),
        "cs_curve": pd.DataFrame(curve),
        "reliability": reliability_table(evaluation),
        "pit": pd.DataFrame(pit),
    }


def reliability_table(evaluation: Evaluation) -> pd.DataFrame:
    """One row for each mass: the share of labels inside, its interval, and the share before
    calibration where there was one."""
    rows = []
    for mass, inside in evaluation.reliability.items():
        row = {"mass": mass, "share": inside.value, "low": inside.low, "high": inside.high}
        if evaluation.uncalibrated:
            row["share_before"] = evaluation.uncalibrated[mass].value
        rows.append(row)
    return pd.DataFrame(rows)
