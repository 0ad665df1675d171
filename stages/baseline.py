"""Aligned faces and the pre-trained backbone become the figures of a two-stage baseline (DLDL-v2
section 4.5.3).

data/target/faces/ + models/backbone/ -> reports/baseline/{metrics.json, predictions.parquet}, in
the form of evaluate's. A run takes one kind of features (BIF, or the backbone's pooled maps) and
one estimator (SVR, OHRank, BFGS-LDL). It fits on the training faces with every strength C of the
settings; the validation faces choose one of them.

Seconds for the embedded set. A thousand faces on one core: BIF 5 s, with their mirror images 10 s;
a fit takes a second with the backbone's features, up to a minute with BIF (LOG.md). The features of
all training and validation faces are in memory at once (BIF has 6752 numbers a face: 27 GB a
million faces), hence `max_feature_mb`. SVR takes six times that on top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from stages.evaluated_faces import (
    MeasureSettings,
    decision_of,
    measure,
    open_split,
    write_json,
    write_predictions,
)
from stages.exit_status import smaller
from stages.settings import Report, print_report, stage_main
from stages.warm_start import read_backbone, refuse_off_grid
from visage.baselines.bif import BIFSettings, bif, dimension
from visage.baselines.estimators import ESTIMATORS, Trial, best, predict, trial
from visage.baselines.features import Extractor, described, features_of, trunk_extractor
from visage.baselines.linear import Examples, FitSettings
from visage.data.face_table import FaceTable, in_order
from visage.device import available_device
from visage.evaluation.tables import metrics_document
from visage.inference.faces import Predictions, joined
from visage.labels import LabelGrid
from visage.model_config import NormaliseConfig
from visage.networks import build
from visage.strict import check_positive, from_plain
from visage.training.provenance import table_digest

MEGABYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class BaselineSettings(MeasureSettings):
    """`strengths`: the values of C that are tried. `average_mirror`: features are the mean over a
    face and its mirror image. `fixed_sigma`: where the set gives none. `max_feature_mb` bounds the
    features in memory, in MiB."""

    quantity: str = field(metadata={"section": "labels"})
    features: Literal["bif", "cnn"]
    estimator: Literal["svr", "ohrank", "bfgs_ldl"]
    bif: BIFSettings
    grid: LabelGrid = field(metadata={"section": "labels"})
    fixed_sigma: float = field(metadata={"section": "labels"})
    average_mirror: bool
    strengths: tuple[float, ...]
    fit: FitSettings
    num_workers: int
    max_feature_mb: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strengths:
            raise ValueError("strengths is empty: give at least one")
        if min(self.strengths) <= 0:
            raise ValueError(f"strengths has {min(self.strengths)}: give numbers above 0")
        check_positive(self, "fixed_sigma")


def baseline(
    settings: BaselineSettings,
    *,
    faces: Path,
    backbone: Path,
    manifest: Path,
    rejects: Path,
    metrics: Path,
    predictions: Path,
    report: Report = print_report,
) -> None:
    """Extracts, fits, chooses and measures; see the module docstring."""
    train = open_split(faces, "train", "baseline.splits")
    validation = open_split(faces, "val", "baseline.splits")
    extract, width = EXTRACTORS[settings.features](settings, backbone, train)
    _check(settings, [train, validation], width)

    trials = _trials(
        settings,
        _examples(settings, train, extract, width),
        _examples(settings, validation, extract, width),
        report,
    )
    measured = measure(
        settings,
        settings,
        None,
        lambda table: _predictions(settings, best(trials), table, extract),
        stage="baseline",
        faces=faces,
        manifest=manifest,
        rejects=rejects,
    )

    data = {"train": table_digest(train), "val": table_digest(validation)} | measured.data
    decision = decision_of(
        settings,
        ESTIMATORS[settings.estimator].decode,
        settings.average_mirror,
        _identity(settings, trials, width),
        data,
    )
    write_json(metrics, metrics_document(measured.evaluations, measured.losses, decision))
    write_predictions(predictions, settings.splits, measured.evaluations)
    errors = {
        f"{evaluation.answers.name}_mae": evaluation.figures["mae"].value
        for evaluation in measured.evaluations
    }
    report(len(trials), errors)


def _bif_extractor(
    settings: BaselineSettings, _backbone: Path, _train: FaceTable
) -> tuple[Extractor, int]:
    return partial(bif, settings=settings.bif), dimension(settings.bif) + 1


def _cnn_extractor(
    _settings: BaselineSettings, backbone: Path, train: FaceTable
) -> tuple[Extractor, int]:
    """The backbone's trunk. backbone.json names the network and the normalisation of its faces."""
    document, state = read_backbone(
        backbone,
        {"alignment": train.alignment},
        "the target's faces",
        "run the pretrain stage on faces that are cut as these are",
    )

    network = build(**document["network"], num_outputs=document["num_people"])
    network.load_state_dict(state)
    normalise: NormaliseConfig = from_plain(
        document["normalise"],
        NormaliseConfig,
        f"{backbone}: normalise",
        "run the pretrain stage again",
    )

    return trunk_extractor(network.to(available_device()), normalise), network.num_features + 1


# Each gives the extractor and the number of its features, the constant included.
EXTRACTORS: dict[str, Callable[[BaselineSettings, Path, FaceTable], tuple[Extractor, int]]] = {
    "bif": _bif_extractor,
    "cnn": _cnn_extractor,
}


def _check(settings: BaselineSettings, tables: list[FaceTable], width: int) -> None:
    """Refuses labels off the grid, and more features than memory may hold, before hours are spent
    on them."""
    for table in tables:
        refuse_off_grid(table, settings.grid, "baseline")

    num_faces = sum(map(len, tables))
    needed_mb = 4 * width * num_faces / MEGABYTE
    if needed_mb > settings.max_feature_mb:
        raise ValueError(
            f"features of {num_faces} faces, {width} numbers each, take {needed_mb:.0f} MiB, "
            f"baseline.max_feature_mb is {settings.max_feature_mb}: raise it, or take fewer faces, "
            f"bands or orientations, or features: cnn"
        )


def _examples(
    settings: BaselineSettings, table: FaceTable, extract: Extractor, width: int
) -> Examples:
    features_ND = features_of(
        table,
        extract,
        width,
        flip=settings.average_mirror,
        batch_size=smaller(settings.batch_size),
        num_workers=settings.num_workers,
    )
    label_N = torch.tensor(table.label, dtype=torch.float32)
    sigma_N = torch.tensor(table.with_sigma(settings.fixed_sigma), dtype=torch.float32)
    return Examples(features_ND=features_ND, label_N=label_N, sigma_N=sigma_N)


def _trials(
    settings: BaselineSettings, train: Examples, validation: Examples, report: Report
) -> list[Trial]:
    """A fit a strength. Each is reported; a note is printed for one that has not converged."""
    trials = []
    for number, strength in enumerate(tqdm(settings.strengths, desc="fits")):
        one = trial(
            ESTIMATORS[settings.estimator],
            strength,
            train,
            validation,
            settings.grid,
            settings.fit,
        )
        trials.append(one)

        report(
            number,
            {"strength": strength, "val_mae": one.error, "iterations": one.model.num_iterations},
        )
        if not one.model.converged:
            print(
                f"baseline: C {strength:g} has not converged; raise baseline.fit.max_iterations or "
                f"its tolerance"
            )
    return trials


def _predictions(
    settings: BaselineSettings, chosen: Trial, table: FaceTable, extract: Extractor
) -> Predictions:
    """The chosen model's predictions for all faces, batch by batch."""
    estimator = ESTIMATORS[settings.estimator]
    batches = in_order(table, smaller(settings.batch_size), settings.num_workers, "baseline")
    features = (
        described(crops_BCHW, extract, settings.average_mirror) for _, crops_BCHW in batches
    )
    return joined(
        [predict(estimator, chosen.model, features_BD, settings.grid) for features_BD in features]
    )


def _identity(settings: BaselineSettings, trials: list[Trial], width: int) -> dict[str, Any]:
    """Which model was measured: features, estimator, and every strength with its validation
    error."""
    tried = [
        {
            "strength": one.strength,
            "val_mae": one.error,
            "iterations": one.model.num_iterations,
            "converged": one.model.converged,
        }
        for one in trials
    ]

    return {
        "name": f"{settings.features} {settings.estimator}",
        "features": settings.features,
        "num_features": width - 1,
        "bif": asdict(settings.bif) if settings.features == "bif" else None,
        "estimator": settings.estimator,
        "strength": best(trials).strength,
        "converged": best(trials).model.converged,
        "trials": tried,
        "fit": asdict(settings.fit),
        "fixed_sigma": settings.fixed_sigma,
    }


if __name__ == "__main__":
    stage_main(
        "baseline",
        BaselineSettings,
        baseline,
        ["faces", "backbone", "manifest", "rejects", "metrics", "predictions"],
    )
