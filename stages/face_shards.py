"""Manifest rows in shards, and the face table's shard files: each carries a fingerprint of all that
it was made from.

A shard file is kept while its fingerprint is the wanted one, so a stopped run goes on where it was
and a changed manifest redoes its own shards alone. What a shard says of itself (its rejects too)
stands in its schema's metadata.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from visage.atomic import atomic_write
from visage.data.schemas import FACE_SCHEMA, METADATA_KEY

RowDict = dict[str, Any]
SHARD_KEY = b"align"  # metadata: JSON with fingerprint, rejects and counts
COPIED = (
    "photo_id",
    "sha256",
    "label",
    "sigma",
    "person",
    "sex",
    "ethnicity",
    "split",
)  # from manifest to faces


@dataclass(kw_only=True)
class AlignedPhotos:
    """What became of some photos, in their order."""

    faces: list[RowDict] = field(default_factory=list)
    rejects: list[tuple[str, str]] = field(default_factory=list)
    num_read: int = 0

    def __len__(self) -> int:
        """Photos: each is a face or a reject."""
        return len(self.faces) + len(self.rejects)

    def add(self, other: AlignedPhotos) -> None:
        self.faces += other.faces
        self.rejects += other.rejects
        self.num_read += other.num_read


@dataclass(kw_only=True)
class Shard:
    """One output file, and the manifest's rows that belong in it."""

    path: Path
    rows: list[RowDict]
    fingerprint: str


def shard_paths(faces: Path, num_rows: int, shard_rows: int) -> list[Path]:
    """The files that a manifest of `num_rows` fills; others, and what a killed run left
    half-written, are removed."""
    wanted = [faces / f"part-{index:05d}.parquet" for index in range(-(-num_rows // shard_rows))]
    faces.mkdir(parents=True, exist_ok=True)
    for path in {*faces.glob("part-*.parquet"), *faces.glob(".part-*")} - set(wanted):
        path.unlink()
    return wanted


def read_quarantine(path: Path) -> frozenset[str]:
    """photo_ids that the validation took out."""
    with path.open(newline="", encoding="utf-8") as file:
        return frozenset(line["photo_id"] for line in csv.DictReader(file))


def read_shards(
    manifest: pq.ParquetFile,
    left_out: frozenset[str],
    paths: list[Path],
    shard_rows: int,
    maker: str,
) -> Iterator[Shard]:
    """The manifest, read as it is needed, cut every `shard_rows` rows; `maker` tells settings and
    program."""
    rows = (row for batch in manifest.iter_batches(batch_size=1024) for row in batch.to_pylist())
    for path in paths:
        kept = [
            row for row in itertools.islice(rows, shard_rows) if row["photo_id"] not in left_out
        ]
        content = json.dumps([[row["unreadable"], *(row[name] for name in COPIED)] for row in kept])
        fingerprint = hashlib.sha256(f"{maker}\n{content}".encode()).hexdigest()
        yield Shard(path=path, rows=kept, fingerprint=fingerprint)


def is_finished(shard: Shard) -> bool:
    """Whether the shard's file is there and made from the same rows, settings and program."""
    try:
        return bool(read_own(shard.path)["fingerprint"] == shard.fingerprint)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # absent, damaged, or not written by this stage
        return False


def read_own(path: Path) -> Any:
    """What a shard says of itself: fingerprint, rejects [photo_id, reason], num_photos, num_read,
    num_frame."""
    return json.loads(pq.read_schema(path).metadata[SHARD_KEY])


def write_shard(
    path: Path, fingerprint: str, outcome: AlignedPhotos, eye: Mapping[str, Any]
) -> None:
    """The faces as parquet, whole or not at all; `eye` is what a model's config must know of the
    crops."""
    own = {
        "fingerprint": fingerprint,
        "rejects": outcome.rejects,
        "num_photos": len(outcome),
        "num_read": outcome.num_read,
        "num_frame": sum(row["found"] == "frame" for row in outcome.faces),
    }
    metadata = {
        METADATA_KEY: json.dumps(eye, sort_keys=True),
        SHARD_KEY: json.dumps(own, sort_keys=True),
    }
    table = pa.Table.from_pylist(outcome.faces, schema=FACE_SCHEMA.with_metadata(metadata))
    compression = dict.fromkeys(FACE_SCHEMA.names, "zstd") | {"jpeg": "none"}
    with atomic_write(path) as part:
        pq.write_table(
            table,
            part,
            compression=compression,
            use_dictionary=["split", "found", "sex", "ethnicity"],
        )
