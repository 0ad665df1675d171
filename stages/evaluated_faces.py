"""Labelled faces and their predictions, between files and tables: shared by every stage that
measures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from visage.atomic import atomic_write
from visage.data.face_table import FaceTable
from visage.evaluation.bootstrap import Bootstrap
from visage.evaluation.evaluate import (
    Answers,
    Evaluation,
    Subject,
    Unanswered,
    answers_of,
    assess,
    unseen,
)
from visage.evaluation.tables import prediction_rows, prediction_schema
from visage.inference.faces import Predictions
from visage.model_config import CalibrationConfig
from visage.strict import check_positive
from visage.training.provenance import table_digest


@dataclass(frozen=True, kw_only=True)
class ResampleSettings:
    """How a stage makes its intervals, see `Bootstrap`."""

    num_resamples: int
    interval: float
    seed: int

    @property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap(num_resamples=self.num_resamples, interval=self.interval, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class MeasureSettings(ResampleSettings):
    """`band_width` of the label and `cs_thresholds` are in label units. `epsilon_sigma` is used
    where the set gives no sigma; null leaves such faces out of the epsilon-error. `with_dedup` adds
    `<split>_unseen`: pictures that are in no other split, each once, none with two labels.
    """

    splits: tuple[str, ...]
    batch_size: int
    cs_thresholds: tuple[float, ...] = field(metadata={"section": "labels"})
    band_width: float = field(metadata={"section": "labels"})
    epsilon_sigma: float | None = field(metadata={"section": "labels"})
    with_dedup: bool

    def __post_init__(self) -> None:
        if not self.splits:
            raise ValueError("splits is empty: name at least one, such as [test]")
        check_positive(self, "batch_size", "band_width")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Every list of faces with its figures; for each split, its photos without a prediction and
    its faces' digest."""

    evaluations: list[Evaluation]
    losses: dict[str, Unanswered]
    data: dict[str, Any]


def measure(
    settings: MeasureSettings,
    subject: Subject,
    calibration: CalibrationConfig | None,
    predict: Callable[[FaceTable], Predictions],
    *,
    stage: str,
    faces: Path,
    manifest: Path,
    rejects: Path,
) -> Measured:
    """Predicts each split's faces and measures the predictions."""
    lists: list[Answers] = []
    losses: dict[str, Unanswered] = {}
    data: dict[str, Any] = {}

    for split in settings.splits:
        table = open_split(faces, split, f"{stage}.splits")
        of_split = answers_of(split, table, predict(table), subject.grid, settings.epsilon_sigma)
        lists.append(of_split)
        if settings.with_dedup:
            lists += deduplicated(of_split, table, faces)
        losses[split] = unanswered(table, split, manifest, rejects)
        data[split] = table_digest(table)

    evaluations = [
        assess(
            answers,
            subject,
            calibration,
            settings.bootstrap,
            settings.cs_thresholds,
            settings.band_width,
        )
        for answers in lists
    ]
    return Measured(evaluations=evaluations, losses=losses, data=data)


def open_split(faces: Path, split: str, key: str) -> FaceTable:
    """A split's faces; ValueError where there is none. `key` of params.yaml named it."""
    table = FaceTable.open(faces, [split])
    if len(table) == 0:
        raise ValueError(
            f"{faces}: no face of split {split!r}; look at the manifest's splits, or at {key}"
        )
    return table


def deduplicated(of_split: Answers, table: FaceTable, faces: Path) -> list[Answers]:
    """The list `<split>_unseen`; nothing where no face of the split is in it."""
    sha256_N = table.sha256.tolist()
    elsewhere = also_elsewhere(set(sha256_N), faces, of_split.name)
    kept_N = unseen(sha256_N, table.label, elsewhere)
    return [of_split.take(f"{of_split.name}_unseen", kept_N)] if kept_N.any() else []


def also_elsewhere(sha256: set[str], faces: Path, split: str) -> set[str]:
    """Those of the pictures that have a face in another split too, read shard by shard."""
    found: set[str] = set()
    for path in sorted(faces.glob("part-*.parquet")):
        table = pq.read_table(path, columns=["sha256", "split"])
        others = table.filter(pc.not_equal(table["split"], split))
        found |= sha256.intersection(others["sha256"].to_pylist())
    return found


def unanswered(table: FaceTable, split: str, manifest: Path, rejects: Path) -> Unanswered:
    """The split's photos of the manifest that have no face: rejected by align with a reason, else
    quarantined."""
    table_of_split = pq.read_table(manifest, columns=["photo_id"], filters=[("split", "=", split)])
    photos = table_of_split["photo_id"].to_pylist()
    with rejects.open(newline="", encoding="utf-8") as file:
        reasons = {row["photo_id"]: row["reason"] for row in csv.DictReader(file)}

    has_face = set(table.photo_id)
    missing = [photo for photo in photos if photo not in has_face]
    rejected = [(photo, reasons[photo]) for photo in missing if photo in reasons]

    return Unanswered(
        num_photos=len(photos),
        num_quarantined=len(missing) - len(rejected),
        num_found_frame=int((table.found == "frame").sum()),
        rejects=rejected,
    )


def decision_of(
    settings: MeasureSettings,
    decode: str,
    flip: bool,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the figures depend on besides the code. `flip`: the mean over a face and its mirror
    image; `model` names the measured model, `data` holds the digest of each split."""
    return {
        "decode": decode,
        "flip": flip,
        **{name: getattr(settings, name) for name in ("interval", "num_resamples", "seed")},
        "resampled": "person where known, else picture",
        "epsilon_sigma": settings.epsilon_sigma,
        "model": dict(model),
        "data": dict(data),
    }


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    with atomic_write(path) as part:
        part.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_predictions(path: Path, splits: Sequence[str], evaluations: Sequence[Evaluation]) -> None:
    """One row a face of each split, in the order of the face table."""
    lists = [evaluation.answers for evaluation in evaluations if evaluation.answers.name in splits]
    schema = prediction_schema(lists[0].probability_NK.shape[1])
    with atomic_write(path) as part, pq.ParquetWriter(part, schema) as writer:
        for answers in lists:
            writer.write_table(prediction_rows(answers), row_group_size=65536)
