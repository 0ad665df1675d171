"""The state of the photos that came in: one SQLite file for each role, so that memory stays flat
and a killed run can resume.

Tables `place`, `copied` (the files of the labelled folder, and the state of the watched file that
each was copied from) and `added` (the state that DVC last took) outlive a run; `listed` (the lines
of the table) and `refused` are of one run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from flows.intake.storage import StoredFile
from stages.sqlite_database import KEPT, PAGE_ROWS, SqliteDatabase
from visage.parallel import batched

VERSION = 1
TABLES = """
CREATE TABLE IF NOT EXISTS place (watch TEXT);
CREATE TABLE IF NOT EXISTS copied (name TEXT PRIMARY KEY, stamp TEXT, sha256 TEXT,
    num_bytes INTEGER, mtime_ns INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS added (name TEXT PRIMARY KEY, line TEXT, sha256 TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS added_table (sha256 TEXT);
DROP TABLE IF EXISTS listed;
CREATE TABLE listed (name TEXT PRIMARY KEY, folder TEXT, number INTEGER, line TEXT,
    num_bytes INTEGER, stamp TEXT) WITHOUT ROWID;
DROP TABLE IF EXISTS refused;
CREATE TABLE refused (number INTEGER, name TEXT, reason TEXT);
"""
FOUND = """SELECT name, number, listed.num_bytes, listed.stamp, copied.stamp, sha256,
    copied.num_bytes, mtime_ns
    FROM listed LEFT JOIN copied USING (name) WHERE listed.stamp IS NOT NULL AND name > :after
    ORDER BY name"""
FOLDERS = """SELECT DISTINCT folder FROM listed WHERE :after IS NULL OR folder > :after
    ORDER BY folder"""
REFUSED = """SELECT * FROM refused
    UNION ALL SELECT number, name, 'no such photo there yet' FROM listed
    LEFT JOIN copied USING (name) WHERE listed.stamp IS NULL AND copied.name IS NULL"""
NOW = "SELECT name, line, sha256 FROM listed JOIN copied USING (name)"
COUNTS = f"""SELECT (SELECT COUNT(*) FROM ({NOW}) LEFT JOIN added USING (name)
    WHERE added.name IS NULL),
    (SELECT COUNT(*) FROM ({NOW}) AS now JOIN added USING (name)
        WHERE now.line <> added.line OR now.sha256 <> added.sha256),
    (SELECT COUNT(*) FROM added LEFT JOIN ({NOW}) AS now USING (name) WHERE now.name IS NULL)"""


class Line(NamedTuple):
    """A usable line of the table: `name` is the photo's path below the labelled folder, `text` all
    cells that are read."""

    name: str
    number: int
    text: str


class Copy(NamedTuple):
    """A photo of the labelled folder, as it was when it was copied."""

    stamp: str
    sha256: str
    num_bytes: int
    mtime_ns: int


class IntakeDatabase(SqliteDatabase):
    """The tables of one role; use as a context manager."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, schema=TABLES, version=VERSION, pragmas=KEPT)

    def set_watched_place(self, watch: str) -> None:
        """Notes the watched place. After a change, all stamps are forgotten: those of another place
        do not describe the files of this one."""
        if self.execute("SELECT watch FROM place").fetchone() != (watch,):
            with self.transaction():
                self.execute("DELETE FROM place")
                self.execute("UPDATE copied SET stamp = ''")
                self.execute("INSERT INTO place VALUES (?)", (watch,))

    def add_lines(self, lines: Iterable[Line]) -> None:
        """Adds the table's lines; ValueError if two name the same photo."""
        for batch in batched(lines, PAGE_ROWS):
            with self.transaction():
                for line in batch:
                    self._add_line(line)

    def _add_line(self, line: Line) -> None:
        folder = line.name.rpartition("/")[0]
        try:
            self.execute(
                "INSERT INTO listed (name, folder, number, line) VALUES (?, ?, ?, ?)",
                (line.name, folder, line.number, line.text),
            )
        except sqlite3.IntegrityError as error:
            query = "SELECT number FROM listed WHERE name = ?"
            (first,) = self.execute(query, (line.name,)).fetchone()

            raise ValueError(
                f"lines {first} and {line.number} both name {line.name}; leave one"
            ) from error

    def refuse(self, number: int, name: str, reason: str) -> None:
        self.execute("INSERT INTO refused VALUES (?, ?, ?)", (number, name, reason))

    def folders(self) -> Iterator[str]:
        """The folders of the listed photos."""
        # The name of the top folder is the empty text, so that the first page has no lower bound.
        for (folder,) in self.pages(FOLDERS, {}, first=None):
            yield folder

    def note_found(self, files: Iterable[StoredFile]) -> None:
        """Notes which listed photos exist, with size and stamp."""
        update = "UPDATE listed SET num_bytes = ?, stamp = ? WHERE name = ?"
        for batch in batched(files, PAGE_ROWS):
            with self.transaction():
                for found in batch:
                    self.execute(update, (found.num_bytes, found.stamp, found.name))

    def num_listed(self) -> int:
        return self.count("SELECT 1 FROM listed")

    def found(self) -> Iterator[tuple[StoredFile, int, Copy | None]]:
        """The listed photos that exist, the numbers of their lines, and their copies so far; one
        page in memory at a time."""
        for name, number, num_bytes, stamp, *copied in self.pages(FOUND, {}, first=""):
            before = None if copied[0] is None else Copy(*copied)
            yield StoredFile(name, num_bytes, stamp), number, before

    def note_copy(self, name: str, copy: Copy) -> None:
        self.execute("INSERT OR REPLACE INTO copied VALUES (?, ?, ?, ?, ?)", (name, *copy))

    def counts(self) -> tuple[int, int, int]:
        """The numbers of photos that are new, changed and gone since DVC last took them."""
        new, changed, gone = self.execute(COUNTS).fetchone()
        return new, changed, gone

    def added_table(self) -> str | None:
        """The digest of the table that DVC last took."""
        row = self.execute("SELECT sha256 FROM added_table").fetchone()
        return row and str(row[0])

    def note_added(self, table_sha256: str) -> None:
        """Notes that DVC has taken the present state, in one transaction."""
        with self.transaction():
            self.execute("DELETE FROM added")
            self.execute(f"INSERT INTO added {NOW}")
            self.execute("DELETE FROM added_table")
            self.execute("INSERT INTO added_table VALUES (?)", (table_sha256,))

    def refused(self) -> Iterator[tuple[int, str, str]]:
        """(line, name, reason) of the lines that bring no photo, including those whose photo is
        missing."""
        return self.execute(f"{REFUSED} ORDER BY 1, 2")

    def num_refused(self) -> int:
        return self.count(REFUSED)
