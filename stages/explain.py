"""Model and labelled faces become pictures of what the model looks at: score maps, occlusion,
sheets of faces, t-SNE.

models/calibrated/ + data/target/faces/ + data/raw/target/ + reports/{predictions.parquet,
metrics.json} -> reports/explain/{*.png, explain.json, explain.html} (DLDL-v2 section 5)

Values are decoded and flip averaged as in evaluate. The pictures show faces of the data set: they
stay on this disk, as the photos do. A face is predicted 1 + 49 + 7 times, each time with its mirror
image: about 20 s for 64 faces of 64 px on one core.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from stages.evaluated_faces import ResampleSettings, open_split
from stages.settings import Report, print_report, read_json, stage_main
from visage.atomic import atomic_folder
from visage.data.face_table import FaceTable
from visage.device import available_device
from visage.evaluation.html import Picture, page
from visage.evaluation.metrics import FloatArray, IntArray
from visage.evaluation.plots import png
from visage.explain import plots
from visage.explain.page import group_document, sections
from visage.explain.plots import GroupView
from visage.explain.score_map import has_class_maps
from visage.explain.study import (
    Grouping,
    Subject,
    contact_sheets,
    drawn_rows,
    feature_map,
    group_faces,
    group_views,
    grouped,
    single_faces,
)
from visage.inference.faces import CropPredictor
from visage.inference.predict_table import check_preprocessing
from visage.model_config import CONFIG_FILE, ModelConfig
from visage.strict import check_positive, check_range
from visage.weights import load_model, sha256_of


@dataclass(frozen=True, kw_only=True)
class ExplainSettings(ResampleSettings):
    """`split` must be one that evaluate measured. `max_faces` are drawn at random for score maps
    and occlusion, with `places_per_side` squares a side and as many stripes. `groups` are closed
    ranges of the label ([[0, 3], [20, 35], [65, 100]] are those of the paper's Fig. 6); without
    any, the groups are bands `band_width` label units wide. Each sheet and row shows
    `num_sheet_faces` faces; a prediction more than `poor_error` label units off is coloured there.
    `max_tsne_faces` are drawn for t-SNE; its `perplexity` is at most a third of them."""

    split: str
    max_faces: int
    places_per_side: int
    groups: tuple[tuple[float, float], ...]
    band_width: float = field(metadata={"section": "labels"})
    num_sheet_faces: int
    poor_error: float
    max_tsne_faces: int
    perplexity: float

    def __post_init__(self) -> None:
        check_range(
            self,
            max_faces=(1, None),
            places_per_side=(1, None),
            num_sheet_faces=(1, None),
            max_tsne_faces=(4, None),
        )
        check_positive(self, "band_width", "perplexity", "poor_error")

        ends = list(itertools.chain.from_iterable(self.groups))
        between = zip(ends[1::2], ends[2::2], strict=False)
        if ends != sorted(ends) or any(high == low for high, low in between):
            raise ValueError(
                f"groups is {[list(group) for group in self.groups]}: give ranges that do not "
                f"overlap, the lowest first"
            )


def explain(
    settings: ExplainSettings,
    *,
    model: Path,
    faces: Path,
    raw: Path,
    predictions: Path,
    metrics: Path,
    explain: Path,
    report: Report = print_report,
) -> None:
    """Draws what the model looks at; see the module docstring."""
    network, trained_config = load_model(model)
    decision = read_json(metrics)["decision"]
    config = dataclasses.replace(trained_config, decode=decision["decode"])
    network = network.to(available_device())
    table = open_split(faces, settings.split, "explain.split")
    check_preprocessing(config, table, faces)

    subject = Subject(
        network=network,
        predictor=CropPredictor(network, config),
        table=table,
        raw=raw,
        flip=decision["flip"],
    )

    value_N = read_values(predictions, table, settings.split)
    rows = drawn_rows(len(table), settings.max_faces, settings.seed)
    grouping = grouped(table.label[rows], settings.groups, settings.band_width, config.grid.step)
    groups = group_views(subject, rows, grouping, settings.places_per_side, settings.bootstrap)
    drawn = pictures(subject, groups, grouping, rows, value_N, settings)
    chapters = sections(
        has_class_maps(network, config), groups, drawn, dataclasses.asdict(settings)
    )

    files = {f"{name}.png": picture.png for name, picture in drawn.items()}
    values = document(settings, model, config, subject.flip, groups)
    files["explain.json"] = json.dumps(values, indent=1, allow_nan=False).encode()
    files["explain.html"] = page(f"{config.name}: what it looks at", chapters).encode()
    with atomic_folder(explain) as part:
        for name, content in files.items():
            (part / name).write_bytes(content)

    report(0, {"num_faces": groups[0].num_faces, "mae": groups[0].mae})
    print(f"explained: {explain / 'explain.html'}")


def read_values(predictions: Path, table: FaceTable, split: str) -> FloatArray:
    """The evaluated value of every face of the table (N,), label units."""
    columns = pq.read_table(
        predictions, columns=["photo_id", "prediction"], filters=[("split", "=", split)]
    )

    if columns["photo_id"].to_pylist() != table.photo_id.tolist():
        raise ValueError(
            f"{predictions}: these are not the {len(table)} faces of split {split!r}; run evaluate "
            f"on them, with {split!r} among evaluate.splits"
        )

    return np.asarray(columns["prediction"].to_numpy(), np.float64)


def pictures(
    subject: Subject,
    groups: Sequence[GroupView],
    grouping: Grouping,
    rows: IntArray,
    value_N: FloatArray,
    settings: ExplainSettings,
) -> dict[str, Picture]:
    """Every picture, by its file name without suffix."""
    tsne_rows = drawn_rows(len(subject.table), settings.max_tsne_faces, settings.seed)
    figures = {
        "score_maps": plots.score_maps(groups, subject.config.unit),
        "group_faces": group_faces(subject, rows, grouping, settings.num_sheet_faces),
        "occlusion": plots.occlusion(groups, subject.config.unit),
        "faces": single_faces(subject, rows, settings.num_sheet_faces),
        **contact_sheets(subject, value_N, settings.num_sheet_faces, settings.poor_error),
        "tsne": feature_map(subject, value_N, tsne_rows, settings.perplexity, settings.seed),
    }

    drawn: dict[str, Picture] = {}
    for name, figure in figures.items():
        drawn[name] = Picture(caption=str(figure.get_suptitle()), png=png(figure), shows_faces=True)
    return drawn


def document(
    settings: ExplainSettings,
    model: Path,
    config: ModelConfig,
    flip: bool,
    groups: Sequence[GroupView],
) -> dict[str, Any]:
    """All figures, and what they depend on besides the code."""
    names = ("split", "max_faces", "interval", "num_resamples", "seed")
    identity = {
        "name": config.name,
        "config_sha256": sha256_of(model / CONFIG_FILE),
        "weights_sha256": config.weights.sha256,
    }

    return {
        "model": identity,
        "decode": config.decode,
        "flip": flip,
        **{name: getattr(settings, name) for name in names},
        "unit": config.unit,
        "groups": {group.name: group_document(group) for group in groups},
    }


if __name__ == "__main__":
    stage_main(
        "explain",
        ExplainSettings,
        explain,
        ["model", "faces", "raw", "predictions", "metrics", "explain"],
    )
