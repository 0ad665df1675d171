"""Counts a folder of scores, and shows the counts as a page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from visage.data.schemas import METADATA_KEY
from visage.evaluation.html import Table
from visage.labels import LabelGrid

NUM_BARS = 10
BAR_WIDTH = 30
MOST_REASONS = 20


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The counts of the shards: the model, photos, faces, faces in NUM_BARS equal parts of the
    model's grid, and photos without a face by reason."""

    about: dict[str, Any]
    num_photos: int
    num_faces: int
    faces_of_bars: tuple[int, ...]
    rejects: Counter[str]

    @property
    def counts(self) -> dict[str, int]:
        return {"photos": self.num_photos, "faces": self.num_faces, "rejects": self.rejects.total()}


def read_scores(shards: Sequence[Path]) -> Scores:
    """Counts the contents of the shards, one in memory at a time."""
    about = json.loads(pq.read_schema(shards[0]).metadata[METADATA_KEY])
    edges = _edges(about)
    faces_of_bars = np.zeros(NUM_BARS, np.int64)
    rejects = Counter[str]()
    num_photos = 0

    for shard in shards:
        table = pq.read_table(shard, columns=["photo", "value", "reason"])
        values = table["value"].drop_null().to_numpy()
        faces_of_bars += np.histogram(values.clip(edges[0], edges[-1]), edges)[0]
        rejects.update(table["reason"].drop_null().to_pylist())
        num_photos += len(table["photo"].unique())

    return Scores(
        about=about,
        num_photos=num_photos,
        num_faces=int(faces_of_bars.sum()),
        faces_of_bars=tuple(faces_of_bars.tolist()),
        rejects=rejects,
    )


def _edges(about: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    grid = LabelGrid(**about["labels"])
    return np.linspace(grid.minimum, grid.maximum, NUM_BARS + 1)


def page(photos: str, output: Path, scores: Scores) -> str:
    """The counts as markdown: the model, the values as bars, the reasons of the rejects."""
    model = scores.about["model"]
    version = "" if model["version"] is None else f" version {model['version']}"
    counts = scores.counts
    totals = Table(
        caption="",
        header=list(counts),
        rows=[[str(count) for count in counts.values()]],
    )
    parts = [
        f"# Scores of {photos}",
        f"{model['name']}{version}, weights {model['sha256'][:12]}, in `{output}`.",
        totals.markdown(),
        _bars(scores).markdown(),
    ]

    reasons = [[reason, str(count)] for reason, count in scores.rejects.most_common(MOST_REASONS)]
    if reasons:
        parts.append(Table(caption="", header=["reason", "photos"], rows=reasons).markdown())
    return "\n\n".join(parts) + "\n"


def _bars(scores: Scores) -> Table:
    """The distribution of the values as bars of text."""
    edges = _edges(scores.about)
    most = max(1, *scores.faces_of_bars)
    rows = [
        [f"{low:g} to {high:g}", str(count), "█" * round(BAR_WIDTH * count / most)]
        for low, high, count in zip(edges[:-1], edges[1:], scores.faces_of_bars, strict=True)
    ]
    header = [f"{scores.about['quantity']}, {scores.about['unit']}", "faces", ""]
    return Table(caption="", header=header, rows=rows)
