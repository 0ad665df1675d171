"""Photos through a model into parquet: what comes in, what comes out, and what a stop, a change or
a bad photo does."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from flows.score import flow, inventory, reading, workers
from flows.score.inventory import MISSING, Inventory, ListedPhoto
from flows.score.page import page, read_scores
from flows.score.reading import Reader, Unanswered, Unreachable
from flows.score.shards import METADATA_KEY, SCHEMA, ModelFolder, ScoreSettings
from model_registry.mlflow_client import connect, experiment
from model_registry.package import package
from model_registry.promote import promote
from stages.settings import load_section
from tests.flows import fatal_photos
from tests.imports import REPOSITORY
from tests.model_registry.served import SETTINGS as SMALL
from tests.small_faces import write_params
from tests.small_model import small_model
from visage.inference.loading import load
from visage.inference.photos import NO_FACE, Model
from visage.inference.results import FacePrediction, PhotoPrediction
from visage.synthetic import DrawnSet, draw_set

NUM_FACES = 5
SETTINGS = ScoreSettings(
    shard_photos=3,
    num_workers=0,
    all_faces=True,
    flip=True,
    column="photo",
    max_photo_bytes=1_000_000,
    max_photo_pixels=1_000_000,
    max_photo_seconds=100.0,
)
NUMBERS = ("value", "std", "low", "high", "probability", "chosen")


def silent(*_: int) -> None:
    """Ignores the progress."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder(folder=small_model(tmp_path_factory.mktemp("model")), version="7")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("drawn")
    wanted = DrawnSet(
        num_people=NUM_FACES,
        photos_per_person=1,
        px=160,
        seed=3,
        age_span_years=90.0,
        label_noise=0.0,
        dirt={},
    )

    draw_set(folder, wanted, num_workers=1)
    return [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]


@pytest.fixture
def photos(tmp_path: Path, drawn: list[bytes]) -> Path:
    """Faces in two folders, two faces in one photo, a picture without a face, a file that is no
    picture, and others."""
    folder = tmp_path / "photos"
    (folder / "more" / ".hidden").mkdir(parents=True)
    for number, face in enumerate(drawn):
        (folder / ("more" if number > 2 else "") / f"{number}.jpg").write_bytes(face)

    both = Image.new("RGB", (330, 160), "white")
    for number in range(2):
        both.paste(Image.open(io.BytesIO(drawn[number])), (170 * number, 0))
    both.save(folder / "two.png")
    noise = np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((160, 160)).save(folder / "noise.png")

    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "more" / ".hidden" / "0.jpg").write_bytes(drawn[0])
    (folder / "readme.txt").write_text("no photo", encoding="utf-8")
    return folder


NAMES = [
    "0.jpg",
    "1.jpg",
    "2.jpg",
    "broken.jpg",
    "more/3.jpg",
    "more/4.jpg",
    "noise.png",
    "two.png",
]


def scored(
    photos: Path | str, output: Path, model: ModelFolder, **changes: Any
) -> list[dict[str, Any]]:
    shards = flow.score_photos(
        str(photos), output, model, dataclasses.replace(SETTINGS, **changes), silent
    )
    assert shards == sorted(output.glob("part-*.parquet"))
    return [row for shard in shards for row in pq.read_table(shard).to_pylist()]


def times(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}


def test_rows_are_what_the_predictor_says(photos: Path, model: ModelFolder, tmp_path: Path) -> None:
    rows = scored(photos, tmp_path / "out", model)
    predictor = load(model.folder, runtime="torch")
    size = SETTINGS.shard_photos

    # In the same batches as the shards: a box's last bit depends on the other photos of its batch.
    results: list[PhotoPrediction] = []
    for start in range(0, len(NAMES), size):
        part = NAMES[start : start + size]
        results += predictor.predict_many(photos / name for name in part)
    assert [len(result.faces) for result in results] == [1, 1, 1, 0, 1, 1, 0, 2]

    expected: list[tuple[str, PhotoPrediction, FacePrediction | None]] = []
    for name, result in zip(NAMES, results, strict=True):
        expected += [(name, result, face) for face in (result.faces or [None])]
    for row, (name, result, face) in zip(rows, expected, strict=True):
        assert row["photo"] == name
        assert row["reason"] == result.reason
        if face is None:
            columns = set(SCHEMA.names) - {"photo", "reason"}
            assert {row[column] for column in columns} == {None}
            continue

        assert {key: row[key] for key in NUMBERS} == {key: getattr(face, key) for key in NUMBERS}
        assert row["face"] == result.faces.index(face)
        assert tuple(row["box"]) == face.box
        assert np.reshape(row["landmarks"], (5, 2)).tolist() == [
            list(point) for point in face.landmarks
        ]
        assert np.array_equal(np.float32(row["distribution"]), face.distribution)
    assert {row["photo"]: row["reason"] for row in rows}["noise.png"] == NO_FACE


def test_the_output_is_one_data_set_that_names_its_model(
    photos: Path, model: ModelFolder, tmp_path: Path
) -> None:
    rows = scored(photos, tmp_path / "out", model)
    assert pd.read_parquet(tmp_path / "out")["photo"].tolist() == [row["photo"] for row in rows]
    for shard in (tmp_path / "out").glob("part-*"):
        about = json.loads(pq.read_schema(shard).metadata[METADATA_KEY])
        config = load(model.folder, runtime="torch").config
        assert about["model"] == {"name": "small", "version": "7", "sha256": config.weights.sha256}


def test_only_the_chosen_face(photos: Path, model: ModelFolder, tmp_path: Path) -> None:
    rows = scored(photos, tmp_path / "out", model, all_faces=False)
    assert [row["photo"] for row in rows] == NAMES
    assert [row["chosen"] for row in rows if row["reason"] is None] == [True] * 6


def test_processes_write_the_same_bytes(photos: Path, model: ModelFolder, tmp_path: Path) -> None:
    scored(photos, tmp_path / "here", model)
    scored(photos, tmp_path / "there", model, num_workers=2)
    for shard in (tmp_path / "here").glob("part-*"):
        assert shard.read_bytes() == (tmp_path / "there" / shard.name).read_bytes()


def test_photos_over_the_limits_are_rejects(
    photos: Path, model: ModelFolder, tmp_path: Path
) -> None:
    with Image.open(photos / "two.png") as image:
        num_pixels = image.width * image.height

    rows = scored(photos, tmp_path / "out", model, max_photo_pixels=num_pixels - 1)
    assert "more than the" in rows[-1]["reason"]

    rows = scored(photos, tmp_path / "out", model, max_photo_bytes=9)
    assert {row["reason"] for row in rows if row["photo"] != "broken.jpg"} == {
        f"{(photos / name).stat().st_size} bytes are more than the 9 allowed"
        for name in NAMES
        if name != "broken.jpg"
    }


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_names_photos(photos: Path, model: ModelFolder, tmp_path: Path, kind: str) -> None:
    cells = [
        "more/3.jpg",
        str(photos / "0.jpg"),
        "gone.jpg",
        None,
        "more",
        "more/3.jpg",
        (photos / "1.jpg").as_uri(),
    ]
    table = photos / f"list.{kind}"
    if kind == "csv":
        with table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [["id", "path"], *([number, cell or ""] for number, cell in enumerate(cells))]
            )
    else:
        pq.write_table(pa.table({"id": range(len(cells)), "path": cells}), table)

    rows = scored(table, tmp_path / "out", model, column="path")
    assert [(row["photo"], row["reason"]) for row in rows] == [
        (cells[0], None),
        (cells[1], None),
        (cells[2], MISSING),
        ("row 4", "the table names no photo in this row"),
        (cells[4], "not a plain file"),
        (cells[6], None),
    ]

    with pytest.raises(ValueError, match="no column 'photo' but id, path"):
        scored(table, tmp_path / "other", model)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 server on this machine with an empty bucket `photos`, and the client that fills it."""
    import boto3

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in {
        "ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
        "DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    # The cached filesystems are of another test's server.
    fsspec.get_filesystem_class("s3").clear_instance_cache()

    client = boto3.client("s3")
    client.create_bucket(Bucket="photos")
    yield client
    client.close()
    server.stop()


def test_a_bucket_gives_what_the_folder_gives(
    photos: Path, model: ModelFolder, tmp_path: Path, bucket: Any
) -> None:
    for path in photos.rglob("*"):
        if path.is_file():
            bucket.upload_file(str(path), "photos", f"some/{path.relative_to(photos).as_posix()}")
    bucket.put_object(Bucket="photos", Key="something/else.jpg", Body=b"of others")
    here = tmp_path / "here"
    there = tmp_path / "there"
    assert scored("s3://photos/some", there, model) == scored(photos, here, model)

    before = times(there)
    bucket.upload_file(str(photos / "0.jpg"), "photos", "some/more/4.jpg")
    rows = scored("s3://photos/some", there, model)
    assert {name for name, time_ns in times(there).items() if time_ns != before[name]} == {
        "part-00001.parquet"
    }
    assert [row["value"] for row in rows if row["photo"] in ("0.jpg", "more/4.jpg")] == [
        rows[0]["value"]
    ] * 2

    bucket.put_object(
        Bucket="photos",
        Key="list.csv",
        Body=b"photo\nsome/0.jpg\ns3://photos/some/1.jpg\nsome/9.jpg\n",
    )
    table = scored("s3://photos/list.csv", tmp_path / "table", model)
    assert [row["value"] for row in table] == [rows[0]["value"], rows[1]["value"], None]

    with pytest.raises(ValueError, match="s3://absent: no such"):
        scored("s3://absent", tmp_path / "absent", model)


def test_a_bucket_is_listed_page_by_page(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.create_bucket(Bucket="pages")
    names = [f"{number:02d}.jpg" for number in range(23)]
    for name in names:
        bucket.put_object(Bucket="pages", Key=name, Body=b"")
    monkeypatch.setattr(inventory, "PAGE_KEYS", 5)
    with Inventory(tmp_path / "list") as listed:
        listed.fill("s3://pages", "photo")
        assert [photo.name for photo in listed.slice(0, 2000)] == names
        assert [photo.place for photo in listed.slice(10, 2)] == [11, 12]


@pytest.mark.usefixtures("bucket")
def test_a_bucket_out_of_reach_is_said(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(ValueError, match=r"s3://photos: cannot be listed: .*127.0.0.1:9"):
        scored("s3://photos", tmp_path / "out", model)


class Moody:
    """A store that breaks off as often as `moods` says of a path."""

    def __init__(self, **moods: int) -> None:
        self.moods = moods

    def cat_file(self, path: str) -> bytes:
        self.moods[path] -= 1
        if self.moods[path] >= 0:
            raise ConnectionError("reset by peer")
        return path.encode()


def some_photos(*names: str) -> list[ListedPhoto]:
    return [ListedPhoto(place, name, name, 1, "", None) for place, name in enumerate(names)]


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A reader of a moody store, without pauses."""

    def reader(**moods: int) -> Reader:
        monkeypatch.setattr(reading, "filesystem_of", lambda address: (Moody(**moods), address))
        return Reader("store", 1000)

    monkeypatch.setattr(reading, "FIRST_PAUSE_S", 0.0)
    return reader


def test_a_broken_connection_is_tried_again(moody: Any) -> None:
    contents = list(moody(a=0, b=2, c=3, d=0).read_ahead(some_photos("a", "b", "c", "d")))
    assert contents == [b"a", b"b", "cannot be read: ConnectionError: reset by peer", b"d"]
    assert [isinstance(content, Unanswered) for content in contents] == [False, False, True, False]


def test_a_store_that_is_gone_ends_the_run(moody: Any) -> None:
    names = [chr(ord("a") + number) for number in range(12)]
    gone = moody(**{name: 0 if name == "a" else 99 for name in names})
    with pytest.raises(Unreachable, match="store: 8 photos in a row"):
        list(gone.read_ahead(some_photos(*names)))

    # Never 8 failures in a row.
    shaky = moody(**{name: 99 * (number % 8 > 0) for number, name in enumerate(names)})
    assert len(list(shaky.read_ahead(some_photos(*names)))) == 12


def test_a_lost_photo_is_fetched_by_the_next_run(
    photos: Path, model: ModelFolder, tmp_path: Path, monkeypatch: Any
) -> None:
    read = Reader.read
    monkeypatch.setattr(
        Reader,
        "read",
        lambda self, photo: Unanswered("away") if photo.name == "1.jpg" else read(self, photo),
    )
    assert [row["reason"] for row in scored(photos, tmp_path / "out", model)].count("away") == 1

    before = times(tmp_path / "out")
    monkeypatch.setattr(Reader, "read", read)
    assert "away" not in [row["reason"] for row in scored(photos, tmp_path / "out", model)]
    assert [
        name for name, time_ns in times(tmp_path / "out").items() if time_ns != before[name]
    ] == ["part-00000.parquet"]


def test_what_is_finished_stays_until_its_inputs_change(
    photos: Path, model: ModelFolder, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    scored(photos, output, model)

    def redone(model: ModelFolder = model, **changes: Any) -> set[int]:
        before = times(output)
        scored(photos, output, model, **changes)
        return {
            int(name[5:10])
            for name, time_ns in times(output).items()
            if time_ns != before.get(name)
        }

    assert redone() == set()
    assert redone(num_workers=1, max_photo_seconds=99.0) == set()
    os.utime(photos / "more" / "4.jpg", ns=(0, 0))
    assert redone() == {1}
    (output / "part-00001.parquet").write_bytes(b"damaged")
    assert redone() == {1}
    (photos / "noise.png").unlink()
    (photos / "two.png").unlink()
    assert redone() == set()
    assert set(times(output)) == {"part-00000.parquet", "part-00001.parquet"}
    (photos / "zebra.jpg").write_bytes(b"new")
    assert redone() == {2}
    assert redone(flip=False) == {0, 1, 2}
    assert redone(ModelFolder(folder=model.folder, version="8"), flip=False) == {0, 1, 2}
    assert redone(
        ModelFolder(folder=small_model(tmp_path / "m", name="other"), version="8"), flip=False
    ) == {0, 1, 2}


SUBPROCESS = """
import sys
from pathlib import Path
from flows.score.flow import score_photos
from flows.score.shards import ModelFolder
from tests.flows.score.test_score import SETTINGS
from dataclasses import replace

if __name__ == "__main__":
    settings = replace(SETTINGS, shard_photos=2, num_workers=int(sys.argv[4]))
    model = ModelFolder(folder=Path(sys.argv[3]), version="7")
    score_photos(sys.argv[1], Path(sys.argv[2]), model, settings, lambda *_: None)
"""


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_run_leaves_complete_files_and_resumes(
    photos: Path, model: ModelFolder, tmp_path: Path, num_workers: int
) -> None:
    for number in range(60):
        (photos / f"again{number}.jpg").write_bytes((photos / "0.jpg").read_bytes())
    output = tmp_path / "out"
    program = tmp_path / "run.py"
    program.write_text(SUBPROCESS, encoding="utf-8")
    command = [
        sys.executable,
        str(program),
        str(photos),
        str(output),
        str(model.folder),
        str(num_workers),
    ]

    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}) as process:
        while len(times(output)) < 3:
            assert process.poll() is None
            time.sleep(0.005)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive

    done = times(output)
    assert 3 <= len(done) < 34
    for name in done:
        assert pq.read_table(output / name).schema == SCHEMA

    scored(photos, output, model, shard_photos=2)
    assert {name: time_ns for name, time_ns in times(output).items() if name in done} == done
    scored(photos, tmp_path / "at once", model, shard_photos=2)
    for name in times(output):
        assert (output / name).read_bytes() == (tmp_path / "at once" / name).read_bytes()


def test_a_photo_that_ends_or_hangs_a_process_is_a_reject(
    photos: Path, model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "a.jpg").write_bytes(fatal_photos.KILLS)
    (photos / "b.jpg").write_bytes(fatal_photos.HANGS)
    (photos / "c.jpg").write_bytes(fatal_photos.RAISES)
    monkeypatch.setattr(workers, "_work", fatal_photos.work)

    rows = scored(
        photos, tmp_path / "out", model, shard_photos=11, num_workers=1, max_photo_seconds=8.0
    )
    reasons = {row["photo"]: row["reason"] for row in rows}
    assert reasons["a.jpg"] == "the process that looked at it ended (signal 9)"
    assert reasons["b.jpg"] == "looking at it took more than 8 seconds"
    assert reasons["c.jpg"] == "cannot be looked at: RuntimeError: no memory"

    for name in "abc":
        (photos / f"{name}.jpg").unlink()
    left = [row for row in rows if row["photo"] in NAMES]
    without = scored(photos, tmp_path / "without", model)
    for row, expected in zip(left, without, strict=True):
        assert (row["photo"], row["reason"]) == (expected["photo"], expected["reason"])
        assert row["value"] == (expected["value"] and pytest.approx(expected["value"], abs=1e-9))
        assert row["box"] == (expected["box"] and pytest.approx(expected["box"], abs=1e-3))


def test_a_machine_that_fails_over_everything_is_said(
    photos: Path, model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise MemoryError

    monkeypatch.setattr(Model, "_predict_group", fail)
    with pytest.raises(ValueError, match=r"part-00000.parquet: .* failed \(0.jpg; .*MemoryError"):
        scored(photos, tmp_path / "out", model, shard_photos=8)


def test_an_output_folder_is_of_one_run_and_one_set_of_photos(
    photos: Path, model: ModelFolder, tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "part-00000.parquet").write_bytes(b"dear to somebody")
    with pytest.raises(ValueError, match="theirs: holds files that are no scores"):
        scored(photos, tmp_path / "theirs", model)

    with pytest.raises(ValueError, match="mistyped"):
        scored(tmp_path / "mistyped", tmp_path / "out", model)
    scored(photos, tmp_path / "out", model)
    with pytest.raises(
        ValueError, match=r"out: holds the scores of .*photos, not of .*more; give another folder"
    ):
        scored(photos / "more", tmp_path / "out", model)

    with (
        flow._locked(tmp_path / "out"),
        pytest.raises(ValueError, match=rf"out: in use by process {os.getpid()} since"),
    ):
        scored(photos, tmp_path / "out", model)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("gone", "no such folder"),
        ("readme.txt", "give a folder"),
        ("more/.hidden/none", "holds no photo"),
    ],
)
def test_what_is_no_place_with_photos_is_said(
    photos: Path, model: ModelFolder, tmp_path: Path, place: str, said: str
) -> None:
    (photos / "more" / ".hidden" / "none").mkdir()
    with pytest.raises(ValueError, match=said):
        scored(photos / place, tmp_path / "out", model)


def test_the_page_counts_what_stands_in_the_shards(
    photos: Path, model: ModelFolder, tmp_path: Path
) -> None:
    rows = scored(photos, tmp_path / "out", model)
    scores = read_scores(sorted((tmp_path / "out").glob("part-*")))
    assert scores.counts == {"photos": 8, "faces": 7, "rejects": 2}
    values = [row["value"] for row in rows if row["value"] is not None]
    assert scores.faces_of_bars == tuple(np.histogram(values, 10, (0, 100))[0])

    text = page("photos", tmp_path / "out", scores)
    assert "| 8 | 7 | 2 |" in text
    assert f"| {NO_FACE} | 1 |" in text
    assert "small version 7" in text


@pytest.fixture
def params(tmp_path: Path) -> Path:
    """A settings file whose registered model is called `small`."""
    return write_params(tmp_path / "params.yaml", package=SMALL, score=SETTINGS)


@pytest.mark.usefixtures("local_registry")
def test_the_champion_is_used_or_the_remedy_is_named(params: Path, model: ModelFolder) -> None:
    with (
        pytest.raises(ValueError, match=r"'small' has no champion.*--model"),
        flow.chosen_model(None, params),
    ):
        pass

    run = connect().create_run(experiment("visage"))
    promote("small", package(model.folder, run.info.run_id, SMALL), "a test")
    with flow.chosen_model(None, params) as chosen:
        assert chosen.version == "1"
        assert (chosen.folder / "config.json").read_bytes() == (
            model.folder / "config.json"
        ).read_bytes()


def test_the_committed_settings_are_read() -> None:
    assert load_section(REPOSITORY / "params.yaml", "score", ScoreSettings).flip
    with pytest.raises(ValueError, match="shard_photos is 0"):
        dataclasses.replace(SETTINGS, shard_photos=0)


@pytest.mark.slow
def test_the_command_leaves_an_artifact(
    photos: Path, model: ModelFolder, tmp_path: Path, params: Path
) -> None:
    """With Prefect's own server, which keeps artifacts in a database."""
    output = tmp_path / "out"
    home = tmp_path / "prefect"
    command = [
        sys.executable,
        "-m",
        "visage.cli",
        "score",
        str(photos),
        "--output",
        str(output),
        "--model",
        str(model.folder),
    ]
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }

    done = subprocess.run(
        [*command, "--params", str(params)],
        env={**os.environ, **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == f"photos 8  faces 7  rejects 2  -> {output}"

    with contextlib.closing(sqlite3.connect(home / "prefect.db")) as database:
        artifacts = dict(database.execute("SELECT key, data FROM artifact"))
    assert "| 8 | 7 | 2 |" in json.loads(artifacts["score"])
    assert float(artifacts["score-progress"]) == 100
