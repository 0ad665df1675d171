"""One SQLite file for the work of a run that may be stopped: memory stays flat, the run resumes.

This module has the opening, the version of the tables, transactions, and reading while the tables
change. Each user brings its own tables and queries.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from visage.parallel import batched

# Rows of one transaction, or of one page that is read.
PAGE_ROWS = 1_000
FIRST_VERSION = 1
# A killed process loses nothing; what a power cut loses of the last second is done again.
KEPT = ("journal_mode = WAL", "synchronous = NORMAL")
# For tables that every run fills from the start.
REBUILT = ("synchronous = OFF",)


class SqliteDatabase:
    """A file with tables of one version; use as a context manager.

    `schema` is a script that may run at every opening (CREATE ... IF NOT EXISTS, DROP ...). A file
    of another version is refused with a ValueError; one without a number is of the first version.
    """

    def __init__(self, path: Path, *, schema: str, version: int, pragmas: Sequence[str]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.connection = sqlite3.connect(path, isolation_level=None)
        try:
            self._check_version(version)
            for pragma in pragmas:
                self.execute(f"PRAGMA {pragma}")
            self.execute(f"PRAGMA user_version = {version}")
            self.connection.executescript(schema)
        except BaseException:
            self.connection.close()
            raise

    def _check_version(self, version: int) -> None:
        try:
            is_new = not self.count("SELECT 1 FROM sqlite_master")
            (number,) = self.execute("PRAGMA user_version").fetchone()
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self.path}: cannot be opened ({error}); remove it, and the work starts over"
            ) from error

        found = number or FIRST_VERSION
        if not is_new and found != version:
            raise ValueError(
                f"{self.path}: has tables of version {found}, this program writes version "
                f"{version}; remove it, and the work starts over"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def execute(
        self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()
    ) -> sqlite3.Cursor:
        return self.connection.execute(statement, values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements of the block, or none of them where it ends by an error."""
        self.execute("BEGIN")
        try:
            yield
        except BaseException:
            self.execute("ROLLBACK")
            raise
        self.execute("COMMIT")

    def insert(self, into: str, rows: Sequence[Sequence[Any]]) -> None:
        """Rows in one transaction; `into` is the statement up to VALUES."""
        if not rows:
            return
        with self.transaction():
            marks = ",".join("?" * len(rows[0]))
            self.connection.executemany(f"{into} VALUES ({marks})", rows)

    def insert_all(self, into: str, rows: Iterable[Sequence[Any]]) -> None:
        """Rows as they come, a page a transaction: those before an error or a kill stay."""
        for page in batched(rows, PAGE_ROWS):
            self.insert(into, page)

    def count(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> int:
        """How many rows a query has."""
        (number,) = self.execute(f"SELECT COUNT(*) FROM ({query})", values).fetchone()
        return int(number)

    def pages(self, query: str, values: Mapping[str, Any], first: str | None) -> Iterator[Any]:
        """The rows of a query, while the tables change: a page at a time, each after the last row
        of the one before.

        The query orders by its first column and asks for rows above `:after`, which is `first` at
        the start.
        """
        after = first
        limited = f"{query} LIMIT {PAGE_ROWS}"
        while page := self.execute(limited, {**values, "after": after}).fetchall():
            yield from page
            after = page[-1][0]
