"""The align stage on a dozen drawn photos: what becomes of each, resuming, and bytes that depend on
the input alone."""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages import align as stage
from stages.align import AlignSettings, align, run_local
from stages.face_shards import AlignedPhotos, RowDict
from visage.data.face_table import FaceTable
from visage.data.jpeg import encode_jpeg
from visage.data.schemas import FACE_SCHEMA, MANIFEST_SCHEMA
from visage.detection import align as alignment
from visage.detection.image_io import read_photo
from visage.detection.mtcnn import Detector, DetectorSettings, Faces
from visage.synthetic import encode_face, sample_person, sample_photo

SETTINGS = AlignSettings(
    crop_px=64,
    template="five_point_112",
    face_scale=0.9,
    jpeg_quality=90,
    detector=DetectorSettings(
        min_face_px=20,
        thresholds=(0.6, 0.7, 0.7),
        factor=0.709,
        max_side_px=1024,
        landmark_passes=2,
    ),
    fallback="none",
    min_detection_rate=0.5,
    shard_rows=4,
    num_workers=0,
)


@dataclasses.dataclass(frozen=True)
class Bench:
    """A role's files in a folder of the test."""

    folder: Path

    def rows(self) -> list[RowDict]:
        rows: list[RowDict] = pq.read_table(self.folder / "manifest.parquet").to_pylist()
        return rows

    def write(self, rows: list[RowDict], quarantined: Iterable[str] = ()) -> None:
        pq.write_table(
            pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), self.folder / "manifest.parquet"
        )
        lines = "".join(f"{photo_id},duplicate,seen before\n" for photo_id in quarantined)
        (self.folder / "quarantine.csv").write_text("photo_id,check,reason\n" + lines)

    def align(self, settings: AlignSettings = SETTINGS, **options: Any) -> dict[str, float]:
        reports: list[dict[str, float]] = []
        align(
            settings,
            manifest=self.folder / "manifest.parquet",
            quarantine=self.folder / "quarantine.csv",
            gate=self.folder / "gate.json",
            raw=self.folder / "raw",
            faces=self.folder / "faces",
            rejects=self.folder / "rejects.csv",
            summary=self.folder / "align.json",
            report=lambda _, values: reports.append(dict(values)),
            **options,
        )
        [values] = reports
        assert values == json.loads((self.folder / "align.json").read_text())
        return values

    def shards(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.folder / "faces").iterdir())}

    def faces(self) -> list[RowDict]:
        return [
            row
            for path in sorted((self.folder / "faces").iterdir())
            for row in pq.read_table(path).to_pylist()
        ]

    def rejects(self) -> dict[str, str]:
        with (self.folder / "rejects.csv").open(newline="") as file:
            return {line["photo_id"]: line["reason"] for line in csv.DictReader(file)}


def manifest_row(photo_id: str, data: bytes, number: int) -> RowDict:
    known = {
        "photo_id": photo_id,
        "sha256": hashlib.sha256(data).hexdigest(),
        "num_bytes": len(data),
        "width": 96,
        "height": 96,
        "label": 20.5 + number,
        "sigma": None if number % 2 else 2.0,
        "person": f"p{number}",
        "split": "train",
    }
    return dict.fromkeys(MANIFEST_SCHEMA.names) | known


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    rng = np.random.default_rng(11)
    return [encode_face(sample_photo(sample_person(rng), rng, clean=True), 96) for _ in range(10)]


@pytest.fixture
def bench(tmp_path: Path, photos: list[bytes]) -> Bench:
    (tmp_path / "raw" / "set").mkdir(parents=True)
    (tmp_path / "gate.json").write_text("{}")
    rows = []
    for number, data in enumerate(photos):
        (tmp_path / "raw" / "set" / f"{number}.jpg").write_bytes(data)
        rows.append(manifest_row(f"set/{number}.jpg", data, number))
    result = Bench(tmp_path)
    result.write(rows)
    return result


def test_every_photo_is_a_face_or_a_reject_and_keeps_its_columns(bench: Bench) -> None:
    rows = bench.rows()
    rows[1] |= {"unreadable": "truncated"}
    rows[2] |= {"sha256": "0" * 64}
    (bench.folder / "raw" / rows[3]["photo_id"]).unlink()
    (bench.folder / "raw" / rows[4]["photo_id"]).write_bytes(b"<html>")
    rows[4] |= {"sha256": hashlib.sha256(b"<html>").hexdigest()}
    bench.write(rows, [rows[9]["photo_id"]])
    values = bench.align()
    assert values == {
        "num_photos": 9,
        "num_read": 5,
        "num_frame": 0,
        "num_rejects": 4,
        "num_faces": 5,
        "num_quarantined": 1,
        "detection_rate": 1.0,
    }
    faces, rejects = bench.faces(), bench.rejects()
    assert [row["photo_id"] for row in faces] == [
        rows[index]["photo_id"] for index in (0, 5, 6, 7, 8)
    ]
    for face, row in zip(faces, (rows[index] for index in (0, 5, 6, 7, 8)), strict=True):
        copied = ["photo_id", "sha256", "label", "sigma", "half_width"]
        copied += ["person", "sex", "ethnicity", "split"]
        assert [face[name] for name in copied] == [row[name] for name in copied]
    assert list(rejects) == [rows[index]["photo_id"] for index in (1, 2, 3, 4)]
    for reason, part in zip(
        rejects.values(), ("truncated", "not those", "No such file", "not a picture"), strict=True
    ):
        assert part in reason
        assert str(bench.folder) not in reason


def test_a_crop_is_what_the_photo_gives_by_itself(bench: Bench) -> None:
    """The path of a single photo, as prediction goes it: bit for bit the stored crop."""
    bench.align()
    detector, points = (
        Detector(SETTINGS.detector, backend="torch"),
        alignment.template("five_point_112", 64, 0.9),
    )
    for face in bench.faces():
        photo = read_photo(bench.folder / "raw" / face["photo_id"])
        [faces] = detector.detect([photo])
        index = alignment.choose_face(faces, 96, 96)
        matrix = alignment.similarity(faces.landmarks_N52[index], points)
        assert face["jpeg"] == encode_jpeg(alignment.crop(photo, matrix, 64), 90)
        np.testing.assert_allclose(face["landmarks"], faces.landmarks_N52[index].ravel(), atol=1e-3)
        np.testing.assert_allclose(face["box"], faces.boxes_N4[index], atol=1e-3)
        assert (face["num_faces"], face["found"]) == (len(faces), "mtcnn")


def test_the_face_table_opens_them(bench: Bench) -> None:
    bench.align()
    table = FaceTable.open(bench.folder / "faces", ("train",))
    assert len(table) == 10
    assert table.alignment == {
        "template": "five_point_112",
        "crop_px": 64,
        "face_scale": 0.9,
        "jpeg_quality": 90,
    }
    assert DetectorSettings(**table.detector | {"thresholds": (0.6, 0.7, 0.7)}) == SETTINGS.detector
    assert table.decode(np.arange(3)).shape == (3, 3, 64, 64)
    for path in (bench.folder / "faces").iterdir():
        assert pq.read_schema(path).equals(FACE_SCHEMA)


class FailingDetector:
    """Finds one face in the middle of a photo, nothing where the corner is dark, and dies of a
    bright corner."""

    def detect(self, photos: list[np.ndarray]) -> list[Faces]:
        if any(photo[0, 0].min() > 250 for photo in photos):
            raise RuntimeError("this photo kills")
        box = np.array([[30, 30, 60, 60]], np.float32)
        points = (alignment.TEMPLATES["five_point_112"][None] * 56 + 20).astype(np.float32)
        every = Faces(boxes_N4=box, landmarks_N52=points, probabilities_N=np.ones(1, np.float32))
        none = Faces(
            boxes_N4=box[:0], landmarks_N52=points[:0], probabilities_N=np.ones(0, np.float32)
        )
        return [none if photo[0, 0].max() < 5 else every for photo in photos]


def paint_corner(bench: Bench, number: int, value: int) -> None:
    """Photo `number` becomes one flat colour."""
    data = encode_jpeg(np.full((96, 96, 3), value, np.uint8), 95)
    rows = bench.rows()
    (bench.folder / "raw" / rows[number]["photo_id"]).write_bytes(data)
    rows[number] |= {"sha256": hashlib.sha256(data).hexdigest()}
    bench.write(rows)


@pytest.mark.parametrize("fallback", ["none", "frame"])
def test_one_photo_never_takes_the_others_with_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fallback: Any
) -> None:
    monkeypatch.setattr(stage, "_detector", lambda _: FailingDetector())
    paint_corner(bench, 1, 255)
    paint_corner(bench, 2, 0)
    values = bench.align(dataclasses.replace(SETTINGS, fallback=fallback))
    rejects = bench.rejects()
    assert rejects["set/1.jpg"] == "detector failed: RuntimeError: this photo kills"
    assert ("set/2.jpg" in rejects) == (fallback == "none")
    assert values["num_faces"] == (8 if fallback == "none" else 9)
    assert values["num_frame"] == (fallback == "frame")
    assert values["detection_rate"] == 0.8
    framed = [row for row in bench.faces() if row["found"] == "frame"]
    for row in framed:
        assert (row["photo_id"], row["box"], row["probability"], row["num_faces"]) == (
            "set/2.jpg",
            [0, 0, 96, 96],
            0,
            0,
        )
        np.testing.assert_allclose(row["landmarks"], alignment.frame_landmarks(96, 96).ravel())


def test_a_crop_that_fails_is_a_reject(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real_crop = alignment.crop

    def crop(photo: np.ndarray, *rest: Any) -> np.ndarray:
        if photo[0, 0].max() < 5:
            raise MemoryError
        return real_crop(photo, *rest)

    monkeypatch.setattr(alignment, "crop", crop)
    paint_corner(bench, 2, 0)
    bench.align(dataclasses.replace(SETTINGS, fallback="frame"))
    assert bench.rejects()["set/2.jpg"].startswith("crop failed: MemoryError")


def test_too_few_faces_are_an_error_that_counts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.align()
    monkeypatch.setattr(stage, "_detector", lambda _: FailingDetector())
    for number in range(4):
        paint_corner(bench, number, 0)
    with pytest.raises(ValueError, match=r"6 of 10 readable photos \(0.6000\).*0.7"):
        bench.align(dataclasses.replace(SETTINGS, min_detection_rate=0.7))
    assert len(bench.rejects()) == 4
    assert not (bench.folder / "align.json").exists()  # not even that of the good run before


@pytest.mark.parametrize("missing", ["manifest.parquet", "quarantine.csv", "gate.json"])
def test_without_its_inputs_it_says_which_and_what_to_do(bench: Bench, missing: str) -> None:
    (bench.folder / missing).unlink()
    with pytest.raises(ValueError, match=f"{missing}.*(run|see)"):
        bench.align()
    assert not (bench.folder / "faces").exists()


def test_a_folder_of_photos_that_is_gone_makes_no_rejects(bench: Bench) -> None:
    """As on a node where it is not mounted: else its photos would be rejects in finished shards."""
    (bench.folder / "raw").rename(bench.folder / "elsewhere")
    with pytest.raises(
        ValueError, match=r"raw: no such folder on .*run the download stage, or mount it there"
    ):
        bench.align()
    assert not list((bench.folder / "faces").glob("*.parquet"))


def test_only_what_changed_is_done_again(bench: Bench) -> None:
    bench.align()
    first = bench.shards()
    assert list(first) == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    done: list[str] = []

    def counting(
        work: Callable[[list[RowDict]], AlignedPhotos], chunks: Iterable[list[RowDict]]
    ) -> Iterator[AlignedPhotos]:
        for chunk in chunks:
            done.extend(row["photo_id"] for row in chunk)
            yield work(chunk)

    def redone(settings: AlignSettings = SETTINGS) -> set[int]:
        done.clear()
        bench.align(settings, runner=counting)
        return {int(photo_id[4]) for photo_id in done}

    assert redone() == set()
    (bench.folder / "faces" / "part-00001.parquet").write_bytes(first["part-00001.parquet"][:-50])
    (bench.folder / "faces" / ".part-00002.parquet.x.part").write_bytes(b"half")
    assert redone() == {4, 5, 6, 7}
    assert bench.shards() == first
    rows = bench.rows()
    bench.write([*rows[:2], rows[2] | {"label": 99.0}, *rows[3:]])
    assert redone() == {0, 1, 2, 3}
    bench.write(rows, [rows[9]["photo_id"]])
    assert redone() == {0, 1, 2, 3, 8}
    bench.write(rows[:5])
    assert redone() == {4}
    assert list(bench.shards()) == ["part-00000.parquet", "part-00001.parquet"]
    assert redone(dataclasses.replace(SETTINGS, jpeg_quality=80)) == {0, 1, 2, 3, 4}
    assert redone(dataclasses.replace(SETTINGS, min_detection_rate=0.1, jpeg_quality=80)) == set()


def test_a_stopped_run_goes_on_to_the_same_bytes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "CHUNK_ROWS", 2)
    bench.align()
    expected = bench.shards()
    for path in (bench.folder / "faces").iterdir():
        path.unlink()

    def stopping(
        work: Callable[[list[RowDict]], AlignedPhotos], chunks: Iterable[list[RowDict]]
    ) -> Iterator[AlignedPhotos]:
        for number, chunk in enumerate(chunks):
            if number == 3:
                raise KeyboardInterrupt
            yield work(chunk)

    with pytest.raises(KeyboardInterrupt):
        bench.align(runner=stopping)
    assert bench.shards() == {"part-00000.parquet": expected["part-00000.parquet"]}
    bench.align()
    assert bench.shards() == expected


def test_processes_give_the_same_bytes_and_take_no_more_than_they_can_hold(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "CHUNK_ROWS", 1)
    bench.align()
    alone = bench.shards()
    for path in (bench.folder / "faces").iterdir():
        path.unlink()
    taken, most_ahead = 0, 0

    def watched(
        work: Callable[[list[RowDict]], AlignedPhotos], chunks: Iterable[list[RowDict]]
    ) -> Iterator[AlignedPhotos]:
        def counted() -> Iterator[list[RowDict]]:
            nonlocal taken
            for chunk in chunks:
                taken += 1
                yield chunk

        nonlocal most_ahead
        for given, part in enumerate(functools.partial(run_local, 1)(work, counted())):
            most_ahead = max(most_ahead, taken - given)
            yield part

    bench.align(runner=watched)
    assert bench.shards() == alone
    assert (taken, most_ahead) == (10, 5)  # four under way while one is written


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("crop_px", 0),
        ("face_scale", 0.0),
        ("jpeg_quality", 101),
        ("min_detection_rate", 1.5),
        ("shard_rows", 0),
        ("num_workers", -1),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        dataclasses.replace(SETTINGS, **{name: value})
