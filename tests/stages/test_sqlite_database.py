"""A database of one version, with atomic transactions and pages that survive changes."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import sqlite_database
from stages.sqlite_database import KEPT, REBUILT, SqliteDatabase

NAMES = "CREATE TABLE IF NOT EXISTS names (name TEXT PRIMARY KEY, number INTEGER) WITHOUT ROWID;"


def opened(path: Path, version: int = 1) -> SqliteDatabase:
    return SqliteDatabase(path, schema=NAMES, version=version, pragmas=KEPT)


def names(database: SqliteDatabase) -> list[str]:
    return [name for (name,) in database.execute("SELECT name FROM names ORDER BY name")]


def test_rows_and_pragmas_are_there_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "work" / "names.sqlite"
    with opened(path) as database:
        database.insert("INSERT INTO names", [("b", 2), ("a", 1)])
        database.insert("INSERT INTO names", [])
    with opened(path) as database:
        assert names(database) == ["a", "b"]
        assert database.count("SELECT 1 FROM names WHERE number > :least", {"least": 1}) == 1
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        database.execute("SELECT 1")
    with SqliteDatabase(tmp_path / "x", schema="", version=1, pragmas=REBUILT) as database:
        assert database.execute("PRAGMA synchronous").fetchone() == (0,)


def test_another_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "names.sqlite"
    with opened(path, version=2) as database:
        database.insert("INSERT INTO names", [("a", 1)])
    with pytest.raises(ValueError, match=r"names.sqlite: has tables of version 2, .* version 3"):
        opened(path, version=3)
    with opened(path, version=2) as database:
        assert names(database) == ["a"]


def test_a_file_without_a_number_is_of_the_first_version(tmp_path: Path) -> None:
    path = tmp_path / "names.sqlite"
    before = sqlite3.connect(path)
    before.execute(NAMES)
    before.close()
    with pytest.raises(ValueError, match="has tables of version 1, this program writes version 2"):
        opened(path, version=2)
    with opened(path) as database:
        assert names(database) == []


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "names.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(ValueError, match=r"names.sqlite: cannot be opened .*; remove it"):
        opened(path)


def fail_midway(database: SqliteDatabase, error: type[BaseException]) -> None:
    with database.transaction():
        database.execute("INSERT INTO names VALUES ('b', 2)")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_transaction_is_all_or_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with opened(tmp_path / "names.sqlite") as database:
        with database.transaction():
            database.execute("INSERT INTO names VALUES ('a', 1)")
        with pytest.raises(error):
            fail_midway(database, error)
        with pytest.raises(sqlite3.IntegrityError):
            database.insert("INSERT INTO names", [("c", 3), ("a", 1)])
        assert names(database) == ["a"]


@settings(max_examples=40, deadline=None)
@given(
    kept=st.sets(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3)),
    page_rows=st.integers(1, 5),
)
def test_pages_give_every_row_once_while_rows_go(kept: set[str], page_rows: int) -> None:
    query = "SELECT name FROM names WHERE :after IS NULL OR name > :after ORDER BY name"
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as folder,
        opened(Path(folder) / "names.sqlite") as database,
    ):
        patch.setattr(sqlite_database, "PAGE_ROWS", page_rows)
        database.insert_all("INSERT INTO names", ((name, 0) for name in kept))
        seen = []
        for (name,) in database.pages(query, {}, first=None):
            if len(seen) % 2:
                database.execute("DELETE FROM names WHERE name = ?", (name,))
            seen.append(name)
        assert seen == sorted(kept, key=str.encode)
        assert names(database) == seen[::2]


def test_rows_before_an_error_stay_a_page_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_database, "PAGE_ROWS", 2)
    with opened(tmp_path / "names.sqlite") as database:
        with pytest.raises(sqlite3.IntegrityError):
            database.insert_all("INSERT INTO names", [("a", 1), ("b", 2), ("c", 3), ("c", 3)])
        assert names(database) == ["a", "b"]
