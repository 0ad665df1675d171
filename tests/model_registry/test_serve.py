"""Real servers on loopback: the numbers of `evaluate` over HTTP, stops and kills, and MLflow's own
server."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from PIL import Image

from model_registry import serve
from stages.align import AlignSettings, align
from stages.evaluate import EvaluateSettings, evaluate
from tests.command import refused
from tests.model_registry.served import (
    SETTINGS,
    Server,
    Store,
    base64_of,
    running,
    serve_command,
    synthetic_photos,
)
from tests.services import free_port
from visage.data.face_table import FaceTable
from visage.data.schemas import MANIFEST_SCHEMA
from visage.detection.mtcnn import DetectorSettings
from visage.weights import load_model

NUM_PHOTOS = 12
EVALUATE = EvaluateSettings(
    splits=("test",),
    decode="expectation",
    flip=True,
    batch_size=16,
    num_resamples=10,
    interval=0.95,
    seed=0,
    cs_thresholds=(3.0,),
    band_width=10.0,
    epsilon_sigma=None,
    with_dedup=False,
)


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[Server]:
    port = free_port()
    with running(serve_command(port), port, store, "/ready") as server:
        yield server


def write_photos(folder: Path) -> dict[str, bytes]:
    """Synthetic photos in several sizes, one turned by its EXIF tag, one grey, and the manifest of
    them all."""
    photos = {
        f"{i:02d}.jpg": photo
        for i, photo in enumerate(synthetic_photos(NUM_PHOTOS, px=150, seed=5))
    }
    photos["00.jpg"] = synthetic_photos(1, px=420, seed=6)[0]
    turned, exif = (
        Image.open(io.BytesIO(photos["01.jpg"])).transpose(Image.Transpose.ROTATE_90),
        Image.Exif(),
    )
    exif[0x0112] = 6
    photos["01.jpg"] = saved(turned, "JPEG", exif=exif)
    photos["02.png"] = saved(Image.open(io.BytesIO(photos.pop("02.jpg"))).convert("L"), "PNG")
    photos["03.webp"] = saved(Image.open(io.BytesIO(photos.pop("03.jpg"))), "WEBP")
    rows = []
    for name, data in sorted(photos.items()):
        path = folder / "raw" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        width, height = Image.open(io.BytesIO(data)).size
        row: dict[str, Any] = dict.fromkeys(MANIFEST_SCHEMA.names)
        row |= {
            "photo_id": name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "num_bytes": len(data),
        }
        rows.append(
            row | {"width": width, "height": height, "label": 30.0 + len(rows), "split": "test"}
        )
    pq.write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), folder / "manifest.parquet")
    (folder / "quarantine.csv").write_text("photo_id,check,reason\n")
    (folder / "gate.json").write_text("{}")
    return photos


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def evaluated(folder: Path, export: Path) -> pd.DataFrame:
    """What the stages align and evaluate make of the folder's photos: a row a face."""
    config = load_model(export)[1]
    alignment = asdict(config.alignment)
    align(
        AlignSettings(
            **alignment,
            detector=DetectorSettings(**asdict(config.detector)),
            fallback="none",
            min_detection_rate=0.5,
            shard_rows=5,
            num_workers=0,
        ),
        manifest=folder / "manifest.parquet",
        quarantine=folder / "quarantine.csv",
        gate=folder / "gate.json",
        raw=folder / "raw",
        faces=folder / "faces",
        rejects=folder / "rejects.csv",
        summary=folder / "align.json",
        report=lambda *_: None,
    )
    absent = dict.fromkeys(("finetune_history", "pretrain_history"), folder / "absent.csv")
    out = {
        "metrics": "metrics.json",
        "groups": "groups.csv",
        "predictions": "predictions.parquet",
        "plots": "plots",
    }
    evaluate(
        EVALUATE,
        model=export,
        faces=folder / "faces",
        manifest=folder / "manifest.parquet",
        rejects=folder / "rejects.csv",
        validation=folder / "absent.json",
        **absent,
        **{name: folder / file for name, file in out.items()},
        html=folder / "report.html",
        report=lambda *_: None,
    )
    return pd.read_parquet(folder / "predictions.parquet").set_index("photo_id")


@pytest.fixture(scope="module")
def evaluated_photos(
    store: Store, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, bytes], pd.DataFrame]:
    folder = tmp_path_factory.mktemp("evaluated")
    photos = write_photos(folder)
    return folder, photos, evaluated(folder, store.export)


def assert_same_numbers(face: dict[str, Any], row: Any) -> None:
    assert abs(face["value"] - row["prediction"]) <= 1e-3
    for name in ("std", "low", "high"):
        assert abs(face[name] - row[name]) <= 1e-3
    np.testing.assert_allclose(face["probabilities"], row["probabilities"], atol=1e-5)


def assert_no_skew(server: Server, evaluated: tuple[Path, dict[str, bytes], pd.DataFrame]) -> None:
    """Each photo, alone and in a batch, and its aligned face get the numbers that evaluation gave
    it."""
    folder, photos, expected = evaluated
    found = {name: server.photos([photo])[0] for name, photo in photos.items()}
    names = sorted(photos)[: SETTINGS.max_photos]
    together = dict(zip(names, server.photos([photos[name] for name in names]), strict=True))
    assert {name for name, document in found.items() if document["faces"]} == set(expected.index)
    assert len(expected) >= NUM_PHOTOS - 2
    assert np.ptp(expected["prediction"]) > 1  # the faces differ
    for name, row in expected.iterrows():
        [face] = found[str(name)]["faces"]
        assert_same_numbers(face, row)
        if name in together:
            assert_same_numbers(together[str(name)]["faces"][0], row)
    table = FaceTable.open(folder / "faces", ["test"])
    jpegs = pa.concat_tables(
        [pq.read_table(path) for path in sorted((folder / "faces").iterdir())]
    )["jpeg"].to_pylist()
    assert len(jpegs) == len(table)
    status, document = server.send(
        {"dataframe_records": [{"face": base64_of(jpeg)} for jpeg in jpegs[:8]]}
    )
    assert status == 200
    for name, predicted in zip(table.photo_id[:8], document["predictions"], strict=True):
        assert_same_numbers(predicted["faces"][0], expected.loc[name])


def test_numbers_are_those_of_evaluate_for_the_same_photos(
    server: Server, evaluated_photos: tuple[Path, dict[str, bytes], pd.DataFrame]
) -> None:
    assert_no_skew(server, evaluated_photos)


def test_it_says_which_version_predicts_and_counts(server: Server, store: Store) -> None:
    assert server.send(None, "GET", "/ready")[1]["version"] == str(store.version)
    [document] = server.photos(synthetic_photos(1), explain=True, all_faces=True)
    assert document["model"]["version"] == str(store.version)
    assert len(document["faces"][0]["score_map"]) >= 1
    _, page = server.send(None, "GET", "/metrics")
    assert re.search(rb'visage_requests_total{status="200"} \d+', page)


def test_it_listens_at_loopback_alone(server: Server) -> None:
    sockets = psutil.Process(server.process.pid).net_connections()
    assert {entry.laddr.ip for entry in sockets if entry.status == psutil.CONN_LISTEN} == {
        "127.0.0.1"
    }


def test_it_outlives_what_it_refuses(server: Server) -> None:
    large = "a" * (SETTINGS.max_request_bytes + 1)
    for body, status in (
        ("[" * 300_000, 400),
        ("photo", 400),
        (large, 413),
        ({"inputs": ["file:///etc/passwd"]}, 400),
    ):
        assert server.send(body)[0] == status
    with socket.create_connection(("127.0.0.1", server.port)) as odd:
        odd.sendall(b"\x00\xff nonsense\r\n\r\n")
        assert b"400" in odd.recv(1000)
    assert server.photos(synthetic_photos(1))[0]["faces"]


def test_sixteen_clients_at_once_get_the_answers_of_one(server: Server) -> None:
    photos = synthetic_photos(4)
    expected = [server.photos([photo])[0]["faces"] for photo in photos]
    failed: list[Any] = []

    def client(number: int) -> None:
        for place in range(4):
            faces = server.photos([photos[(number + place) % 4]])[0]["faces"]
            if faces != expected[(number + place) % 4]:
                failed.append(faces)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert failed == []


def long_request() -> dict[str, Any]:
    """As much work as a request may hold."""
    photo = base64_of(synthetic_photos(1, px=250)[0])
    return {
        "dataframe_records": [{"photo": photo}] * SETTINGS.max_photos,
        "params": {"explain": True},
    }


def uploads_below(folder: Path, photo: str) -> list[Path]:
    """Files that hold the photo, as sent or decoded."""
    traces = (photo[200:300].encode(), base64.b64decode(photo)[200:300])
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if any(trace in path.read_bytes() for trace in traces)]


@pytest.mark.slow
def test_a_server_killed_mid_request_is_started_again_and_answers(store: Store) -> None:
    port, request, ended = free_port(), long_request(), []

    def client(server: Server) -> None:
        try:
            ended.append(server.send(request)[0])
        except OSError as error:
            ended.append(error)

    with running(serve_command(port), port, store, "/ready") as server:
        asking = threading.Thread(target=client, args=(server,))
        asking.start()
        wait_until_inside(server)
        server.process.kill()
        asking.join(timeout=30)
        assert isinstance(ended[0], OSError)
    with running(serve_command(port), port, store, "/ready") as server:  # as a supervisor would
        assert server.send(request)[0] == 200
        assert uploads_below(store.folder, request["dataframe_records"][0]["photo"]) == []


@pytest.mark.slow
def test_a_server_that_is_stopped_answers_first(store: Store) -> None:
    port, request, ended = free_port(), long_request(), []
    with running(serve_command(port), port, store, "/ready") as server:
        asking = threading.Thread(target=lambda: ended.append(server.send(request)[0]))
        asking.start()
        wait_until_inside(server)
        server.process.send_signal(signal.SIGTERM)
        asking.join(timeout=30)
        assert ended == [200]
        server.process.wait(timeout=30)
        with pytest.raises(OSError):
            server.send(None, "GET", "/ready")


def wait_until_inside(server: Server) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if b"visage_requests_inside 1.0" in server.send(None, "GET", "/metrics")[1]:
            return
    raise AssertionError("the request never arrived")


@pytest.mark.slow
def test_mlflow_s_own_server_gives_the_same_numbers(
    store: Store, evaluated_photos: tuple[Path, dict[str, bytes], pd.DataFrame]
) -> None:
    """`mlflow models serve` on the same package: numbers, version, and 4xx for what the package
    itself refuses."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        f"models:/{SETTINGS.model}@champion",
    ]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with running(command, port, store, "/ping") as server:
        assert_no_skew(server, evaluated_photos)
        [document] = server.photos(synthetic_photos(1), explain=True)
        assert document["model"]["version"] == str(store.version)
        assert document["faces"][0]["score_map"]
        for photo in (
            "/etc/passwd",
            "",
            base64_of(b"\xff\xd8\xff" + bytes(SETTINGS.max_photo_bytes)),
        ):
            status, refused = server.send({"dataframe_records": [{"photo": photo}]})
            assert status == 400
            assert "the photo" in refused["message"]
            assert "stack_trace" not in refused
        assert (
            server.send({"dataframe_records": [{"photo": "aaaa"}] * (SETTINGS.max_photos + 1)})[0]
            == 400
        )


@pytest.mark.slow
def test_a_promoted_champion_takes_over_without_a_restart(store: Store) -> None:
    """The alias moves while clients ask: no request is lost, and /ready tells the version."""
    client = MlflowClient(store.uri)
    second = register_again(store)
    port = free_port()
    seen: list[str] = []
    failed: list[Any] = []
    stop = threading.Event()

    def asks(server: Server) -> None:
        photo = synthetic_photos(1)
        while not stop.is_set():
            try:
                seen.append(server.photos(photo)[0]["model"]["version"])
            except (AssertionError, OSError) as error:
                failed.append(error)

    try:
        with running(serve_command(port), port, store, "/ready") as server:
            threads = [threading.Thread(target=asks, args=(server,)) for _ in range(2)]
            for thread in threads:
                thread.start()
            client.set_registered_model_alias(SETTINGS.model, "champion", str(second))
            status, document = server.send(None, "POST", "/reload")
            assert (status, document["version"], document["changed"]) == (200, str(second), True)
            assert server.send(None, "GET", "/ready")[1]["version"] == str(second)
            assert server.photos(synthetic_photos(1))[0]["model"]["version"] == str(second)
            stop.set()
            for thread in threads:
                thread.join(timeout=60)
            registry = server.send(None, "GET", "/statistics")[1]["registry"]
            assert registry["champion"] == second
            assert [each["version"] for each in registry["versions"]] == [second, store.version]
    finally:
        client.set_registered_model_alias(SETTINGS.model, "champion", str(store.version))
        client.delete_model_version(SETTINGS.model, str(second))
    assert failed == []
    assert set(seen) <= {str(store.version), str(second)}


def register_again(store: Store) -> int:
    """The same package as a second version."""
    client = MlflowClient(store.uri)
    source = client.get_model_version(SETTINGS.model, str(store.version)).source
    return int(client.create_model_version(SETTINGS.model, source, store.run_id).version)


def test_an_alias_becomes_the_version_it_means(connected: Store) -> None:
    assert (
        serve.exact_uri(f"models:/{SETTINGS.model}@champion")
        == f"models:/{SETTINGS.model}/{connected.version}"
    )
    assert serve.exact_uri(f"models:/{SETTINGS.model}/7") == f"models:/{SETTINGS.model}/7"


@pytest.mark.usefixtures("connected")
def test_no_champion_ends_it_with_one_line() -> None:
    assert "nobody" in refused("serve", "--model", "models:/nobody@champion")
