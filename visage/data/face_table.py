"""The face table: parquet shards of aligned faces become batches of crops and labels.

One row a face (`FACE_SCHEMA`). The encoded crops are in a memory-mapped file. Decoded crops are
kept up to a given number of megabytes. The other columns are in memory (0.7 kB a face). Legend:
N faces, B batch, H height, W width.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import mmap
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from visage.data.jpeg import decode_jpeg
from visage.data.schemas import FACE_SCHEMA, METADATA_KEY
from visage.detection import align
from visage.parallel import map_ordered

COLUMNS = (
    "photo_id",
    "sha256",
    "found",
    "label",
    "sigma",
    "half_width",
    "person",
    "sex",
    "ethnicity",
    "split",
)
LANDMARKS = "landmarks"
FACE_COLUMNS = pa.schema([FACE_SCHEMA.field(name) for name in (*COLUMNS, LANDMARKS)])

# Sha256 of the photo, person, encoded crop, label, sigma, half width of a label that is an interval
FaceRow = tuple[str, str | None, bytes, float, float, float]
Item = TypeVar("Item")
Made = TypeVar("Made")


class EncodedCrops:
    """Encoded crops by number, in an unnamed file of the temporary folder ($TMPDIR) that is gone
    with the process.

    Parquet gives no access to a single row, and a complete file would fill the memory. Here the
    operating system keeps what it has room for.
    """

    def __init__(self, columns: Iterable[pa.Array]) -> None:
        sizes = [np.zeros(1, np.int64)]
        with tempfile.TemporaryFile() as file:
            for crops in columns:
                file.write(b"".join(crops.to_pylist()))
                lengths = pc.binary_length(crops).to_numpy(zero_copy_only=False)
                sizes.append(lengths.astype(np.int64))
            file.flush()
            self._ends = np.cumsum(np.concatenate(sizes))

            self._bytes: Any = b""
            if self._ends[-1]:  # an empty file cannot be mapped
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getitem__(self, index: int) -> bytes:
        return bytes(self._bytes[self._ends[index] : self._ends[index + 1]])

    def in_memory(self) -> EncodedCrops:
        """The same crops as arrays, which other processes can be given."""
        other = copy.copy(self)
        other._bytes = np.frombuffer(self._bytes, np.uint8).copy()
        return other


class FaceTable:
    """The faces of some splits: columns as arrays of length N, crops on demand."""

    def __init__(
        self,
        crops: EncodedCrops,
        columns: dict[str, np.ndarray],
        preprocessing: dict[str, Any],
        cache_mb: int,
    ) -> None:
        self._crops = crops
        self._photo_landmarks_N52 = columns[LANDMARKS]  # ten numbers a face in the shards
        self.photo_id = columns["photo_id"]
        self.sha256 = columns["sha256"]
        self.found = columns["found"]
        self.label = columns["label"].astype(np.float64)
        self.sigma = columns["sigma"].astype(np.float64)
        self.half_width = columns["half_width"].astype(np.float64)
        self.person = columns["person"]
        self.sex = columns["sex"]
        self.ethnicity = columns["ethnicity"]
        self.split = columns["split"]
        self.alignment: dict[str, Any] = preprocessing["alignment"]
        self.detector: dict[str, Any] = preprocessing["detector"]

        px = int(self.alignment["crop_px"])
        num_kept = min(len(self), cache_mb * (1 << 20) // (3 * px * px))
        self._kept = np.empty((num_kept, 3, px, px), np.uint8)
        self._is_kept = np.zeros(num_kept, bool)

    @classmethod
    def open(cls, folder: Path, splits: Sequence[str], cache_mb: int = 0) -> FaceTable:
        """The faces of `splits` (empty: of all) in a folder of shards, in the shards' order."""
        paths, preprocessing = face_shards(folder)
        rest: list[pa.RecordBatch] = []

        def crops() -> Iterator[pa.Array]:
            for path in tqdm(paths, "faces", delay=2.0, leave=False):
                for rows in _rows(path, splits):
                    rest.append(rows.select(FACE_COLUMNS.names))
                    yield rows["jpeg"]

        encoded = EncodedCrops(crops())
        table = pa.Table.from_batches(rest, FACE_COLUMNS)
        columns = {name: np.array(table[name].to_pylist(), object) for name in COLUMNS}
        landmarks_N10 = np.array(table[LANDMARKS].to_pylist(), np.float32)
        columns[LANDMARKS] = landmarks_N10.reshape(-1, 5, 2)
        return cls(encoded, columns, preprocessing, cache_mb)

    def __len__(self) -> int:
        return len(self.photo_id)

    def decode(self, indices: np.ndarray) -> torch.Tensor:
        """Crops of the faces `indices`, uint8 (B,3,H,W)."""
        return torch.from_numpy(np.stack([self._crop(int(index)) for index in indices]))

    @cached_property
    def landmarks(self) -> np.ndarray:
        """The landmarks of all faces in pixels of their crops, float32 (N,5,2)."""
        return landmarks_in_crops(self._photo_landmarks_N52, self.alignment)

    def landmarks_sha256(self) -> str:
        """Digest of all landmarks, in the table's order."""
        return hashlib.sha256(self._photo_landmarks_N52.tobytes()).hexdigest()

    def encoded(self, index: int) -> bytes:
        """The crop of face `index` as it was stored (JPEG)."""
        return self._crops[index]

    def rows(self) -> Iterator[FaceRow]:
        """What distinguishes one face from another, face by face, in the table's order."""
        for index in range(len(self)):
            yield (
                str(self.sha256[index]),
                self.person[index],
                self.encoded(index),
                float(self.label[index]),
                float(self.sigma[index]),
                float(self.half_width[index]),
            )

    def _crop(self, index: int) -> np.ndarray:
        if index < len(self._kept) and self._is_kept[index]:
            return self._kept[index]  # type: ignore[no-any-return]

        crop = decode_jpeg(self.encoded(index)).transpose(2, 0, 1)
        if index < len(self._kept):
            self._kept[index] = crop
            self._is_kept[index] = True
        return crop

    @property
    def num_bytes(self) -> int:
        """Of all crops, decoded ones and encoded ones."""
        return self._kept.nbytes + len(self._crops._bytes)

    def shareable(self) -> FaceTable:
        """The same faces for many processes: as many crops as are kept are decoded now, and all are
        in arrays.

        Pickled with protocol 5, the arrays of crops are buffers that every process of a machine can
        map, read-only; of the other columns each has a copy.
        """
        for index in np.flatnonzero(~self._is_kept):
            self._crop(int(index))
        other = copy.copy(self)
        other._crops = self._crops.in_memory()
        return other

    def with_sigma(self, fixed_sigma: float) -> np.ndarray:
        """Each face's sigma in label units, `fixed_sigma` where the set gives none, shape (N,)."""
        return np.where(np.isnan(self.sigma), fixed_sigma, self.sigma)

    @property
    def half_width_or_0(self) -> np.ndarray:
        """Half the width of each face's label in label units, 0 where it is no interval, (N,)."""
        return np.nan_to_num(self.half_width, nan=0.0)


def face_shards(folder: Path) -> tuple[list[Path], dict[str, Any]]:
    """A folder's shards in order, and how their faces were cut; ValueError where there is none, or
    ways differ."""
    paths = sorted(folder.glob("part-*.parquet"))
    if not paths:
        raise ValueError(
            f"{folder}: no face shards (part-*.parquet) here; run the align stage first"
        )

    ways = {json.dumps(_preprocessing(path), sort_keys=True) for path in paths}
    if len(ways) > 1:
        raise ValueError(
            f"{folder}: shards of different alignment settings; remove the folder, run align again"
        )
    return paths, json.loads(ways.pop())


def landmarks_in_crops(photo_landmarks_N52: np.ndarray, alignment: Mapping[str, Any]) -> np.ndarray:
    """Landmarks in pixels of the photos -> of the crops that `alignment` cuts, float32 (N,5,2)."""
    template_52 = align.template(
        alignment["template"], alignment["crop_px"], alignment["face_scale"]
    )
    crop_N52 = np.empty(photo_landmarks_N52.shape, np.float32)
    for index, photo_52 in enumerate(photo_landmarks_N52):
        matrix_23 = align.similarity(photo_52, template_52)
        crop_N52[index] = align.landmarks_in_crop(photo_52, matrix_23)
    return crop_N52


def _rows(path: Path, splits: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """A shard's rows of some splits, a thousand at a time."""
    wanted = pa.array(splits, pa.string())
    file = pq.ParquetFile(path)
    for rows in face_rows(file, 1024, ["jpeg", *FACE_COLUMNS.names]):
        yield rows.filter(pc.is_in(rows["split"], wanted)) if splits else rows


def face_rows(
    file: pq.ParquetFile, num_rows: int, columns: Sequence[str], use_threads: bool = True
) -> Iterator[pa.RecordBatch]:
    """A shard's rows, `num_rows` at a time; shards from before labels could be intervals have an
    empty column `half_width`."""
    is_older = "half_width" in columns and "half_width" not in file.schema_arrow.names
    present = [name for name in columns if not (is_older and name == "half_width")]
    for rows in file.iter_batches(num_rows, columns=present, use_threads=use_threads):
        if is_older:
            rows = rows.append_column("half_width", pa.nulls(len(rows), pa.float64()))
        yield rows


def _preprocessing(path: Path) -> dict[str, Any]:
    """How a shard's faces were cut (`alignment`) and found (`detector`)."""
    metadata = (pq.read_schema(path).metadata or {}).get(METADATA_KEY)
    if metadata is None:
        raise ValueError(
            f"{path}: not a face shard (no '{METADATA_KEY.decode()}' metadata); run the align "
            f"stage again"
        )
    document: dict[str, Any] = json.loads(metadata)
    return {"alignment": document["alignment"], "detector": document["detector"]}


def evenly_spread(num_faces: int, wanted: int) -> np.ndarray:
    """At most `wanted` of the faces 0 to `num_faces` - 1, evenly spread over them."""
    places = np.linspace(0, num_faces - 1, min(wanted, num_faces))
    return np.unique(places.round().astype(np.int64))


def shuffled_batches(
    num_faces: int, batch_size: int, generator: torch.Generator
) -> list[np.ndarray]:
    """One epoch's index batches: every face once, in random order; a last batch of one face joins
    the one before.

    BatchNorm cannot train on a single face.
    """
    order = torch.randperm(num_faces, generator=generator).numpy()
    batches = [order[start : start + batch_size] for start in range(0, num_faces, batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def ahead(make: Callable[[Item], Made], items: Iterable[Item], num_workers: int) -> Iterator[Made]:
    """`make` of each item in order, the next ones made by `num_workers` threads while one is used.

    Pillow decodes outside of Python's lock, so threads are enough. The items come from a thread of
    their own; at most `2 * num_workers` are under way.
    """
    if num_workers == 0:
        yield from map(make, items)
        return

    source = iter(items)

    def read() -> tuple[Item, ...]:
        return tuple(itertools.islice(source, 1))

    def made(item: Future[tuple[Item, ...]]) -> tuple[Made, ...]:
        return tuple(make(one) for one in item.result())

    with ThreadPoolExecutor(1) as reader:
        reads = (reader.submit(read) for _ in itertools.repeat(None))
        pool = ThreadPoolExecutor(num_workers)
        with closing(map_ordered(made, reads, pool, 2 * num_workers)) as results:
            for result in results:
                if not result:  # the items have come to their end
                    return
                yield result[0]


def prefetched(
    table: FaceTable, batches: Sequence[np.ndarray], num_workers: int
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """(indices, crops) of each batch in order, decoded `ahead`."""
    return zip(batches, ahead(table.decode, batches, num_workers), strict=True)


def in_order(
    table: FaceTable, batch_size: int, num_workers: int, task: str
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """`prefetched` batches of every face once, in the table's order; `task` names the progress
    bar."""
    num_faces = len(table)
    starts = range(0, num_faces, batch_size)
    order = [np.arange(start, min(start + batch_size, num_faces)) for start in starts]

    with tqdm(total=num_faces, unit="face", desc=task) as bar:
        for indices, crops_BCHW in prefetched(table, order, num_workers):
            yield indices, crops_BCHW
            bar.update(len(indices))
