"""The fine-tuned model learns how far it is to be believed, from validation faces.

models/model/ + data/target/faces/ -> models/calibrated/{model.safetensors, card.json}
The weights are copied as they are; the card gains a temperature and a conformal offset (visage.calibration_fit), or
`calibration: null` where there are too few faces for them. No value changes, so a new calibration trains nothing.
Seconds for the embedded set; about 50 faces a second on one CPU core at 96 px with Tiny, flip averaged.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.endings import smaller
from stages.settings import Report, print_report, stage_main
from visage.answering import answer, check_eye
from visage.calibration_fit import LEAST_FACES, figures, fit_calibration
from visage.card import CARD_FILE, ModelCard, load_model
from visage.faces import FaceTable
from visage.fit import available_device
from visage.lineage import table_digest
from visage.predictor import Predictions, Predictor
from visage.whole import written_whole


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings:
    """`flip`: calibrate the mean of face and mirror image, as it is served. Fewer than `min_faces` labelled faces of
    `split` calibrate nothing: at 100, chance alone moves the coverage by 4 points (one standard deviation)."""

    split: str
    flip: bool
    batch_size: int
    min_faces: int

    def __post_init__(self) -> None:
        if self.split in ("train", "test"):
            raise ValueError(
                f"split is {self.split!r}: of train faces, which it has learnt, the model is too sure, and test faces "
                "choose nothing; say val"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: give 1 or more")
        if self.min_faces < LEAST_FACES:
            raise ValueError(f"min_faces is {self.min_faces}: give {LEAST_FACES} or more, as an 80 % interval needs")


def calibrate(
    settings: CalibrateSettings, *, model: Path, faces: Path, calibrated: Path, report: Report = print_report
) -> None:
    """Calibrates the model; see the module docstring."""
    network, card = load_model(model)
    card = dataclasses.replace(card, calibration=None)
    table = FaceTable.open(faces, [settings.split])
    num_labelled = int(np.isfinite(table.label).sum())
    if num_labelled < settings.min_faces:
        print(
            f"not calibrated: {num_labelled} labelled faces of split {settings.split!r}, calibrate.min_faces asks for "
            f"{settings.min_faces}; the model is passed on with its own distributions and intervals"
        )
    else:
        check_eye(card, table, faces)
        predictor = Predictor(network.to(available_device()), card)
        told = answer(predictor, table, flip=settings.flip, batch_size=smaller(settings.batch_size), task="calibrate")
        card = _fitted(settings, card, table, told, report)
    calibrated.mkdir(parents=True, exist_ok=True)
    with written_whole(calibrated / card.weights.file) as part:
        shutil.copyfile(model / card.weights.file, part)
    card.write(calibrated / CARD_FILE)
    print(f"calibrated model: {calibrated}")


def _fitted(
    settings: CalibrateSettings, card: ModelCard, table: FaceTable, told: Predictions, report: Report
) -> ModelCard:
    """The card with the calibration of its answers, and the digest of the faces that it was fitted on."""
    known_N = np.isfinite(table.label)
    if not known_N.all():
        print(f"left out: {len(table) - known_N.sum()} faces of split {settings.split!r} without a label")
    label_N, value_N, p_NK = table.label[known_N], told.value[known_N], told.probabilities[known_N]
    calibration = fit_calibration(p_NK, label_N, card.grid, flip=settings.flip)
    before, after = (figures(p_NK, value_N, label_N, card.grid, each) for each in (None, calibration))
    changes = {f"{name}_{when}": them[name] for name in before for when, them in (("before", before), ("after", after))}
    report(0, {name: getattr(calibration, name) for name in ("num_faces", "temperature", "offset")} | changes)
    digests = card.data | {"calibrate": table_digest(table)}
    return dataclasses.replace(card, calibration=calibration, data=digests)


if __name__ == "__main__":
    stage_main("calibrate", CalibrateSettings, calibrate, ["model", "faces", "calibrated"])
