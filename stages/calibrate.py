"""The fine-tuned model learns how far it is to be believed, from validation faces.

models/model/ + data/target/faces/ -> models/calibrated/{model.safetensors, config.json} The weights
are copied as they are; the config gains a temperature and a conformal offset
(visage.evaluation.calibrate), or `calibration: null` where there are too few faces for them. No
value changes, so a new calibration trains nothing. Seconds for the embedded set; about 50 faces a
second on one CPU core at 96 px with Tiny, flip averaged.
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

# Of train faces, which it has learnt, the model is too sure, and test faces choose nothing
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
            f"calibrate.min_faces asks for "
            f"{settings.min_faces}; the model is passed on with its own distributions and intervals"
        )
    else:
        check_preprocessing(config, table, faces)
        predictor = CropPredictor(network.to(available_device()), config)
        told = answer(
            predictor,
            table,
            flip=settings.flip,
            batch_size=smaller(settings.batch_size),
            task="calibrate",
        )
        config = _fitted(settings, config, table, told, report)
    with atomic_folder(calibrated) as part:
        shutil.copyfile(model / config.weights.file, part / config.weights.file)
        config.write(part / CONFIG_FILE)
    print(f"calibrated model: {calibrated}")


def _fitted(
    settings: CalibrateSettings,
    config: ModelConfig,
    table: FaceTable,
    told: Predictions,
    report: Report,
) -> ModelConfig:
    """The config with the calibration of its answers, and the digest of the faces that it was
    fitted on."""
    known_N = np.isfinite(table.label)
    if not known_N.all():
        print(f"left out: {len(table) - known_N.sum()} faces of split {SPLIT!r} without a label")
    label_N, value_N, p_NK = table.label[known_N], told.value[known_N], told.probabilities[known_N]
    calibration = fit_calibration(p_NK, label_N, config.grid, flip=settings.flip)
    before, after = (
        figures(p_NK, value_N, label_N, config.grid, each) for each in (None, calibration)
    )
    changes = {
        f"{name}_{when}": them[name]
        for name in before
        for when, them in (("before", before), ("after", after))
    }
    report(
        0,
        {name: getattr(calibration, name) for name in ("num_faces", "temperature", "offset")}
        | changes,
    )
    digests = config.data | {"calibrate": table_digest(table)}
    return dataclasses.replace(config, calibration=calibration, data=digests)


if __name__ == "__main__":
    stage_main("calibrate", CalibrateSettings, calibrate, ["model", "faces", "calibrated"])
