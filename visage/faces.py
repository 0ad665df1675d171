"""The face table: parquet shards of aligned faces become batches of crops and labels.

One row a face (`FACE_SCHEMA`); the encoded crops stay memory-mapped on disk, and as many decoded ones as a stated
number of megabytes holds are kept. Legend: N faces, B batch, H height, W width.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

TEXT, REAL = pa.string(), pa.float64()
WHO = [("person", TEXT), ("sex", TEXT), ("ethnicity", TEXT), ("split", TEXT)]
MANIFEST_SCHEMA = pa.schema(
    [
        ("photo_id", TEXT),
        ("sha256", TEXT),
        ("num_bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("unreadable", TEXT),
        ("label", REAL),
        ("sigma", REAL),
        *WHO,
    ]
)
FACE_SCHEMA = pa.schema(
    [
        ("photo_id", TEXT),
        ("sha256", TEXT),
        ("jpeg", pa.binary()),
        ("box", pa.list_(pa.float32(), 4)),
        ("landmarks", pa.list_(pa.float32(), 10)),
        ("probability", pa.float32()),
        ("num_faces", pa.int32()),
        ("found", TEXT),
        ("label", REAL),
        ("sigma", REAL),
        *WHO,
    ]
)
METADATA_KEY = b"visage"  # FACE_SCHEMA's metadata: JSON with `alignment` and `detector`, as in a model's card
COLUMNS = ("photo_id", "sha256", "found", "label", "sigma", "person", "sex", "ethnicity", "split")


def decode_jpeg(data: bytes) -> np.ndarray:
    """An encoded crop -> uint8 (H,W,3)."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


class FaceTable:
    """The faces of some splits: columns as arrays of length N, crops on demand."""

    def __init__(
        self, jpeg: pa.ChunkedArray, columns: dict[str, np.ndarray], eye: dict[str, Any], cache_mb: int
    ) -> None:
        self._jpeg = jpeg
        self.photo_id, self.sha256, self.found = (columns[name] for name in COLUMNS[:3])
        self.label, self.sigma = (columns[name].astype(np.float64) for name in COLUMNS[3:5])
        self.person, self.sex, self.ethnicity, self.split = (columns[name] for name in COLUMNS[5:])
        self.alignment: dict[str, Any] = eye["alignment"]
        self.detector: dict[str, Any] = eye["detector"]
        px = int(self.alignment["crop_px"])
        num_kept = min(len(self), cache_mb * (1 << 20) // (3 * px * px))
        self._kept = np.empty((num_kept, 3, px, px), np.uint8)
        self._is_kept = np.zeros(num_kept, bool)

    @classmethod
    def open(cls, folder: Path, splits: Sequence[str], cache_mb: int = 0) -> FaceTable:
        """The faces of `splits` (empty: of all) in a folder of shards, in the shards' order."""
        paths = sorted(folder.glob("part-*.parquet"))
        if not paths:
            raise ValueError(f"{folder}: no face shards (part-*.parquet) here; run the align stage first")
        tables = [_read_shard(path, splits) for path in paths]
        eyes = {json.dumps(_eye(table, path), sort_keys=True) for table, path in zip(tables, paths, strict=True)}
        if len(eyes) > 1:
            raise ValueError(f"{folder}: shards of different alignment settings; remove the folder, run align again")
        whole = pa.concat_tables(table.replace_schema_metadata(None) for table in tables)
        columns = {name: whole[name].to_pandas().to_numpy(copy=True) for name in COLUMNS}
        columns |= {
            name: np.where([v is None or v != v for v in columns[name]], None, columns[name]) for name in COLUMNS[5:8]
        }
        return cls(whole["jpeg"], columns, json.loads(eyes.pop()), cache_mb)

    def __len__(self) -> int:
        return len(self.photo_id)

    def decode(self, indices: np.ndarray) -> torch.Tensor:
        """Crops of the faces `indices`, uint8 (B,3,H,W)."""
        return torch.from_numpy(np.stack([self._crop(int(index)) for index in indices]))

    def _crop(self, index: int) -> np.ndarray:
        if index < len(self._kept) and self._is_kept[index]:
            return self._kept[index]  # type: ignore[no-any-return]
        crop = decode_jpeg(self._jpeg[index].as_py()).transpose(2, 0, 1)
        if index < len(self._kept):
            self._kept[index], self._is_kept[index] = crop, True
        return crop

    def with_sigma(self, fixed_sigma: float) -> np.ndarray:
        """Each face's sigma in label units, `fixed_sigma` where the set gives none, shape (N,)."""
        return np.where(np.isnan(self.sigma), fixed_sigma, self.sigma)


def _read_shard(path: Path, splits: Sequence[str]) -> pa.Table:
    table = pq.read_table(path, memory_map=True, columns=["jpeg", *COLUMNS])
    return table.filter(pa.compute.is_in(table["split"], pa.array(splits, TEXT))) if splits else table


def _eye(table: pa.Table, path: Path) -> dict[str, Any]:
    metadata = (table.schema.metadata or {}).get(METADATA_KEY)
    if metadata is None:
        raise ValueError(f"{path}: not a face shard (no '{METADATA_KEY.decode()}' metadata); run the align stage again")
    eye: dict[str, Any] = json.loads(metadata)
    return {"alignment": eye["alignment"], "detector": eye["detector"]}


def shuffled_batches(num_faces: int, batch_size: int, generator: torch.Generator) -> list[np.ndarray]:
    """One epoch's index batches: every face once, in random order; a last batch of one face joins the one before.

    BatchNorm cannot train on a single face.
    """
    order = torch.randperm(num_faces, generator=generator).numpy()
    batches = [order[start : start + batch_size] for start in range(0, num_faces, batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def prefetched(
    table: FaceTable, batches: Sequence[np.ndarray], num_workers: int
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """(indices, crops) of each batch in order, the next ones decoded by `num_workers` threads while one is used.

    Pillow decodes outside of Python's lock, so threads are enough; at most `2 * num_workers` batches wait.
    """
    if num_workers == 0:
        yield from ((indices, table.decode(indices)) for indices in batches)
        return
    with ThreadPoolExecutor(num_workers) as pool:
        waiting = [pool.submit(table.decode, indices) for indices in batches[: 2 * num_workers]]
        for position, indices in enumerate(batches):
            crops = waiting.pop(0).result()
            if position + 2 * num_workers < len(batches):
                waiting.append(pool.submit(table.decode, batches[position + 2 * num_workers]))
            yield indices, crops
