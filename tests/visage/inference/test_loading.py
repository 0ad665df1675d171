"""The library as a user meets it: loading by name and folder, photos in every form, typed
results."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import visage
from tests.small_model import small_model
from visage.inference.loading import RELEASED, model_folder
from visage.inference.onnx_engine import INT8_FILE
from visage.labels import LabelGrid
from visage.synthetic import encode_face, sample_person, sample_photo


@pytest.fixture(scope="module")
def photo() -> bytes:
    """A drawn face."""
    rng = np.random.default_rng(3)
    return encode_face(sample_photo(sample_person(rng), rng, clean=True), 300)


@pytest.fixture(scope="module")
def model() -> visage.Model:
    return visage.load()


def test_the_released_models_are_listed_the_default_first() -> None:
    found = visage.models()
    assert [each.is_default for each in found] == [True] + [False] * (len(found) - 1)
    assert {each.name for each in found} == {path.parent.name for path in RELEASED.glob("*/*.json")}
    for each in found:
        value, low, high = each.mean_absolute_error
        assert low < value < high
        assert each.quantity == "age"
        assert each.num_bytes < 8_000_000
        assert each.precisions == ("float", "int8")
        assert each.name in repr(each)


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_a_model_is_found_by_name_and_by_folder(runtime: str, photo: bytes) -> None:
    values = []
    for named in (None, visage.models()[0].name, visage.models()[0].folder):
        [face] = visage.load(named, runtime=runtime).predict(photo)
        values.append(face.value)
    assert len(set(values)) == 1


def test_a_folder_without_onnx_is_answered_in_torch(tmp_path: Path, photo: bytes) -> None:
    folder = small_model(tmp_path / "model")
    [face] = visage.load(folder).predict(photo)
    [same] = visage.load(str(folder), runtime="torch").predict(photo)
    assert face.value == same.value
    with pytest.raises(ValueError, match=r"model\.onnx: no such file"):
        visage.load(folder, runtime="onnx")
    with pytest.raises(ValueError, match=r"model\.int8\.onnx: no such file.*export\.int8"):
        visage.load(folder, precision="int8")


def test_what_cannot_be_loaded_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no released model; the released ones: tiny-utkface"):
        visage.load("nothing")
    with pytest.raises(ValueError, match="no config here"):
        visage.load(tmp_path)
    with pytest.raises(ValueError, match="runtime 'jax' is unknown; give 'onnx' or 'torch'"):
        visage.load(runtime="jax")
    with pytest.raises(ValueError, match="precision 'int4' is unknown"):
        visage.load(precision="int4")
    with pytest.raises(ValueError, match="give runtime='onnx'"):
        visage.load(precision="int8", runtime="torch")
    with pytest.raises(ValueError, match="num_threads is 0"):
        visage.load(num_threads=0)


def test_int8_is_off_by_what_the_config_says(photo: bytes) -> None:
    for each in visage.models():
        config = json.loads((each.folder / "config.json").read_text(encoding="utf-8"))
        error = config["metrics"]["int8"]
        assert (each.folder / INT8_FILE).stat().st_size < each.num_bytes
        assert error["mean_abs_difference"] < 0.2
        [exact] = visage.load(each.name).predict(photo)
        [rough] = visage.load(each.name, precision="int8").predict(photo)
        assert 0 < abs(exact.value - rough.value) <= error["max_abs_difference"]


def test_a_photo_may_come_in_every_form(model: visage.Model, photo: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo)
    image = Image.open(io.BytesIO(photo))
    sources = [path, str(path), photo, image, np.asarray(image)]
    values = {model.predict(source)[0].value for source in sources}
    assert len(values) == 1
    assert [len(result) for result in model.predict_many(sources)] == [1] * 5


def test_an_unreadable_photo_raises_alone_and_is_told_among_many(
    model: visage.Model, photo: bytes, tmp_path: Path
) -> None:
    absent = tmp_path / "absent.jpg"
    with pytest.raises(visage.PhotoError, match=r"absent\.jpg: cannot be read"):
        model.predict(absent)
    with pytest.raises(visage.PhotoError, match="not a picture"):
        model.predict(b"nothing")
    for odd in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(visage.PhotoError, match=r"give RGB uint8 \(H, W, 3\)"):
            model.predict(odd)

    first, second = model.predict_many([absent, photo])
    assert (first.readable, len(first), bool(first)) == (False, 0, False)
    assert "cannot be read" in (first.reason or "")
    assert (second.readable, len(second)) == (True, 1)
    assert "unreadable" in repr(first)


def test_too_large_a_photo_is_refused_in_every_form(photo: bytes) -> None:
    model = visage.load(max_photo_pixels=1000)
    for source in (photo, np.zeros((40, 40, 3), np.uint8)):
        with pytest.raises(visage.PhotoError, match="1000 pixels allowed"):
            model.predict(source)


def test_a_result_is_a_sequence_of_typed_faces(model: visage.Model, photo: bytes) -> None:
    result = model.predict(photo)
    assert isinstance(result, visage.PhotoPrediction)
    assert (result.width, result.height, result.reason) == (300, 300, None)
    assert list(result) == [result[0]] == list(result[:1]) == list(result.faces)

    face = result[0]
    assert isinstance(face, visage.FacePrediction)
    assert face.low <= face.value <= face.high
    assert face.distribution.shape == face.labels.shape == (101,)
    assert face.distribution.sum() == pytest.approx(1, abs=1e-5)
    assert (face.quantity, face.unit, face.chosen) == ("age", "years", True)
    assert repr(face) == f"{face.value:.1f} years ({face.low:.0f} to {face.high:.0f})"
    assert repr(face) in repr(result)


def test_digits_follow_the_grid(model: visage.Model, photo: bytes) -> None:
    face = model.predict(photo)[0]
    fields = vars(face) | {
        "value": 3.14159,
        "low": 2.5,
        "high": 3.96,
        "unit": "points",
        "grid": LabelGrid(minimum=1.0, step=0.1, maximum=5.0),
    }
    assert repr(visage.FacePrediction(**fields)) == "3.14 points (2.5 to 4.0)"


def test_the_document_is_json_with_the_distribution_or_without(
    model: visage.Model, photo: bytes
) -> None:
    result = model.predict(photo)
    document = json.loads(json.dumps(result.to_dict()))
    assert len(document["faces"][0]["probabilities"]) == 101
    short = json.loads(json.dumps(result.to_dict(distribution=False)))
    assert "probabilities" not in short["faces"][0]
    del document["faces"][0]["probabilities"]
    assert short == document


@pytest.mark.parametrize("side", [40, 300, 1600])
def test_a_drawing_has_boxes_and_readable_values(model: visage.Model, side: int) -> None:
    rng = np.random.default_rng(3)
    photo = encode_face(sample_photo(sample_person(rng), rng, clean=True), side)
    result = model.predict(photo)
    drawing = result.draw()
    assert (drawing.size, drawing.mode) == ((side, side), "RGB")

    before = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB")).astype(int)
    changed_HW = np.abs(np.asarray(drawing).astype(int) - before).sum(axis=2) > 0
    assert changed_HW.any() == bool(result)
    if result:
        # The text's plate is at least as high as letters that can be read
        assert changed_HW.any(axis=1).sum() >= 11
    assert np.array_equal(np.asarray(result.draw()), np.asarray(drawing))


def test_align_gives_the_crops_that_the_model_gets(model: visage.Model, photo: bytes) -> None:
    [crop] = visage.align(photo)
    face = model.predict(photo, keep_crops=True)[0]
    assert face.aligned is not None
    np.testing.assert_array_equal(crop, face.aligned.crop_HWC)
    predicted = model.predict_crops(crop.transpose(2, 0, 1)[None])
    assert predicted.value[0] == pytest.approx(face.value, abs=1e-6)
    assert visage.align(np.zeros((50, 50, 3), np.uint8)) == []


def test_flip_is_the_model_s_unless_a_call_says_otherwise(photo: bytes) -> None:
    averaged = visage.load().predict(photo)[0].value
    single = visage.load(flip=False)
    assert single.predict(photo)[0].value != averaged
    assert single.predict(photo, flip=True)[0].value == averaged


def test_another_detector_may_find_the_faces(photo: bytes) -> None:
    from visage.detection.mtcnn import Faces

    class Nowhere:
        def detect(self, photos: list[np.ndarray]) -> list[Faces]:
            none = np.zeros((0, 4), np.float32)
            empty = Faces(
                boxes_N4=none,
                landmarks_N52=np.zeros((0, 5, 2), np.float32),
                probabilities_N=none[:, 0],
            )
            return [empty for _ in photos]

    result = visage.load(detector=Nowhere()).predict(photo)
    assert (len(result), result.reason) == (0, "no face found")


def test_a_released_folder_holds_a_default() -> None:
    assert model_folder(None).parent == RELEASED
