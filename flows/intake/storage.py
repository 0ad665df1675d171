"""The place that is watched for labelled photos: a folder, or a bucket behind any fsspec URL.

Credentials and endpoints come from the environment, as each store has them (AWS_ENDPOINT_URL, ...).
A file's stamp changes when its content may have changed: it is made of size and time for a local
file, and of tag, time and size for a store, as far as the store gives them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import fsspec

from stages.ingest.fetch import IDENTITY_KEYS
from visage.parallel import map_ordered

# Of a bucket; as many listings are in memory.
LISTINGS_AT_ONCE = 32


class StoredFile(NamedTuple):
    """A file below the watched place: posix name, size, stamp."""

    name: str
    num_bytes: int
    stamp: str


class LocalStorage:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def find(self, name: str) -> StoredFile | None:
        """One file; None where there is none."""
        path = self.folder / name
        return _found(name, path.stat()) if path.is_file() else None

    def files(self, folders: Iterable[str]) -> Iterator[StoredFile]:
        """The files directly in some folders; folders that do not exist have none."""
        for folder in folders:
            place = self.folder / folder
            if not place.is_dir():
                continue

            prefix = f"{folder}/" if folder else ""
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_file():
                        yield _found(prefix + entry.name, entry.stat())

    def open(self, name: str) -> IO[bytes]:
        return (self.folder / name).open("rb")


def _found(name: str, status: os.stat_result) -> StoredFile:
    return StoredFile(name, status.st_size, f"{status.st_size} {status.st_mtime_ns}")


class RemoteStorage:
    """The files below a URL, listed again each time."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.filesystem, root = fsspec.core.url_to_fs(
            self.url, use_listings_cache=False, skip_instance_cache=True
        )
        self.root = str(root).rstrip("/")

    def __str__(self) -> str:
        return self.url

    def find(self, name: str) -> StoredFile | None:
        """One file; None where there is none."""
        try:
            return self._found(self.filesystem.info(f"{self.root}/{name}"))
        except FileNotFoundError:
            return None

    def files(self, folders: Iterable[str]) -> Iterator[StoredFile]:
        """The files directly in some folders; folders that do not exist have none."""
        pool = ThreadPoolExecutor(LISTINGS_AT_ONCE)
        for listing in map_ordered(self._listing, folders, pool, LISTINGS_AT_ONCE):
            for info in listing:
                if info["type"] == "file":
                    yield self._found(info)

    def _listing(self, folder: str) -> list[dict[str, Any]]:
        try:
            listing = self.filesystem.ls(f"{self.root}/{folder}".rstrip("/"), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return cast(list[dict[str, Any]], listing)

    def _found(self, info: dict[str, Any]) -> StoredFile:
        identity = {key: str(info[key]) for key in IDENTITY_KEYS if info.get(key) is not None}
        name = str(info["name"]).removeprefix(self.root).lstrip("/")
        return StoredFile(name, int(info["size"]), json.dumps(identity, sort_keys=True))

    def open(self, name: str) -> IO[bytes]:
        return cast(IO[bytes], self.filesystem.open(f"{self.root}/{name}", "rb"))


def open_storage(watch: str, root: Path) -> LocalStorage | RemoteStorage:
    """The place that `watch` names; a relative path starts at `root`."""
    if "://" in watch and not watch.startswith("file://"):
        return RemoteStorage(watch)
    return LocalStorage(root / Path(watch.removeprefix("file://")).expanduser())
