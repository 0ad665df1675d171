"""Labelled faces and what was answered for them, between files and tables: what every stage that measures shares."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.settings import written_whole
from visage.evaluation import Answers, Lost, unseen
from visage.evaluation_tables import prediction_rows, prediction_schema
from visage.faces import FaceTable


class Rule(Protocol):
    """Of a stage's settings, what its figures depend on."""

    @property
    def flip(self) -> bool: ...

    @property
    def interval(self) -> float: ...

    @property
    def num_resamples(self) -> int: ...

    @property
    def seed(self) -> int: ...

    @property
    def epsilon_sigma(self) -> float | None: ...


def open_split(faces: Path, split: str, section: str) -> FaceTable:
    """A split's faces; ValueError where there is none."""
    table = FaceTable.open(faces, [split])
    if len(table) == 0:
        raise ValueError(f"{faces}: no face of split {split!r}; look at the manifest's splits, or at {section}.splits")
    return table


def deduplicated(whole: Answers, table: FaceTable, faces: Path) -> list[Answers]:
    """The list `<split>_unseen`; nothing where no face of the split is in it."""
    sha256_N = table.sha256.tolist()
    kept_N = unseen(sha256_N, table.label, also_elsewhere(set(sha256_N), faces, whole.name))
    return [whole.take(f"{whole.name}_unseen", kept_N)] if kept_N.any() else []


def also_elsewhere(sha256: set[str], faces: Path, split: str) -> set[str]:
    """Those of the pictures that have a face in another split too, read shard by shard."""
    found: set[str] = set()
    for path in sorted(faces.glob("part-*.parquet")):
        table = pq.read_table(path, columns=["sha256", "split"])
        found |= sha256.intersection(table.filter(pc.not_equal(table["split"], split))["sha256"].to_pylist())
    return found


def lost(table: FaceTable, split: str, manifest: Path, rejects: Path) -> Lost:
    """The split's photos of the manifest that have no face: rejected by align with a reason, else quarantined."""
    photos = pq.read_table(manifest, columns=["photo_id"], filters=[("split", "=", split)])["photo_id"].to_pylist()
    with rejects.open(newline="", encoding="utf-8") as file:
        reasons = {row["photo_id"]: row["reason"] for row in csv.DictReader(file)}
    answered = set(table.photo_id)
    missing = [photo for photo in photos if photo not in answered]
    rejected = [(photo, reasons[photo]) for photo in missing if photo in reasons]
    return Lost(
        num_photos=len(photos),
        num_quarantined=len(missing) - len(rejected),
        num_found_frame=int((table.found == "frame").sum()),
        rejects=rejected,
    )


def decision_of(rule: Rule, decode: str, model: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """All that the figures depend on beside the code; `model` tells who answered, `data` the digest of each split."""
    return {
        "decode": decode,
        **{name: getattr(rule, name) for name in ("flip", "interval", "num_resamples", "seed")},
        "resampled": "person where known, else picture",
        "epsilon_sigma": rule.epsilon_sigma,
        "model": dict(model),
        "data": dict(data),
    }


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    with written_whole(path) as part:
        part.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_predictions(path: Path, lists: Sequence[Answers]) -> None:
    """One row a face of each split, in the order of the face table."""
    schema = prediction_schema(lists[0].probability_NK.shape[1])
    with written_whole(path) as part, pq.ParquetWriter(part, schema) as writer:
        for answers in lists:
            writer.write_table(prediction_rows(answers), row_group_size=65536)
