"""The packaged model's predictions: exactly the predictor's numbers, and a sentence for every bad
row."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel
from PIL import Image

from model_registry.mlflow_client import load_package
from model_registry.served_model import MAX_SCANS, ServedModel, registered_version
from tests.model_registry.served import SETTINGS, Store, base64_of, package_folder, synthetic_photos
from tests.small_model import CROP_PX, some_crops
from visage.explain.score_map import scaled_up, score_map
from visage.inference.photos import NO_FACE, Predictor, as_document
from visage.synthetic import encode_face, sample_person, sample_photo
from visage.weights import load_model

Opened = list[tuple[str, str]]


@pytest.fixture(scope="module")
def model(store: Store) -> PyFuncModel:
    return load_package(str(package_folder(store)))


@pytest.fixture(scope="module")
def served(model: PyFuncModel) -> ServedModel:
    served: ServedModel = model.unwrap_python_model()
    return served


@pytest.fixture(scope="module")
def predictor(store: Store) -> Predictor:
    return Predictor.load(store.export)


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return stream.getvalue()


def two_faces() -> bytes:
    """One photo of two people, side by side."""
    rng = np.random.default_rng(3)
    people = [encode_face(sample_photo(sample_person(rng), rng, clean=True), 160) for _ in range(2)]
    return encoded(
        np.concatenate([np.asarray(Image.open(io.BytesIO(photo))) for photo in people], axis=1),
        "PNG",
    )


def crops(count: int = 3) -> np.ndarray:
    return some_crops(count, seed=4).permute(0, 2, 3, 1).numpy()


def plain(document: Any) -> Any:
    """As JSON gives it: tuples become lists."""
    if isinstance(document, dict):
        return {key: plain(value) for key, value in document.items()}
    return [plain(item) for item in document] if isinstance(document, list | tuple) else document


def test_a_photo_gets_the_predictors_document(
    model: Any, predictor: Predictor, store: Store
) -> None:
    photos = synthetic_photos(3)
    table = pd.DataFrame({"photo": [base64_of(photo) for photo in photos]})
    for flip in (True, False):
        documents = model.predict(table, params={"flip": flip, "all_faces": True})
        for document, result in zip(documents, predictor.predict_photos(photos, flip), strict=True):
            expected = as_document(result, predictor.config)
            expected["model"]["version"] = str(store.version)
            assert plain(document) == plain(expected)
            assert document["faces"]


def test_of_several_faces_the_chosen_one_is_returned_unless_all_are_asked_for(
    served: ServedModel,
) -> None:
    rows = [{"photo": base64_of(two_faces())}]
    [every], [one] = served.predict_rows(rows, all_faces=True), served.predict_rows(rows)
    assert len(every["faces"]) == 2
    assert one["faces"] == [face for face in every["faces"] if face["chosen"]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_three_formats_are_read(served: ServedModel, predictor: Predictor, kind: str) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(synthetic_photos(1)[0])).convert("RGB"))
    photo = encoded(pixels, kind)
    [document] = served.predict_rows([{"photo": base64_of(photo)}])
    assert document["faces"][0]["value"] == predictor.predict_photos([photo])[0].faces[0].value


def test_a_photo_without_a_face_is_an_empty_list_with_a_reason(served: ServedModel) -> None:
    [document] = served.predict_rows(
        [{"photo": base64_of(encoded(np.full((90, 120, 3), 200, np.uint8), "PNG"))}], explain=True
    )
    assert (document["faces"], document["reason"]) == ([], NO_FACE)
    assert document["photo"] == {"width": 120, "height": 90}


def test_aligned_faces_get_the_numbers_of_their_crops(
    served: ServedModel, predictor: Predictor
) -> None:
    faces = crops()
    documents = served.predict_rows(
        [{"face": base64_of(encoded(face, "PNG"))} for face in faces], flip=False
    )
    expected = predictor.predict_crops(torch.from_numpy(faces).permute(0, 3, 1, 2), flip=False)
    for place, document in enumerate(documents):
        [face] = document["faces"]
        assert [face[name] for name in ("value", "std", "low", "high")] == [
            getattr(expected, name)[place] for name in ("value", "std", "low", "high")
        ]
        assert face["probabilities"] == expected.probabilities[place].tolist()
        assert (face["box"], face["landmarks"], face["probability"], document["reason"]) == (
            None,
            None,
            None,
            None,
        )


LANDMARKS = [9.0, 14.0, 23.0, 14.0, 16.0, 19.0, 10.0, 24.0, 22.0, 24.0]


def test_a_face_may_bring_its_landmarks(model: Any, served: ServedModel) -> None:
    faces = [{"face": base64_of(encoded(face, "PNG"))} for face in crops()]
    faces[1] |= {"landmarks": LANDMARKS}
    alone = [served.predict_rows([row])[0]["faces"][0]["value"] for row in faces]
    documents = model.predict(pd.DataFrame(faces))
    assert [document["faces"][0]["value"] for document in documents] == pytest.approx(
        alone, abs=1e-9
    )


def test_a_face_without_the_landmarks_that_the_network_needs_is_refused(
    served: ServedModel, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.Tensor] = []

    class NeedsThem:
        needs_landmarks, gives_features = True, False

        def answer(self, crops_BCHW: torch.Tensor, landmarks_B52: torch.Tensor) -> Any:
            asked.append(landmarks_B52)
            return torch.full((len(crops_BCHW), 11), 1 / 11, dtype=torch.float64), None

    monkeypatch.setattr(served, "predictor", Predictor(NeedsThem(), predictor.config))
    face = {"face": base64_of(encoded(crops()[0], "PNG"))}
    with pytest.raises(ValueError, match=r"item 0: this model needs the landmarks of a face: give"):
        served.predict_rows([face])
    for odd in (LANDMARKS[:9], "here", [*LANDMARKS[:9], float("inf")], [None] * 10):
        with pytest.raises(ValueError, match="item 0: landmarks must be ten numbers"):
            served.predict_rows([face | {"landmarks": odd}])

    served.predict_rows([face | {"landmarks": LANDMARKS}], flip=False)
    assert asked[-1].flatten().tolist() == LANDMARKS


def test_the_newest_faces_are_summed_up(served: ServedModel) -> None:
    summary = served.summarise(100, 10)
    served.predict_rows([{"photo": base64_of(two_faces())}])
    assert summary.totals().num_faces == 2


def test_rows_of_both_kinds_are_returned_in_their_order(served: ServedModel) -> None:
    photo, faces = (
        {"photo": base64_of(synthetic_photos(1)[0])},
        [{"face": base64_of(encoded(c, "PNG"))} for c in crops()],
    )
    mixed = [faces[0], photo, faces[1], {**faces[2], "photo": None}]
    alone = [served.predict_rows([row])[0] for row in mixed]
    for one, together in zip(alone, served.predict_rows(mixed), strict=True):
        assert one["faces"][0]["value"] == pytest.approx(together["faces"][0]["value"], abs=1e-9)
        assert one["photo"] == together["photo"]


@pytest.mark.parametrize("flip", [True, False])
def test_score_maps_are_those_of_explain(
    served: ServedModel, store: Store, predictor: Predictor, flip: bool
) -> None:
    network, config = load_model(store.export)
    faces = torch.from_numpy(crops()).permute(0, 3, 1, 2)
    documents = served.predict_rows(
        [{"face": base64_of(encoded(face, "PNG"))} for face in crops()], explain=True, flip=flip
    )
    maps = torch.tensor([document["faces"][0]["score_map"] for document in documents])
    assert max(maps.shape[1:]) < CROP_PX / 2
    torch.testing.assert_close(
        scaled_up(maps, CROP_PX), score_map(network, config, faces, flip=flip)
    )
    [document] = served.predict_rows(
        [{"photo": base64_of(two_faces())}], explain=True, all_faces=True, flip=flip
    )
    pixels = np.asarray(Image.open(io.BytesIO(two_faces())))
    for face in document["faces"]:
        aligned = predictor.align(pixels, np.array(face["landmarks"], np.float32))
        expected = score_map(network, config, *predictor.stacked([aligned]), flip=flip)
        found = scaled_up(torch.tensor(face["score_map"])[None], CROP_PX)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_without_explain_there_is_no_score_map(served: ServedModel) -> None:
    assert (
        "score_map"
        not in served.predict_rows([{"photo": base64_of(synthetic_photos(1)[0])}])[0]["faces"][0]
    )


def bomb() -> bytes:
    """A PNG of a few hundred bytes that claims 3,000 x 3,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 3_000, 3_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def many_scans() -> bytes:
    """A progressive JPEG whose last scan is repeated: each repetition is decoded over the
    full picture."""
    stream = io.BytesIO()
    Image.fromarray(crops(1)[0]).save(stream, "JPEG", progressive=True)
    photo = stream.getvalue()
    last = photo.rindex(b"\xff\xda")
    return photo[:-2] + photo[last:-2] * MAX_SCANS + photo[-2:]


PHOTO = synthetic_photos(1)[0]
BAD = {
    "nothing": ({}, "give either photo or face"),
    "both": ({"photo": base64_of(PHOTO), "face": base64_of(PHOTO)}, "give either photo or face"),
    "a number": ({"photo": 3.5}, "give either photo or face"),
    "bytes": ({"photo": PHOTO}, "give either photo or face"),
    "empty": ({"photo": ""}, "not a JPEG, PNG or WebP"),
    "a path": ({"photo": "/etc/passwd"}, "not base64"),
    "a path that could be base64": ({"photo": "/etc/passwdx"}, "not a JPEG, PNG or WebP"),
    "a file's address": ({"photo": "file:///etc/passwd"}, "not base64"),
    "an address": ({"photo": "http://127.0.0.1:9/x.jpg"}, "not base64"),
    "a data address": ({"photo": "data:image/jpeg;base64," + base64_of(PHOTO)}, "not base64"),
    "a lone surrogate": ({"photo": "\ud800"}, "not base64"),
    "text": ({"photo": base64_of(b"I am no picture")}, "not a JPEG, PNG or WebP"),
    "GIF": ({"photo": base64_of(encoded(crops(1)[0], "GIF"))}, "not a JPEG, PNG or WebP"),
    "TIFF": ({"photo": base64_of(encoded(crops(1)[0], "TIFF"))}, "not a JPEG, PNG or WebP"),
    "cut off": ({"photo": base64_of(PHOTO[: len(PHOTO) // 2])}, "cannot be decoded"),
    "a bomb": ({"photo": base64_of(bomb())}, "3000 x 3000 px is more than"),
    "many scans": ({"photo": base64_of(many_scans())}, "more than 64 scans"),
    "too large": (
        {"photo": base64_of(PHOTO + bytes(SETTINGS.max_photo_bytes))},
        "larger than the 100000 bytes",
    ),
    "a face of another size": (
        {"face": base64_of(PHOTO)},
        "160 x 160 px, this model takes faces aligned to 32 x 32",
    ),
    "a face cut off": ({"face": base64_of(encoded(crops(1)[0], "PNG")[:200])}, "cannot be decoded"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_a_400_that_names_it(model: Any, served: ServedModel, name: str) -> None:
    row, sentence = BAD[name]
    with pytest.raises(ValueError, match=sentence):
        served.predict_rows([{"photo": base64_of(PHOTO)}, row])
    if row and all(isinstance(value, str) and value.isprintable() for value in row.values()):
        with pytest.raises(MlflowException, match="item 0: ") as caught:
            model.predict(pd.DataFrame([row]))
        assert caught.value.get_http_status_code() == 400
        assert sentence.split()[0] in caught.value.message


def test_a_bomb_is_refused_by_its_header_alone(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("pixels were decoded"))
    with pytest.raises(ValueError, match="3000 x 3000"):
        served.predict_rows([{"photo": base64_of(bomb())}])


def test_the_pixels_of_all_photos_are_counted_before_any_is_decoded(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"photo": base64_of(encoded(np.zeros((1000, 800, 3), np.uint8), "PNG"))}
    assert len(served.predict_rows([row] * 3)) == 3
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("pixels were decoded"))
    with pytest.raises(ValueError, match="3200000 pixels: send at most 3000000 in a request"):
        served.predict_rows([row] * 4)


def test_as_many_items_as_allowed_and_no_more(served: ServedModel) -> None:
    row = {"face": base64_of(encoded(crops(1)[0], "PNG"))}
    assert len(served.predict_rows([row] * SETTINGS.max_photos)) == SETTINGS.max_photos
    for count in (0, SETTINGS.max_photos + 1):
        with pytest.raises(ValueError, match=f"{count} items: send 1 to 8"):
            served.predict_rows([row] * count)


def test_a_photo_as_large_as_allowed_passes(served: ServedModel) -> None:
    padded = PHOTO + bytes(
        SETTINGS.max_photo_bytes - len(PHOTO)
    )  # what follows a JPEG's end is not read
    assert served.predict_rows([{"photo": base64_of(padded)}])[0]["faces"]


def test_documents_are_passed_on_and_refusals_are_not(model: Any, served: ServedModel) -> None:
    heard: list[Any] = []
    served.on_documents = heard.append
    try:
        documents = model.predict(pd.DataFrame({"photo": [base64_of(PHOTO)]}))
        with pytest.raises(MlflowException):
            model.predict(pd.DataFrame({"photo": ["x"]}))
    finally:
        served.on_documents = None
    assert heard == [documents]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Every file opened and every connection made while the fixture lives."""
    seen: Opened = []
    alive = True

    def record(event: str, arguments: tuple[Any, ...]) -> None:
        if alive and event in (
            "open",
            "os.open",
            "socket.connect",
            "socket.getaddrinfo",
            "subprocess.Popen",
        ):
            seen.append((event, str(arguments)))

    sys.addaudithook(record)
    yield seen
    alive = False


@pytest.mark.parametrize(
    "text", ["/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/x.jpg", "//etc/hostname"]
)
def test_a_request_opens_no_file_and_no_connection(
    served: ServedModel, opened: Opened, text: str
) -> None:
    for column in ("photo", "face"):
        with pytest.raises(ValueError):
            served.predict_rows([{column: text}])
    assert opened == []


def test_an_upload_is_never_written(served: ServedModel, opened: Opened) -> None:
    """Neither by us nor by a library: no file is opened while photos and faces are predicted."""
    row = {"photo": base64_of(PHOTO)}
    served.predict_rows(
        [row, {"face": base64_of(encoded(crops(1)[0], "PNG"))}], explain=True
    )  # imports are done
    opened.clear()
    served.predict_rows([row, {"face": base64_of(encoded(crops(1)[0], "PNG"))}], explain=True)
    assert opened == []
    Path("/dev/null").read_bytes()
    assert opened  # the hook records


def test_the_registered_version_is_read_from_what_mlflow_notes(tmp_path: Path) -> None:
    assert registered_version(tmp_path) is None
    for version in ("7", "'7'"):
        (tmp_path / "registered_model_meta").write_text(
            f"model_name: a\nmodel_version: {version}\n"
        )
        assert registered_version(tmp_path) == "7"
