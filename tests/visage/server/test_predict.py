"""POST /predict: forms and raw bodies get the library's own documents."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.visage.server.requests import (
    JPEG,
    ask,
    assert_refused,
    base64_of,
    drawn_photos,
    encoded,
)
from visage.inference.loading import load
from visage.server.pictures import accepted_kinds

PHOTOS = drawn_photos(3)


def form(app: Any, *files: tuple[str, Any], path: str = "/predict") -> Any:
    return ask(app, None, path=path, headers={}, files=list(files))


def plain(document: Any) -> Any:
    """As JSON gives it: tuples become lists."""
    if isinstance(document, dict):
        return {key: plain(value) for key, value in document.items()}
    return [plain(item) for item in document] if isinstance(document, list | tuple) else document


def test_each_photo_gets_the_library_s_document(app: Any, folder: Path) -> None:
    predictor = load(folder)

    def expected(photos: list[bytes]) -> dict[str, Any]:
        results = predictor.predict_many(photos)
        return {"predictions": [plain(each.to_dict()) for each in results]}

    together = form(app, *(("photo", photo) for photo in PHOTOS)).json()
    assert together == expected(PHOTOS)
    for photo in PHOTOS:
        alone = ask(app, photo, path="/predict", headers=JPEG).json()
        assert alone == expected([photo])
        assert alone["predictions"][0]["faces"]


@pytest.mark.parametrize(
    "kind",
    [
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "image/png",
        "Image/JPEG",
        "",
    ],
)
def test_a_raw_picture_may_come_under_another_name(app: Any, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    assert ask(app, PHOTOS[0], path="/predict", headers=headers).json()["predictions"][0]["faces"]


@pytest.mark.parametrize("prefix", ["data:image/jpeg;base64,", ""])
def test_what_a_canvas_gives_is_a_picture_too(app: Any, prefix: str) -> None:
    expected = ask(app, PHOTOS[0], path="/predict", headers=JPEG).json()
    text = prefix + base64_of(PHOTOS[0])
    assert (
        ask(app, text, path="/predict", headers={"Content-Type": "text/plain"}).json() == expected
    )
    assert form(app, ("photo", (None, text))).json() == expected


def test_switches_stand_in_the_address(app: Any) -> None:
    photo = ("photo", PHOTOS[0])
    [document] = form(app, photo, path="/predict?distribution=false&flip=0").json()["predictions"]
    assert "probabilities" not in document["faces"][0]
    [averaged] = form(app, photo).json()["predictions"]
    assert averaged["faces"][0]["value"] != document["faces"][0]["value"]


def test_explain_adds_a_picture_and_its_place(app: Any) -> None:
    [document] = form(app, ("photo", PHOTOS[0]), path="/predict?explain=true").json()["predictions"]
    [face] = document["faces"]
    assert face["score_map"].startswith("data:image/png;base64,")
    corners = np.array(face["score_map_corners"])
    centre = np.array(face["landmarks"]).mean(axis=0)
    assert (corners.min(axis=0) < centre).all()
    assert (corners.max(axis=0) > centre).all()


def test_a_photo_is_set_upright_by_its_exif_tag(app: Any) -> None:
    upright = Image.open(io.BytesIO(PHOTOS[0])).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    photos = [
        encoded(np.asarray(upright), "PNG"),
        encoded(np.asarray(turned), "PNG", exif=exif),
    ]
    values = [ask(app, photo, path="/predict", headers={}).json() for photo in photos]
    assert values[0] == values[1]
    assert values[0]["predictions"][0]["faces"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_each_accepted_kind_is_read(app: Any, kind: str) -> None:
    if kind == "AVIF" and "AVIF" not in accepted_kinds():
        pytest.skip("this Pillow reads no AVIF")
    pixels = np.asarray(Image.open(io.BytesIO(PHOTOS[0])).convert("RGB"))
    [document] = ask(app, encoded(pixels, kind), path="/predict", headers={}).json()["predictions"]
    assert document["faces"]


def test_a_form_with_another_field_is_told_so(app: Any) -> None:
    assert "field 'image'" in assert_refused(form(app, ("image", PHOTOS[0])), 400)
    switch = form(app, ("photo", PHOTOS[0]), ("all_faces", (None, "true")))
    assert "/predict?all_faces=true" in assert_refused(switch, 400)


def test_too_many_photos_of_a_form_are_refused(app: Any) -> None:
    assert "8 photos" in assert_refused(form(app, *[("photo", b"x")] * 9), 400)
