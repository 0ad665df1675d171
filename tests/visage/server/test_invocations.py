"""POST /invocations: MLflow's forms of JSON; every odd body gets one sentence, and none reaches the
model or repeats its data."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.visage.server.requests import (
    JPEG,
    JSON,
    LIMITS,
    ask,
    assert_refused,
    base64_of,
    drawn_photos,
    rows,
)
from visage.server import tables
from visage.server.pictures import from_base64
from visage.server.refusals import Refusal

PICTURE = drawn_photos(1)[0]
PHOTO = base64_of(PICTURE)


def test_a_photo_is_accepted_in_each_of_mlflow_s_forms(app: Any) -> None:
    forms: list[dict[str, Any]] = [
        {"dataframe_records": [{"photo": PHOTO}]},
        {"dataframe_records": [{"photo": PHOTO, "id": 7}]},
        {"dataframe_split": {"columns": ["photo"], "data": [[PHOTO]]}},
        {"dataframe_split": {"columns": ["photo"], "index": [0], "data": [[PHOTO]]}},
        {"inputs": {"photo": [PHOTO]}},
        {"inputs": {"photo": PHOTO}},
        {"inputs": [{"photo": PHOTO}]},
        {"instances": [{"photo": PHOTO}]},
        {"instances": [PHOTO]},
        {"inputs": [PHOTO], "params": None},
    ]
    responses = [ask(app, json.dumps(form)).json() for form in forms]
    assert all(response == responses[0] for response in responses)
    [document] = responses[0]["predictions"]
    assert document["faces"][0]["low"] < document["faces"][0]["value"]


def test_the_documents_are_those_of_predict_and_name_the_version(app: Any) -> None:
    [document] = ask(app, rows(PHOTO, all_faces=True)).json()["predictions"]
    assert document["model"].pop("version") is None
    [expected] = ask(app, PICTURE, path="/predict", headers=JPEG).json()["predictions"]
    assert document == expected


def test_a_byte_order_mark_is_no_fault(app: Any) -> None:
    assert ask(app, b"\xef\xbb\xbf" + rows(PHOTO).encode()).status_code == 200


ODD: dict[str, Any] = {
    "empty": "",
    "no JSON": "photo",
    "a list": "[]",
    "a number": "3",
    "null": "null",
    "not UTF-8": b'{"dataframe_records": [{"photo": "\xff\xfe"}]}',
    "UTF-16": '{"dataframe_records": []}'.encode("utf-16"),
    "cut off": rows(PHOTO)[:100],
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep inside": '{"dataframe_records": ' + "[" * 100 + "]" * 100 + "}",
    "objects in objects": '{"dataframe_records": [{"photo": ' + '{"a": ' * 40 + "1" + "}" * 43,
    "a digit too many": '{"dataframe_records": [{"photo": ' + "9" * 5000 + "}]}",
    "infinite": '{"dataframe_records": [{"photo": 1e999}]}',
    "NaN": '{"dataframe_records": [{"photo": NaN}]}',
    "half a character": '{"dataframe_records": [{"photo": "\\ud800"}]}',
    "half a column": '{"dataframe_records": [{"\\ud800": "a"}]}',
    "no rows": rows(),
    "no table": '{"params": {}}',
    "two tables": '{"inputs": [], "instances": []}',
    "a chat": '{"messages": [{"role": "user", "content": "hello"}]}',
    "another column": '{"dataframe_records": [{"picture": "aaaa"}]}',
    "a row that is a list": '{"dataframe_records": [["aaaa"]]}',
    "rows of unlike length": '{"dataframe_split": {"columns": ["photo"], "data": [["a", "b"], '
    '["c"]]}}',
    "a table that is a number": '{"dataframe_split": 5}',
    "a table that is text": '{"inputs": "aaaa"}',
    "a column that is an object": '{"inputs": {"photo": {"photo": ["aaaa"]}}}',
    "columns of unlike length": '{"inputs": {"photo": ["a", "b"], "face": ["c"]}}',
    "a matrix": '{"instances": [[1, 2], [3, 4]]}',
    "too many rows": rows(*["aaaa"] * (LIMITS.max_photos + 1)),
    "thousands of rows": rows(*["aaaa"] * 5000),
    "a hundred thousand empty rows": '{"dataframe_records": [' + "{}," * 100_000 + "{}]}",
    "an unknown switch": rows(PHOTO, rotate=True),
    "a switch that is text": rows(PHOTO, flip="yes"),
    "a switch that is a number": rows(PHOTO, flip=1),
    "switches in a list": '{"dataframe_records": [{"photo": "aaaa"}], "params": [true]}',
    "a path": rows("/etc/passwd"),
    "a hundred columns": json.dumps({"inputs": {str(n): ["a"] for n in range(100)}}),
    "a column twice": '{"dataframe_split": {"columns": ["photo", "photo"], "data": [["a", "b"]]}}',
    "a file's address": rows("file:///etc/passwd"),
    "an address": rows("http://127.0.0.1:1/x.jpg"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_body_is_a_400(app: Any, name: str) -> None:
    assert_refused(ask(app, ODD[name]), 400)


def test_after_all_of_them_it_still_answers(app: Any) -> None:
    for body in ODD.values():
        ask(app, body)
    assert ask(app, rows(PHOTO)).status_code == 200


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"dataframe_records": [{"image": PHOTO}]}, "the rows have the column 'image'; send photo"),
        ({"inputs": {"a": ["x"], "b": ["y"]}}, "the columns 'a', 'b'; send photo"),
        ({"dataframe_records": [{}]}, "the rows have no column; send photo"),
        ({"instances": ["J"]}, "1 characters are one too few or too many"),
        ({"dataframe_split": {"columns": ["photo"], "data": [[]]}}, "0 cells for 1 columns"),
        ({"messages": []}, "it has 'messages'"),
        ({"inputs": [], "instances": []}, "it has 2 tables"),
        ([], "it is a list"),
        ({"inputs": ["J"], "params": {"flip": 1}}, "'flip' is a number"),
        ({"inputs": ["J"], "params": {"rotate": True}}, "params has 'rotate'; it knows all_faces"),
    ],
)
def test_a_refusal_names_what_was_seen(app: Any, body: Any, sentence: str) -> None:
    assert sentence in assert_refused(ask(app, json.dumps(body)), 400)


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({}, "without a Content-Type"),
        ({"Content-Type": "text/csv"}, "of type 'text/csv'"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, "pictures go to /predict"),
        ({"Content-Type": "application/json; charset=latin-1"}, "charset=latin-1"),
        ({"Content-Type": "application/json; x=y"}, "x=y"),
        ({**JSON, "Content-Encoding": "gzip"}, "uncompressed"),
    ],
)
def test_another_type_is_a_415(app: Any, headers: dict[str, str], sentence: str) -> None:
    assert sentence in assert_refused(ask(app, gzip.compress(bytes(10**6)), headers=headers), 415)


@pytest.mark.parametrize(
    "kind",
    [
        "application/json; charset=utf-8",
        "Application/JSON;charset=UTF-8",
        'application/json; charset="utf-8"',
        "application/json ; charset='utf8' ;",
    ],
)
def test_utf_8_may_be_said_in_any_way(app: Any, kind: str) -> None:
    assert ask(app, rows(PHOTO), headers={"Content-Type": kind}).status_code == 200


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from([PHOTO, "aaaa"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["photo", "face", "data"]), inner)
    ),
    max_leaves=8,
)
TABLES = st.dictionaries(
    st.sampled_from(
        ["dataframe_records", "dataframe_split", "instances", "inputs", "params", "messages", "x"]
    ),
    JSON_VALUES,
    max_size=3,
)


@given(document=TABLES)
@example(document={"dataframe_records": [{"photo": math.nan, "face": PHOTO}]})
@example(document={"dataframe_split": {"columns": [], "index": [], "data": []}})
def test_any_json_is_accepted_or_refused(app: Any, document: Any) -> None:
    response = ask(app, json.dumps(document))
    if response.status_code != 200:
        assert_refused(response, 400)
    else:
        for each in response.json()["predictions"]:
            assert each["photo"] == {"width": 160, "height": 160}


@given(body=st.binary(max_size=200))
def test_any_bytes_are_refused(app: Any, body: bytes) -> None:
    assert_refused(ask(app, body), 400)


ALPHABETS = (str, lambda text: text.translate(str.maketrans("+/", "-_")))
PREFIXES = ("", "data:image/jpeg;base64,", "data:;base64,", " ", "\n")


@given(data=st.data())
def test_any_way_to_write_base64_gives_the_same_picture(data: st.DataObject) -> None:
    picture = data.draw(st.binary(min_size=1, max_size=300))
    text = data.draw(st.sampled_from(ALPHABETS))(base64_of(picture))
    if data.draw(st.booleans()):
        text = text.rstrip("=")
    places = data.draw(st.lists(st.integers(0, len(text)), max_size=5))
    for place in places:
        text = text[:place] + data.draw(st.sampled_from(["\n", "\r\n", " "])) + text[place:]
    text = data.draw(st.sampled_from(PREFIXES)) + text
    assert from_base64(text, 0, "photo", 1000) == picture


@given(text=st.text(max_size=60))
def test_any_text_is_base64_or_refused(text: str) -> None:
    with contextlib.suppress(Refusal):
        assert isinstance(from_base64(text, 0, "photo", 1000), bytes)


@pytest.mark.parametrize("name", ["deep", "thousands of rows", "a hundred thousand empty rows"])
def test_too_many_rows_are_seen_before_parsing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes a row would otherwise become a hundred times as much memory."""
    monkeypatch.setattr(tables.json, "loads", lambda *_: pytest.fail("the body was parsed"))
    with pytest.raises(Refusal, match="more than the 8 photos"):
        tables.parsed(ODD[name].encode(), 8)
