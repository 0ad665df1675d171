"""Face shards read as a stream, shuffled on the way: memory does not grow with the number of faces.

A first pass over two small columns counts who is there. Afterwards every epoch puts the shards in
another order, cuts the faces that are wanted, in that order, into as many equal parts as processes
read them, and each process reads its part through a buffer: every batch is drawn at random from the
buffer's faces, and new ones take their places. A buffer that holds the complete set shuffles
ideally; `same_person_pairs` says how near a smaller one comes. Legend: B faces of a batch, H
height, W width, S batches of an epoch, R processes.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from visage.data.face_table import (
    LANDMARKS,
    FaceRow,
    ahead,
    face_rows,
    face_shards,
    landmarks_in_crops,
)
from visage.data.jpeg import decode_jpeg
from visage.networks.protocol import FaceBatch

# A crop as it was stored, its person's class, and its landmarks in the photo where they are wanted
Encoded = tuple[bytes, int, list[float] | None]

# A shard's read buffer: without it, the complete shard is in memory
READ_BYTES = 1 << 20
# Rows read at a time where crops are among the columns
READ_ROWS = 256
# Rows read at a time of small columns
COUNT_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class FaceSplit:
    """One split of a folder of shards, nothing of it in memory; `alignment` is how its faces were
    cut."""

    shards: tuple[Path, ...]
    split: str
    alignment: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path, split: str) -> FaceSplit:
        """Errors: no shards, shards of different alignment settings."""
        shards, preprocessing = face_shards(folder)
        return cls(shards=tuple(shards), split=split, alignment=preprocessing["alignment"])

    def rows(self) -> Iterator[FaceRow]:
        """What distinguishes one face from another, face by face, as `FaceTable.rows` gives it."""
        columns = ["sha256", "person", "jpeg", "label", "sigma", "half_width"]

        for shard in self.shards:
            for rows in _batches(shard, self.split, columns, READ_ROWS):
                values = [rows[name].to_pylist() for name in columns]
                for sha256, person, jpeg, *numbers in zip(*values, strict=True):
                    label, sigma, half_width = (
                        np.nan if number is None else number for number in numbers
                    )
                    yield str(sha256), person, jpeg, label, sigma, half_width

    def landmarks_sha256(self) -> str:
        """Digest of all landmarks, as `FaceTable.landmarks_sha256` gives it."""
        digest = hashlib.sha256()
        for shard in self.shards:
            for rows in _batches(shard, self.split, [LANDMARKS], COUNT_ROWS):
                digest.update(np.array(rows[LANDMARKS].to_pylist(), np.float32).tobytes())
        return digest.hexdigest()

    def people(self) -> Counter[str]:
        """How many faces each person has; faces without a person are not counted."""
        found: Counter[str] = Counter()
        for shard in self.shards:
            for rows in _batches(shard, self.split, ["person"], COUNT_ROWS):
                for count in pc.value_counts(rows["person"].drop_null()).to_pylist():
                    found[count["values"]] += count["counts"]
        return found

    def of(self, classes: Mapping[str, int], with_landmarks: bool) -> FaceStream:
        """The faces of some people, each with its person's class, and with its landmarks if the
        network needs them; one more pass counts the faces."""
        names = pa.array(list(classes), pa.string())
        counts = []
        for shard in self.shards:
            count = 0
            for rows in _batches(shard, self.split, ["person"], COUNT_ROWS):
                is_wanted = pc.is_in(rows["person"], names)
                count += pc.sum(is_wanted).as_py() or 0  # None for no rows
            counts.append(count)

        return FaceStream(
            shards=self.shards,
            counts=tuple(counts),
            split=self.split,
            classes=dict(classes),
            alignment=self.alignment,
            with_landmarks=with_landmarks,
        )


@dataclass(frozen=True, kw_only=True)
class FaceStream:
    """The faces of known people in one split: `counts` of them in each shard. Small enough to be
    sent to a worker."""

    shards: tuple[Path, ...]
    counts: tuple[int, ...]
    split: str
    classes: Mapping[str, int]
    alignment: Mapping[str, Any]
    with_landmarks: bool

    def __len__(self) -> int:
        return sum(self.counts)

    def num_batches(self, batch_size: int, num_ranks: int) -> int:
        """Batches of an epoch, of at most `batch_size` faces over all processes and of about the
        same size.

        Each process brings 2 faces or more, for BatchNorm cannot train on one. Errors: too few
        faces, or too small a batch, for so many processes.
        """
        if batch_size < 2 * num_ranks or len(self) < 2 * num_ranks:
            raise ValueError(
                f"{num_ranks} processes want batches of {2 * num_ranks} faces or more, 2 each: "
                f"batch_size is {batch_size}, and there are {len(self)} faces; take fewer "
                f"processes, or larger batches"
            )
        return min(-(-len(self) // batch_size), len(self) // (2 * num_ranks))

    def shuffled(
        self,
        batch_size: int,
        window_faces: int,
        generator: torch.Generator,
        *,
        num_workers: int,
        rank: int,
        num_ranks: int,
    ) -> Iterator[tuple[FaceBatch, Tensor]]:
        """One epoch of this process: uint8 crops, with their landmarks where the network needs
        them, and classes (B,); decoded by `num_workers` threads.

        Each face comes once, in one of the processes. `generator` stands alike in all processes; it
        draws the order of the shards and is then set apart, so that the caller may go on drawing
        from it. At most `window_faces` encoded crops are in memory, and two batches a thread.
        """
        order = torch.randperm(len(self.shards), generator=generator).tolist()
        drawn = int(torch.randint(1 << 62, (1,), generator=generator))
        generator.manual_seed(drawn + 2 * rank)
        rng = np.random.default_rng(drawn + 2 * rank + 1)

        shares_SR = self._shares(batch_size, num_ranks)
        sizes = shares_SR[:, rank].tolist()
        first = int(shares_SR[:, :rank].sum())
        last = int(shares_SR[:, : rank + 1].sum())
        faces = self._faces(order, first, last)

        batches = drawn_batches(faces, sizes, window_faces, rng)
        yield from ahead(self._decoded, batches, num_workers)

    def in_order(
        self, batch_size: int, *, num_workers: int, rank: int, num_ranks: int
    ) -> Iterator[tuple[FaceBatch, Tensor]]:
        """This process's part of the faces in the shards' order; as `shuffled` gives them."""
        first = len(self) * rank // num_ranks
        last = len(self) * (rank + 1) // num_ranks
        faces = self._faces(range(len(self.shards)), first, last)
        batches = iter(lambda: list(itertools.islice(faces, batch_size)), [])
        yield from ahead(self._decoded, batches, num_workers)

    def _shares(self, batch_size: int, num_ranks: int) -> np.ndarray:
        """Faces of each batch S in each process R, as even as integers allow."""
        num_batches = self.num_batches(batch_size, num_ranks)
        sizes_S1 = np.diff(len(self) * np.arange(num_batches + 1) // num_batches)[:, None]
        return np.diff(sizes_S1 * np.arange(num_ranks + 1) // num_ranks, axis=1)

    def _faces(self, order: Iterable[int], first: int, last: int) -> Iterator[Encoded]:
        """Faces `first` to `last` - 1 of the shards put one after the other in this order."""
        start = 0
        for index in order:
            end = start + self.counts[index]
            if start < last and first < end:
                yield from itertools.islice(self._shard(index), max(0, first - start), last - start)
            start = end

    def _shard(self, index: int) -> Iterator[Encoded]:
        """Errors: a shard that has changed since its faces were counted."""
        found = 0
        columns = ["person", "jpeg"]
        if self.with_landmarks:
            columns.append(LANDMARKS)

        for rows in _batches(self.shards[index], self.split, columns, READ_ROWS):
            for place, person in enumerate(rows["person"].to_pylist()):
                if person in self.classes:
                    found += 1
                    points = rows[LANDMARKS][place].as_py() if self.with_landmarks else None
                    yield rows["jpeg"][place].as_py(), self.classes[person], points

        if found != self.counts[index]:
            raise ValueError(
                f"{self.shards[index]}: {found} faces, {self.counts[index]} when they were "
                f"counted; it was written again meanwhile: run the same command again"
            )

    def _decoded(self, batch: Sequence[Encoded]) -> tuple[FaceBatch, Tensor]:
        """Encoded crops and classes -> uint8 crops with their landmarks, and classes (B,)."""
        crops_BHWC = np.stack([decode_jpeg(jpeg) for jpeg, _, _ in batch])
        crops_BCHW = torch.from_numpy(crops_BHWC.transpose(0, 3, 1, 2).copy())
        class_B = torch.tensor([number for _, number, _ in batch])

        landmarks_B52 = None
        if self.with_landmarks:
            photo_B10 = np.array([points for _, _, points in batch], np.float32)
            in_crops_B52 = landmarks_in_crops(photo_B10.reshape(-1, 5, 2), self.alignment)
            landmarks_B52 = torch.from_numpy(in_crops_B52)
        return FaceBatch(crops_BCHW, landmarks_B52), class_B


def _batches(
    shard: Path, split: str, columns: Sequence[str], num_rows: int
) -> Iterator[pa.RecordBatch]:
    """A shard's rows of a split, `num_rows` at a time, read through a small buffer: memory never
    holds the complete shard."""
    with pq.ParquetFile(shard, buffer_size=READ_BYTES, pre_buffer=False) as file:
        for rows in face_rows(file, num_rows, [*columns, "split"], use_threads=False):
            yield rows.filter(pc.equal(rows["split"], split))


def drawn_batches(
    faces: Iterator[Any], sizes: Iterable[int], window_faces: int, rng: np.random.Generator
) -> Iterator[list[Any]]:
    """Batches of the given sizes drawn from a buffer of `window_faces`, which is filled up again
    after each."""
    buffer: list[Any] = []
    for size in sizes:
        buffer.extend(itertools.islice(faces, max(window_faces, size) - len(buffer)))
        num_left = np.arange(len(buffer), len(buffer) - size, -1)
        places = (rng.random(size) * num_left).astype(int)

        batch = []
        for place in places:
            # The drawn face changes places with the last one: nothing else moves
            buffer[place], buffer[-1] = buffer[-1], buffer[place]
            batch.append(buffer.pop())
        yield batch


def same_person_pairs(people: Sequence[Any]) -> float:
    """The share of a batch's pairs of faces that show one person; an ideal shuffle's is that of the
    complete set."""
    count = len(people)
    same = sum(number * (number - 1) for number in Counter(people).values())
    return same / (count * (count - 1))
