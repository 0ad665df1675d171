"""A data set, wherever it lies, becomes a raw folder and a manifest with one row a photo.

locations (params.yaml) -> `data/raw/<role>/` -> `data/<role>/manifest.parquet` (rows of `visage/schemas.py`, sorted
by photo_id) and `data/<role>/skipped.csv` (photo_id, action, reason), which lists every photo that is left out and
every name that was repaired; photo_id `*` counts photos that the chosen protocol does not use. With a `test_set` there
are two sets, in the folders `train_set` and `test_set` of the raw folder, and the second's photos are the test split.
Takes about a millisecond a photo and core: half a minute for UTKFace's 23,708 on two cores, then under two seconds
when only the split changes. A killed run goes on where it stopped: finished archives, fetched bytes and measured photos
stay. The work folder `data/raw/.<role>.work` holds what was fetched and measured; it may be removed at any time.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from stages.settings import Report, print_report, stage_main, written_whole
from stages.sources.archives import Budget, Limits
from stages.sources.gather import begin_parts
from stages.sources.measure import Bounds, measure_all
from stages.sources.one_set import TEST_SET, TRAIN_SET, OtherSetSettings, SetSettings, as_test_rows, below, set_rows
from stages.sources.records import Row
from stages.sources.splits import SplitSettings, assign_splits
from stages.sources.spool import Spool
from visage.schemas import MANIFEST_SCHEMA


@dataclass(frozen=True, kw_only=True)
class DownloadSettings(SetSettings):
    """`download.<role>` of params.yaml: the role's set, how it is split, what it may take, and (`test_set`) another set
    whose photos become split `test`, in the place of the role's own."""

    test_set: OtherSetSettings | None
    split: SplitSettings
    limits: Limits


def download(
    settings: DownloadSettings, *, raw: Path, manifest: Path, skipped: Path, report: Report = print_report
) -> None:
    """Fills `raw` from the settings' locations, writes `manifest` and `skipped`; ValueError names file and remedy."""
    work = raw.parent / f".{raw.name}.work"
    bounds = Bounds(settings.limits.max_photo_bytes, settings.limits.max_photo_pixels)
    with Spool(work / "spool.sqlite", bounds, f"Pillow {PIL.__version__}") as spool:
        budget = Budget(limits=settings.limits)
        if settings.test_set is None:
            rows = set_rows(settings, raw, work / "fetched", budget, spool.report_skip)
            _add_own(settings, rows, raw, spool, bounds)
        else:
            _add_two(settings, settings.test_set, raw, work / "fetched", budget, spool, bounds)
        _write_manifest(spool, manifest)
        _write_skipped(spool, skipped)
        report(0, spool.counts())


def _add_own(settings: DownloadSettings, rows: Iterator[Row], raw: Path, spool: Spool, bounds: Bounds) -> None:
    """The role's own set: its rows, measured and split."""
    spool.add_rows(tqdm(rows, desc=f"read {settings.source}", unit=" photos"))
    if settings.split.assign == "given":
        spool.skip_without_split()
    if not spool.num_photos():
        raise ValueError(f"{raw}: source {settings.source} found no photo; check locations and options")
    _measure(raw, spool, bounds)
    assign_splits(spool.database, settings.split)


def _add_two(
    settings: DownloadSettings, other: OtherSetSettings, raw: Path, fetched: Path, budget: Budget, spool: Spool,
    bounds: Bounds,
) -> None:  # fmt: skip
    """The role's own set without its test photos, then the other set as test; each in its folder of `raw`."""
    begin_parts(raw, (TRAIN_SET, TEST_SET))
    skip = below(TRAIN_SET, spool.report_skip)
    own = set_rows(settings, raw / TRAIN_SET, fetched, budget, skip)
    _add_own(settings, (row._replace(photo_id=f"{TRAIN_SET}/{row.photo_id}") for row in own), raw, spool, bounds)
    spool.leave_out_test()
    skip = below(TEST_SET, spool.report_skip)
    rows = as_test_rows(other, set_rows(other, raw / TEST_SET, fetched, budget, skip), skip)
    spool.add_rows(tqdm(rows, desc=f"read {other.source}", unit=" photos"))
    _measure(raw, spool, bounds)
    if not spool.rest_is_test():
        raise ValueError(f"{raw / TEST_SET}: source {other.source} gave no photo to test on; check test_set.splits")


def _measure(raw: Path, spool: Spool, bounds: Bounds) -> None:
    num_photos = spool.num_photos()
    measured = measure_all(raw, spool.to_measure(raw), num_photos, bounds)
    spool.add_measured(tqdm(measured, desc="measure", total=num_photos))


def _write_manifest(spool: Spool, manifest: Path) -> None:
    """The spool's rows as parquet, one row group a batch: memory stays flat."""
    with written_whole(manifest) as part, pq.ParquetWriter(part, MANIFEST_SCHEMA) as writer:
        for batch in spool.manifest_rows():
            columns = zip(*batch, strict=True)
            arrays = [pa.array(column, kind.type) for column, kind in zip(columns, MANIFEST_SCHEMA, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=MANIFEST_SCHEMA))


def _write_skipped(spool: Spool, skipped: Path) -> None:
    with written_whole(skipped) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["photo_id", "action", "reason"])
        writer.writerows(spool.skipped_rows())


if __name__ == "__main__":
    stage_main("download", DownloadSettings, download, ["raw", "manifest", "skipped"], has_role=True)
