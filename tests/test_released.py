"""The released models, as a fresh clone finds them: both files of a model give the same predictions
for a photo, and the terms are stated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from visage.inference.loading import model_folder
from visage.inference.onnx_engine import ONNX_FILE, load_onnx
from visage.inference.photos import Model
from visage.model_config import CONFIG_FILE, CONFIG_FORMAT
from visage.synthetic import encode_face, sample_person, sample_photo
from visage.weights import load_model

RELEASED = REPOSITORY / "visage" / "released"
MODELS = sorted(path.parent for path in RELEASED.glob("*/config.json"))
MAX_BYTES = 8_000_000


def test_one_of_them_predicts_by_default() -> None:
    default = RELEASED / (RELEASED / "default.txt").read_text(encoding="utf-8").strip()
    assert default in MODELS
    assert model_folder(None) == default


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_it_predicts_a_photo_with_either_engine(folder: Path) -> None:
    rng = np.random.default_rng(0)
    photos = [encode_face(sample_photo(sample_person(rng), rng, clean=True), 200) for _ in range(2)]
    values = []
    for model in (load_model(folder), load_onnx(folder / ONNX_FILE)):
        predictor = Model(*model, observe=lambda _values, _features: None)
        faces = [face for result in predictor.predict_many(photos) for face in result.faces]
        assert len(faces) == len(photos)
        values.append([face.value for face in faces])
    np.testing.assert_allclose(*values, rtol=0, atol=1e-3)


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_its_config_says_terms_and_figures_and_its_files_are_small(folder: Path) -> None:
    _, config = load_model(folder)
    assert config.name == folder.name
    assert json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["format"] == CONFIG_FORMAT
    assert "non-commercial" in config.terms
    assert config.metrics["test"]["mae"]["low"] < config.metrics["test"]["mae"]["value"] < 10
    for path in folder.iterdir():
        assert path.stat().st_size <= MAX_BYTES
