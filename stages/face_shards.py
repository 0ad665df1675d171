"""Manifest rows in shards, and the face table's shard files. Each file holds a fingerprint of all
that it was made from.

A shard file is kept while its fingerprint is the expected one. So a stopped run resumes, and a
changed manifest remakes only the shards that it changes. A shard's fingerprint, rejects and counts
are in its schema's metadata.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from visage.atomic import atomic_write
from visage.data.schemas import FACE_SCHEMA, METADATA_KEY

RowDict = dict[str, Any]
# Metadata: JSON with fingerprint, rejects and counts.
SHARD_KEY = b"align"
# Columns copied from the manifest to the faces.
COPIED = (
    "photo_id",
    "sha256",
    "label",
    "sigma",
    "half_width",
    "person",
    "sex",
    "ethnicity",
    "split",
)


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
    """The files that a manifest of `num_rows` fills. All other shards are removed, also those that
    a killed run left half-written."""
    wanted = [faces / f"part-{index:05d}.parquet" for index in range(-(-num_rows // shard_rows))]
    faces.mkdir(parents=True, exist_ok=True)

    present = {*faces.glob("part-*.parquet"), *faces.glob(".part-*")}
    for path in present - set(wanted):
        path.unlink()
    return wanted


def read_quarantine(path: Path) -> frozenset[str]:
    """The photo_ids that the validate stage quarantined."""
    with path.open(newline="", encoding="utf-8") as file:
        return frozenset(line["photo_id"] for line in csv.DictReader(file))


def read_shards(
    manifest: pq.ParquetFile,
    left_out: frozenset[str],
    paths: list[Path],
    shard_rows: int,
    provenance: str,
) -> Iterator[Shard]:
    """The manifest, read as it is needed and cut every `shard_rows` rows; `provenance` stands for
    settings and program."""
    batches = manifest.iter_batches(batch_size=1024)
    rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
    of_content = itemgetter("unreadable", *COPIED)

    for path in paths:
        of_shard = itertools.islice(rows, shard_rows)
        kept = [row for row in of_shard if row["photo_id"] not in left_out]

        content = json.dumps(list(map(of_content, kept)))
        fingerprint = hashlib.sha256(f"{provenance}\n{content}".encode()).hexdigest()
        yield Shard(path=path, rows=kept, fingerprint=fingerprint)


def is_finished(shard: Shard) -> bool:
    """Whether the shard's file is there and made from the same rows, settings and program."""
    try:
        return bool(read_own(shard.path)["fingerprint"] == shard.fingerprint)
    except (OSError, ValueError, KeyError, TypeError):
        # The file is absent, damaged, or not written by this stage.
        return False


def read_own(path: Path) -> Any:
    """A shard's own metadata: fingerprint, rejects [photo_id, reason], num_photos, num_read,
    num_frame."""
    return json.loads(pq.read_schema(path).metadata[SHARD_KEY])


def write_shard(
    path: Path, fingerprint: str, aligned: AlignedPhotos, preprocessing: Mapping[str, Any]
) -> None:
    """Writes the faces as parquet, atomically; `preprocessing` says how the crops were made."""
    own = {
        "fingerprint": fingerprint,
        "rejects": aligned.rejects,
        "num_photos": len(aligned),
        "num_read": aligned.num_read,
        "num_frame": sum(row["found"] == "frame" for row in aligned.faces),
    }
    metadata = {
        METADATA_KEY: json.dumps(preprocessing, sort_keys=True),
        SHARD_KEY: json.dumps(own, sort_keys=True),
    }

    table = pa.Table.from_pylist(aligned.faces, schema=FACE_SCHEMA.with_metadata(metadata))
    compression = dict.fromkeys(FACE_SCHEMA.names, "zstd") | {"jpeg": "none"}

    with atomic_write(path) as part:
        pq.write_table(
            table,
            part,
            compression=compression,
            use_dictionary=["split", "found", "sex", "ethnicity"],
        )
