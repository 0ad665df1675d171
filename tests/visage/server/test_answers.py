"""Rows of photos and faces -> documents: limits, numbers, and what is refused."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.small_model import CROP_PX, some_crops
from tests.visage.server.requests import LIMITS, base64_of, drawn_photos, encoded
from visage.explain.score_map import scaled_up, score_map
from visage.inference.loading import load
from visage.inference.photos import NO_FACE, Model
from visage.server import pictures
from visage.server.answers import Answers
from visage.server.pictures import MAX_SCANS
from visage.server.refusals import Refusal
from visage.server.score_maps import torch_score_maps
from visage.synthetic import encode_face, sample_person, sample_photo
from visage.weights import load_model

Opened = list[tuple[str, str]]


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Model:
    return load(folder, runtime="torch")


@pytest.fixture(scope="module")
def answers(folder: Path, predictor: Model) -> Answers:
    limited = Model(*load_model(folder), max_photo_pixels=LIMITS.max_photo_pixels)
    return Answers(limited, LIMITS, *torch_score_maps(folder, predictor))


def predict(answers: Answers, rows: list[dict[str, Any]], **switches: bool) -> list[dict[str, Any]]:
    """The rows' documents."""
    return answers.answer(answers.items_of_rows(rows), **switches)


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


def test_of_several_faces_the_chosen_one_is_returned_unless_all_are_asked_for(
    answers: Answers,
) -> None:
    rows = [{"photo": base64_of(two_faces())}]
    [every], [one] = predict(answers, rows, all_faces=True), predict(answers, rows)
    assert len(every["faces"]) == 2
    assert one["faces"] == [face for face in every["faces"] if face["chosen"]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_three_formats_are_read(answers: Answers, predictor: Model, kind: str) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(drawn_photos(1)[0])).convert("RGB"))
    photo = encoded(pixels, kind, **({"lossless": True} if kind == "WEBP" else {}))
    [document] = predict(answers, [{"photo": base64_of(photo)}])
    assert document["faces"][0]["value"] == predictor.predict(photo)[0].value


def test_a_photo_without_a_face_is_an_empty_list_with_a_reason(answers: Answers) -> None:
    [document] = predict(
        answers,
        [{"photo": base64_of(encoded(np.full((90, 120, 3), 200, np.uint8), "PNG"))}],
        explain=True,
    )
    assert (document["faces"], document["reason"]) == ([], NO_FACE)
    assert document["photo"] == {"width": 120, "height": 90}


def test_aligned_faces_get_the_numbers_of_their_crops(answers: Answers, predictor: Model) -> None:
    faces = crops()
    documents = predict(
        answers, [{"face": base64_of(encoded(face, "PNG"))} for face in faces], flip=False
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


def test_a_face_may_bring_its_landmarks(answers: Answers) -> None:
    faces = [{"face": base64_of(encoded(face, "PNG"))} for face in crops()]
    faces[1] |= {"landmarks": LANDMARKS}
    alone = [predict(answers, [row])[0]["faces"][0]["value"] for row in faces]
    documents = predict(answers, pd.DataFrame(faces).to_dict("records"))
    assert [document["faces"][0]["value"] for document in documents] == pytest.approx(
        alone, abs=1e-9
    )


def test_a_face_without_the_landmarks_that_the_network_needs_is_refused(
    answers: Answers, predictor: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[np.ndarray] = []

    class NeedsThem:
        needs_landmarks, gives_features = True, False

        def answer(self, crops_BCHW: np.ndarray, landmarks_B52: np.ndarray) -> Any:
            asked.append(landmarks_B52)
            return np.full((len(crops_BCHW), 11), 1 / 11), None

    monkeypatch.setattr(answers, "predictor", Model(NeedsThem(), predictor.config))
    face = {"face": base64_of(encoded(crops()[0], "PNG"))}
    with pytest.raises(Refusal, match=r"item 0: this model needs the landmarks of a face: give"):
        predict(answers, [face])
    for odd in (LANDMARKS[:9], "here", [*LANDMARKS[:9], float("inf")], [None] * 10):
        with pytest.raises(Refusal, match="item 0: landmarks must be ten numbers"):
            predict(answers, [face | {"landmarks": odd}])

    predict(answers, [face | {"landmarks": LANDMARKS}], flip=False)
    assert asked[-1].flatten().tolist() == LANDMARKS


def test_rows_of_both_kinds_are_returned_in_their_order(answers: Answers) -> None:
    photo, faces = (
        {"photo": base64_of(drawn_photos(1)[0])},
        [{"face": base64_of(encoded(c, "PNG"))} for c in crops()],
    )
    mixed = [faces[0], photo, faces[1], {**faces[2], "photo": None}]
    alone = [predict(answers, [row])[0] for row in mixed]
    for one, together in zip(alone, predict(answers, mixed), strict=True):
        assert one["faces"][0]["value"] == pytest.approx(together["faces"][0]["value"], abs=1e-9)
        assert one["photo"] == together["photo"]


@pytest.mark.parametrize("flip", [True, False])
def test_score_maps_are_those_of_explain(
    answers: Answers, folder: Path, predictor: Model, flip: bool
) -> None:
    network, config = load_model(folder)
    faces = torch.from_numpy(crops()).permute(0, 3, 1, 2)
    documents = predict(
        answers,
        [{"face": base64_of(encoded(face, "PNG"))} for face in crops()],
        explain=True,
        flip=flip,
    )
    maps = torch.tensor([document["faces"][0]["score_map"] for document in documents])
    assert max(maps.shape[1:]) < CROP_PX / 2
    torch.testing.assert_close(
        scaled_up(maps, CROP_PX), score_map(network, config, faces, flip=flip)
    )
    [document] = predict(
        answers, [{"photo": base64_of(two_faces())}], explain=True, all_faces=True, flip=flip
    )
    result = predictor.predict(two_faces(), keep_crops=True)
    for face, predicted in zip(document["faces"], result, strict=True):
        stacked = map(torch.from_numpy, predictor.stacked([predicted.aligned]))
        expected = score_map(network, config, *stacked, flip=flip)
        found = scaled_up(torch.tensor(face["score_map"])[None], CROP_PX)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_without_explain_there_is_no_score_map(answers: Answers) -> None:
    assert (
        "score_map"
        not in predict(answers, [{"photo": base64_of(drawn_photos(1)[0])}])[0]["faces"][0]
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


PHOTO = drawn_photos(1)[0]
BAD = {
    "nothing": ({}, "give either photo or face, .* found neither"),
    "both": ({"photo": base64_of(PHOTO), "face": base64_of(PHOTO)}, "found both"),
    "another column": ({"picture": "aaaa"}, "found 'picture'"),
    "a number": ({"photo": 3.5}, "found photo that is no text"),
    "bytes": ({"photo": PHOTO}, "found photo that is no text"),
    "empty": ({"photo": ""}, "the photo is empty, and not a JPEG, PNG, WebP"),
    "a path": ({"photo": "/etc/passwd"}, "of no known kind"),
    "a file's address": ({"photo": "file:///etc/passwd"}, "is an address .file:"),
    "an address": ({"photo": "http://127.0.0.1:9/x.jpg"}, "is an address .http:"),
    "a page's own address": ({"photo": "blob:http://x/1"}, "is an address .blob:"),
    "a data address without base64": ({"photo": "data:image/svg+xml,%3Csvg"}, "without ;base64"),
    "a lone surrogate": ({"photo": "\ud800"}, "it holds '.*ud800' at place 0"),
    "a wrong character": ({"photo": base64_of(PHOTO)[:40] + "!"}, "it holds '!' at place 40"),
    "padding inside": ({"photo": "aaaa=aaa"}, "it holds '=' at place 4"),
    "cut off base64": ({"photo": base64_of(PHOTO)[:41]}, "41 characters"),
    "text": ({"photo": base64_of(b"I am no picture")}, "the photo is text, and not"),
    "markup": ({"photo": base64_of(b"<svg xmlns='x'/>")}, "markup"),
    "nothing known": ({"photo": base64_of(b"\x01\x02\x03\x04")}, "the bytes 01 02 03 04"),
    "GIF": ({"photo": base64_of(encoded(crops(1)[0], "GIF"))}, "a GIF picture, and not"),
    "TIFF": ({"photo": base64_of(encoded(crops(1)[0], "TIFF"))}, "a TIFF picture, and not"),
    "BMP": ({"photo": base64_of(encoded(crops(1)[0], "BMP"))}, "a BMP picture, and not"),
    "PDF": ({"photo": base64_of(b"%PDF-1.7")}, "a PDF, and not"),
    "a video": ({"photo": base64_of(b"\0\0\0\x18ftypisom\0\0\0\0isommp42")}, "a video .MP4"),
    "cut off": ({"photo": base64_of(PHOTO[: len(PHOTO) // 2])}, "cannot be decoded"),
    "a bomb": ({"photo": base64_of(bomb())}, "3000 x 3000 px is more than"),
    "many scans": ({"photo": base64_of(many_scans())}, "more than 64 scans"),
    "too large": (
        {"photo": base64_of(PHOTO + bytes(LIMITS.max_photo_bytes))},
        "larger than the 100000 bytes",
    ),
    "a face of another size": (
        {"face": base64_of(PHOTO)},
        "160 x 160 px, this model takes faces aligned to 32 x 32",
    ),
    "a face cut off": ({"face": base64_of(encoded(crops(1)[0], "PNG")[:200])}, "cannot be decoded"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_a_400_that_names_it(answers: Answers, name: str) -> None:
    row, sentence = BAD[name]
    with pytest.raises(Refusal, match=sentence) as caught:
        predict(answers, [{"photo": base64_of(PHOTO)}, row])
    assert caught.value.status == 400
    assert "item 1: " in str(caught.value)


def wrapped(text: str) -> str:
    """RFC 2045: lines of 76 characters."""
    return "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))


SENT = base64_of(PHOTO)
WAYS = {
    "a data: address": f"data:image/jpeg;base64,{SENT}",
    "a data: address with parameters": f" DATA:image/jpeg;name=x.jpg;charset=utf-8;base64,{SENT}",
    "a data: address, percent-encoded": "data:image/jpeg;base64," + quote(SENT, safe=""),
    "wrapped": wrapped(SENT),
    "a trailing line": SENT + "\n",
    "URL-safe": SENT.translate(str.maketrans("+/", "-_")),
    "without padding": SENT.rstrip("="),
    "URL-safe, wrapped, in a data: address": "data:;base64,"
    + wrapped(SENT.translate(str.maketrans("+/", "-_"))),
    "trailing bytes": base64_of(PHOTO + b"\r\n--boundary--\r\n"),
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_a_browser_or_phone_makes_of_a_picture_is_answered(
    answers: Answers, way: str
) -> None:
    expected = predict(answers, [{"photo": SENT}])
    assert predict(answers, [{"photo": WAYS[way]}]) == expected
    assert expected[0]["faces"]


def test_heic_is_read_or_refused_by_name(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "accepted_kinds", lambda: ["JPEG", "PNG"])
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    with pytest.raises(Refusal, match=r"a HEIC picture, .* send it as JPEG"):
        predict(answers, [{"photo": base64_of(heic)}])


def test_a_bomb_is_refused_by_its_header_alone(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("pixels were decoded"))
    with pytest.raises(Refusal, match="3000 x 3000"):
        predict(answers, [{"photo": base64_of(bomb())}])


def test_the_pixels_of_all_photos_are_counted_before_any_is_decoded(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"photo": base64_of(encoded(np.zeros((1000, 800, 3), np.uint8), "PNG"))}
    assert len(predict(answers, [row] * 3)) == 3
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("pixels were decoded"))
    with pytest.raises(Refusal, match="3200000 pixels: send at most 3000000 in a request"):
        predict(answers, [row] * 4)


def test_as_many_items_as_allowed_and_no_more(answers: Answers) -> None:
    row = {"face": base64_of(encoded(crops(1)[0], "PNG"))}
    assert len(predict(answers, [row] * LIMITS.max_photos)) == LIMITS.max_photos
    for count in (0, LIMITS.max_photos + 1):
        with pytest.raises(Refusal, match=f"{count} items: send 1 to 8"):
            predict(answers, [row] * count)


def test_a_photo_as_large_as_allowed_passes(answers: Answers) -> None:
    padded = PHOTO + bytes(
        LIMITS.max_photo_bytes - len(PHOTO)
    )  # what follows a JPEG's end is not read
    assert predict(answers, [{"photo": base64_of(padded)}])[0]["faces"]


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
    answers: Answers, opened: Opened, text: str
) -> None:
    for column in ("photo", "face"):
        with pytest.raises(Refusal):
            predict(answers, [{column: text}])
    assert opened == []


def test_an_upload_is_never_written(answers: Answers, opened: Opened) -> None:
    """Neither by us nor by a library: no file is opened while photos and faces are predicted."""
    row = {"photo": base64_of(PHOTO)}
    predict(
        answers, [row, {"face": base64_of(encoded(crops(1)[0], "PNG"))}], explain=True
    )  # imports are done
    opened.clear()
    predict(answers, [row, {"face": base64_of(encoded(crops(1)[0], "PNG"))}], explain=True)
    assert opened == []
    Path("/dev/null").read_bytes()
    assert opened  # the hook records
