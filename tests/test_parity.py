"""The ONNX runtime against the torch runtime, on drawn photos: the same faces, landmarks and
values."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from bench.detect import encoded_photos
from bench.parity import LANDMARK_PX, VALUE, parity
from visage.inference.loading import load, models
from visage.synthetic import encode_face, sample_person, sample_photo


def two_people() -> bytes:
    """Two drawn faces of different sizes side by side, in a photo of odd size."""
    rng = np.random.default_rng(5)
    sides = (150, 211)
    faces = [encode_face(sample_photo(sample_person(rng), rng, clean=True), px) for px in sides]
    photo = Image.new("RGB", (361, 213), (90, 110, 130))
    for face, left in zip(faces, (0, 150), strict=True):
        photo.paste(Image.open(io.BytesIO(face)), (left, 0))
    stream = io.BytesIO()
    photo.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("name", [model.name for model in models()])
def test_both_runtimes_answer_alike(name: str) -> None:
    photos = [*encoded_photos(None, 8), two_people()]
    found = parity(photos, load(name, runtime="onnx"), load(name, runtime="torch"))

    assert found.num_photos == 9
    assert found.num_other_faces == 0
    assert len(found.value_N) >= 8
    assert found.landmark_px_N.max() <= LANDMARK_PX
    assert found.value_N.max() <= VALUE
    assert found.ends_N.max() <= VALUE
    assert found.same_crop_N.all()


def test_models_that_differ_are_seen() -> None:
    first, second = (load(model.name) for model in models()[:2])
    found = parity(encoded_photos(None, 2), first, second)
    assert found.value_N.min() > VALUE
    assert not found.is_kept
