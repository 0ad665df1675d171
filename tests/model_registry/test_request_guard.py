"""The server's application, called in process: every odd request gets one sentence, and none
reaches the model or repeats its data."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import math
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.pyfunc import PyFuncModel, scoring_server
from PIL import Image

from model_registry.mlflow_client import load_package
from model_registry.request_guard import DISCARDED, GuardSettings, Refusal, RequestGuard, parsed
from model_registry.serve import build_app
from model_registry.served_model import ServedModel
from tests.model_registry.served import SETTINGS, Store, base64_of, package_folder, synthetic_photos
from visage.evaluation.drift import Summary

JSON = {"Content-Type": "application/json"}
PHOTO = base64_of(synthetic_photos(1)[0])
LIMITS = GuardSettings(
    max_request_bytes=1000, max_items=8, switches=["flip"], max_inside=2, arrival_seconds=0.2
)


@pytest.fixture(scope="module")
def model(store: Store) -> PyFuncModel:
    return load_package(str(package_folder(store)))


@pytest.fixture(scope="module")
def app(model: PyFuncModel) -> Any:
    return build_app(model, "small", num_at_once=2)


def ask(
    app: Any,
    content: Any = None,
    method: str = "POST",
    path: str = "/invocations",
    headers: dict[str, str] = JSON,
) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(app)  # an exception of the app would come out here
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, content=content, headers=headers)

    return asyncio.run(once())


def rows(*photos: Any, **params: Any) -> str:
    return json.dumps(
        {"dataframe_records": [{"photo": photo} for photo in photos], "params": params}
    )


def assert_refused(response: httpx.Response, status: int | None = None) -> str:
    """A 4xx whose document is one sentence that reveals nothing of the server."""
    assert (
        400 <= response.status_code < 500 if status is None else response.status_code == status
    ), response.text
    document = response.json()
    assert list(document) == ["error"]
    sentence: str = document["error"]
    assert 10 < len(sentence) < 400
    for detail in ("Traceback", "/site-packages", ".py", "mlflow", "object at 0x", "\n"):
        assert detail not in sentence
    return sentence


def test_a_photo_is_accepted_in_each_of_mlflow_s_forms(app: Any) -> None:
    forms: list[dict[str, Any]] = [
        {"dataframe_records": [{"photo": PHOTO}]},
        {"dataframe_split": {"columns": ["photo"], "data": [[PHOTO]]}},
        {"inputs": {"photo": [PHOTO]}},
        {"instances": [{"photo": PHOTO}]},
    ]
    responses = [ask(app, json.dumps(form)).json() for form in forms]
    assert all(response == responses[0] for response in responses)
    [document] = responses[0]["predictions"]
    assert (
        document["faces"][0]["low"] < document["faces"][0]["value"] < document["faces"][0]["high"]
    )


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
    "too many rows": rows(*["aaaa"] * (SETTINGS.max_photos + 1)),
    "thousands of rows": rows(*["aaaa"] * 5000),
    "a hundred thousand empty rows": '{"dataframe_records": [' + "{}," * 100_000 + "{}]}",
    "an unknown switch": rows(PHOTO, rotate=True),
    "a switch that is text": rows(PHOTO, flip="yes"),
    "a switch that is a number": rows(PHOTO, flip=1),
    "switches in a list": '{"dataframe_records": [{"photo": "aaaa"}], "params": [true]}',
    "a path": rows("/etc/passwd"),
    "a file's address": rows("file:///etc/passwd"),
    "an address": rows("http://127.0.0.1:1/x.jpg"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_body_is_a_400_and_the_next_is_accepted(app: Any, name: str) -> None:
    assert_refused(ask(app, ODD[name]), 400)
    assert ask(app, rows(PHOTO)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({}, "Content-Type"),
        ({"Content-Type": "text/csv"}, "Content-Type"),
        ({"Content-Type": "application/vnd.apache.parquet"}, "Content-Type"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, "Content-Type"),
        ({"Content-Type": "application/json; charset=latin-1"}, "Content-Type"),
        ({"Content-Type": "application/json; x=y"}, "Content-Type"),
        ({**JSON, "Content-Encoding": "gzip"}, "uncompressed"),
    ],
)
def test_another_type_is_a_415(app: Any, headers: dict[str, str], sentence: str) -> None:
    assert sentence in assert_refused(ask(app, gzip.compress(bytes(10**7)), headers=headers), 415)


def test_utf_8_may_be_said(app: Any) -> None:
    for kind in ("application/json; charset=utf-8", "Application/JSON;charset=UTF-8"):
        assert ask(app, rows(PHOTO), headers={"Content-Type": kind}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/invocations", 405, "POST"),
        ("PUT", "/invocations", 405, "POST"),
        ("OPTIONS", "/invocations", 405, "POST"),
        ("POST", "/ready", 405, "GET, HEAD"),
        ("DELETE", "/ping", 405, "GET, HEAD"),
        ("GET", "/docs", 404, None),
        ("GET", "/openapi.json", 404, None),
        ("GET", "/invocations/../etc", 404, None),
        ("GET", "/", 404, None),
    ],
)
def test_only_known_pages_and_methods_are_accepted(
    app: Any, method: str, path: str, status: int, allow: str | None
) -> None:
    response = ask(app, None, method, path)
    assert_refused(response, status)
    assert response.headers.get("allow") == allow


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


@given(body=st.binary(max_size=200))
def test_any_bytes_are_refused(app: Any, body: bytes) -> None:
    assert_refused(ask(app, body), 400)


async def never(_: Any) -> bytes:
    raise AssertionError("the model was reached")


def guarded(predict: Any = never) -> RequestGuard:
    return RequestGuard(predict, LIMITS, lambda *_: None)


def test_a_request_without_a_length_is_measured_as_it_comes_and_given_up_in_time() -> None:
    """An endless body in pieces: 413, after as much as is read and thrown away for the sender to
    see it."""
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 100
            yield b"a" * 100

    response = ask(guarded(), endless())
    assert "1000 bytes" in assert_refused(response, 413)
    assert taken <= (DISCARDED + 1) * LIMITS.max_request_bytes


def test_as_many_bytes_as_allowed_pass_and_one_more_does_not() -> None:
    filled = b'{"inputs": "' + b"a" * 986 + b'"}'
    assert len(filled) == LIMITS.max_request_bytes
    reached = []

    async def predict(document: Any) -> bytes:
        reached.append(document)
        return b"{}"

    assert ask(guarded(predict), filled).status_code == 200
    assert_refused(ask(guarded(predict), filled + b" "), 413)
    assert reached == [json.loads(filled)]


@pytest.mark.parametrize("name", ["deep", "thousands of rows", "a hundred thousand empty rows"])
def test_too_many_rows_are_seen_before_parsing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes a row would otherwise become a hundred times as much memory."""
    body = ODD[name].encode()
    monkeypatch.setattr(
        "model_registry.request_guard.json.loads", lambda *_: pytest.fail("the body was parsed")
    )
    with pytest.raises(Refusal, match="more than the 8 photos"):
        parsed(body, LIMITS)


def test_a_request_that_never_ends_is_a_408() -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    assert "0.2 s" in assert_refused(ask(guarded(), stalled()), 408)


def test_beyond_the_queue_s_end_503_says_when_to_come_back() -> None:
    async def crowd() -> list[httpx.Response]:
        release = asyncio.Event()

        async def slow(_: Any) -> bytes:
            await release.wait()
            return b"{}"

        guard = guarded(slow)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(guard), base_url="http://test"
        ) as client:
            waiting = [
                asyncio.create_task(
                    client.post("/invocations", content='{"inputs": 1}', headers=JSON)
                )
                for _ in "ab"
            ]
            while guard.inside < LIMITS.max_inside:
                await asyncio.sleep(0.01)
            turned_away = await asyncio.wait_for(
                client.post("/invocations", content='{"inputs": 1}', headers=JSON), timeout=10
            )
            release.set()
            await asyncio.gather(*waiting)
            assert guard.inside == 0
            return [turned_away, *(task.result() for task in waiting)]

    turned_away, *accepted = asyncio.run(crowd())
    assert turned_away.status_code == 503
    assert "try again" in turned_away.json()["error"]
    assert turned_away.headers["retry-after"] == "1"
    assert [response.status_code for response in accepted] == [200, 200]


def test_a_failure_of_the_model_is_a_500_without_its_cause(
    app: Any,
    model: PyFuncModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("weights at /secret/place")

    monkeypatch.setattr(type(model.unwrap_python_model()), "predict_rows", broken)
    response = ask(app, rows(PHOTO))
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert "/secret/place" in caplog.text
    assert PHOTO[:40] not in caplog.text


def metrics(app: Any) -> dict[str, float]:
    lines = ask(app, None, "GET", "/metrics").text.splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
        for line in lines
        if not line.startswith("#")
    }


def test_metrics_count_requests_errors_seconds_faces_values_and_photos_without_a_face(
    model: PyFuncModel,
) -> None:
    app = build_app(model, "small", num_at_once=2)
    blank = base64_of(blank_photo())
    [document] = ask(app, rows(PHOTO)).json()["predictions"]
    ask(app, rows(PHOTO, blank))
    ask(app, "x")
    ask(app, None, "GET")
    found = metrics(app)
    assert found['visage_requests_total{status="200"}'] == 2
    assert (
        found['visage_requests_total{status="400"}']
        == found['visage_requests_total{status="405"}']
        == 1
    )
    assert found["visage_errors_total"] == 2
    assert found["visage_request_seconds_count"] == 4
    assert found["visage_photos_total"] == 3
    assert found["visage_photos_without_face_total"] == 1
    assert found["visage_faces_total"] == found["visage_value_count"] == 2
    value = document["faces"][0]["value"]
    assert found["visage_value_sum"] == pytest.approx(2 * value)
    edges = [float(name.split('"')[1]) for name in found if name.startswith("visage_value_bucket")]
    assert [found[f'visage_value_bucket{{le="{edge}"}}'] for edge in edges[:-1]] == [
        2.0 * (value <= edge) for edge in edges[:-1]
    ]
    assert found["visage_requests_inside"] == 0
    assert any("visage_model_info" in name and 'name="small"' in name for name in found)


def blank_photo() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (90, 90), (200, 180, 160)).save(stream, "PNG")
    return stream.getvalue()


def test_statistics_summarise_the_predicted_faces(model: PyFuncModel) -> None:
    app = build_app(model, "small", num_at_once=2)
    [document] = ask(app, rows(PHOTO)).json()["predictions"]
    ask(app, rows(PHOTO, PHOTO))
    response = ask(app, None, "GET", "/statistics")
    totals = Summary.from_document(response.json(), "served").totals()
    assert totals.num_faces == 3
    assert totals.value_sum == pytest.approx(3 * document["faces"][0]["value"])
    assert PHOTO[:40] not in response.text


def test_ready_says_which_model_and_version(app: Any, model: PyFuncModel, store: Store) -> None:
    served: ServedModel = model.unwrap_python_model()
    assert ask(app, None, "GET", "/ready").json() == {
        "ready": True,
        "name": "small",
        "version": str(store.version),
        "model": "small",
        "sha256": served.predictor.config.weights.sha256,
    }
    assert ask(app, None, "GET", "/ping").status_code == 200


def test_a_request_is_parsed_once(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[Any] = []
    loads = json.loads

    def counted(text: Any, *args: Any, **kwargs: Any) -> Any:
        bodies.append(text)
        return loads(text, *args, **kwargs)

    body = rows(PHOTO)
    monkeypatch.setattr(json, "loads", counted)
    assert ask(app, body).status_code == 200
    assert bodies.count(body) == 1


@pytest.mark.parametrize("path", ["/ready", "/metrics", "/statistics", "/ping", "/version"])
def test_a_page_may_be_asked_for_its_head(app: Any, path: str) -> None:
    assert ask(app, None, "HEAD", path).status_code == 200


def test_mlflow_s_pages_are_those_of_its_own_server(app: Any, model: PyFuncModel) -> None:
    original = scoring_server.init(model)
    for path in ("/ping", "/health", "/version"):
        ours, theirs = (ask(server, None, "GET", path) for server in (app, original))
        assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content)
        assert ours.headers["content-type"] == theirs.headers["content-type"]


def test_a_prediction_that_takes_too_long_is_a_504(
    model: PyFuncModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(
        type(model.unwrap_python_model()), "predict_rows", lambda *_, **__: time.sleep(3)
    )
    app = build_app(model, "small", num_at_once=2)
    assert "too long" in assert_refused(ask(app, rows(PHOTO)), 504)


def test_a_package_of_an_older_visage_is_refused_with_the_remedy() -> None:
    class Older:
        def unwrap_python_model(self) -> object:
            return object()

    with pytest.raises(ValueError, match="make retrain"):
        build_app(Older(), "small", num_at_once=1)  # type: ignore[arg-type]
