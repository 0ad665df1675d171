"""A model and labelled faces -> where the model looks: groups with score maps and occlusion, and
sheets of faces.

Memory grows with the number of faces that are drawn, not with that of the table. Shapes: N faces of
a call, P places, G groups, C channels, H and W crop side in pixels. Everything is in label units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from sklearn.manifold import TSNE
from tqdm import tqdm

from visage.data.face_table import FaceTable, evenly_spread
from visage.detection.image_io import read_photo
from visage.evaluation.bootstrap import Bootstrap, cluster_codes, who_is_shown
from visage.evaluation.evaluate import band_name
from visage.evaluation.metrics import FloatArray, IntArray, bands
from visage.explain import occlusion, plots
from visage.explain.plots import GroupView, Pixels
from visage.explain.score_map import pooled_features, score_map
from visage.inference.faces import CropPredictor
from visage.inference.predict_table import faces_of
from visage.model_config import ModelConfig
from visage.networks.protocol import FaceBatch, Network

BATCH_FACES = 64

# Longer side of a photo on a sheet, which is printed much smaller.
PHOTO_PX = 256


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model (its network and its predictor), the labelled faces that it predicts, the folder of
    their photos, and whether predictions are flip averaged."""

    network: Network
    predictor: CropPredictor
    table: FaceTable
    raw: Path
    flip: bool

    @property
    def config(self) -> ModelConfig:
        return self.predictor.config

    def faces(self, rows: IntArray) -> FaceBatch:
        """Some faces' crops, uint8, with their landmarks where the network needs them."""
        return faces_of(self.table, rows, self.network.needs_landmarks)

    def pixels(self, rows: IntArray) -> Pixels:
        """Crops of some faces as pictures, (N,H,W,3)."""
        crops: Pixels = self.table.decode(rows).permute(0, 2, 3, 1).numpy()
        return crops

    def photos(self, rows: IntArray) -> list[Pixels]:
        """The photos that some faces were found in, each at most PHOTO_PX wide and high; ValueError
        for one that is not there."""
        small = []
        for row in rows.tolist():
            path = self.raw / str(self.table.photo_id[row])
            try:
                photo = Image.fromarray(read_photo(path))
            except ValueError as error:
                raise ValueError(f"{path}: {error}; run the download stage again") from error

            photo.thumbnail((PHOTO_PX, PHOTO_PX))
            small.append(np.asarray(photo))
        return small


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Faces by groups of their label: `names` of the groups, and each face's group (N,), or
    len(names) for a face that is in none."""

    names: tuple[str, ...]
    group_N: IntArray


def grouped(
    label_N: FloatArray, groups: Sequence[tuple[float, float]], band_width: float, step: float
) -> Grouping:
    """Faces by `groups`, closed ranges of labels such as 0 to 3, or by equal bands where no group
    is named; groups without a face are left out."""
    if not groups:
        lower_G, group_N = np.unique(bands(label_N, band_width), return_inverse=True)
        names = tuple(band_name(lower, band_width, step) for lower in lower_G.tolist())
        return Grouping(names=names, group_N=group_N.astype(np.int64))

    inside = {f"{low:g}-{high:g}": (low <= label_N) & (label_N <= high) for low, high in groups}
    held = {name: is_in_N for name, is_in_N in inside.items() if is_in_N.any()}

    group_N = np.full(len(label_N), len(held), np.int64)
    for group, is_in_N in enumerate(held.values()):
        group_N[is_in_N] = group
    return Grouping(names=tuple(held), group_N=group_N)


def drawn_rows(num_faces: int, wanted: int, seed: int) -> IntArray:
    """At most `wanted` random faces, in their order."""
    chosen = np.random.default_rng(seed).choice(num_faces, min(num_faces, wanted), replace=False)
    return np.sort(chosen).astype(np.int64)


def group_views(
    subject: Subject,
    rows: IntArray,
    grouping: Grouping,
    places_per_side: int,
    bootstrap: Bootstrap,
) -> list[GroupView]:
    """All the faces `rows` as one group, then the groups of their labels."""
    table = subject.table
    num_squares = places_per_side**2
    group_N = grouping.group_N
    error_NP, face_GHW3, score_GHW = errors_and_sums(subject, rows, group_N, places_per_side)
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

    views = [view("all", np.arange(len(rows)), list(range(len(face_GHW3))))]
    for group, name in enumerate(grouping.names):
        views.append(view(name, np.flatnonzero(group_N == group), [group]))
    return views


def errors_and_sums(
    subject: Subject, rows: IntArray, group_N: IntArray, places_per_side: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Absolute errors of the faces `rows`, nothing hidden and each place hidden (N, 1 + P), squares
    first; and sums by group of faces (G,H,W,3), colours from 0 to 1, and of score maps (G,H,W)."""
    px = subject.config.alignment.crop_px
    num_groups = int(group_N.max()) + 1
    places = occlusion.squares(px, places_per_side) + occlusion.stripes(px, places_per_side)
    face_GHW3 = np.zeros((num_groups, px, px, 3))
    score_GHW = np.zeros((num_groups, px, px))
    errors = []

    with tqdm(total=len(rows) * (1 + len(places)), unit="prediction", desc="occlusion") as bar:
        for start in range(0, len(rows), BATCH_FACES):
            part = rows[start : start + BATCH_FACES]
            group_B = group_N[start : start + BATCH_FACES]
            faces = subject.faces(part)

            error_BP = occlusion.occlusion_errors(
                subject.predictor,
                faces,
                subject.table.label[part],
                places,
                subject.flip,
                bar.update,
            )
            errors.append(error_BP)

            np.add.at(face_GHW3, group_B, faces.view_BCHW.permute(0, 2, 3, 1).numpy() / 255.0)
            score_BHW = score_map(subject.network, subject.config, *faces, flip=subject.flip)
            np.add.at(score_GHW, group_B, score_BHW.numpy())

    return np.concatenate(errors), face_GHW3, score_GHW


def single_faces(subject: Subject, rows: IntArray, count: int) -> Figure:
    """A sheet of at most `count` of the faces `rows`, from the lowest to the highest label."""
    by_label = rows[np.argsort(subject.table.label[rows], kind="stable")]
    shown = by_label[evenly_spread(len(rows), count)]
    config = subject.config

    faces = subject.faces(shown)
    predictions = subject.predictor.predict_crops(*faces, flip=subject.flip)
    return plots.face_sheet(
        f"{len(shown)} faces from the lowest to the highest label: score map and predicted "
        "distribution",
        subject.pixels(shown),
        score_map(subject.network, config, *faces, flip=subject.flip).numpy(),
        config.grid.labels(),
        predictions.probabilities,
        subject.table.label[shown],
        predictions.value,
        config.unit,
    )


def group_faces(subject: Subject, rows: IntArray, grouping: Grouping, count: int) -> Figure:
    """A sheet of at most `count` of the faces `rows` of each group, from the lowest label to the
    highest."""
    faces = []
    scores = []
    values = []

    for group in range(len(grouping.names)):
        own = rows[grouping.group_N == group]
        by_label = own[np.argsort(subject.table.label[own], kind="stable")]
        shown = by_label[evenly_spread(len(own), count)]

        batch = subject.faces(shown)
        score_FHW = score_map(subject.network, subject.config, *batch, flip=subject.flip)

        faces.append(subject.pixels(shown))
        scores.append(score_FHW.numpy())
        values.append(subject.predictor.predict_crops(*batch, flip=subject.flip).value)

    return plots.group_rows(grouping.names, faces, scores, values, subject.config.unit)


def contact_sheets(
    subject: Subject, value_N: FloatArray, count: int, poor_error: float
) -> dict[str, Figure]:
    """The `count` faces of the table with the least and the largest error, the highest and the
    lowest value."""
    label_N = subject.table.label
    unit = subject.config.unit
    error_N = np.abs(value_N - label_N)
    wanted: dict[str, tuple[FloatArray, Callable[[IntArray], str]]] = {
        "best": (
            error_N,
            lambda rows: f"Best predictions: at most {error_N[rows].max():.2g} {unit} off",
        ),
        "worst": (
            -error_N,
            lambda rows: f"Worst predictions: at least {error_N[rows].min():.3g} {unit} off",
        ),
        "highest": (
            -value_N,
            lambda rows: f"Highest predictions: {value_N[rows].min():.3g} {unit} and more",
        ),
        "lowest": (
            value_N,
            lambda rows: f"Lowest predictions: {value_N[rows].max():.3g} {unit} and less",
        ),
    }

    sheets = {}
    for name, (key_N, title) in wanted.items():
        rows = np.argsort(key_N, kind="stable")[:count]
        batch = subject.faces(rows)
        sheets[f"{name}_faces"] = plots.contact_sheet(
            title(rows),
            subject.photos(rows),
            subject.pixels(rows),
            score_map(subject.network, subject.config, *batch, flip=subject.flip).numpy(),
            label_N[rows],
            value_N[rows],
            poor_error,
            unit,
        )
    return sheets


def feature_map(
    subject: Subject, value_N: FloatArray, rows: IntArray, perplexity: float, seed: int
) -> Figure:
    """t-SNE of the pooled features of the faces `rows`; `perplexity` is at most a third of
    their number."""
    parts = np.array_split(rows, -(-len(rows) // BATCH_FACES))
    bar = tqdm(parts, unit="batch", desc="features")
    features = []
    for part in bar:
        feature_BC = pooled_features(subject.network, subject.config, *subject.faces(part))
        features.append(feature_BC.numpy())

    layout = TSNE(perplexity=min(perplexity, (len(rows) - 1) / 3), init="pca", random_state=seed)
    label_N = subject.table.label[rows]
    config = subject.config
    return plots.embedding(
        layout.fit_transform(np.concatenate(features)),
        label_N,
        np.abs(value_N[rows] - label_N),
        config.quantity,
        config.unit,
    )
