"""What is known of the photos that came in: one SQLite file a role, so that memory stays flat and a
killed run goes on.

Tables `place`, `copied` (what lies in the labelled folder, and which state of the watched file it
is) and `added` (what DVC last took) outlive a run; `listed` (the lines of the table) and `refused`
are of the run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from flows.intake.storage import Found
from flows.label.database import batches

PAGE_ROWS = 1_000
TABLES = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS place (watch TEXT);
CREATE TABLE IF NOT EXISTS copied (name TEXT PRIMARY KEY, stamp TEXT, sha256 TEXT, num_bytes INTEGER, mtime_ns INTEGER)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS added (name TEXT PRIMARY KEY, line TEXT, sha256 TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS added_table (sha256 TEXT);
DROP TABLE IF EXISTS listed;
CREATE TABLE listed (name TEXT PRIMARY KEY, folder TEXT, number INTEGER, line TEXT, num_bytes INTEGER, stamp TEXT)
    WITHOUT ROWID;
DROP TABLE IF EXISTS refused;
CREATE TABLE refused (number INTEGER, name TEXT, reason TEXT);
"""
THERE = """SELECT name, number, listed.num_bytes, listed.stamp, copied.stamp, sha256, copied.num_bytes, mtime_ns
    FROM listed LEFT JOIN copied USING (name) WHERE listed.stamp IS NOT NULL AND name > ? ORDER BY name LIMIT ?"""
REFUSED = """SELECT * FROM refused
    UNION ALL SELECT number, name, 'no such photo there yet' FROM listed LEFT JOIN copied USING (name)
    WHERE listed.stamp IS NULL AND copied.name IS NULL"""
NOW = "SELECT name, line, sha256 FROM listed JOIN copied USING (name)"
COUNTS = f"""SELECT (SELECT COUNT(*) FROM ({NOW}) LEFT JOIN added USING (name) WHERE added.name IS NULL),
    (SELECT COUNT(*) FROM ({NOW}) AS now JOIN added USING (name)
        WHERE now.line <> added.line OR now.sha256 <> added.sha256),
    (SELECT COUNT(*) FROM added LEFT JOIN ({NOW}) AS now USING (name) WHERE now.name IS NULL)"""


class Line(NamedTuple):
    """A usable line of the table: `name` below the labelled folder, `text` is all that is read of
    it."""

    name: str
    number: int
    text: str


class Copy(NamedTuple):
    """A photo of the labelled folder, as it was put there."""

    stamp: str
    sha256: str
    num_bytes: int
    mtime_ns: int


class IntakeStore:
    """The tables of one role; use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.database = sqlite3.connect(path, isolation_level=None)
        self.database.executescript(TABLES)

    def __enter__(self) -> IntakeStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()

    def belong_to(self, watch: str) -> None:
        """The stamps of another place say nothing of this one's files."""
        if self.database.execute("SELECT watch FROM place").fetchone() != (watch,):
            self.database.executescript("DELETE FROM place; UPDATE copied SET stamp = '';")
            self.database.execute("INSERT INTO place VALUES (?)", (watch,))

    def add_lines(self, lines: Iterable[Line]) -> None:
        """Takes the table's lines; ValueError where two name the same photo."""
        insert = "INSERT INTO listed (name, folder, number, line) VALUES (?, ?, ?, ?)"
        for batch in batches(lines):
            self.database.execute("BEGIN")
            for line in batch:
                try:
                    self.database.execute(
                        insert, (line.name, line.name.rpartition("/")[0], line.number, line.text)
                    )
                except sqlite3.IntegrityError as error:
                    first = self.database.execute(
                        "SELECT number FROM listed WHERE name = ?", (line.name,)
                    ).fetchone()
                    raise ValueError(
                        f"lines {first[0]} and {line.number} both name {line.name}; leave one"
                    ) from error
            self.database.execute("COMMIT")

    def refuse(self, number: int, name: str, reason: str) -> None:
        self.database.execute("INSERT INTO refused VALUES (?, ?, ?)", (number, name, reason))

    def folders(self) -> Iterator[str]:
        """Those of the listed photos."""
        last, page = (
            None,
            "SELECT DISTINCT folder FROM listed WHERE ?1 IS NULL OR folder > ?1 ORDER BY folder "
            "LIMIT ?2",
        )
        while rows := self.database.execute(page, (last, PAGE_ROWS)).fetchall():
            yield from (folder for (folder,) in rows)
            last = rows[-1][0]

    def note_found(self, files: Iterable[Found]) -> None:
        """Which listed photos are there, and how."""
        for batch in batches(files):
            self.database.execute("BEGIN")
            rows = [(found.num_bytes, found.stamp, found.name) for found in batch]
            self.database.executemany(
                "UPDATE listed SET num_bytes = ?, stamp = ? WHERE name = ?", rows
            )
            self.database.execute("COMMIT")

    def num_listed(self) -> int:
        return int(self.database.execute("SELECT COUNT(*) FROM listed").fetchone()[0])

    def there(self) -> Iterator[tuple[Found, int, Copy | None]]:
        """The listed photos that are there, their lines, and what was copied of them; a page in
        memory."""
        last = ""
        while rows := self.database.execute(THERE, (last, PAGE_ROWS)).fetchall():
            for name, number, num_bytes, stamp, *copied in rows:
                yield (
                    Found(name, num_bytes, stamp),
                    number,
                    None if copied[0] is None else Copy(*copied),
                )
            last = rows[-1][0]

    def note_copy(self, name: str, copy: Copy) -> None:
        self.database.execute("INSERT OR REPLACE INTO copied VALUES (?, ?, ?, ?, ?)", (name, *copy))

    def counts(self) -> tuple[int, int, int]:
        """New, changed and gone since DVC last took them."""
        new, changed, gone = self.database.execute(COUNTS).fetchone()
        return new, changed, gone

    def added_table(self) -> str | None:
        """The digest of the table that DVC last took."""
        found = self.database.execute("SELECT sha256 FROM added_table").fetchone()
        return found and str(found[0])

    def note_added(self, table_sha256: str) -> None:
        """DVC has taken what is there now; whole or not at all."""
        self.database.execute("BEGIN")
        self.database.execute("DELETE FROM added")
        self.database.execute(f"INSERT INTO added {NOW}")
        self.database.execute("DELETE FROM added_table")
        self.database.execute("INSERT INTO added_table VALUES (?)", (table_sha256,))
        self.database.execute("COMMIT")

    def refused(self) -> Iterator[tuple[int, str, str]]:
        """(line, name, reason) of the lines that bring no photo, those whose photo is not there
        among them."""
        return self.database.execute(f"{REFUSED} ORDER BY 1, 2")

    def num_refused(self) -> int:
        return int(self.database.execute(f"SELECT COUNT(*) FROM ({REFUSED})").fetchone()[0])
