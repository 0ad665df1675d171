"""The photos to score: a folder, a bucket or a table becomes a numbered list in one SQLite file.

- A folder, local or of any fsspec URL (s3://bucket/folder; keys and endpoint come from the
  environment): every photo below it by its suffix, in the order of the names; names that begin with
  a dot are left out.
- A table (.csv or .parquet): the photos that one column names, in the order of its rows, each once.
  A name is a path relative to the table's folder, an absolute path, or a URL.

Names are streamed, one page of a bucket or one folder at a time, so that a million of them take
little memory.
"""

from __future__ import annotations

import csv
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from stages.ingest.archives import odd_name, printable
from stages.ingest.fetch import IDENTITY_KEYS
from stages.sqlite_database import REBUILT, SqliteDatabase
from visage.parallel import map_ordered
from visage.photo_files import PHOTO_SUFFIXES, photos_under

TABLE_SUFFIXES = (".csv", ".parquet")
# The files of a table whose size and time are requested at a time.
NUM_ASKING = 16
NUM_AHEAD = 4 * NUM_ASKING
# S3 gives no more at a time.
PAGE_KEYS = 1000
MISSING = "no such file"
VERSION = 1
TABLES = """
CREATE TABLE IF NOT EXISTS origin (photos TEXT);
CREATE TABLE IF NOT EXISTS photos (place INTEGER PRIMARY KEY, name TEXT UNIQUE, address TEXT,
    num_bytes INTEGER, version TEXT, reason TEXT);
"""


class ListedPhoto(NamedTuple):
    """One photo of the list.

    `address` is a path in the filesystem of the folder or table, or a URL of its own. `version`
    changes with the content (time, tag). `reason` is set if the photo need not even be opened.
    """

    place: int
    name: str
    address: str
    num_bytes: int | None
    version: str
    reason: str | None


# A ListedPhoto without its place.
PhotoColumns = tuple[str, str, int | None, str, str | None]


def filesystem_of(address: str) -> tuple[Any, str]:
    """A local path or an fsspec URL -> its filesystem and the path in it. Listings are not
    cached."""
    if "://" in address:
        filesystem, path = fsspec.core.url_to_fs(address, use_listings_cache=False)
        return filesystem, path
    return LocalFileSystem(), str(Path(address).expanduser().absolute())


class Inventory(SqliteDatabase):
    """The numbered list of photos, which each run fills again; use as a context manager."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, schema=TABLES, version=VERSION, pragmas=REBUILT)

    def fill(self, photos: str, column: str) -> None:
        """Lists `photos`; ValueError if there are none, or if the file lists those of another
        place."""
        origin = photos if "://" in photos else filesystem_of(photos)[1]
        known = self.execute("SELECT photos FROM origin").fetchone()
        if known is not None and known[0] != origin:
            raise ValueError(
                f"{self.path.parent}: holds the scores of {known[0]}, not of {origin}; give "
                f"another folder (OUTPUT)"
            )

        self._replace_all(found_in(photos, column))
        if not len(self):
            raise ValueError(f"{photos}: holds no photo ({', '.join(sorted(PHOTO_SUFFIXES))})")

        # Last, so that a mistyped place does not reserve the output folder.
        if known is None:
            self.execute("INSERT INTO origin VALUES (?)", (origin,))

    def _replace_all(self, found: Iterable[PhotoColumns]) -> None:
        self.execute("DELETE FROM photos")
        columns = "name, address, num_bytes, version, reason"
        self.insert_all(f"INSERT OR IGNORE INTO photos ({columns})", found)

    def __len__(self) -> int:
        return self.count("SELECT 1 FROM photos")

    def slice(self, start: int, count: int) -> list[ListedPhoto]:
        """`count` photos from number `start` on, counted from 0."""
        # Places count from 1.
        query = "SELECT * FROM photos WHERE place > ? AND place <= ?"
        rows = self.execute(query, (start, start + count))
        return [ListedPhoto(*row) for row in rows]


def found_in(photos: str, column: str) -> Iterator[PhotoColumns]:
    """The photos of a folder, bucket or table; ValueError names what cannot be read and the
    remedy."""
    filesystem, path = filesystem_of(photos)

    try:
        if filesystem.isdir(path):
            yield from _found_below(filesystem, path)
        elif not filesystem.isfile(path):
            raise ValueError(f"{photos}: no such folder, bucket or table")
        elif not path.lower().endswith(TABLE_SUFFIXES):
            raise ValueError(
                f"{photos}: give a folder, a bucket, or a table ({', '.join(TABLE_SUFFIXES)})"
            )
        else:
            yield from _found_in_table(filesystem, path, column)
    except ValueError:
        raise
    except Exception as error:
        # Every kind of store has its own exceptions.
        raise ValueError(
            f"{photos}: cannot be listed: {one_line(error)}. Is it there, and are address and keys "
            "right (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY for s3://)?"
        ) from error


def one_line(error: Exception) -> str:
    """An error as one line; some errors have an empty text."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def _found_below(filesystem: Any, root: str) -> Iterator[PhotoColumns]:
    """Every photo below a folder of any filesystem, by name."""
    if isinstance(filesystem, LocalFileSystem):
        yield from (_local(Path(root), name) for name in photos_under(Path(root)))
        return

    is_s3 = "s3" in filesystem.protocol
    entries = _pages_of_s3(filesystem, root) if is_s3 else _entries_below(filesystem, root)
    for path, info in entries:
        name = path.removeprefix(root).lstrip("/")
        hidden = any(part.startswith(".") for part in name.split("/"))
        if not hidden and PurePosixPath(name).suffix.lower() in PHOTO_SUFFIXES:
            yield printable(name), path, info.get("size"), _version(info), None


def _local(folder: Path, name: str) -> PhotoColumns:
    """A local file's row; a name that no table can hold is listed with its reason."""
    reason = odd_name(name)
    if reason:
        return printable(name), "", None, "", reason
    return name, *_identity(LocalFileSystem(), str(folder / name))


def _pages_of_s3(filesystem: Any, root: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A bucket's files, PAGE_KEYS at a time, in S3's own order (bytes of UTF-8). The filesystem of
    S3 would hold all of them in memory."""
    bucket, _, prefix = root.partition("/")
    wanted = {
        "Bucket": bucket,
        "Prefix": f"{prefix.rstrip('/')}/" if prefix else "",
        "MaxKeys": PAGE_KEYS,
    }

    while True:
        page = filesystem.call_s3("list_objects_v2", **wanted)
        for entry in page.get("Contents", []):
            yield f"{bucket}/{entry['Key']}", {"size": entry["Size"], "ETag": entry["ETag"]}

        if not page["IsTruncated"]:
            return
        wanted["ContinuationToken"] = page["NextContinuationToken"]


def _entries_below(filesystem: Any, folder: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The files below a folder in the order of their full names; one folder at a time in
    memory."""
    # A folder sorts as its files do: by its name with the slash.
    entries = {}
    for entry in filesystem.ls(folder, detail=True):
        slash = "/" if entry["type"] == "directory" else ""
        entries[entry["name"] + slash] = entry

    for name in sorted(entries):
        if name.endswith("/"):
            yield from _entries_below(filesystem, name.rstrip("/"))
        else:
            yield name, entries[name]


def _version(info: Mapping[str, Any]) -> str:
    """The properties that change with a file's content, under the names that its store has."""
    keys = [key for key in IDENTITY_KEYS if key != "size" and info.get(key) is not None]
    return " ".join(f"{key}={info[key]}" for key in keys)


def _found_in_table(filesystem: Any, path: str, column: str) -> Iterator[PhotoColumns]:
    """The photos that a table names; sizes and times are requested for several at a time."""
    folder = path.rpartition("/")[0]
    cells = enumerate(_cells(filesystem, path, column), start=1)
    yield from map_ordered(
        lambda cell: _named(filesystem, folder, *cell),
        cells,
        ThreadPoolExecutor(NUM_ASKING),
        NUM_AHEAD,
    )


def _cells(filesystem: Any, path: str, column: str) -> Iterator[str | None]:
    """One column of a table."""
    if path.lower().endswith(".csv"):
        with filesystem.open(path, "r", newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            _check_column(path, column, list(lines.fieldnames or []))
            yield from (line[column] for line in lines)
        return

    with filesystem.open(path, "rb") as file:
        table = pq.ParquetFile(file)
        _check_column(path, column, table.schema_arrow.names)
        for batch in table.iter_batches(batch_size=1024, columns=[column]):
            for cell in batch.column(0).to_pylist():
                yield None if cell is None else str(cell)


def _check_column(path: str, column: str, known: list[str]) -> None:
    if column not in known:
        raise ValueError(
            f"{path}: no column {column!r} but {', '.join(known)}; name it in params.yaml: "
            "score.column, or rename it in the table"
        )


def _named(filesystem: Any, folder: str, number: int, cell: str | None) -> PhotoColumns:
    """A table's cell as a row of the list."""
    if not cell:
        return f"row {number}", "", None, "", "the table names no photo in this row"
    if "://" in cell:
        return cell, *_identity(*filesystem_of(cell), address=cell)

    is_absolute = cell.startswith("/") and isinstance(filesystem, LocalFileSystem)
    return cell, *_identity(filesystem, cell if is_absolute else f"{folder}/{cell}")


def _identity(
    filesystem: Any, path: str, address: str | None = None
) -> tuple[str, int | None, str, str | None]:
    """(address, size, version, reason) of a file; if the store fails now, the file is tried again
    when it is read."""
    place = address or path
    try:
        if isinstance(filesystem, LocalFileSystem):
            status = Path(path).stat()
            if not stat.S_ISREG(status.st_mode):
                return path, None, "", "not a plain file"
            return place, status.st_size, str(status.st_mtime_ns), None
        info = filesystem.info(path)
    except FileNotFoundError:
        return place, None, "", MISSING
    except Exception:
        # Every kind of store has its own exceptions; the reader reports them.
        return place, None, "", None

    return place, info.get("size"), _version(info), None
