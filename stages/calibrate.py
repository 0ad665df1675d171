"""Temperature scaling and a conformal offset for the fine-tuned model, fitted on validation faces.

models/fused/ + data/target/faces/ -> models/calibrated/{model.safetensors, config.json}

The weights are copied as they are. The config gains a temperature and the offset of the 80 %
interval (visage.evaluation.calibrate), or `calibration: null` where there are too few faces for
them. No value changes, so a new calibration trains nothing. Seconds for the embedded set; about 50
faces a second on one CPU core at 96 px with Tiny, flip averaged.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stages.exit_status import smaller
from stages.settings import Report, print_report, stage_main
from visage.atomic import atomic_folder
from visage.data.face_table import FaceTable
from visage.device import available_device
from visage.evaluation.calibrate import LEAST_FACES, figures, fit_calibration
from visage.inference.faces import CropPredictor, Predictions
from visage.inference.predict_table import answer, check_preprocessing
from visage.model_config import CONFIG_FILE, ModelConfig
from visage.strict import check_range
from visage.training.provenance import table_digest
from visage.weights import load_model

# On training faces, which it has learnt, the model is too sure. Test faces choose nothing.
SPLIT = "val"


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings:
    """`flip`: calibrate the mean of face and mirror image, as it is served. Fewer than `min_faces`
    labelled validation faces calibrate nothing: at 100, chance alone moves the coverage by 4 points
    (one standard deviation)."""

    flip: bool = field(metadata={"section": "inference"})
    batch_size: int
    min_faces: int

    def __post_init__(self) -> None:
        check_range(self, batch_size=(1, None))
        if self.min_faces < LEAST_FACES:
            raise ValueError(
                f"min_faces is {self.min_faces}: give {LEAST_FACES} or more, as an 80 % interval "
                f"needs"
            )


def calibrate(
    settings: CalibrateSettings,
    *,
    model: Path,
    faces: Path,
    calibrated: Path,
    report: Report = print_report,
) -> None:
    """Calibrates the model; see the module docstring."""
    network, config = load_model(model)
    config = dataclasses.replace(config, calibration=None)
    table = FaceTable.open(faces, [SPLIT])
    num_labelled = int(np.isfinite(table.label).sum())

    if num_labelled < settings.min_faces:
        print(
            f"not calibrated: {num_labelled} labelled faces of split {SPLIT!r}, "
            f"calibrate.min_faces asks for {settings.min_faces}; the model is passed on with its "
            f"own distributions and intervals"
        )
    else:
        check_preprocessing(config, table, faces)
        predictor = CropPredictor(network.to(available_device()), config)
        predictions = answer(
            predictor,
            table,
            flip=settings.flip,
            batch_size=smaller(settings.batch_size),
            task="calibrate",
        )
        config = _fitted(settings, config, table, predictions, report)

    with atomic_folder(calibrated) as part:
        shutil.copyfile(model / config.weights.file, part / config.weights.file)
        config.write(part / CONFIG_FILE)
    print(f"calibrated model: {calibrated}")


def _fitted(
    settings: CalibrateSettings,
    config: ModelConfig,
    table: FaceTable,
    predictions: Predictions,
    report: Report,
) -> ModelConfig:
    """The config with a calibration fitted to the predictions, and the digest of their faces."""
    known_N = np.isfinite(table.label)
    if not known_N.all():
        print(f"left out: {len(table) - known_N.sum()} faces of split {SPLIT!r} without a label")
    label_N = table.label[known_N]
    value_N = predictions.value[known_N]
    p_NK = predictions.probabilities[known_N]

    calibration = fit_calibration(p_NK, label_N, config.grid, flip=settings.flip)
    before = figures(p_NK, value_N, label_N, config.grid, None)
    after = figures(p_NK, value_N, label_N, config.grid, calibration)

    values: dict[str, float] = {
        name: getattr(calibration, name) for name in ("num_faces", "temperature", "offset")
    }
    for name in before:
        values[f"{name}_before"] = before[name]
        values[f"{name}_after"] = after[name]
    report(0, values)

    digests = config.data | {"calibrate": table_digest(table)}
    return dataclasses.replace(config, calibration=calibration, data=digests)


if __name__ == "__main__":
    stage_main("calibrate", CalibrateSettings, calibrate, ["model", "faces", "calibrated"])
