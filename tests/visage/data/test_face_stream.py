"""The stream against the face table: every face once among all processes, well mixed, in memory
that does not grow."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.small_faces import ALIGNMENT, marked, some_faces, write_faces
from visage.data.face_stream import FaceSplit, FaceStream, drawn_batches, same_person_pairs
from visage.data.face_table import FaceTable
from visage.data.jpeg import decode_jpeg
from visage.data.schemas import FACE_SCHEMA, METADATA_KEY
from visage.networks import FaceBatch
from visage.training.provenance import table_digest

ROWS = some_faces(40, 9, 3)
CLASSES = {"person 0": 0, "person 2": 1, "person 3": 2}  # one of the four is cut
ALONE = {"num_workers": 1, "rank": 0, "num_ranks": 1}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faces(tmp_path_factory.mktemp("faces"), ROWS, num_shards=5)


def wanted(split: str = "train") -> list[tuple[bytes, int]]:
    """Crop and class of the rows that the stream should give, in the shards' order."""
    rows = [row for row in ROWS if row["split"] == split and row["person"] in CLASSES]
    return [
        (decode_jpeg(row["jpeg"]).transpose(2, 0, 1).tobytes(), CLASSES[row["person"]])
        for row in rows
    ]


def stream_of(faces: Path, split: str = "train") -> FaceStream:
    return FaceSplit.open(faces, split).of(CLASSES, with_landmarks=False)


def contents_of(batches: Iterator[tuple[FaceBatch, torch.Tensor]]) -> list[list[tuple[bytes, int]]]:
    """Of each batch, its crops' bytes and their classes."""
    found = []
    for crops, classes in batches:
        faces = zip(crops.view_BCHW, classes, strict=True)
        found.append([(crop.numpy().tobytes(), int(number)) for crop, number in faces])
    return found


def epoch(
    stream: FaceStream, seed: int, window: int, rank: int = 0, num_ranks: int = 1, workers: int = 1
) -> Any:
    generator = torch.Generator().manual_seed(seed)
    place = {"num_workers": workers, "rank": rank, "num_ranks": num_ranks}
    return contents_of(stream.shuffled(8, window, generator, **place))


# -------------------------------------------------------------------------------
# Who is there
# -------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_people_and_digest_are_those_of_the_table(faces: Path, split: str) -> None:
    part, table = FaceSplit.open(faces, split), FaceTable.open(faces, [split])
    assert part.people() == Counter(table.person)
    assert table_digest(part) == table_digest(table)
    assert part.alignment == table.alignment == ALIGNMENT
    assert list(part.rows()) == [
        (
            sha256,
            person,
            jpeg,
            label,
            pytest.approx(sigma, nan_ok=True),
            pytest.approx(half_width, nan_ok=True),
        )
        for sha256, person, jpeg, label, sigma, half_width in table.rows()
    ]


def test_nobody_is_no_person(tmp_path: Path) -> None:
    rows = some_faces(6, 0, 0)
    rows[1]["person"] = rows[4]["person"] = None
    part = FaceSplit.open(write_faces(tmp_path, rows), "train")
    assert None not in part.people()
    assert part.people().total() == 4
    assert len(part.of(dict.fromkeys(part.people(), 0), with_landmarks=False)) == 4


@pytest.mark.parametrize("split", ["train", "val"])
def test_in_order_gives_the_wanted_faces_in_the_shards_order(faces: Path, split: str) -> None:
    stream = stream_of(faces, split)
    batches = contents_of(stream.in_order(4, **ALONE))
    assert [face for batch in batches for face in batch] == wanted(split)
    assert len(stream) == len(wanted(split))
    assert {len(batch) for batch in batches[:-1]} <= {4}
    parts = [
        contents_of(stream.in_order(4, num_workers=0, rank=rank, num_ranks=3)) for rank in range(3)
    ]
    assert [face for part in parts for batch in part for face in batch] == wanted(split)


def test_a_split_without_known_faces_gives_nothing(faces: Path) -> None:
    nobody = FaceSplit.open(faces, "train").of({"a stranger": 0}, with_landmarks=False)
    assert (len(nobody), list(nobody.in_order(4, **ALONE))) == (0, [])


# -------------------------------------------------------------------------------
# An epoch
# -------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 7, 1000])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_every_face_comes_once_in_one_of_the_processes(
    faces: Path, window: int, num_ranks: int
) -> None:
    stream = stream_of(faces)
    parts = [epoch(stream, 3, window, rank, num_ranks) for rank in range(num_ranks)]
    assert sorted(face for part in parts for batch in part for face in batch) == sorted(wanted())
    assert {len(part) for part in parts} == {stream.num_batches(8, num_ranks)}
    for batches in zip(*parts, strict=True):
        sizes = [len(batch) for batch in batches]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) <= 8
        assert min(sizes) >= 2


def test_an_epoch_hangs_on_seed_and_process_alone(faces: Path) -> None:
    stream = pickle.loads(pickle.dumps(stream_of(faces)))
    whole = epoch(stream_of(faces), 1, 12)
    assert epoch(stream, 1, 12, workers=0) == epoch(stream, 1, 12, workers=3) == whole
    assert epoch(stream, 2, 12) != whole
    assert [sorted(batch) for batch in epoch(stream, 1, 1000)] != [sorted(batch) for batch in whole]


def test_processes_draw_augmentations_of_their_own_from_the_same_generator(faces: Path) -> None:
    stream, drawn = stream_of(faces), []
    for rank in range(2):
        generator = torch.Generator().manual_seed(5)
        next(stream.shuffled(8, 99, generator, num_workers=1, rank=rank, num_ranks=2))
        drawn.append(torch.rand(3, generator=generator).tolist())
    assert drawn[0] != drawn[1]


@given(st.integers(2, 200), st.integers(2, 64), st.integers(1, 8))
def test_batches_are_even_and_never_of_a_single_face(
    num_faces: int, batch_size: int, num_ranks: int
) -> None:
    stream = FaceStream(
        shards=(Path("x"),),
        counts=(num_faces,),
        split="train",
        classes={},
        alignment=ALIGNMENT,
        with_landmarks=False,
    )
    if batch_size < 2 * num_ranks or num_faces < 2 * num_ranks:
        with pytest.raises(
            ValueError,
            match=rf"{num_ranks} processes want batches of "
            rf"{2 * num_ranks} faces",
        ):
            stream.num_batches(batch_size, num_ranks)
        return
    number = stream.num_batches(batch_size, num_ranks)
    shares_SR = stream._shares(batch_size, num_ranks)
    assert shares_SR.shape == (number, num_ranks)
    assert (shares_SR.sum(), shares_SR.min() >= 2) == (num_faces, True)
    assert (np.ptp(shares_SR, axis=1) <= 1).all()
    assert np.ptp(shares_SR.sum(axis=1)) <= 1
    if batch_size >= 4 * num_ranks:
        assert shares_SR.sum(axis=1).max() <= batch_size


def test_a_shard_written_again_after_the_count_is_noticed(tmp_path: Path) -> None:
    stream = FaceSplit.open(write_faces(tmp_path, ROWS), "train").of(CLASSES, with_landmarks=False)
    write_faces(tmp_path, [row for row in ROWS if row["person"] != "person 2"])
    with pytest.raises(
        ValueError,
        match=r"part-0000\d\.parquet: \d+ faces, \d+ when they were "
        r"counted",
    ):
        list(stream.in_order(8, **ALONE))


def test_landmarks_come_with_their_faces_where_they_are_wanted(tmp_path: Path) -> None:
    """Those of the table, face by face, in order and shuffled."""
    folder = write_faces(tmp_path, marked(ROWS))
    table = FaceTable.open(folder, ["train"])
    split = FaceSplit.open(folder, "train")
    stream = split.of(CLASSES, with_landmarks=True)
    assert split.landmarks_sha256() == table.landmarks_sha256()
    wanted = {
        table.decode(np.array([index])).numpy().tobytes(): table.landmarks[index]
        for index in range(len(table))
    }
    generator = torch.Generator().manual_seed(0)
    for batches in (stream.in_order(4, **ALONE), stream.shuffled(8, 12, generator, **ALONE)):
        num_faces = 0
        for faces, _ in batches:
            assert faces.landmarks_B52 is not None
            for crop, landmarks_52 in zip(faces.view_BCHW, faces.landmarks_B52, strict=True):
                np.testing.assert_array_equal(landmarks_52, wanted[crop.numpy().tobytes()])
                num_faces += 1
        assert num_faces == len(stream)


# -------------------------------------------------------------------------------
# Shuffling
# -------------------------------------------------------------------------------


def pairs(window: int, *, num_people: int = 100, photos: int = 20, batch: int = 20) -> float:
    """Mean share of same-person pairs in batches drawn from people who come one after the other."""
    faces = iter([person for person in range(num_people) for _ in range(photos)])
    sizes = [batch] * (num_people * photos // batch)
    drawn = list(drawn_batches(faces, sizes, window, np.random.default_rng(0)))
    assert Counter(person for people in drawn for person in people) == dict.fromkeys(
        range(num_people), photos
    )
    return float(np.mean([same_person_pairs(people) for people in drawn]))


def test_a_window_of_everything_is_an_ideal_shuffle_and_a_smaller_one_comes_near() -> None:
    """The ideal share is 19 other photos of 1999; a window of W faces has about photos / 2W + what
    is ideal."""
    assert same_person_pairs([1, 1, 2, 3]) == pytest.approx(1 / 6)
    assert pairs(1) > 0.9
    assert pairs(10_000) == pytest.approx(19 / 1999, rel=0.25)
    assert pairs(200) == pytest.approx(20 / 400 + 19 / 1999, rel=0.35)
    assert pairs(10_000) < pairs(400) < pairs(100)


# -------------------------------------------------------------------------------
# Memory
# -------------------------------------------------------------------------------

MEASURE = """
import resource, sys
import torch
from pathlib import Path
from visage.data import face_stream
from visage.training.provenance import table_digest
torch.set_num_threads(1)
face_stream.FaceStream._decoded = lambda self, batch: len(batch)
split = face_stream.FaceSplit.open(Path(sys.argv[1]), "train")
classes = {name: index for index, name in enumerate(sorted(split.people()))}
stream = split.of(classes, with_landmarks=False)
table_digest(split)
generator = torch.Generator().manual_seed(0)
sizes = list(stream.shuffled(64, 500, generator, num_workers=1, rank=0, num_ranks=1))
assert sum(sizes) == len(stream)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak_mb(folder: Path) -> float:
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)], capture_output=True, text=True, check=True
    )
    return float(run.stdout)


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    """50 and 300 MB of crops, through a window of 10 MB; every shard is 25 MB, and is never
    completely in memory either."""
    rng, metadata = (
        np.random.default_rng(0),
        {METADATA_KEY: json.dumps({"alignment": ALIGNMENT, "detector": {}})},
    )
    names, count = FACE_SCHEMA.names, 1250
    columns: dict[str, Any] = dict.fromkeys(names, pa.nulls(count))
    columns |= {
        "jpeg": pa.array([rng.bytes(20_000) for _ in range(count)]),
        "split": pa.array(["train"] * count),
    }
    columns |= {"person": pa.array([f"person {index // 50}" for index in range(count)])}
    columns |= {"sha256": pa.array([f"{index:064x}" for index in range(count)])}
    arrays = [columns[name].cast(FACE_SCHEMA.field(name).type) for name in names]
    table = pa.table(arrays, schema=FACE_SCHEMA.with_metadata(metadata))
    first = tmp_path / "shard.parquet"
    pq.write_table(table, first, compression="none", use_dictionary=False)
    for name, num_shards in (("small", 2), ("large", 12)):
        (tmp_path / name).mkdir()
        for index in range(num_shards):
            (tmp_path / name / f"part-{index:05d}.parquet").symlink_to(first)
    small, large = peak_mb(tmp_path / "small"), peak_mb(tmp_path / "large")
    assert large < small + 15
