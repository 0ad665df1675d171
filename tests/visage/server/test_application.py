"""The application as a whole: pages, counts, places, and another model while requests run."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import re
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.small_model import small_model
from tests.visage.server.requests import (
    JPEG,
    JSON,
    LIMITS,
    application,
    ask,
    assert_refused,
    base64_of,
    drawn_photos,
    encoded,
    rows,
    served,
)
from visage.evaluation.drift import REFERENCE_FILE, Summary
from visage.server.answers import Answers
from visage.server.models import FolderSource, Loaded
from visage.server.refusals import KINDS, Refusal
from visage.server.tables import Document

PHOTO = drawn_photos(1)[0]
BLANK = encoded(np.full((90, 90, 3), 200, np.uint8), "PNG")
PAGES = ("/", "/monitor", "/docs", "/openapi.json", "/model", "/ready", "/statistics", "/metrics")


@pytest.mark.parametrize("page", [*PAGES, "/ping", "/health", "/version", "/pages/style.css"])
def test_every_page_answers_under_a_strict_policy(app: Any, page: str) -> None:
    response = ask(app, None, "GET", page)
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert ask(app, None, "HEAD", page).status_code == 200


@pytest.mark.parametrize("page", ["/", "/monitor", "/docs"])
def test_no_page_names_another_host_or_holds_a_script_of_its_own(app: Any, page: str) -> None:
    html = ask(app, None, "GET", page).text
    for address in re.findall(r'(?:src|href|action)="([^"]*)"', html):
        # As a browser resolves it
        there = urlsplit(urljoin(f"http://test{page}", address))
        assert there.netloc == "test"
        assert ask(app, None, "GET", there.path).status_code == 200
    assert not re.search(r"<script(?![^>]*\bsrc=)", html)
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", html)


def test_a_page_that_did_not_change_is_not_sent_again(app: Any) -> None:
    tag = ask(app, None, "GET", "/").headers["etag"]
    assert ask(app, None, "GET", "/", headers={"If-None-Match": tag}).status_code == 304


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/invocations", 405, "POST"),
        ("PUT", "/predict", 405, "POST"),
        ("OPTIONS", "/invocations", 405, "POST"),
        ("GET", "/reload", 405, "POST"),
        ("POST", "/ready", 405, "GET, HEAD"),
        ("DELETE", "/ping", 405, "GET, HEAD"),
        ("GET", "/invocations/../etc", 404, None),
        ("GET", "/invocations/", 404, None),
        ("GET", "/pages/../models.py", 404, None),
        ("GET", "/pages/..%2Fmodels.py", 404, None),
        ("GET", "/redoc", 404, None),
    ],
)
def test_only_known_pages_and_methods_are_accepted(
    app: Any, method: str, path: str, status: int, allow: str | None
) -> None:
    response = ask(app, None, method, path)
    assert_refused(response, status)
    assert response.headers.get("allow") == allow


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("rotate=true", "the address has 'rotate'; it knows all_faces, flip, explain"),
        ("flip=maybe", "the address: flip is 'maybe'; give true or false"),
        ("flip=%00%ff", "give true or false"),
    ],
)
def test_a_switch_that_nobody_knows_is_a_400(app: Any, query: str, sentence: str) -> None:
    response = ask(app, PHOTO, path=f"/predict?{query}", headers=JPEG)
    assert sentence in assert_refused(response, 400)


TYPES = st.sampled_from(
    [
        "",
        "image/jpeg",
        "image/heic",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "text/plain; charset=utf-8",
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "multipart/form-data; boundary=",
        "a/b",
    ]
)
FRAGMENTS = st.sampled_from(
    [
        b"--x\r\n",
        b"--x--\r\n",
        b'Content-Disposition: form-data; name="photo"\r\n\r\n',
        b'content-disposition: form-data; name="\xff"\r\n\r\n',
        b"A: " + b"b" * 5000 + b"\r\n",
        b"\r\n",
        b"data:image/png;base64,",
        base64_of(PHOTO).encode(),
        PHOTO,
        PHOTO[:500],
        BLANK,
        b"\xff\xd8\xff",
        b"\0\0\0\x18ftypavif",
        b"RIFF\0\0\0\0WEBP",
    ]
)
BODIES = st.lists(FRAGMENTS | st.binary(max_size=30), max_size=8).map(b"".join)


@given(kind=TYPES, body=BODIES, query=st.sampled_from(["", "?explain=1", "?flip", "?x=1"]))
def test_any_body_of_any_type_is_answered_or_refused(
    app: Any, kind: str, body: bytes, query: str
) -> None:
    headers = {"Content-Type": kind} if kind else {}
    response = ask(app, body, path=f"/predict{query}", headers=headers)
    if response.status_code == 200:
        for document in response.json()["predictions"]:
            assert document["photo"]["width"] in (90, 160)
    else:
        assert_refused(response)


def test_the_table_in_the_docs_is_that_of_the_code() -> None:
    from visage.server.refusals import table

    docs = Path(__file__).resolve().parents[3] / "docs" / "serve.md"
    assert table() in docs.read_text(encoding="utf-8")


def test_every_refusal_s_sentence_can_be_made() -> None:
    for name, kind in KINDS.items():
        fields = dict.fromkeys(re.findall(r"(?<!{){(\w+)[^}]*}(?!})", kind.sentence), 1)
        assert str(Refusal(name, **fields))


def metrics(app: Any) -> dict[str, float]:
    found = {}
    for line in ask(app, None, "GET", "/metrics").text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            found[name] = float(value)
    return found


def test_requests_photos_faces_values_and_refusals_are_counted(folder: Path) -> None:
    app = application(folder)
    [document] = ask(app, rows(base64_of(PHOTO))).json()["predictions"]
    ask(app, rows(base64_of(PHOTO), base64_of(BLANK)))
    ask(app, "x")
    ask(app, None, "GET")
    value = document["faces"][0]["value"]

    found = metrics(app)
    assert found['visage_requests_total{status="200"}'] == 2
    assert found['visage_requests_total{status="400"}'] == 1
    assert found['visage_requests_total{status="405"}'] == 1
    assert found['visage_refusals_total{kind="not_json"}'] == 1
    assert found["visage_errors_total"] == 2
    assert found["visage_request_seconds_count"] == 4
    assert found["visage_photos_total"] == 3
    assert found["visage_photos_without_face_total"] == 1
    assert found["visage_faces_total"] == found["visage_value_count"] == 2
    assert found["visage_value_sum"] == pytest.approx(2 * value)
    assert found["visage_requests_inside"] == found["visage_requests_arriving"] == 0
    assert any("visage_model_info" in name and 'name="small"' in name for name in found)

    statistics = ask(app, None, "GET", "/statistics").json()
    assert statistics["server"]["requests"] == {"200": 2, "400": 1, "405": 1}
    assert statistics["server"]["no_face_rate"] == pytest.approx(1 / 3)
    assert statistics["latency_seconds"]["answers"] == 2
    assert statistics["latency_seconds"]["p50"] > 0
    assert sum(minute["requests"] for minute in statistics["minutes"]) == 4
    assert sum(statistics["values"]["served"]) == pytest.approx(1)
    assert statistics["values"]["training"] is None
    assert base64_of(PHOTO)[:40] not in json.dumps(statistics)


def test_statistics_begin_with_the_summary_that_the_drift_check_reads(tmp_path: Path) -> None:
    """And compare it with the training faces where the model's folder has them."""
    model = small_model(tmp_path / "model")
    first = application(model)
    for photo in drawn_photos(4, seed=1):
        ask(first, photo, path="/predict", headers=JPEG)
    document = ask(first, None, "GET", "/statistics").json()
    assert Summary.from_document(document, "served").totals().num_faces >= 3
    assert document["drift"] is None

    (model / REFERENCE_FILE).write_text(json.dumps(document))
    second = application(model)
    for photo in drawn_photos(4, seed=2):
        ask(second, photo, path="/predict", headers=JPEG)
    document = ask(second, None, "GET", "/statistics").json()
    assert set(document["drift"]) >= {"num_faces", "value_psi", "feature_distance"}
    assert sum(document["values"]["training"]) == pytest.approx(1)


def test_ready_and_model_say_what_is_served(app: Any, folder: Path) -> None:
    ready = ask(app, None, "GET", "/ready").json()
    config = json.loads((folder / "config.json").read_text())
    assert ready == {
        "ready": True,
        "name": "small",
        "version": None,
        "model": "small",
        "sha256": config["weights"]["sha256"],
    }
    model = ask(app, None, "GET", "/model").json()
    assert model["config"] == config
    assert model["request_limits"] == dataclasses.asdict(LIMITS)
    assert model["explain"] is True
    assert "must not decide anything" in model["card"]


def test_openapi_documents_every_address(app: Any) -> None:
    paths = ask(app, None, "GET", "/openapi.json").json()["paths"]
    assert {"/predict", "/invocations", "/reload", "/model", "/statistics"} <= set(paths)
    [*kinds] = paths["/predict"]["post"]["requestBody"]["content"]
    assert kinds[0] == "multipart/form-data"
    html = ask(app, None, "GET", "/docs").text
    assert all(path in html for path in paths)


def test_a_failure_of_the_model_is_a_500_without_its_cause(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = application(folder)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("weights at /secret/place")

    monkeypatch.setattr(Answers, "answer", broken)
    response = ask(app, rows(base64_of(PHOTO)))
    assert_refused(response, 500)
    assert "secret" not in response.text
    assert "/secret/place" in caplog.text
    assert base64_of(PHOTO)[:40] not in caplog.text


def test_beyond_the_places_503_and_429_say_when_to_come_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = application(folder)
    release = threading.Event()

    def slow(*_: Any, **__: Any) -> list[Document]:
        release.wait(30)
        return []

    monkeypatch.setattr(Answers, "answer", slow)
    service = app.state.service

    def client(host: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app, client=(host, 1))
        return httpx.AsyncClient(transport=transport, base_url="http://test")

    async def crowd() -> tuple[httpx.Response, httpx.Response, list[httpx.Response]]:
        async with client("10.0.0.1") as one, client("10.0.0.2") as two:
            waiting = []
            for number in range(6):
                session = one if number < 4 else two
                post = session.post("/predict", content=PHOTO, headers=JPEG)
                waiting.append(asyncio.create_task(post))
                while len(service.places) <= number:
                    await asyncio.sleep(0.01)
                if number == 3:
                    own = await one.post("/predict", content=PHOTO, headers=JPEG)
            all_taken = await two.post("/predict", content=PHOTO, headers=JPEG)
            release.set()
            return own, all_taken, await asyncio.gather(*waiting)

    own, all_taken, answered = asyncio.run(crowd())
    assert own.status_code == 429
    assert all_taken.status_code == 503
    for response in (own, all_taken):
        assert "try again" in response.json()["error"]
        assert response.headers["retry-after"] == "1"
    assert [response.status_code for response in answered] == [200] * 6
    assert len(service.places) == 0


def test_an_answer_that_takes_too_long_is_a_504_and_keeps_its_place_until_it_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = application(folder, answer_seconds=0.05)
    release = threading.Event()
    monkeypatch.setattr(Answers, "answer", lambda *_, **__: release.wait(30) and [])

    async def scenario() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as session:
            response = await session.post("/predict", content=PHOTO, headers=JPEG)
            assert len(app.state.service.places) == 1
            release.set()
            while len(app.state.service.places):
                await asyncio.sleep(0.01)
            return response

    assert_refused(asyncio.run(scenario()), 504)


class Versions:
    """A source whose name can be given another meaning, as an alias can."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders
        self.version = 0
        self.fails = False

    def identity(self) -> str:
        return str(self.version)

    def load(self) -> Loaded:
        if self.fails:
            raise ValueError("/secret/place is damaged")
        folder = self.folders[self.version]
        found = FolderSource(folder=folder, name="small", limits=LIMITS).load()
        return dataclasses.replace(found, version=str(self.version))

    def registry(self) -> dict[str, Any]:
        return {"champion": self.version}


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions([small_model(tmp_path / name, name=name) for name in ("a", "b")])


def test_a_reload_takes_over_what_the_name_means_now(versions: Versions) -> None:
    app = served(versions)
    assert ask(app, None, path="/reload").json()["changed"] is False
    ask(app, PHOTO, path="/predict", headers=JPEG)
    assert ask(app, None, "GET", "/statistics").json()["num_faces"] == 1

    versions.version = 1
    answer = ask(app, None, path="/reload").json()
    assert answer["changed"] is True
    assert answer["version"] == ask(app, None, "GET", "/ready").json()["version"] == "1"
    assert ask(app, rows(base64_of(PHOTO))).json()["predictions"][0]["model"]["version"] == "1"
    statistics = ask(app, None, "GET", "/statistics").json()
    assert statistics["num_faces"] == statistics["values"]["num_served"] == 1
    assert statistics["registry"] == {"champion": 1}


def test_a_model_that_cannot_be_loaded_leaves_the_present_one(
    versions: Versions, caplog: pytest.LogCaptureFixture
) -> None:
    app = served(versions)
    versions.version = 1
    versions.fails = True
    response = ask(app, None, path="/reload")
    assert_refused(response, 500)
    assert "secret" not in response.text
    assert "/secret/place" in caplog.text
    assert ask(app, None, "GET", "/ready").json()["version"] == "0"
    assert metrics(app)['visage_reloads_total{result="failed"}'] == 1

    versions.fails = False
    assert ask(app, None, path="/reload").json()["changed"] is True


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("::ffff:127.0.0.1", {}, 200),
        ("127.0.0.1", {"Origin": "http://test"}, 200),
        ("127.0.0.1", {"Origin": "https://elsewhere.example"}, 403),
        ("127.0.0.1", {"Origin": "null"}, 403),
        ("10.0.0.1", {}, 403),
        ("2001:db8::1", {}, 403),
        ("somewhere", {}, 403),
    ],
)
def test_only_this_machine_may_ask_for_a_reload(
    app: Any, client: str, headers: dict[str, str], status: int
) -> None:
    response = ask(app, None, path="/reload", headers=headers, client=(client, 1))
    assert response.status_code == status


def test_no_request_is_lost_while_another_model_takes_over(versions: Versions) -> None:
    """By the watch alone: clients ask all the time, and each answer is of one of the two models."""
    app: FastAPI = served(versions, poll_seconds=0.02)
    seen: list[tuple[str, str]] = []

    async def client(session: httpx.AsyncClient) -> None:
        while not seen or seen[-1][0] != "1" or len(seen) < 20:
            response = await session.post("/invocations", content=rows(base64_of(PHOTO)))
            assert response.status_code == 200, response.text
            model = response.json()["predictions"][0]["model"]
            seen.append((model["version"], model["name"]))
            if len(seen) == 8:
                versions.version = 1

    async def scenario() -> None:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://test", headers=JSON
            ) as session:
                await asyncio.wait_for(asyncio.gather(client(session), client(session)), 60)

    asyncio.run(scenario())
    assert set(seen) == {("0", "a"), ("1", "b")}


def test_photos_turned_by_exif_are_upright_for_the_score_map_too(app: Any) -> None:
    upright = Image.open(io.BytesIO(PHOTO)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = encoded(np.asarray(upright.transpose(Image.Transpose.ROTATE_180)), "PNG", exif=exif)
    path = "/predict?explain=true"
    first, second = (
        ask(app, photo, path=path, headers={}).json()["predictions"][0]["faces"][0]
        for photo in (encoded(np.asarray(upright), "PNG"), turned)
    )
    assert first["score_map_corners"] == second["score_map_corners"]
    assert first["score_map"] == second["score_map"]
