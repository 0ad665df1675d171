"""A model and labelled faces -> what is found out about its looking: groups with score maps and
occlusion, and sheets.

Memory grows with the number of faces that are drawn, not with that of the table. Shapes: N faces of
a call, P places, G groups, C channels, H and W crop side in pixels. Everything is in label units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from torch import nn
from tqdm import tqdm

from visage.data.face_table import FaceTable, evenly_spread
from visage.evaluation.bootstrap import Bootstrap, cluster_codes, who_is_shown
from visage.evaluation.evaluate import band_name
from visage.evaluation.metrics import FloatArray, IntArray, bands
from visage.explain import occlusion, plots
from visage.explain.plots import GroupView, Pixels
from visage.explain.score_map import pooled_features, score_map
from visage.inference.faces import CropPredictor
from visage.model_config import ModelConfig

BATCH_FACES = 64


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, as a network and as what answers, the labelled faces it is asked about, and whether
    it flips them."""

    network: nn.Module
    predictor: CropPredictor
    table: FaceTable
    flip: bool

    @property
    def config(self) -> ModelConfig:
        return self.predictor.config

    def pixels(self, rows: IntArray) -> Pixels:
        """Crops of some faces as pictures, (N,H,W,3)."""
        crops: Pixels = self.table.decode(rows).permute(0, 2, 3, 1).numpy()
        return crops


def drawn_rows(num_faces: int, wanted: int, seed: int) -> IntArray:
    """At most `wanted` of the faces by the luck of the seed, in their order."""
    chosen = np.random.default_rng(seed).choice(num_faces, min(num_faces, wanted), replace=False)
    return np.sort(chosen).astype(np.int64)


def group_views(
    subject: Subject, rows: IntArray, places_per_side: int, band_width: float, bootstrap: Bootstrap
) -> list[GroupView]:
    """All the faces `rows` as one group, then one group a band of the label."""
    table, num_squares = subject.table, places_per_side**2
    lower_G, group_N = np.unique(bands(table.label[rows], band_width), return_inverse=True)
    error_NP, face_GHW3, score_GHW = looked_at(subject, rows, group_N, places_per_side)
    cluster_N = cluster_codes(who_is_shown(table.person[rows], table.sha256[rows]))

    def view(name: str, kept_N: IntArray, groups: list[int]) -> GroupView:
        losses = occlusion.relative_losses(error_NP[kept_N], cluster_N[kept_N], bootstrap)
        return GroupView(
            name=name,
            num_faces=len(kept_N),
            mae=float(error_NP[kept_N, 0].mean()),
            face_HW3=face_GHW3[groups].sum(axis=0) / len(kept_N),
            score_HW=score_GHW[groups].sum(axis=0) / len(kept_N),
            squares=losses[:num_squares],
            stripes=losses[num_squares:],
        )

    names = [band_name(lower, band_width, subject.config.grid.step) for lower in lower_G.tolist()]
    whole = view("all", np.arange(len(rows)), list(range(len(names))))
    return [
        whole,
        *(
            view(name, np.flatnonzero(group_N == group), [group])
            for group, name in enumerate(names)
        ),
    ]


def looked_at(
    subject: Subject, rows: IntArray, group_N: IntArray, places_per_side: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Absolute errors of the faces `rows`, nothing hidden and each place hidden (N, 1 + P), squares
    first; and sums by group of faces (G,H,W,3), colours from 0 to 1, and of score maps (G,H,W)."""
    px, num_groups = subject.config.alignment.crop_px, int(group_N.max()) + 1
    places = occlusion.squares(px, places_per_side) + occlusion.stripes(px, places_per_side)
    face_GHW3, score_GHW = np.zeros((num_groups, px, px, 3)), np.zeros((num_groups, px, px))
    errors = []
    with tqdm(total=len(rows) * (1 + len(places)), unit="answer", desc="occlusion") as bar:
        for start in range(0, len(rows), BATCH_FACES):
            part, group_B = rows[start : start + BATCH_FACES], group_N[start : start + BATCH_FACES]
            crops_BCHW, label_B = subject.table.decode(part), subject.table.label[part]
            errors.append(
                occlusion.occlusion_errors(
                    subject.predictor, crops_BCHW, label_B, places, subject.flip, bar.update
                )
            )
            np.add.at(face_GHW3, group_B, crops_BCHW.permute(0, 2, 3, 1).numpy() / 255.0)
            np.add.at(
                score_GHW,
                group_B,
                score_map(subject.network, subject.config, crops_BCHW, subject.flip).numpy(),
            )
    return np.concatenate(errors), face_GHW3, score_GHW


def single_faces(subject: Subject, rows: IntArray, count: int) -> Figure:
    """A sheet of at most `count` of the faces `rows`, from the lowest to the highest label."""
    by_label = rows[np.argsort(subject.table.label[rows], kind="stable")]
    shown = by_label[evenly_spread(len(rows), count)]
    crops_FCHW, config = subject.table.decode(shown), subject.config
    told = subject.predictor.predict_crops(crops_FCHW, subject.flip)
    return plots.face_sheet(
        f"{len(shown)} faces from the lowest to the highest label: score map and answered "
        f"distribution",
        subject.pixels(shown),
        score_map(subject.network, config, crops_FCHW, subject.flip).numpy(),
        config.grid.labels(),
        told.probabilities,
        subject.table.label[shown],
        told.value,
        config.unit,
    )


def contact_sheets(subject: Subject, value_N: FloatArray, count: int) -> dict[str, Figure]:
    """The `count` faces of the whole table with the least and the largest error, the highest and
    the lowest value."""
    label_N, unit = subject.table.label, subject.config.unit
    error_N = np.abs(value_N - label_N)
    wanted: dict[str, tuple[FloatArray, Callable[[IntArray], str]]] = {
        "best": (
            error_N,
            lambda rows: f"Best answers: at most {error_N[rows].max():.2g} {unit} off",
        ),
        "worst": (
            -error_N,
            lambda rows: f"Worst answers: at least {error_N[rows].min():.3g} {unit} off",
        ),
        "highest": (
            -value_N,
            lambda rows: f"Highest answers: {value_N[rows].min():.3g} {unit} and more",
        ),
        "lowest": (
            value_N,
            lambda rows: f"Lowest answers: {value_N[rows].max():.3g} {unit} and less",
        ),
    }
    sheets = {}
    for name, (key_N, title) in wanted.items():
        rows = np.argsort(key_N, kind="stable")[:count]
        sheets[f"{name}_faces"] = plots.contact_sheet(
            title(rows), subject.pixels(rows), label_N[rows], value_N[rows], unit
        )
    return sheets


def feature_map(
    subject: Subject, value_N: FloatArray, rows: IntArray, perplexity: float, seed: int
) -> Figure:
    """t-SNE of the pooled features of the faces `rows`; `perplexity` is held to a third of their
    number."""
    parts = np.array_split(rows, -(-len(rows) // BATCH_FACES))
    bar = tqdm(parts, unit="batch", desc="features")
    feature_NC = np.concatenate(
        [
            pooled_features(subject.network, subject.config, subject.table.decode(part)).numpy()
            for part in bar
        ]
    )
    layout = TSNE(perplexity=min(perplexity, (len(rows) - 1) / 3), init="pca", random_state=seed)
    label_N, config = subject.table.label[rows], subject.config
    return plots.embedding(
        layout.fit_transform(feature_NC),
        label_N,
        np.abs(value_N[rows] - label_N),
        config.quantity,
        config.unit,
    )
