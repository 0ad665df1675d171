"""The bench of speed: every form of every network stands in its tables, and a trained model's
errors are right."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from bench import speed
from tests.small_faces import some_faces, write_faces
from tests.small_model import small_model
from visage.data.face_table import FaceTable
from visage.inference.loading import load

FORMS = [
    "torch",
    "torch, channels_last",
    "torch, bfloat16, channels_last",
    "ONNX float32",
    "ONNX int8",
]


def rows(printed: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in printed.splitlines()
        if "|" in line
    ]


def test_every_form_is_timed_against_the_first_network_in_torch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    speed.print_times(["vgg-0.125", "resnet18-0.125"], 32, 1)
    table = rows(capsys.readouterr().out)
    assert next(row[:2] for row in table if row[0] == "vgg-0.125") == ["vgg-0.125", "237,661"]
    timed = [row for row in table if row[1] in FORMS]
    assert [row[:2] for row in timed] == [
        [name, form] for name in ("vgg-0.125", "resnet18-0.125") for form in FORMS
    ]
    assert timed[0][3] == timed[0][5] == "1.0 (1.0)"
    assert all(float(row[2]) > 0 for row in timed)


def test_ratio_is_the_reference_s_median_over_this_one_s() -> None:
    assert speed.cell([(0.1, 0.2), (9.0, 9.0), (0.1, 0.1)], [(0.5, 0.4)]) == "100.0 | 5.0 (2.0)"


def test_errors_are_those_of_the_predictor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, faces = (
        small_model(tmp_path / "model"),
        write_faces(tmp_path / "faces", some_faces(num_test=9)),
    )
    speed.print_errors(model, faces)
    table = {row[0]: row for row in rows(capsys.readouterr().out)}
    assert list(table)[2:] == FORMS
    test = FaceTable.open(faces, ["test"])
    value_N = (
        load(model, runtime="torch").predict_crops(test.decode(np.arange(9)), flip=False).value
    )
    expected = np.abs(value_N - test.label).mean()
    for form in ("torch", "torch, channels_last", "ONNX float32"):
        assert float(table[form][1]) == pytest.approx(expected, abs=2e-3)
    assert float(table["ONNX int8"][2]) > 0 == float(table["torch"][2])


def test_a_model_without_its_faces_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["speed", "--model", str(tmp_path)])
    with pytest.raises(SystemExit):
        speed.main()
    assert "--model and --faces go together" in capsys.readouterr().err
    other = write_faces(tmp_path / "faces", some_faces(), alignment={"crop_px": 32})
    with pytest.raises(ValueError, match="faces' alignment is"):
        speed.print_errors(small_model(tmp_path / "model"), other)
