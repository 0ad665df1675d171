"""A data set, from any storage, becomes a raw folder and a manifest with one row a photo.

locations (params.yaml) -> `data/raw/<role>/` -> `data/<role>/manifest.parquet` (rows of
`visage/data/schemas.py`, sorted by photo_id) and `data/<role>/skipped.csv` (photo_id, action,
reason), which lists every photo that is left out and every name that was repaired; photo_id `*`
counts photos that the chosen protocol does not use.

With `joined` sets the role trains on a union: its own photos are in the folder `train_set` of the
raw folder, those of each further set in the folder of its name, and each set has its own scale,
sigma rule and split. With a `test_set`, in the folder of that name, its photos are the test split
in place of the others' own. With `incoming`, labelled photos that arrived later join the set, from
the folder `~incoming` of the raw folder. The earlier photos keep their names and splits; as long as
nothing has arrived, the result is the same as without `incoming`.

Takes about a millisecond a photo and core: half a minute for UTKFace's 23,708 on two cores, then
under two seconds when only the split changes. A killed run resumes: finished archives, fetched
bytes and measured photos stay. The work folder `data/raw/.<role>.work` holds what was fetched and
measured; it may be removed at any time.
"""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from stages.ingest.archives import Budget, Limits
from stages.ingest.fill_raw import begin_parts
from stages.ingest.manifest_db import ManifestDatabase
from stages.ingest.measure import Bounds, measure_all
from stages.ingest.records import ManifestRow
from stages.ingest.sigma import SigmaRule
from stages.ingest.splits import SplitSettings, assign_incoming, assign_splits
from stages.settings import Report, print_report, stage_main
from stages.sources.dataset_rows import (
    INCOMING,
    TEST_SET,
    TRAIN_SET,
    JoinedSetSettings,
    OtherSetSettings,
    SetSettings,
    as_incoming_rows,
    as_joined_rows,
    as_test_rows,
    below,
    has_come,
    set_rows,
)
from visage.atomic import atomic_write
from visage.data.schemas import MANIFEST_SCHEMA

# Of a joined set, and of its folder
SET_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class DownloadSettings(SetSettings):
    """`download.<role>` of params.yaml: the role's set, its split, and its limits. `sigma`: the
    rule for its labels without a sigma; null leaves them without. `joined`: name -> a further set,
    in the role's splits too. The photos of a `test_set` become split `test` in place of the role's
    own; those of `incoming` join the role's set as they arrive."""

    sigma: SigmaRule | None
    joined: Mapping[str, JoinedSetSettings]
    test_set: OtherSetSettings | None
    incoming: SetSettings | None
    split: SplitSettings
    limits: Limits

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.joined:
            if not SET_NAME.fullmatch(name) or name in (TRAIN_SET, TEST_SET):
                raise ValueError(
                    f"joined: {name!r} becomes a folder; give small letters, digits and _, and not "
                    f"{TRAIN_SET} or {TEST_SET}"
                )


@dataclass(frozen=True, kw_only=True)
class Filling:
    """One run's raw folder and work folder, and what counts, measures and records their photos."""

    raw: Path
    fetched: Path
    budget: Budget
    bounds: Bounds
    database: ManifestDatabase

    def add(self, name: str, rows: Iterator[ManifestRow]) -> None:
        self.database.add_rows(tqdm(rows, desc=f"read {name}", unit=" photos"))

    def measure(self) -> None:
        num_photos = self.database.num_photos()
        waiting = self.database.to_measure(self.raw)
        measured = measure_all(self.raw, waiting, num_photos, self.bounds)
        self.database.add_measured(tqdm(measured, desc="measure", total=num_photos))


def download(
    settings: DownloadSettings,
    *,
    raw: Path,
    manifest: Path,
    skipped: Path,
    report: Report = print_report,
) -> None:
    """Fills `raw` from the settings' locations, writes `manifest` and `skipped`; ValueError names
    file and remedy."""
    work = raw.parent / f".{raw.name}.work"
    bounds = Bounds(settings.limits.max_photo_bytes, settings.limits.max_photo_pixels)

    with ManifestDatabase(work / "spool.sqlite", bounds, f"Pillow {PIL.__version__}") as database:
        filling = Filling(
            raw=raw,
            fetched=work / "fetched",
            budget=Budget(limits=settings.limits),
            bounds=bounds,
            database=database,
        )

        # No adapter may take its photos for the set's own.
        if (raw / INCOMING).is_dir():
            shutil.rmtree(raw / INCOMING)

        prefix = ""
        if settings.joined or settings.test_set is not None:
            tested = () if settings.test_set is None else (TEST_SET,)
            begin_parts(raw, (TRAIN_SET, *sorted(settings.joined), *tested))
            prefix = f"{TRAIN_SET}/"

        # The joined sets come last: nobody of theirs decides where the set's own photos go.
        _add_own(settings, filling, prefix)
        _add_incoming(settings, filling)
        for name, joined in sorted(settings.joined.items()):
            _add_joined(name, joined, filling)
        if settings.test_set is not None:
            database.leave_out_test()
            _add_test(settings.test_set, filling)

        _write_manifest(database, manifest)
        _write_skipped(database, skipped)
        report(0, database.counts())


def _add_own(settings: DownloadSettings, filling: Filling, prefix: str) -> None:
    """Adds the role's own set, in the folder `prefix` of the raw folder, then measures and splits
    it."""
    raw = filling.raw
    database = filling.database
    skip = below(prefix.rstrip("/"), database.report_skip) if prefix else database.report_skip
    rows = set_rows(settings, raw / prefix, filling.fetched, filling.budget, skip)
    if settings.sigma is not None:
        rows = settings.sigma.rows(rows)
    filling.add(settings.source, (row._replace(photo_id=f"{prefix}{row.photo_id}") for row in rows))
    if settings.split.assign == "given":
        database.skip_without_split()

    if (raw / INCOMING).exists():
        raise ValueError(
            f"{raw / INCOMING}: the set has a folder of this name, which is reserved for photos "
            f"that arrive later; rename it"
        )
    if not database.num_photos():
        raise ValueError(
            f"{raw}: source {settings.source} found no photo; check locations and options"
        )

    filling.measure()
    assign_splits(database.connection, settings.split)


def _add_incoming(settings: DownloadSettings, filling: Filling) -> None:
    """Adds the photos that arrived later, if any, in splits that move none of the others."""
    if settings.incoming is None or not has_come(settings.incoming):
        return

    skip = below(INCOMING, filling.database.report_skip)
    rows = set_rows(
        settings.incoming,
        filling.raw / INCOMING,
        filling.fetched,
        filling.budget,
        skip,
    )
    if settings.sigma is not None:
        rows = settings.sigma.rows(rows)
    filling.add("incoming", as_incoming_rows(rows))
    filling.measure()
    assign_incoming(filling.database.connection, settings.split, filling.database.report_skip)


def _add_joined(name: str, joined: JoinedSetSettings, filling: Filling) -> None:
    """Adds a further set, in the folder of its name, then measures and splits it."""
    folder = filling.raw / name
    database = filling.database
    num_before = database.num_photos()
    skip = below(name, database.report_skip)
    rows = set_rows(joined, folder, filling.fetched, filling.budget, skip)
    if joined.sigma is not None:
        rows = joined.sigma.rows(rows)

    filling.add(name, as_joined_rows(name, rows))
    if joined.split.assign == "given":
        database.skip_without_split()
    if database.num_photos() == num_before:
        raise ValueError(
            f"{folder}: source {joined.source} found no photo; check joined.{name}'s locations and "
            f"options"
        )

    filling.measure()
    assign_splits(database.connection, joined.split, name)


def _add_test(other: OtherSetSettings, filling: Filling) -> None:
    """Adds the other set, all of it as split `test`."""
    raw = filling.raw
    database = filling.database
    skip = below(TEST_SET, database.report_skip)
    rows = set_rows(other, raw / TEST_SET, filling.fetched, filling.budget, skip)
    filling.add(other.source, as_test_rows(other, rows, skip))
    filling.measure()
    if not database.rest_is_test():
        raise ValueError(
            f"{raw / TEST_SET}: source {other.source} gave no photo to test on; check "
            f"test_set.splits"
        )


def _write_manifest(database: ManifestDatabase, manifest: Path) -> None:
    """Writes the database's rows as parquet, one row group a batch: memory stays flat."""
    with atomic_write(manifest) as part, pq.ParquetWriter(part, MANIFEST_SCHEMA) as writer:
        for batch in database.manifest_rows():
            columns = zip(*batch, strict=True)
            arrays = [
                pa.array(column, kind.type)
                for column, kind in zip(columns, MANIFEST_SCHEMA, strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=MANIFEST_SCHEMA))


def _write_skipped(database: ManifestDatabase, skipped: Path) -> None:
    with atomic_write(skipped) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["photo_id", "action", "reason"])
        writer.writerows(database.skipped_rows())


if __name__ == "__main__":
    stage_main(
        "download", DownloadSettings, download, ["raw", "manifest", "skipped"], has_role=True
    )
