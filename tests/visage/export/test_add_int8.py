"""A folder gets its int8 file and the difference in all of its configs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.small_model import small_config, small_network
from visage.export.add_int8 import add_int8, main
from visage.export.onnx_file import export_model
from visage.inference.loading import load
from visage.inference.onnx_engine import INT8_FILE
from visage.synthetic import encode_face, sample_person, sample_photo


def test_the_file_answers_and_its_difference_stands_in_the_configs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(6):
        picture = encode_face(sample_photo(sample_person(rng), rng, clean=True), 120)
        (photos / f"{number}.jpg").write_bytes(picture)
    config = small_config()
    export_model(small_network(config), config, tmp_path / "model", "float32")

    command = ["add_int8", str(tmp_path / "model"), str(photos), "--count", "6"]
    monkeypatch.setattr(sys, "argv", command)
    main()

    assert "values of 3 faces differ by" in capsys.readouterr().out
    assert (tmp_path / "model" / INT8_FILE).is_file()
    for arguments in ({"precision": "int8"}, {"runtime": "onnx"}, {"runtime": "torch"}):
        model = load(tmp_path / "model", **arguments)
        assert model.config.metrics["int8"]["num_faces"] == 3
    with pytest.raises(ValueError, match="1 faces in 1 photos"):
        add_int8(tmp_path / "model", [photos / "0.jpg"])
