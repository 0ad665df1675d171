"""The set's own mean and deviation against numpy's, of training faces alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.small_faces import some_faces, write_faces
from visage.data import normalisation
from visage.data.face_table import FaceTable
from visage.data.normalisation import main, own_normalise
from visage.data.preprocess import evaluation_view


def test_own_mean_and_deviation_are_those_of_all_training_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(normalisation, "BATCH_FACES", 3)
    folder = write_faces(tmp_path, some_faces(7, 2, 4))
    table = FaceTable.open(folder, ["train"])
    pixels_NC = table.decode(np.arange(7)).permute(0, 2, 3, 1).reshape(-1, 3).numpy() / 255

    monkeypatch.setattr(sys, "argv", ["normalisation", str(folder)])
    main()
    [line] = capsys.readouterr().out.splitlines()
    found = yaml.safe_load(line)["normalise"]
    np.testing.assert_allclose(found["mean"], pixels_NC.mean(axis=0), atol=6e-5)
    np.testing.assert_allclose(found["std"], pixels_NC.std(axis=0), atol=6e-5)


@pytest.mark.parametrize("kind", ["grey", "sobel"])
def test_another_input_has_a_mean_and_a_deviation_of_its_own(kind: str, tmp_path: Path) -> None:
    table = FaceTable.open(write_faces(tmp_path, some_faces(7, 2, 4)), ["train"])
    found = own_normalise(table, kind)  # type: ignore[arg-type]
    view_BCHW = evaluation_view(table.decode(np.arange(7)), found)
    assert found.input == kind
    assert abs(view_BCHW.mean().item()) < 1e-3
    assert abs(view_BCHW.std(correction=0).item() - 1) < 1e-3


def test_a_set_without_training_faces_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["normalisation", str(write_faces(tmp_path, some_faces(0, 2, 4)))]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "no face of split 'train'" in capsys.readouterr().err
