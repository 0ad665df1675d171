"""The state of a folder of photos so far: one SQLite file, so that memory stays flat and a stopped
run can resume.

Tables `folder`, `hashed`, `predicted` and `written` outlive a run; a photo whose size or time
changed is removed from the middle two. `written` holds what the last review.csv was made of. The
other tables are of one run. Photos come in the order of their names (byte order of UTF-8).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stages.sqlite_database import KEPT, SqliteDatabase

VERSION = 1
LASTING = """
CREATE TABLE IF NOT EXISTS folder (photos TEXT);
CREATE TABLE IF NOT EXISTS hashed (photo_id TEXT PRIMARY KEY, num_bytes INTEGER, mtime_ns INTEGER,
    hash INTEGER, num_pixels INTEGER, reason TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS predicted (photo_id TEXT, model TEXT, value REAL, std REAL, box TEXT,
    reason TEXT, PRIMARY KEY (photo_id, model)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS written (photo_id TEXT PRIMARY KEY, num_bytes INTEGER, hash INTEGER,
    sigma TEXT) WITHOUT ROWID;
"""
OF_THE_RUN = """
DROP TABLE IF EXISTS present;
CREATE TABLE present (photo_id TEXT PRIMARY KEY, num_bytes INTEGER, mtime_ns INTEGER) WITHOUT ROWID;
DROP TABLE IF EXISTS grouped;
CREATE TABLE grouped (photo_id TEXT PRIMARY KEY, number INTEGER, kept INTEGER) WITHOUT ROWID;
DROP TABLE IF EXISTS coarse;
CREATE TABLE coarse (photo_id TEXT PRIMARY KEY, label REAL, spread REAL, sigma REAL, box TEXT)
    WITHOUT ROWID;
DROP TABLE IF EXISTS listed;
CREATE TABLE listed (photo_id TEXT, reason TEXT);
DROP TABLE IF EXISTS edited;
CREATE TABLE edited (photo_id TEXT PRIMARY KEY, corrected TEXT, sigma TEXT) WITHOUT ROWID;
DROP TABLE IF EXISTS carried;
CREATE TABLE carried (photo_id TEXT PRIMARY KEY, corrected TEXT, sigma TEXT) WITHOUT ROWID;
"""
CHANGED = """SELECT present.* FROM present LEFT JOIN hashed USING (photo_id)
    WHERE (hashed.num_bytes IS NOT present.num_bytes OR hashed.mtime_ns IS NOT present.mtime_ns)"""
READABLE = """SELECT photo_id, hash, num_pixels FROM hashed JOIN present USING (photo_id)
    WHERE reason IS NULL ORDER BY photo_id"""
UNSEEN = """SELECT photo_id FROM grouped WHERE kept AND NOT EXISTS
    (SELECT 1 FROM predicted WHERE predicted.photo_id = grouped.photo_id AND model = :model)"""
PREDICTIONS = """SELECT photo_id, json_group_array(value), json_group_array(std), MIN(box)
    FROM predicted JOIN grouped USING (photo_id)
    WHERE kept AND model IN (SELECT value FROM json_each(:models))
    GROUP BY photo_id HAVING COUNT(value) = json_array_length(:models)"""
REVIEW = """SELECT photo_id, label, spread, coarse.sigma, number, box, IFNULL(corrected, ''),
    IFNULL(carried.sigma, '')
    FROM coarse JOIN grouped USING (photo_id) LEFT JOIN carried USING (photo_id)
    ORDER BY spread DESC, coarse.sigma DESC, photo_id"""
EDITS = """SELECT edited.*, keeper.photo_id FROM edited
    LEFT JOIN (SELECT photo_id FROM written JOIN hashed USING (photo_id, num_bytes, hash))
    AS same USING (photo_id)
    LEFT JOIN grouped ON grouped.photo_id = same.photo_id
    LEFT JOIN (SELECT photo_id, number FROM grouped JOIN coarse USING (photo_id)) AS keeper
        ON keeper.number = grouped.number
    ORDER BY edited.photo_id IS NOT keeper.photo_id, edited.photo_id"""
DROPPED = """SELECT grouped.photo_id, 'near duplicate of ' || keeper.photo_id FROM grouped
    JOIN grouped AS keeper ON keeper.number = grouped.number AND keeper.kept WHERE NOT grouped.kept
    UNION ALL SELECT photo_id, reason FROM hashed JOIN present USING (photo_id)
    WHERE reason IS NOT NULL
    UNION ALL SELECT photo_id, MIN(reason) FROM predicted JOIN grouped USING (photo_id)
        WHERE kept AND reason IS NOT NULL AND model IN (SELECT value FROM json_each(:models))
        GROUP BY photo_id
    UNION ALL SELECT photo_id, reason FROM listed ORDER BY 1, 2"""


class Hashed(NamedTuple):
    """A photo's file, hash (64 bits) and size, or the reason why the photo cannot be read."""

    photo_id: str
    num_bytes: int
    mtime_ns: int
    hash: int
    num_pixels: int
    reason: str | None


class Predicted(NamedTuple):
    """One model's prediction for the face that would be taken for training, or the reason why there
    is none."""

    photo_id: str
    model: str
    value: float | None
    std: float | None
    # JSON: x0, y0, x1, y1 in pixels of the upright photo
    box: str | None
    reason: str | None


class LabelDatabase(SqliteDatabase):
    """The tables of one folder of photos; use as a context manager."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, schema=LASTING + OF_THE_RUN, version=VERSION, pragmas=KEPT)

    def check_folder(self, photos: Path) -> None:
        """Notes the folder of the photos; ValueError if the file is of another folder."""
        folder = str(photos.resolve())
        known = self.execute("SELECT photos FROM folder").fetchone()
        if known is None:
            self.add("folder", [(folder,)])
        elif known[0] != folder:
            raise ValueError(
                f"{self.path.parent}: holds the work on {known[0]}, not on {folder}; "
                "give another folder with --output (make label: OUTPUT=folder)"
            )

    def add(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Adds rows, one page at a time; those of a stopped run stay."""
        self.insert_all(f"INSERT OR REPLACE INTO {table}", rows)

    def add_hashed(self, rows: Iterable[Hashed]) -> None:
        """Adds hashes; their 64 bits become SQLite's signed numbers."""
        self.add("hashed", (row._replace(hash=_signed(row.hash)) for row in rows))

    def changed(self) -> Iterator[tuple[str, int, int]]:
        """(photo_id, bytes, time) of the photos that are new or changed; their predictions are
        deleted."""
        self.execute(f"DELETE FROM predicted WHERE photo_id IN (SELECT photo_id FROM ({CHANGED}))")
        return self.pages(
            f"{CHANGED} AND present.photo_id > :after ORDER BY present.photo_id", {}, first=""
        )

    def unseen(self, model: str) -> Iterator[tuple[str]]:
        """The kept photos that a model has not seen."""
        return self.pages(
            f"{UNSEEN} AND photo_id > :after ORDER BY photo_id", {"model": model}, first=""
        )

    def readable(self) -> Iterator[tuple[str, int, int]]:
        """(photo_id, hash, number of pixels) of the photos that exist and can be read, by name."""
        return self.execute(READABLE)

    def predictions(self, models: str) -> Iterator[tuple[str, str, str, str]]:
        """(photo_id, values, standard deviations, box) of the kept photos in which all models (a
        JSON list) found a face; the middle two are JSON lists, the box is of one of the models."""
        return self.execute(PREDICTIONS, {"models": models})

    def review(self) -> Iterator[tuple[str, float, float, float, int, str, str, str]]:
        """(photo_id, label, spread, sigma, group, box, corrected, a person's sigma), the widest
        spread first, then the widest sigma; the last two are empty if no person wrote any."""
        return self.execute(REVIEW)

    def written_sigma(self, photo_id: str) -> str | None:
        """The sigma of a photo in the last review.csv; None for a photo that was not in it."""
        row = self.execute("SELECT sigma FROM written WHERE photo_id = ?", (photo_id,)).fetchone()
        return row and str(row[0])

    def note_written(self) -> None:
        """Notes the photos and sigmas of the review.csv that has just been written, in one
        transaction."""
        with self.transaction():
            self.execute("DELETE FROM written")
            rows = self.execute(
                "SELECT photo_id, num_bytes, hash, coarse.sigma FROM coarse JOIN hashed USING "
                "(photo_id)"
            )
            for photo_id, num_bytes, hash_, sigma in rows:
                row = (photo_id, num_bytes, hash_, sigma_text(sigma))
                self.execute("INSERT INTO written VALUES (?, ?, ?, ?)", row)

    def edits(self) -> list[tuple[str, str, str, str | None]]:
        """(photo_id, corrected, sigma, the photo of the new review.csv that gets the edit).

        That photo is the same one, or the kept one of its near duplicates. It is None if the
        photo's content changed, or if none of the duplicates has a label.
        """
        return self.execute(EDITS).fetchall()

    def left_out(self, models: str) -> Iterator[tuple[str, str]]:
        """(photo_id, reason) of every photo that gets no label, by name."""
        return self.execute(DROPPED, {"models": models})


def sigma_text(sigma: float) -> str:
    """Sigma as review.csv has it; a different text was written by a person."""
    return f"{sigma:.3g}"


def _signed(number: int) -> int:
    """The signed number with the same 64 bits."""
    return number - (1 << 64) if number >> 63 else number
