"""The calibrate stage on a small model and random crops: what it writes, what it leaves alone, what
it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.calibrate import CalibrateSettings, calibrate
from tests.small_faces import ALIGNMENT, some_faces, write_faces
from tests.small_model import small_model
from visage.data.face_table import FaceTable
from visage.evaluation.calibrate import fit_calibration
from visage.inference.loading import load
from visage.model_config import CONFIG_FILE, WEIGHTS_FILE, ModelConfig

SETTINGS = CalibrateSettings(flip=True, batch_size=16, min_faces=20)
NUM_VAL = 40


class Run:
    """A folder with a model and faces, and how to calibrate in it; keeps what was reported."""

    def __init__(
        self, folder: Path, rows: list[dict[str, Any]], alignment: dict[str, Any] = ALIGNMENT
    ) -> None:
        self.folder = folder
        self.model, self.calibrated = small_model(folder / "model"), folder / "calibrated"
        self.faces = write_faces(folder / "faces", rows, alignment=alignment)
        self.reported: dict[str, float] = {}

    def calibrate(self, **changes: Any) -> ModelConfig:
        calibrate(
            dataclasses.replace(SETTINGS, **changes),
            model=self.model,
            faces=self.faces,
            calibrated=self.calibrated,
            report=lambda _, values: self.reported.update(values),
        )
        return ModelConfig.read(self.calibrated / CONFIG_FILE)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, some_faces(num_train=30, num_val=NUM_VAL, num_test=30))


def test_the_card_gains_what_the_validation_faces_say_and_nothing_else_changes(run: Run) -> None:
    config, before = run.calibrate(), ModelConfig.read(run.model / CONFIG_FILE)
    table = FaceTable.open(run.faces, ["val"])
    raw = load(run.model, runtime="torch").predict_crops(table.decode(np.arange(len(table))))
    assert config.calibration == fit_calibration(
        raw.probabilities, table.label, config.grid, flip=True
    )
    assert config.calibration.num_faces == NUM_VAL
    assert config.data["calibrate"]["num_faces"] == NUM_VAL
    assert dataclasses.replace(config, calibration=None, data=before.data) == before
    assert (run.calibrated / WEIGHTS_FILE).read_bytes() == (run.model / WEIGHTS_FILE).read_bytes()
    assert sorted(path.name for path in run.calibrated.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_values_stay_bit_for_bit_and_the_intervals_hold_their_share(run: Run) -> None:
    run.calibrate()
    for split, flip in (("val", True), ("test", True), ("test", False)):
        table = FaceTable.open(run.faces, [split])
        crops = table.decode(np.arange(len(table)))
        before, after = (
            load(model, runtime="torch").predict_crops(crops, flip=flip)
            for model in (run.model, run.calibrated)
        )
        np.testing.assert_array_equal(after.value, before.value)
        assert np.abs(after.std - before.std).max() > 0.1
        assert ((after.low <= after.value) & (after.value <= after.high)).all()
        if split == "val":
            inside = (after.low - 1e-4 <= table.label) & (table.label <= after.high + 1e-4)
            assert 0.8 <= inside.mean() <= 0.8 + 2 / NUM_VAL
            assert run.reported["coverage_after"] == pytest.approx(inside.mean(), abs=1.5 / NUM_VAL)
    assert run.reported["crps_after"] < run.reported["crps_before"]


def test_calibrating_twice_is_calibrating_once(run: Run) -> None:
    """A model that has a calibration already is measured without it."""
    once = run.calibrate()
    run.model, run.calibrated = run.calibrated, run.folder / "again"
    assert run.calibrate() == once


def test_a_view_of_its_own_has_a_calibration_of_its_own(run: Run) -> None:
    both, one = run.calibrate(), run.calibrate(flip=False)
    assert both.calibration is not None
    assert one.calibration is not None
    assert (both.calibration.flip, one.calibration.flip) == (True, False)
    assert both.calibration.offset != one.calibration.offset


@pytest.mark.parametrize("changes", [{"min_faces": NUM_VAL + 1}])
def test_too_few_faces_calibrate_nothing_and_say_so(
    run: Run, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.calibrate(**changes) == ModelConfig.read(run.model / CONFIG_FILE)
    assert "not calibrated: " in capsys.readouterr().out
    load(run.calibrated, runtime="torch")


def test_faces_without_a_label_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = some_faces(num_train=1, num_val=NUM_VAL, num_test=1)
    for row in rows[:10]:
        row["label"] = None
    num_unlabelled = sum(row["label"] is None and row["split"] == "val" for row in rows)
    config = Run(tmp_path, rows).calibrate()
    assert config.calibration is not None
    assert config.calibration.num_faces == NUM_VAL - num_unlabelled
    assert f"left out: {num_unlabelled} faces" in capsys.readouterr().out


def test_faces_cut_in_another_way_are_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, some_faces(num_val=NUM_VAL), alignment=ALIGNMENT | {"face_scale": 0.5})
    with pytest.raises(ValueError, match=r"alignment is .*0\.5.*config says .*0\.75"):
        run.calibrate()
    assert not run.calibrated.exists()


def test_a_broken_model_is_refused(run: Run) -> None:
    document = json.loads((run.model / CONFIG_FILE).read_text()) | {
        "calibration": {"temperature": 2.0}
    }
    (run.model / CONFIG_FILE).write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"config\.json: config\.calibration: missing key 'flip'"):
        run.calibrate()
    assert not run.calibrated.exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"min_faces": 3}, "min_faces is 3: give 4 or more"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(SETTINGS, **change)
