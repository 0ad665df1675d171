"""The drift flow on a real Prefect server: what it compares, decides, starts and reports, with real
HTTP servers."""

from __future__ import annotations

import asyncio
import dataclasses
import http.server
import json
import logging
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns of its own type hints
    import mlflow.pyfunc

from prefect import flow
from prefect.artifacts import Artifact
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client

import flows.drift
from flows.drift import DriftSettings, champion_reference, drift, served_faces
from model_registry.mlflow_client import connect
from stages.settings import load_section
from tests.command import refused, visage
from tests.conftest import REPOSITORY
from tests.model_registry.served import SETTINGS as PACKAGE
from tests.model_registry.served import Store, make_store, running, serve_command, synthetic_photos
from tests.services import free_port
from tests.small_faces import write_params
from tests.small_model import small_model, some_crops
from visage.evaluation.drift import REFERENCE_FILE, Summary
from visage.inference.faces import CropPredictor
from visage.weights import load_model

SETTINGS = dataclasses.replace(
    load_section(REPOSITORY / "params.yaml", "drift", DriftSettings),
    deployment="toy/nightly",
    notify=None,
)


class Loopback(http.server.ThreadingHTTPServer):
    """Answers GET /statistics with `body` and other paths with 404, and keeps what is posted to
    it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = b""
        self.post_status = 200
        self.posted: list[tuple[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Loopback

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/statistics" else 404, self.server.body)

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.server.posted.append((self.path, json.loads(self.rfile.read(length))))
        self._answer(self.server.post_status, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    with Loopback() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def faces(
    count: int, seed: int = 0, older_years: float = 0.0, weights: str = "of one model"
) -> Summary:
    """A summary of people, whose features follow their age."""
    rng = np.random.default_rng(seed)
    age = np.clip(rng.normal(35, 10, count) + older_years, 0, 100)
    features = age[:, None] / 20 + rng.normal(size=(count, 16))

    made = Summary(weights, 0.0, 100.0, window_faces=10_000, block_faces=500)
    made.add(age, features.astype(np.float32))
    return made


def bytes_of(summary: Summary) -> bytes:
    return json.dumps(summary.as_document()).encode()


@pytest.fixture
def champion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 3, whose training faces are known; the registry itself has a test of its own."""
    monkeypatch.setattr(flows.drift, "champion_reference", lambda _model: (3, faces(2000, seed=1)))


@flow(name="toy")
def toy(reason: str = "by hand") -> str:
    return reason


@pytest.fixture
def deployment(prefect_server: str) -> Iterator[str]:  # noqa: ARG001
    """toy/nightly, which has no worker, so that its runs stay scheduled."""
    with get_client(sync_client=True) as client:
        made = client.create_deployment(flow_id=client.create_flow(toy), name="nightly")
        yield "toy/nightly"
        client.delete_deployment(made)


def runs_of_toy() -> list[Any]:
    with get_client(sync_client=True) as client:
        flow_id = client.read_flow_by_name("toy").id
        return [run for run in client.read_flow_runs() if run.flow_id == flow_id]


def delete_runs_of_toy() -> None:
    with get_client(sync_client=True) as client:
        for run in runs_of_toy():
            client.delete_flow_run(run.id)


def look(root: Path, loopback: Loopback, served: Summary, **changes: Any) -> str:
    """Runs the flow on `served` with changed settings; returns its message."""
    loopback.body = bytes_of(served)
    settings = dataclasses.replace(SETTINGS, url=loopback.url, **changes)
    write_params(root / "params.yaml", drift=settings, package=PACKAGE)
    return str(drift(root, return_state=True).message)


def artifact() -> Any:
    found = asyncio.run(Artifact.aget("drift"))
    assert found is not None
    return found


@pytest.mark.usefixtures("champion", "deployment")
def test_the_same_crowd_starts_nothing(tmp_path: Path, loopback: Loopback) -> None:
    message = look(tmp_path, loopback, faces(400))
    assert message == "the 400 faces served last look like the training faces of version 3 of small"
    assert artifact().description == message
    rows = json.loads(artifact().data)
    assert rows[0]["found"] == 400
    limits = [200, SETTINGS.max_value_psi, SETTINGS.max_feature_distance]
    assert [row["threshold"] for row in rows] == limits
    assert all(row["found"] < row["threshold"] for row in rows[1:])
    assert runs_of_toy() == []


@pytest.mark.usefixtures("champion", "deployment")
def test_few_faces_decide_nothing(tmp_path: Path, loopback: Loopback) -> None:
    message = look(tmp_path, loopback, faces(199, older_years=30))
    assert message == "199 faces served by version 3 of small: nothing is decided on fewer than 200"
    assert len(json.loads(artifact().data)) == 1
    empty = Summary("of one model", 0.0, 100.0, window_faces=9, block_faces=9)
    assert look(tmp_path, loopback, empty).startswith("0 faces served")
    assert runs_of_toy() == []


@pytest.mark.usefixtures("champion", "deployment")
def test_drift_starts_one_retraining_a_day_and_notifies_people_once(
    tmp_path: Path, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(Webhook(url=f"{loopback.url}/hook").asave("people"))
    messages = [
        look(tmp_path, loopback, faces(400, seed, older_years=10), notify="people")
        for seed in (0, 2)
    ]

    [run] = runs_of_toy()
    assert run.state.is_scheduled()
    assert run.name.startswith("drift ")
    assert messages[0].startswith(run.parameters["reason"])
    assert messages[0].startswith(
        "drift: the 400 faces served last differ from the training faces of version 3 of small"
    )
    assert "toy/nightly was started, which needs new labelled photos" in messages[0]
    assert "predicted values (mean 44." in messages[0]
    assert "in training 34." in messages[0]
    assert messages[1].endswith("; toy/nightly was started for it earlier today")
    assert loopback.posted == [("/hook", {"text": f"visage: {messages[0]}"})]
    assert artifact().description == messages[1]

    monkeypatch.setattr(flows.drift, "champion_reference", lambda _model: (4, faces(2000, seed=1)))
    message = look(tmp_path, loopback, faces(400, older_years=10), notify="people")
    assert "was started, which" in message
    assert len(runs_of_toy()) == 2  # another champion's drift
    assert len(loopback.posted) == 2
    delete_runs_of_toy()


@pytest.mark.usefixtures("champion", "deployment")
def test_features_alone_are_drift_too(tmp_path: Path, loopback: Loopback) -> None:
    """The same ages, other photos."""
    document = faces(400).as_document()
    document["feature_sums"] = (np.array(document["feature_sums"]) + 400 * 2.0).tolist()
    document["feature_squares"] = (np.array(document["feature_squares"]) * 4).tolist()
    message = look(tmp_path, loopback, Summary.from_document(document, "test"))
    assert "in features by" in message
    assert "predicted values" not in message
    delete_runs_of_toy()


@pytest.mark.usefixtures("champion", "deployment")
@pytest.mark.parametrize("kind", ["refuses", "absent", "missing"])
def test_a_webhook_that_fails_is_a_warning_without_its_address(
    tmp_path: Path, loopback: Loopback, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    address = {
        "refuses": f"{loopback.url}/secret",
        "absent": f"http://127.0.0.1:{free_port()}/secret",
    }
    if kind in address:
        asyncio.run(Webhook(url=address[kind]).asave(kind))
    loopback.post_status = 500

    with caplog.at_level(logging.WARNING):
        message = look(tmp_path, loopback, faces(400, older_years=10), notify=kind)
    assert "was started, which" in message

    warnings_logged = [record.getMessage() for record in caplog.records]
    [warning] = [text for text in warnings_logged if "webhook block" in text]
    assert warning.startswith(f"webhook block '{kind}' got no message")
    assert message in warning
    assert "secret" not in warning
    delete_runs_of_toy()


@pytest.mark.usefixtures("champion", "prefect_server")
def test_drift_without_the_deployment_says_what_to_do(tmp_path: Path, loopback: Loopback) -> None:
    look(tmp_path, loopback, faces(400, older_years=10), deployment="nobody/nothing")
    with pytest.raises(
        ValueError, match=r"no deployment 'nobody/nothing' to run; make deploy registers"
    ):
        drift(tmp_path)


@pytest.mark.usefixtures("champion", "prefect_server")
def test_another_model_at_the_server_is_not_compared(tmp_path: Path, loopback: Loopback) -> None:
    look(tmp_path, loopback, faces(400, weights="another"))
    with pytest.raises(
        ValueError,
        match=r"answers with another model than version 3 of small, the champion; start the",
    ):
        drift(tmp_path)


@dataclass(frozen=True, kw_only=True)
class Champion:
    """A registered small model, and the summary of the faces that it predicted after those of its
    reference."""

    store: Store
    served: Summary


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Champion]:
    """A real registry with one champion, whose export has a reference."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    export = small_model(tmp_path / "export")
    network, config = load_model(export)
    summaries = []
    for seed in (3, 4):
        summary = Summary.of(config, window_faces=1000, block_faces=100)
        predictor = CropPredictor(network, config, observe=summary.add)
        predictor.predict_crops(some_crops(250, seed=seed))
        summaries.append(summary)
    reference, served = summaries
    (export / REFERENCE_FILE).write_text(json.dumps(reference.as_document()), encoding="utf-8")

    before = mlflow.get_tracking_uri()
    yield Champion(store=make_store(tmp_path, export), served=served)
    mlflow.set_tracking_uri(before)


@pytest.mark.usefixtures("prefect_server")
def test_the_champion_s_reference_comes_from_the_registry(
    tmp_path: Path, loopback: Loopback, registered: Champion
) -> None:
    message = look(tmp_path, loopback, registered.served)
    assert message.endswith("look like the training faces of version 1 of small")

    (registered.store.export / REFERENCE_FILE).unlink()
    version = register(registered.store.export)
    with pytest.raises(
        ValueError, match=rf"^version {version} of small has no reference\.json: .*make retrain"
    ):
        champion_reference(PACKAGE.model)
    with pytest.raises(ValueError, match=r"^nothing has no champion; make retrain"):
        champion_reference("nothing")


@pytest.mark.slow
def test_the_server_sums_up_the_faces_that_it_predicts(registered: Champion) -> None:
    port = free_port()
    photos = synthetic_photos(6)

    predicted: list[dict[str, Any]] = []
    with running(serve_command(port), port, registered.store, "/ready") as server:
        empty = served_faces(f"http://127.0.0.1:{port}")
        for document in server.photos(photos, all_faces=True):
            predicted += document["faces"]
        summed = served_faces(f"http://127.0.0.1:{port}")

    assert empty.totals().num_faces == 0
    _, reference = champion_reference(PACKAGE.model)
    assert summed.weights == reference.weights
    assert summed.totals().num_faces == len(predicted) >= 3
    assert summed.totals().value_sum == pytest.approx(sum(face["value"] for face in predicted))
    assert len(summed.totals().feature_sums) == 128


def register(export: Path) -> int:
    """Registers the folder as another run's model and makes it the champion."""
    from model_registry.package import package

    client = connect()
    version = package(export, client.create_run("1").info.run_id, PACKAGE)
    client.set_registered_model_alias(PACKAGE.model, "champion", str(version))
    return version


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"<html>", "not JSON; it must be visage's own server"),
        (b"[" * 100_000, "not JSON"),
        (b"{}", "not a summary of faces"),
        (b" " * 4_000_001, "more than 4000000 bytes"),
    ],
)
def test_an_answer_that_is_no_summary_is_refused(
    loopback: Loopback, body: bytes, complaint: str
) -> None:
    loopback.body = body
    with pytest.raises(ValueError, match=rf"^{loopback.url}/statistics: {complaint}"):
        served_faces(f"{loopback.url}/")


def test_a_server_that_is_not_there_or_another_one_says_what_to_do(loopback: Loopback) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(
        ValueError, match=rf"^{nobody}/statistics: no answer .* \(make serve\), or set drift\.url"
    ):
        served_faces(nobody)
    with pytest.raises(ValueError, match=r"404.*visage's own server"):
        served_faces(f"{loopback.url}/mlflow")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"url": "file:///etc/passwd"}, "give the server's address, http"),
        ({"min_faces": 1}, "give 2 at least"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(SETTINGS, **changes)


@pytest.mark.usefixtures("champion", "prefect_server")
def test_the_command_line_ends_in_one_line(
    tmp_path: Path, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = look(tmp_path, loopback, faces(400))

    monkeypatch.setattr("flows.commands.in_clone.ROOT", tmp_path)
    assert visage("drift").stdout.strip().splitlines()[-1] == message

    loopback.body = b"<html>"
    assert refused("drift").startswith(f"{loopback.url}/statistics: not JSON")
