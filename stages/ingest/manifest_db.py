"""The rows of a manifest on their way: one SQLite file, so that memory stays flat and a killed run
goes on.

Table `measured` outlives the run: a photo whose size and time did not change is not decoded again,
and a changed split costs seconds. Tables `photos` and `skipped` are of this run. Photos come out
sorted by photo_id (byte order of UTF-8).
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stages.ingest.measure import Bounds, Measured
from stages.ingest.records import Action, ManifestRow
from stages.sqlite_database import KEPT, SqliteDatabase
from visage.parallel import batched

VERSION = 1
BATCH_ROWS = 2_000
PHOTOS = """CREATE TABLE photos (photo_id TEXT PRIMARY KEY, label REAL, sigma REAL, person TEXT,
    sex TEXT, ethnicity TEXT, given TEXT, half_width REAL, sha256 TEXT, split TEXT)
    WITHOUT ROWID;"""
OF_THE_RUN = f"""
DROP TABLE IF EXISTS photos;
{PHOTOS}
DROP TABLE IF EXISTS skipped;
CREATE TABLE skipped (photo_id TEXT, action TEXT, reason TEXT);
CREATE TABLE IF NOT EXISTS made_by (value TEXT);
"""
MEASURED = """CREATE TABLE IF NOT EXISTS measured (photo_id TEXT PRIMARY KEY, num_bytes INTEGER,
    mtime_ns INTEGER, sha256 TEXT, width INTEGER, height INTEGER, unreadable TEXT) WITHOUT ROWID"""
WITH_MEASURES = """SELECT photo_id, num_bytes, mtime_ns FROM photos
    LEFT JOIN measured USING (photo_id) WHERE photo_id > :after ORDER BY photo_id"""
MANIFEST = """SELECT photos.photo_id, measured.sha256, num_bytes, width, height, unreadable, label,
    sigma, half_width, person, sex, ethnicity, split FROM photos JOIN measured USING (photo_id)
    ORDER BY photo_id"""


class ManifestDatabase(SqliteDatabase):
    """The tables of one role's download; use as a context manager."""

    def __init__(self, path: Path, bounds: Bounds, decoder: str) -> None:
        super().__init__(path, schema=OF_THE_RUN, version=VERSION, pragmas=KEPT)
        self._forget_other_measures(json.dumps([*bounds, decoder]))

    def _forget_other_measures(self, made_by: str) -> None:
        """Measures of other bounds or another decoder may not hold."""
        if self.execute("SELECT value FROM made_by").fetchone() != (made_by,):
            self.execute("DROP TABLE IF EXISTS measured")
            self.execute("DELETE FROM made_by")
            self.execute("INSERT INTO made_by VALUES (?)", (made_by,))
        self.execute(MEASURED)

    def report_skip(self, photo_id: str, reason: str, *, action: Action = "skipped") -> None:
        self.execute("INSERT INTO skipped VALUES (?, ?, ?)", (photo_id, action, reason))

    def add_rows(self, rows: Iterable[ManifestRow]) -> None:
        """Takes an adapter's rows; ValueError for a photo that comes twice or a number that is
        not finite."""
        columns = "photos (photo_id, label, sigma, person, sex, ethnicity, given, half_width)"
        for batch in batched(rows, BATCH_ROWS):
            for row in batch:
                given = (row.label, row.sigma, row.half_width)
                numbers = [number for number in given if number is not None]
                if not all(map(math.isfinite, numbers)):
                    raise ValueError(
                        f"{row.photo_id}: label {row.label}, sigma {row.sigma}: must be finite or "
                        "empty"
                    )

            try:
                self.insert(f"INSERT INTO {columns}", batch)
            except sqlite3.IntegrityError as error:
                raise ValueError(
                    f"{self._named_twice(batch)}: the source names it twice; leave one"
                ) from error

    def _named_twice(self, batch: list[ManifestRow]) -> str:
        """The first photo of a refused batch that is already known."""
        known: set[str] = set()
        for row in batch:
            before = self.execute(
                "SELECT 1 FROM photos WHERE photo_id = ?", (row.photo_id,)
            ).fetchone()
            if before or row.photo_id in known:
                return row.photo_id
            known.add(row.photo_id)
        raise AssertionError("no photo of the batch comes twice")

    def num_photos(self) -> int:
        return self.count("SELECT 1 FROM photos")

    def to_measure(self, raw_dir: Path) -> Iterator[str]:
        """The photos whose file has changed since it was measured, or never was."""
        for photo_id, num_bytes, mtime_ns in self.pages(WITH_MEASURES, {}, first=""):
            status = (raw_dir / photo_id).stat()
            if (status.st_size, status.st_mtime_ns) != (num_bytes, mtime_ns):
                yield photo_id

    def add_measured(self, measured: Iterable[Measured]) -> None:
        """Takes measures; those of a killed run stay."""
        for batch in batched(measured, BATCH_ROWS):
            self.insert("INSERT OR REPLACE INTO measured", batch)
        self.execute(
            "UPDATE photos SET sha256 = measured.sha256 FROM measured WHERE measured.photo_id = "
            "photos.photo_id"
        )

    def skip_without_split(self) -> None:
        """Leaves out the photos that the set's authors put in no split, unless that is all of them;
        those of sets that have been assigned stay."""
        is_given = "given IS NOT NULL AND split IS NULL"
        if self.execute(f"SELECT 1 FROM photos WHERE {is_given} LIMIT 1").fetchone():
            self.execute(
                "INSERT INTO skipped SELECT photo_id, 'skipped', 'the set puts it in no split' "
                "FROM photos WHERE given IS NULL AND split IS NULL"
            )
            self.execute("DELETE FROM photos WHERE given IS NULL AND split IS NULL")

    def leave_out_test(self) -> None:
        """Leaves out the photos that were assigned to test, counted in one line: another set is
        tested on."""
        if number := self.count("SELECT 1 FROM photos WHERE split = 'test'"):
            self.report_skip(
                "*",
                f"{number} photos are the set's own test split; download.test_set takes its place",
            )
            self.execute("DELETE FROM photos WHERE split = 'test'")

    def rest_is_test(self) -> int:
        """Makes test of the photos that were added after the others were assigned; their number."""
        return self.execute("UPDATE photos SET split = 'test' WHERE split IS NULL").rowcount

    def counts(self) -> dict[str, float]:
        """Counts for the report: photos in all and of each split, unreadable, skipped and
        repaired ones."""
        counts: dict[str, float] = {"photos": self.num_photos()}
        counts |= dict(self.execute("SELECT split, COUNT(*) FROM photos GROUP BY split"))
        counts["unreadable"] = self.count(
            "SELECT 1 FROM photos JOIN measured USING (photo_id) WHERE unreadable IS NOT NULL"
        )

        listed = "SELECT action, COUNT(*) FROM skipped WHERE photo_id <> '*' GROUP BY action"
        return counts | {"skipped": 0, "repaired": 0} | dict(self.execute(listed))

    def manifest_rows(self) -> Iterator[list[tuple[Any, ...]]]:
        """The finished rows in the manifest's columns and order, a batch at a time."""
        cursor = self.execute(MANIFEST)
        while batch := cursor.fetchmany(BATCH_ROWS):
            yield batch

    def skipped_rows(self) -> Iterator[tuple[str, str, str]]:
        """(photo_id, action, reason), sorted."""
        yield from self.execute(
            "SELECT photo_id, action, reason FROM skipped ORDER BY photo_id, reason"
        )
