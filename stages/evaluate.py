"""Model and labelled faces become figures, tables, pictures and one self-contained HTML page.

models/calibrated/, data/target/faces/ -> reports/metrics.json (every metric with its interval, the
rule of decision, the data's digests), groups.csv (the same per band of the label, sex, ethnicity),
predictions.parquet, plots/ (PNG, and the CSV files that `dvc plots show` draws), report.html.

The manifest and the rejects show which photos got no prediction. Seconds for the embedded set;
forward passes dominate: about 100 faces a second on one CPU core at 80 px with Tiny.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.evaluated_faces import (
    MeasureSettings,
    decision_of,
    measure,
    write_json,
    write_predictions,
)
from stages.exit_status import smaller
from stages.settings import Report, print_report, stage_main
from visage.atomic import atomic_folder, atomic_write
from visage.data.face_table import FaceTable
from visage.device import available_device
from visage.evaluation.bootstrap import Bootstrap, Estimate
from visage.evaluation.evaluate import Answers
from visage.evaluation.fused_members import (
    MemberRow,
    member_rows,
    members_document,
    members_table,
)
from visage.evaluation.heads import head_errors, head_values, heads_figure, heads_table
from visage.evaluation.html import Picture, Section, page
from visage.evaluation.page import digits_of, headline, pictures, sections
from visage.evaluation.plots import png
from visage.evaluation.tables import group_rows, metrics_document, plot_tables
from visage.inference.faces import CropPredictor, Predictions
from visage.inference.predict_table import answer, check_preprocessing, faces_of
from visage.labels import DECODERS
from visage.model_config import CONFIG_FILE, ModelConfig
from visage.networks import Network
from visage.networks.fused import FusedNetwork
from visage.weights import load_model, sha256_of


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(MeasureSettings):
    """All `splits` are measured; the pictures show the first. `decode`: another rule than the
    model's own, to compare rules on one model; null for its own."""

    decode: str | None
    flip: bool = field(metadata={"section": "inference"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decode is not None and self.decode not in DECODERS:
            raise ValueError(f"decode {self.decode!r} is unknown; known: {', '.join(DECODERS)}")


def evaluate(
    settings: EvaluateSettings,
    *,
    model: Path,
    faces: Path,
    manifest: Path,
    rejects: Path,
    finetune_history: Path,
    pretrain_history: Path,
    validation: Path,
    metrics: Path,
    groups: Path,
    predictions: Path,
    plots: Path,
    html: Path,
    report: Report = print_report,
) -> None:
    """Measures the model on each split; see the module docstring."""
    network, trained_config = load_model(model)
    config = dataclasses.replace(trained_config, decode=settings.decode or trained_config.decode)
    predictor = CropPredictor(network.to(available_device()), config)

    def predict(table: FaceTable) -> Predictions:
        check_preprocessing(config, table, faces)
        return answer(
            predictor,
            table,
            flip=settings.flip,
            batch_size=smaller(settings.batch_size),
            task="evaluate",
        )

    measured = measure(
        settings,
        config,
        config.calibration,
        predict,
        stage="evaluate",
        faces=faces,
        manifest=manifest,
        rejects=rejects,
    )
    evaluations = measured.evaluations
    losses = measured.losses

    histories = {
        "finetune": read_history(finetune_history),
        "pretrain": read_history(pretrain_history),
    }
    drawn = pictures(evaluations[0], config, settings.cs_thresholds, settings.band_width, histories)
    chapters = sections(
        evaluations,
        trained_config,
        drawn,
        losses,
        read_validation(validation),
        dataclasses.asdict(settings),
    )

    decision = decision_of(
        settings,
        config.decode,
        settings.flip,
        identity_of(model, config),
        measured.data,
    )
    document = metrics_document(evaluations, losses, decision)
    if isinstance(network, FusedNetwork):
        first = evaluations[0].answers
        rows = _member_rows(settings, network, config, first, faces)
        document[first.name]["members"] = members_document(rows)
        table = members_table(document[first.name]["members"], config.unit)
        print(table.text(), end="\n\n")
    if network.auxiliary_names():
        first = evaluations[0].answers
        heads = _head_errors(settings, network, config, first, faces)
        document[first.name]["heads"] = {
            name: dataclasses.asdict(error) for name, error in heads.items()
        }
        table = heads_table(heads, config.unit, digits_of(config))
        drawn["heads"] = Picture(caption=table.caption, png=png(heads_figure(heads, config.unit)))
        chapters.insert(2, Section(title="Heads", parts=[drawn["heads"], table]))
    write_json(metrics, document)
    write_table(groups, group_rows(evaluations))
    write_predictions(predictions, settings.splits, evaluations)
    write_plots(plots, drawn, plot_tables(evaluations[0], config, settings.seed))
    title = f"{config.name}: {config.quantity} in {config.unit}, evaluated on {settings.splits[0]}"
    with atomic_write(html) as part:
        part.write_text(page(title, chapters), encoding="utf-8")

    errors = {
        f"{evaluation.answers.name}_mae": evaluation.figures["mae"].value
        for evaluation in evaluations
    }
    report(0, errors)
    print(headline(evaluations, config).text(), end="\n\n")
    written = {
        "model": model,
        "metrics": metrics,
        "predictions": predictions,
        "plots": plots,
        "report": html,
    }
    for name, path in written.items():
        print(f"{name:<12}{path}")


def _head_errors(
    settings: EvaluateSettings,
    network: Network,
    config: ModelConfig,
    answers: Answers,
    faces: Path,
) -> dict[str, Estimate]:
    """The error of each of the network's heads, on the first list of faces."""
    table = FaceTable.open(faces, [settings.splits[0]])
    num_batches = -(-len(table) // smaller(settings.batch_size))
    places = np.array_split(np.arange(len(table)), num_batches)
    batches = (faces_of(table, rows, network.needs_landmarks) for rows in places)
    values = head_values(network, config, batches, flip=settings.flip)
    return head_errors(values, answers, settings.bootstrap)


def _member_rows(
    settings: EvaluateSettings,
    network: FusedNetwork,
    config: ModelConfig,
    answers: Answers,
    faces: Path,
) -> list[MemberRow]:
    """The fused model beside each member, on the first list of faces."""
    table = FaceTable.open(faces, [settings.splits[0]])

    def values_of(member: FusedNetwork, own: ModelConfig) -> dict[str, float]:
        predictions = answer(
            CropPredictor(member.to(available_device()), own),
            table,
            flip=settings.flip,
            batch_size=smaller(settings.batch_size),
            task="evaluate a member",
        )
        return dict(zip(table.photo_id, predictions.value.tolist(), strict=True))

    bootstrap = Bootstrap(
        num_resamples=settings.num_resamples, interval=settings.interval, seed=settings.seed
    )
    return member_rows(network, config, answers, values_of, bootstrap)


def identity_of(model: Path, config: ModelConfig) -> dict[str, str]:
    """Which model was measured."""
    return {
        "name": config.name,
        "config_sha256": sha256_of(model / CONFIG_FILE),
        "weights_sha256": config.weights.sha256,
    }


def write_table(path: Path, table: pd.DataFrame) -> None:
    with atomic_write(path) as part:
        table.to_csv(part, index=False, lineterminator="\n", float_format="%.6g")


def write_plots(
    folder: Path, drawn: Mapping[str, Picture], tables: Mapping[str, pd.DataFrame]
) -> None:
    """Every picture as PNG, every table that `dvc plots show` draws as CSV."""
    with atomic_folder(folder) as part:
        for name, picture in drawn.items():
            (part / f"{name}.png").write_bytes(picture.png)
        for name, table in tables.items():
            write_table(part / f"{name}.csv", table)


def read_history(path: Path) -> dict[str, np.ndarray]:
    """A training's CSV, column by column; empty where training was skipped or the file is
    missing."""
    if not path.is_file() or path.stat().st_size <= 1:
        return {}
    table = pd.read_csv(path)
    return {str(name): table[name].to_numpy(np.float64) for name in table.columns}


def read_validation(path: Path) -> dict[str, Any] | None:
    """The validation report; None where there is none, as with faces copied from elsewhere."""
    if not path.is_file():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


if __name__ == "__main__":
    names = [
        "model",
        "faces",
        "manifest",
        "rejects",
        "finetune_history",
        "pretrain_history",
        "validation",
    ]
    stage_main(
        "evaluate",
        EvaluateSettings,
        evaluate,
        [*names, "metrics", "groups", "predictions", "plots", "html"],
    )
