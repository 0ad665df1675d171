"""The face table: rows in the shards' order, splits apart, and the same crops whatever is cached or
prefetched."""

from __future__ import annotations

import io
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.small_faces import ALIGNMENT, DETECTOR, face, marked, some_faces, write_faces
from visage.data.face_table import FaceTable, evenly_spread, in_order, prefetched, shuffled_batches
from visage.data.jpeg import decode_jpeg
from visage.detection import align
from visage.training.provenance import table_digest

ROWS = some_faces()


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faces(tmp_path_factory.mktemp("faces"), ROWS, num_shards=3)


def expected_crop(row: dict[str, object]) -> np.ndarray:
    assert isinstance(row["jpeg"], bytes)
    return np.asarray(Image.open(io.BytesIO(row["jpeg"])).convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize("splits", [["train"], ["val"], ["test"], ["test", "val"], []])
def test_rows_of_the_splits_come_in_the_shards_order(faces: Path, splits: list[str]) -> None:
    wanted = [row for row in ROWS if row["split"] in splits or not splits]
    table = FaceTable.open(faces, splits)
    assert len(table) == len(wanted) > 0
    for column in ("photo_id", "sha256", "found", "person", "sex", "ethnicity", "split"):
        assert list(getattr(table, column)) == [row[column] for row in wanted]
    np.testing.assert_array_equal(table.label, [row["label"] for row in wanted])
    assert np.isnan(table.sigma).all()
    assert (table.alignment, table.detector) == (ALIGNMENT, DETECTOR)
    crops_BCHW = table.decode(np.arange(len(table)))
    assert crops_BCHW.dtype == torch.uint8
    np.testing.assert_array_equal(crops_BCHW, [expected_crop(row) for row in wanted])
    assert [table.encoded(index) for index in range(len(table))] == [row["jpeg"] for row in wanted]


def test_unknown_values_are_nan_and_none_and_sigma_has_a_fixed_stand_in(tmp_path: Path) -> None:
    rows = some_faces(3, 0, 0)
    rows[0] |= {"label": None, "sigma": 4.5, "person": None, "sex": "female", "ethnicity": None}
    table = FaceTable.open(write_faces(tmp_path, rows), [])
    assert np.isnan(table.label[0])
    assert (table.person[0], table.sex[0], table.sex[1], table.ethnicity[0]) == (
        None,
        "female",
        None,
        None,
    )
    np.testing.assert_array_equal(table.with_sigma(2.0), [4.5, 2.0, 2.0])


def test_landmarks_lie_in_the_crop_where_the_alignment_moved_them(tmp_path: Path) -> None:
    """Each photo's through its own similarity, which lays the five nearest to the template."""
    rows = marked(ROWS)
    table = FaceTable.open(write_faces(tmp_path, rows), ["train"])
    template_52 = align.template("five_point_112", 32, 0.75)
    own = [np.array(row["landmarks"]).reshape(5, 2) for row in rows if row["split"] == "train"]
    assert (table.landmarks.shape, table.landmarks.dtype) == ((20, 5, 2), np.float32)
    for found_52, photo_52 in zip(table.landmarks, own, strict=True):
        design = np.zeros((10, 4))  # x' = a x - b y + c, y' = b x + a y + d
        design[0::2] = np.stack([photo_52[:, 0], -photo_52[:, 1], np.ones(5), np.zeros(5)], axis=1)
        design[1::2] = np.stack([photo_52[:, 1], photo_52[:, 0], np.zeros(5), np.ones(5)], axis=1)
        fitted = np.linalg.lstsq(design, template_52.ravel(), rcond=None)[0]
        np.testing.assert_allclose(found_52.ravel(), design @ fitted, atol=0.05)
        assert np.abs(found_52 - template_52).max() < 3
    assert np.abs(table.landmarks - template_52).max() > 0.2  # the faces are not the template


def test_landmarks_of_the_template_itself_stay_the_template(tmp_path: Path) -> None:
    row = some_faces(1, 0, 0)[0]
    template_52 = align.template("five_point_112", 32, 0.75)
    row["landmarks"] = (8 * template_52.round(3) + 16).ravel().tolist()
    table = FaceTable.open(write_faces(tmp_path, [row]), [])
    np.testing.assert_allclose(table.landmarks[0], template_52, atol=0.02)
    assert table.shareable().landmarks.tolist() == table.landmarks.tolist()


def test_landmarks_do_not_change_the_digest_of_a_table_and_have_one_of_their_own(
    tmp_path: Path,
) -> None:
    """Networks without landmarks go on from their checkpoints; others do not, where one moved."""
    rows = marked(ROWS)
    moved = [row | {"landmarks": [*row["landmarks"][:9], row["landmarks"][9] + 1]} for row in rows]
    tables = [
        FaceTable.open(write_faces(tmp_path / name, some), ["train"])
        for name, some in (("one", rows), ("same", rows), ("moved", moved))
    ]
    assert len({table_digest(table)["sha256"] for table in tables}) == 1
    one, same, other = (table.landmarks_sha256() for table in tables)
    assert one == same != other


def test_split_without_faces_is_empty_not_an_error(tmp_path: Path) -> None:
    table = FaceTable.open(write_faces(tmp_path, some_faces(3, 0, 0)), ["val"], cache_mb=1)
    assert len(table) == 0
    assert table.label.shape == table.with_sigma(1.0).shape == (0,)
    assert table.landmarks.shape == (0, 5, 2)


@pytest.mark.parametrize(("cache_mb", "num_kept"), [(0, 0), (1, 5), (2, 10), (100, 12)])
def test_cache_is_bounded_and_gives_the_same_crops(
    tmp_path: Path, cache_mb: int, num_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crop of 256 px is 192 kB, so a MB holds five."""
    rows = [face(index, "train", np.random.default_rng(index), crop_px=256) for index in range(12)]
    table = FaceTable.open(
        write_faces(tmp_path, rows, alignment=ALIGNMENT | {"crop_px": 256}), [], cache_mb
    )
    decoded: list[bytes] = []
    monkeypatch.setattr(
        "visage.data.face_table.decode_jpeg", lambda data: decoded.append(data) or decode_jpeg(data)
    )
    order = np.random.default_rng(0).permutation(12)
    for num_decoded in (12, 12 + 12 - num_kept):  # after the first pass and after the second
        for indices in np.array_split(order, 4):
            np.testing.assert_array_equal(
                table.decode(indices), [expected_crop(rows[index]) for index in indices]
            )
        assert len(decoded) == num_decoded


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_prefetched_batches_come_in_order(faces: Path, num_workers: int) -> None:
    table = FaceTable.open(faces, ["train"], cache_mb=1)
    batches = shuffled_batches(len(table), 3, torch.Generator().manual_seed(1))
    found = list(prefetched(table, batches, num_workers))
    assert len(found) == len(batches) > 2 * num_workers
    for (indices, crops_BCHW), wanted in zip(found, batches, strict=True):
        np.testing.assert_array_equal(indices, wanted)
        np.testing.assert_array_equal(crops_BCHW, table.decode(wanted))


def test_prefetching_runs_ahead_by_a_bounded_number_of_batches(
    faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = FaceTable.open(faces, ["train"])
    begun: list[int] = []
    plain = table.decode
    monkeypatch.setattr(
        table, "decode", lambda indices: begun.append(len(indices)) or plain(indices)
    )
    for taken, _ in enumerate(
        prefetched(table, [np.array([place]) for place in range(12)], 2), start=1
    ):
        assert len(begun) <= taken + 4


def test_unreadable_crop_ends_the_run_and_not_in_a_hang(tmp_path: Path) -> None:
    rows = some_faces(5, 0, 0)
    rows[2] |= {"jpeg": b"no picture"}
    table = FaceTable.open(write_faces(tmp_path, rows), [])
    with pytest.raises(OSError, match="cannot identify image"):
        list(prefetched(table, [np.arange(5)], 1))


def test_all_faces_come_in_order_and_the_last_batch_is_what_is_left(faces: Path) -> None:
    table = FaceTable.open(faces, [])
    found = list(in_order(table, 4, 1, "faces"))
    assert np.concatenate([indices for indices, _ in found]).tolist() == list(range(len(table)))
    assert [len(indices) for indices, _ in found] == [4] * (len(table) // 4) + [len(table) % 4]
    for indices, crops_BCHW in found:
        np.testing.assert_array_equal(crops_BCHW, table.decode(indices))


@given(st.integers(1, 300), st.integers(1, 300))
def test_spread_faces_reach_from_the_first_to_the_last_at_like_distances(
    num_faces: int, wanted: int
) -> None:
    places = evenly_spread(num_faces, wanted)
    assert len(places) == min(num_faces, wanted)
    assert places[0] == 0
    if len(places) > 1:
        assert places[-1] == num_faces - 1
        assert np.ptp(np.diff(places)) <= 1


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 9))
def test_an_epoch_takes_every_face_once_and_leaves_none_alone(
    num_faces: int, batch_size: int, seed: int
) -> None:
    batches = shuffled_batches(num_faces, batch_size, torch.Generator().manual_seed(seed))
    assert sorted(np.concatenate(batches).tolist()) == list(range(num_faces))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    if num_faces > 1 and batch_size > 1:
        assert 2 <= len(batches[-1]) <= batch_size + 1


def test_order_comes_from_the_generator() -> None:
    first, same, other = (
        np.concatenate(shuffled_batches(100, 7, torch.Generator().manual_seed(seed))).tolist()
        for seed in (1, 1, 2)
    )
    assert first == same != other


def test_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no face shards.*align"):
        FaceTable.open(tmp_path, [])


def test_foreign_parquet_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "part-00000.parquet")
    with pytest.raises(ValueError, match=r"part-00000\.parquet: not a face shard"):
        FaceTable.open(tmp_path, [])


def test_shards_of_different_alignments_are_refused(faces: Path, tmp_path: Path) -> None:
    write_faces(tmp_path, ROWS, alignment=ALIGNMENT | {"face_scale": 1.0})
    shutil.copy(faces / "part-00002.parquet", tmp_path)
    with pytest.raises(ValueError, match="different alignment settings"):
        FaceTable.open(tmp_path, [])


# -------------------------------------------------------------------------------
# For many processes
# -------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_mb", [0, 1])
def test_shareable_faces_are_the_same_faces(faces: Path, cache_mb: int) -> None:
    table = FaceTable.open(faces, ["train"], cache_mb)
    other = pickle.loads(pickle.dumps(table.shareable(), protocol=5))
    everyone = np.arange(len(table))
    assert torch.equal(other.decode(everyone), table.decode(everyone))
    assert table_digest(other) == table_digest(table)
    assert list(other.photo_id) == list(table.photo_id)


def test_shareable_crops_are_pickled_as_buffers_that_can_be_mapped(faces: Path) -> None:
    """What a copy would cost stays outside of the pickle; read from there, the crops cannot be
    changed."""
    table = FaceTable.open(faces, ["train"], 1).shareable()
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(table, protocol=5, buffer_callback=buffers.append)
    assert sum(buffer.raw().nbytes for buffer in buffers) >= table.num_bytes > len(pickled)
    mapped = pickle.loads(pickled, buffers=[buffer.raw().toreadonly() for buffer in buffers])
    np.testing.assert_array_equal(mapped.decode(np.arange(3)), table.decode(np.arange(3)))
    with pytest.raises(ValueError, match="read-only"):
        mapped._kept[0] = 0
