"""The inference path: reference, batch invariance, flip averaging, and a photo's numbers against
evaluation's."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stages.align import AlignSettings
from stages.align import align as align_photos
from tests.command import refused, visage
from tests.small_model import CROP_PX, small_config, small_model, small_network, some_crops
from visage.data.face_table import FaceTable
from visage.data.jpeg import decode_jpeg, encode_jpeg
from visage.data.preprocess import evaluation_view
from visage.data.schemas import MANIFEST_SCHEMA
from visage.detection import align
from visage.detection.mtcnn import DetectorSettings, Faces
from visage.explain.score_map import pooled_features
from visage.inference import photos
from visage.inference.faces import Observer, Predictions
from visage.inference.loading import load
from visage.inference.photos import Model
from visage.inference.torch_engine import TorchEngine
from visage.labels import LabelGrid, central_interval
from visage.model_config import INTERVAL_MASS, CalibrationConfig
from visage.networks import FaceBatch
from visage.synthetic import encode_face, sample_person, sample_photo

CARD = small_config()
NETWORK = small_network(CARD)
UPRIGHT = np.float32([[70, 90], [130, 90], [100, 125], [78, 160], [122, 160]])


class DetectorOf:
    """Finds, in every photo, the faces it was given: one upright face at each offset."""

    def __init__(self, *offsets: tuple[int, int]) -> None:
        self.offsets = offsets

    def detect(self, photos: list[np.ndarray]) -> list[Faces]:
        points = np.array([UPRIGHT + offset for offset in self.offsets], np.float32).reshape(
            -1, 5, 2
        )
        boxes = np.concatenate([points.min(axis=1) - 30, points.max(axis=1) + 30], axis=1)
        faces = Faces(
            boxes_N4=boxes,
            landmarks_N52=points,
            probabilities_N=np.full(len(points), 0.99, np.float32),
        )
        return [faces for _ in photos]


def a_photo(width: int = 260, height: int = 240, seed: int = 0) -> np.ndarray:
    """A smooth random picture, uint8 (height,width,3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(photo: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, kind)
    return stream.getvalue()


def with_detector(*offsets: tuple[int, int], observe: Observer | None = None) -> Model:
    return Model(NETWORK, CARD, detector=DetectorOf(*offsets), observe=observe)


def same(left: Predictions, right: Predictions, tolerance: float = 0.0) -> None:
    for field in dataclasses.fields(Predictions):
        np.testing.assert_allclose(
            getattr(left, field.name), getattr(right, field.name), rtol=0, atol=tolerance
        )


def test_crops_against_three_plain_lines() -> None:
    crops = some_crops(5)
    got = Model(NETWORK, CARD).predict_crops(crops, flip=False)
    with torch.no_grad():
        probabilities = torch.softmax(
            NETWORK(FaceBatch(evaluation_view(crops, CARD.normalise), None)).logits_BK.double(),
            dim=1,
        ).numpy()
    value = probabilities @ CARD.grid.labels()
    assert np.ptp(value) > 1  # else the test would not tell one face from another
    np.testing.assert_allclose(got.probabilities, probabilities, atol=1e-5)
    np.testing.assert_allclose(got.value, value, atol=1e-4)
    spread = np.sqrt((probabilities * (CARD.grid.labels() - value[:, None]) ** 2).sum(axis=1))
    np.testing.assert_allclose(got.std, spread, atol=1e-4)
    assert ((got.low <= got.value) & (got.value <= got.high)).all()


def test_numbers_do_not_depend_on_the_rest_of_the_batch() -> None:
    crops = some_crops(67)
    predictor = Model(NETWORK, CARD)
    for flip in (True, False):
        whole = predictor.predict_crops(crops, flip=flip)
        for size in (1, 2, 3, 20):
            parts = [predictor.predict_crops(part, flip=flip) for part in crops.split(size)]
            joined = {
                f.name: np.concatenate([getattr(p, f.name) for p in parts])
                for f in dataclasses.fields(Predictions)
            }
            same(Predictions(**joined), whole, tolerance=1e-9)
        order = torch.randperm(67, generator=torch.Generator().manual_seed(0))
        np.testing.assert_allclose(
            predictor.predict_crops(crops[order], flip=flip).value, whole.value[order], atol=1e-9
        )


def test_flip_averages_values_and_distributions() -> None:
    crops = some_crops(6)
    for decode in ("expectation", "median", "argmax"):
        predictor = Model(NETWORK, small_config(decode=decode))
        face, mirror = (
            predictor.predict_crops(part, flip=False) for part in (crops, crops.flip(3))
        )
        both = predictor.predict_crops(crops)
        np.testing.assert_allclose(both.value, (face.value + mirror.value) / 2, atol=1e-9)
        np.testing.assert_allclose(
            both.probabilities, (face.probabilities + mirror.probabilities) / 2, atol=1e-7
        )
        same(
            both, predictor.predict_crops(crops.flip(3)), tolerance=1e-6
        )  # a mirror image is as old as its face
        if decode == "expectation":
            np.testing.assert_allclose(
                both.value, both.probabilities @ CARD.grid.labels(), atol=1e-4
            )


@pytest.mark.parametrize("decode", ["expectation", "median", "argmax", "rank"])
@pytest.mark.parametrize("flip", [True, False])
def test_calibration_changes_the_doubt_and_never_the_value(decode: str, flip: bool) -> None:
    known = CalibrationConfig(
        temperature=1.6, mass=INTERVAL_MASS, offset=2.0, num_faces=100, flip=True
    )
    crops, plain = some_crops(20), small_config(decode=decode)
    before, after = (
        Model(NETWORK, config).predict_crops(crops, flip=flip)
        for config in (plain, dataclasses.replace(plain, calibration=known))
    )
    np.testing.assert_array_equal(after.value, before.value)
    naive = before.probabilities.astype(np.float64) ** (1 / 1.6)
    naive /= naive.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(after.probabilities, naive, atol=1e-6)
    labels = CARD.grid.labels()
    np.testing.assert_allclose(
        after.std, np.sqrt(naive @ labels**2 - (naive @ labels) ** 2), atol=1e-3
    )
    low, high = (end.numpy() for end in central_interval(torch.from_numpy(naive), CARD.grid, 0.8))
    np.testing.assert_allclose(
        after.low, np.minimum(np.maximum(low - 2, 0), after.value), atol=1e-3
    )
    np.testing.assert_allclose(
        after.high, np.maximum(np.minimum(high + 2, 100), after.value), atol=1e-3
    )


def test_the_caller_s_network_is_left_alone() -> None:
    network = small_network(CARD).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    got = Model(network, CARD).predict_crops(some_crops(4))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    same(got, Model(NETWORK, CARD).predict_crops(some_crops(4)))


def test_no_crops_give_no_predictions() -> None:
    none = Model(NETWORK, CARD).predict_crops(some_crops(3)[:0])
    assert len(none) == 0
    assert none.probabilities.shape == (0, CARD.grid.num_labels)


@pytest.mark.parametrize(
    "crops", [some_crops(2).float(), some_crops(2)[..., :-1], some_crops(2)[0]]
)
def test_crops_of_another_kind_are_refused(crops: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=rf"uint8 \(B, 3, {CROP_PX}, {CROP_PX}\)"):
        Model(NETWORK, CARD).predict_crops(crops)


class Certain:
    """An engine of no network: the first colour is the place of the label."""

    needs_landmarks = gives_features = False

    def answer(
        self, crops_BCHW: np.ndarray, landmarks_B52: np.ndarray | None
    ) -> tuple[np.ndarray, None]:
        assert landmarks_B52 is None
        return np.eye(11)[crops_BCHW[:, 0, 0, 0]], None


def test_any_engine_can_stand_in() -> None:
    crops = (
        torch.zeros(3, 3, CROP_PX, CROP_PX, dtype=torch.uint8)
        + torch.tensor([2, 0, 10])[:, None, None, None]
    )
    got = Model(Certain(), CARD).predict_crops(crops.to(torch.uint8))
    np.testing.assert_allclose(got.value, [20, 0, 100])
    np.testing.assert_allclose(got.std, 0)


@pytest.mark.parametrize("flip", [True, False])
def test_an_observer_gets_values_and_features_and_changes_nothing(flip: bool) -> None:
    crops, heard = some_crops(35), []
    unobserved = Model(NETWORK, CARD)
    predictor = Model(NETWORK, CARD, observe=lambda *both: heard.append(both))
    for part in (crops, crops[:1]):
        heard.clear()
        before = unobserved.predict_crops(part, flip=flip)
        same(predictor.predict_crops(part, flip=flip), before)  # bit for bit
        values_N, features_NC = (np.concatenate(column) for column in zip(*heard, strict=True))
        np.testing.assert_array_equal(values_N, before.value)
        np.testing.assert_allclose(features_NC, pooled_features(NETWORK, CARD, part), atol=1e-4)
        assert features_NC.dtype == np.float32
        assert len(heard) == -(-len(part) // (16 if flip else 32))  # once a batch
    predictor.predict_crops(crops[:0], flip=flip)
    assert len(heard) == 1


def test_faces_in_photos_are_observed_too() -> None:
    heard: list[tuple[np.ndarray, np.ndarray]] = []
    predictor = with_detector((0, 0), (40, 20), observe=lambda *both: heard.append(both))
    [result] = predictor.predict_many([encoded(a_photo())])
    [(values_N, features_NC)] = heard
    assert values_N.tolist() == [face.value for face in result.faces]
    assert features_NC.shape == (2, 128)


def test_an_engine_without_features_cannot_be_observed() -> None:
    with pytest.raises(
        ValueError, match=r"model 'small': this ONNX file gives no pooled features .* safetensors"
    ):
        Model(Certain(), CARD, observe=lambda _values_N, _features_NC: None)
    assert len(Model(Certain(), CARD).predict_crops(some_crops(2) % 11)) == 2


class NeedsLandmarks:
    """An engine that keeps what landmarks it was given; the first point's x is the label."""

    needs_landmarks, gives_features = True, False

    def __init__(self) -> None:
        self.asked: list[np.ndarray] = []

    def answer(
        self, _crops_BCHW: np.ndarray, landmarks_B52: np.ndarray | None
    ) -> tuple[np.ndarray, None]:
        assert landmarks_B52 is not None
        self.asked.append(landmarks_B52)
        place_B = np.round(landmarks_B52[:, 0, 0] / CROP_PX * 10).astype(int)
        return np.eye(11)[place_B.clip(0, 10)], None


def test_the_detector_s_landmarks_go_along_and_are_mirrored() -> None:
    engine = NeedsLandmarks()
    predictor = Model(engine, CARD, detector=DetectorOf((0, 0), (40, 20)))
    predictor.predict(encoded(a_photo()))

    how = CARD.alignment
    template = align.template(how.template, how.crop_px, how.face_scale)
    expected = []
    for offset in ((0, 0), (40, 20)):
        points = UPRIGHT + np.float32(offset)
        expected.append(align.transform(points, align.similarity(points, template)))
    face_B52, mirror_B52 = np.split(engine.asked[0], 2)
    np.testing.assert_allclose(face_B52, np.stack(expected), atol=1e-4)
    assert np.abs(face_B52 - template).max() < how.crop_px / 10
    for left, right in ((0, 1), (1, 0), (2, 2), (3, 4), (4, 3)):
        np.testing.assert_allclose(mirror_B52[:, left, 0], CROP_PX - face_B52[:, right, 0])
        np.testing.assert_allclose(mirror_B52[:, left, 1], face_B52[:, right, 1])


def test_landmarks_keep_to_their_crops_in_every_batch() -> None:
    engine, crops = NeedsLandmarks(), some_crops(40)
    landmarks = torch.rand(40, 5, 2, generator=torch.Generator().manual_seed(0)) * CROP_PX
    got = Model(engine, CARD).predict_crops(crops, landmarks, flip=False)
    np.testing.assert_array_equal(np.concatenate(engine.asked), landmarks)
    np.testing.assert_array_equal(
        got.value, (landmarks[:, 0, 0] / CROP_PX * 10).round().clamp(0, 10) * 10
    )


def test_a_photo_gets_the_numbers_of_evaluation() -> None:
    """The crop as the face table would hold it goes through the first door: exactly equal."""
    photo, predictor = a_photo(), with_detector((0, 0), (40, 20))
    [result] = predictor.predict_many([encoded(photo)])
    how = CARD.alignment
    template = align.template(how.template, how.crop_px, how.face_scale)
    crops = []
    for offset in ((0, 0), (40, 20)):
        matrix = align.similarity(UPRIGHT + np.float32(offset), template)
        crop = align.crop(photo, matrix, how.crop_px)
        crops.append(decode_jpeg(encode_jpeg(crop, how.jpeg_quality)))
    expected = predictor.predict_crops(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2))
    for name in ("value", "std", "low", "high"):
        np.testing.assert_array_equal(
            [getattr(face, name) for face in result.faces], getattr(expected, name)
        )
    np.testing.assert_array_equal(
        [face.distribution for face in result.faces], expected.probabilities
    )
    assert (result.width, result.height, result.reason) == (260, 240, None)
    assert sum(face.chosen for face in result.faces) == 1


def test_photo_files_get_the_numbers_of_the_align_stage_s_faces(tmp_path: Path) -> None:
    """Drawn photos, the real detector, the real stage: what evaluation reads from the shards,
    exactly."""
    rng = np.random.default_rng(11)
    photos = {
        f"{i}.jpg": encode_face(sample_photo(sample_person(rng), rng, clean=True), 96)
        for i in range(3)
    }
    rows = []
    for number, (name, data) in enumerate(photos.items()):
        (tmp_path / name).write_bytes(data)
        known = {
            "photo_id": name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "num_bytes": len(data),
            "width": 96,
            "height": 96,
            "label": number + 0.5,
        }
        rows.append(dict.fromkeys(MANIFEST_SCHEMA.names) | known | {"split": "test"})
    pq.write_table(
        pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), tmp_path / "manifest.parquet"
    )
    (tmp_path / "quarantine.csv").write_text("photo_id,check,reason\n")
    (tmp_path / "gate.json").write_text("{}")
    how = CARD.alignment
    settings = AlignSettings(
        template=how.template,
        crop_px=how.crop_px,
        face_scale=how.face_scale,
        jpeg_quality=how.jpeg_quality,
        detector=DetectorSettings(**dataclasses.asdict(CARD.detector)),
        fallback="none",
        min_detection_rate=0.5,
        shard_rows=2,
        num_workers=0,
    )
    files = {
        name: tmp_path / f"{name}.{kind}"
        for name, kind in (("manifest", "parquet"), ("quarantine", "csv"))
    }
    align_photos(
        settings,
        **files,
        gate=tmp_path / "gate.json",
        raw=tmp_path,
        faces=tmp_path / "faces",
        rejects=tmp_path / "rejects.csv",
        summary=tmp_path / "align.json",
        report=lambda *_: None,
    )
    predictor = Model(NETWORK, CARD)
    table = FaceTable.open(tmp_path / "faces", ["test"])
    assert dataclasses.asdict(CARD.alignment) == table.alignment
    evaluated = predictor.predict_crops(table.decode(np.arange(len(table))))
    results = list(predictor.predict_many(tmp_path / name for name in table.photo_id))
    chosen = [next(face for face in result.faces if face.chosen) for result in results]
    assert len(chosen) == 3
    for name in ("value", "std", "low", "high"):
        np.testing.assert_array_equal(
            [getattr(face, name) for face in chosen], getattr(evaluated, name)
        )

    engine = NeedsLandmarks()
    list(Model(engine, CARD).predict_many([tmp_path / name for name in table.photo_id], flip=False))
    is_chosen = [face.chosen for result in results for face in result.faces]
    np.testing.assert_array_equal(np.concatenate(engine.asked)[is_chosen], table.landmarks)


def test_bad_photos_do_not_harm_their_neighbours(tmp_path: Path) -> None:
    good = encoded(a_photo())
    photos = [
        b"",
        good,
        b"no picture",
        tmp_path / "absent.jpg",
        tmp_path,
        good[: len(good) // 2],
        good,
    ]
    predictor = with_detector((0, 0))
    results = list(predictor.predict_many(photos))
    assert [result.readable for result in results] == [
        False,
        True,
        False,
        False,
        False,
        False,
        True,
    ]
    assert all(result.reason and not result.faces for result in results if not result.readable)
    [alone] = predictor.predict_many([good])
    for result in (results[1], results[6]):
        assert abs(result.faces[0].value - alone.faces[0].value) < 1e-9


def test_no_face_is_an_empty_list_with_a_reason() -> None:
    [result] = with_detector().predict_many([encoded(a_photo())])
    assert (result.faces, result.reason, result.readable) == ((), "no face found", True)


def test_the_real_detector_finds_no_face_in_noise_and_dots() -> None:
    predictor = Model(NETWORK, CARD)
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    results = predictor.predict_many(
        [encoded(noise), encoded(noise[:1, :1]), encoded(np.tile(noise[:1, :1], (1, 3000, 1)))]
    )
    assert [result.reason for result in results] == ["no face found"] * 3


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "P", "1", "LA", "I;16", "F", "YCbCr"])
def test_a_pillow_image_reads_like_its_file(mode: str) -> None:
    image = Image.fromarray(a_photo()).convert("L" if mode in ("I;16", "F") else mode)
    image = image.convert("I;16") if mode == "I;16" else image.convert(mode)
    predictor = with_detector((0, 0))
    [result] = predictor.predict_many([image])
    assert result.readable, result.reason
    if mode == "RGB":
        assert result.faces[0].value == predictor.predict(encoded(a_photo()))[0].value


def test_a_pillow_image_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(a_photo()).save(stream, "JPEG", exif=exif)
    with Image.open(io.BytesIO(stream.getvalue())) as image:
        [opened, read] = with_detector().predict_many([image, stream.getvalue()])
    assert (opened.width, opened.height) == (read.width, read.height) == (240, 260)


def test_results_stream_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "GROUP_PHOTOS", 4)
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield encoded(a_photo(seed=taken))

    results = with_detector((0, 0)).predict_many(endless())  # type: ignore[arg-type]
    first = [next(results) for _ in range(6)]
    assert taken == 8
    assert len({result.faces[0].value for result in first}) == 6


def test_groups_are_bounded_in_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "GROUP_PIXELS", 100)
    photos_and_reason = [np.zeros((5, 10, 3), np.uint8)] * 5 + ["bad"]
    group = [(b"", photo) for photo in photos_and_reason]
    assert [len(group) for group in photos._groups(iter(group))] == [2, 2, 2]


def test_a_card_of_another_template_is_refused() -> None:
    other = dataclasses.replace(CARD.alignment, template="eyes_only")
    with pytest.raises(ValueError, match="'eyes_only'"):
        Model(NETWORK, small_config(alignment=other))


def test_the_document_says_who_spoke_and_is_json() -> None:
    photos = [encoded(a_photo()), b"nothing"]
    results = list(with_detector((0, 0)).predict_many(photos))
    document = json.loads(json.dumps(results[0].to_dict()))
    assert next(iter(document)) == "model"
    assert document["model"]["name"] == "small"
    assert document["model"]["calibration"] is None
    known = CalibrationConfig(
        temperature=1.6, mass=INTERVAL_MASS, offset=2.0, num_faces=100, flip=True
    )
    config = small_config(calibration=known)
    calibrated = Model(NETWORK, config, detector=DetectorOf((0, 0))).predict(photos[0]).to_dict()
    assert calibrated["model"]["calibration"] == dataclasses.asdict(known)
    assert (document["quantity"], document["unit"]) == ("age", "years")
    [face] = document["faces"]
    assert len(face["probabilities"]) == CARD.grid.num_labels
    assert np.array(face["landmarks"]).shape == (5, 2)
    assert results[1].to_dict()["faces"] == []


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    whole, half = (
        load(small_model(tmp_path / kind, kind), runtime="torch") for kind in ("float32", "float16")
    )
    crops = some_crops(8)
    difference = np.abs(whole.predict_crops(crops).value - half.predict_crops(crops).value)
    assert 0 < difference.max() < 0.5


@pytest.mark.parametrize("cut", [1, 1000])
def test_a_truncated_or_edited_model_is_refused(tmp_path: Path, cut: int) -> None:
    weights = small_model(tmp_path / "model") / "model.safetensors"
    data = weights.read_bytes()
    for broken in (
        data[:-cut],
        data[:-cut] + bytes([data[-cut] ^ 1]) + data[len(data) - cut + 1 :],
    ):
        weights.write_bytes(broken)
        with pytest.raises(ValueError, match=r"model\.safetensors.*sha256"):
            load(tmp_path / "model", runtime="torch")


def test_a_model_of_another_grid_or_network_is_refused(tmp_path: Path) -> None:
    folder = small_model(tmp_path)
    text = (folder / "config.json").read_text()
    for old, new in (('"step": 10.0', '"step": 5.0'), ('"name": "tiny"', '"name": "thin"')):
        assert old in text
        (folder / "config.json").write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=r"grid|network"):
            load(folder, runtime="torch")


def test_the_command_answers_with_a_model_s_folder(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model", "float16")
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(encoded(a_photo(), "JPEG"))
    document = json.loads(visage("predict", "--json", photo, "--model", folder).stdout)
    assert document["model"]["name"] == "small"
    assert document["reason"] == "no face found"

    (folder / "model.safetensors").write_bytes(b"broken")
    assert "model.safetensors" in refused("predict", photo, "--model", folder)
    assert "no such folder" in refused("predict", photo, "--model", tmp_path / "absent")


def test_float64_head_keeps_a_grid_of_any_size_in_step() -> None:
    """Same features, any batch: bit for bit, which a float32 head does not give."""
    config = small_config(
        grid=LabelGrid(minimum=0.0, step=1.0, maximum=100.0),
        network=dataclasses.replace(CARD.network, num_outputs=101),
    )
    engine, crops = TorchEngine(small_network(config), config), some_crops(16)
    whole, _ = engine.answer(crops.numpy(), None)
    for size in (1, 2, 5):
        parts = [engine.answer(part.numpy(), None)[0] for part in crops.split(size)]
        assert np.abs(np.concatenate(parts) - whole).max() < 1e-12
