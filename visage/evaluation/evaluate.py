"""A model's predictions for labelled faces -> the evaluation: figures, groups, curves.

Pictures of one person, and copies of one picture, err alike. So the bootstrap draws people instead
of faces where people are known, and pictures where they are not.

Shapes: N faces, K labels of the grid. Everything is in label units.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from visage.data.face_table import FaceTable
from visage.evaluation.bootstrap import (
    Bootstrap,
    Estimate,
    Group,
    by_group,
    cluster_codes,
    estimate,
    who_is_shown,
)
from visage.evaluation.crps import batched_crps, batches
from visage.evaluation.metrics import (
    FloatArray,
    IntArray,
    Metric,
    Scored,
    bands,
    cumulative_score,
    mean_of,
    metric_set,
    pit,
)
from visage.inference.calibration import tempered
from visage.inference.faces import Predictions
from visage.labels import LabelGrid, central_interval
from visage.model_config import CalibrationConfig

# Of the intervals whose coverage is measured.
MASSES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

# Thresholds of the CS curve, up to a fifth of the label range.
CURVE_STEPS = 40

ATTRIBUTES = ("sex", "ethnicity")

Objects = npt.NDArray[np.object_]
Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The faces of a list and the model's predictions for them, row by row.

    `sigma_N` is the data set's own, nan where it has none; that of `scored` may have a stand-in.
    """

    name: str
    photo_id_N: Objects
    sha256_N: Objects
    person_N: Objects
    cluster_N: IntArray
    attribute: dict[str, Objects]
    sigma_N: FloatArray
    scored: Scored
    probability_NK: npt.NDArray[np.float32]

    def take(self, name: str, kept_N: Booleans) -> Answers:
        return Answers(
            name=name,
            photo_id_N=self.photo_id_N[kept_N],
            sha256_N=self.sha256_N[kept_N],
            person_N=self.person_N[kept_N],
            cluster_N=self.cluster_N[kept_N],
            attribute={key: values[kept_N] for key, values in self.attribute.items()},
            sigma_N=self.sigma_N[kept_N],
            scored=self.scored.take(kept_N),
            probability_NK=self.probability_NK[kept_N],
        )


class Subject(Protocol):
    """What is estimated, and on which grid: a model's config is one."""

    @property
    def quantity(self) -> str: ...

    @property
    def grid(self) -> LabelGrid: ...


@dataclass(frozen=True, kw_only=True)
class Unanswered:
    """A split's photos without a prediction, and how the faces of the others were found."""

    num_photos: int
    num_quarantined: int
    num_found_frame: int  # photos in which no face was found: the frame is taken as the face
    rejects: list[tuple[str, str]]  # photo_id, reason

    def counts(self) -> dict[str, int]:
        """The numbers alone."""
        names = ("num_photos", "num_quarantined", "num_found_frame")
        counts = {name: getattr(self, name) for name in names}
        return counts | {"num_rejected": len(self.rejects)}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is reported of one list of faces.

    `groups` has a table an attribute, first the bands of the label itself; `cs_curve` maps an error
    to the share of faces within it; `reliability` maps the mass of a central interval to the share
    of labels inside, `uncalibrated` of those before calibration (empty where there was none).
    `pit_N`: visage.evaluation.metrics.pit of every face.
    """

    answers: Answers
    figures: dict[str, Estimate]
    groups: dict[str, list[Group]]
    cs_curve: dict[float, Estimate]
    reliability: dict[float, Estimate]
    uncalibrated: dict[float, Estimate]
    pit_N: FloatArray


def answers_of(
    name: str,
    table: FaceTable,
    predictions: Predictions,
    grid: LabelGrid,
    epsilon_sigma: float | None,
) -> Answers:
    """Faces and their predictions; `epsilon_sigma` stands in where a face has no sigma.

    Raises ValueError where a face has no label.
    """
    unlabelled = np.flatnonzero(~np.isfinite(table.label))
    if len(unlabelled):
        raise ValueError(
            f"{table.photo_id[unlabelled[0]]}: this {name} face has no label "
            f"({len(unlabelled)} such faces); give it one in the data set's labels, or leave "
            "its split out of evaluate.splits"
        )

    scored = Scored(
        label_N=table.label,
        prediction_N=predictions.value,
        sigma_N=table.sigma if epsilon_sigma is None else table.with_sigma(epsilon_sigma),
        std_N=predictions.std,
        low_N=predictions.low,
        high_N=predictions.high,
        crps_N=batched_crps(predictions.probabilities, grid, table.label),
    )

    return Answers(
        name=name,
        photo_id_N=table.photo_id,
        sha256_N=table.sha256,
        person_N=table.person,
        cluster_N=cluster_codes(who_is_shown(table.person, table.sha256)),
        attribute={key: getattr(table, key) for key in ATTRIBUTES},
        sigma_N=table.sigma,
        scored=scored,
        probability_NK=predictions.probabilities,
    )


def unseen(sha256_N: Sequence[str], label_N: FloatArray, elsewhere: Collection[str]) -> Booleans:
    """The de-duplicated list of a split: pictures that no other split holds, each once, none with
    two labels."""
    labels: dict[str, set[float]] = {}
    for sha256, label in zip(sha256_N, label_N.tolist(), strict=True):
        labels.setdefault(sha256, set()).add(label)

    taken = {sha256 for sha256, values in labels.items() if len(values) > 1 or sha256 in elsewhere}
    kept_N = np.zeros(len(label_N), dtype=bool)
    for row, sha256 in enumerate(sha256_N):
        kept_N[row] = sha256 not in taken
        taken.add(sha256)

    return kept_N


def assess(
    answers: Answers,
    config: Subject,
    calibration: CalibrationConfig | None,
    bootstrap: Bootstrap,
    cs_thresholds: Sequence[float],
    band_width: float,
) -> Evaluation:
    """All figures of a list of faces, with intervals."""
    scored = answers.scored
    clusters = answers.cluster_N
    metrics = metric_set(cs_thresholds)

    by_band = by_group(
        scored,
        bands(scored.label_N, band_width).tolist(),
        metrics,
        bootstrap,
        clusters,
        name=lambda lower: band_name(lower, band_width, config.grid.step),
    )
    groups = {config.quantity: by_band}
    for attribute, value_N in answers.attribute.items():
        if any(value is not None for value in value_N):
            groups[attribute] = by_group(scored, value_N.tolist(), metrics, bootstrap, clusters)

    return Evaluation(
        answers=answers,
        figures=estimate(scored, metrics, bootstrap, clusters),
        groups=groups,
        cs_curve=curve(scored, config.grid, bootstrap, clusters),
        reliability=reliability(answers, config.grid, bootstrap),
        uncalibrated=uncalibrated(answers, config.grid, calibration, bootstrap),
        pit_N=pit_of(answers, config.grid, np.random.default_rng(bootstrap.seed)),
    )


def band_name(lower: float, width: float, step: float) -> str:
    """The labels of a band, first to last on the grid: 20-29 for decades of years, 3-3.9 for
    tenths."""
    if width <= step:
        return f"{lower:g}"
    return f"{lower:g}-{lower + width - step:g}"


def curve(
    scored: Scored, grid: LabelGrid, bootstrap: Bootstrap, clusters: IntArray
) -> dict[float, Estimate]:
    """CS@k for evenly spaced k from 0 to a fifth of the label range."""
    thresholds = np.linspace(0, (grid.maximum - grid.minimum) / 5, CURVE_STEPS + 1).tolist()
    scores = {f"{threshold}": cumulative_score(threshold) for threshold in thresholds}
    estimates = estimate(scored, scores, bootstrap, clusters)
    return dict(zip(thresholds, estimates.values(), strict=True))


def reliability(answers: Answers, grid: LabelGrid, bootstrap: Bootstrap) -> dict[float, Estimate]:
    """Share of labels inside the central interval of each of `MASSES`."""
    label_N = answers.scored.label_N
    parts = [
        inside_intervals(answers.probability_NK[rows], label_N[rows], grid)
        for rows in batches(len(label_N))
    ]
    inside_NM = np.concatenate(parts)

    metrics = {f"{mass}": column_mean(inside_NM[:, place]) for place, mass in enumerate(MASSES)}
    estimates = estimate(answers.scored, metrics, bootstrap, answers.cluster_N)
    return dict(zip(MASSES, estimates.values(), strict=True))


def uncalibrated(
    answers: Answers, grid: LabelGrid, calibration: CalibrationConfig | None, bootstrap: Bootstrap
) -> dict[float, Estimate]:
    """The reliability of the predictions before calibration: the inverse temperature undoes the
    tempering."""
    if calibration is None:
        return {}

    p_NK = np.empty_like(answers.probability_NK)
    for rows in batches(len(p_NK)):
        served_BK = torch.from_numpy(answers.probability_NK[rows]).double()
        p_NK[rows] = tempered(served_BK, 1 / calibration.temperature).numpy()
    return reliability(replace(answers, probability_NK=p_NK), grid, bootstrap)


def pit_of(answers: Answers, grid: LabelGrid, rng: np.random.Generator) -> FloatArray:
    """The PIT of every face (N,), its labels randomised within their cells by `rng`."""
    label_N = answers.scored.label_N
    level_N = rng.random(len(label_N))

    parts = []
    for rows in batches(len(label_N)):
        p_BK = answers.probability_NK[rows]
        parts.append(pit(p_BK, grid.labels(), label_N[rows], level_N[rows]))
    return np.concatenate([np.empty(0), *parts])


def inside_intervals(
    probability_BK: npt.NDArray[np.float32], label_B: FloatArray, grid: LabelGrid
) -> Booleans:
    """Whether each label is in its face's central interval of each of `MASSES`: (B, M)."""
    p_BK = torch.from_numpy(probability_BK.astype(np.float64))
    columns = []
    for mass in MASSES:
        low_B, high_B = central_interval(p_BK, grid, mass)
        columns.append((low_B.numpy() <= label_B) & (label_B <= high_B.numpy()))
    return np.stack(columns, axis=1)


def column_mean(column_N: Booleans) -> Metric:
    return mean_of(lambda _: column_N)
