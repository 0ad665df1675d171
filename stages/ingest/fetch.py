"""A location of params.yaml (path, glob, or any fsspec URL) becomes local files and folders.

Local ones are read where they are. Remote ones are fetched into a folder beside the raw folder,
which is kept. They are written to `<name>.part`, then renamed; a later run goes on with that part
if the remote file is still the same (size, tag, time). A globbed or folder URL fetches every file
below it. An http(s) URL has no globs: `?` begins its query there.
"""

from __future__ import annotations

import glob
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from tqdm import tqdm

from stages.ingest.archives import Budget, odd_name, safe_name
from stages.ingest.records import REPOSITORY
from visage.photo_files import files_under

CHUNK_BYTES = 1 << 20
# Each goes on where the last one broke off
NUM_ATTEMPTS = 5
FIRST_PAUSE_S = 1.0
IDENTITY_KEYS = (
    "size",
    "ETag",
    "etag",
    "md5",
    "mtime",
    "LastModified",
    "last_modified",
    "Last-Modified",
    "updated",
)


@dataclass(frozen=True, kw_only=True)
class Located:
    """A local file or folder that a location stands for; `name` is what the user calls it."""

    name: str
    path: Path


def locate(location: str, fetched_dir: Path, budget: Budget) -> list[Located]:
    """What a location stands for, remote files fetched first; ValueError where it stands for
    nothing."""
    location = location.removeprefix("file://")
    found = list(_remote(location, fetched_dir, budget) if "://" in location else _local(location))
    if not found:
        raise ValueError(
            f"{location}: matches no file; set download.<role>.locations to where the set is"
        )
    return found


def has_files(location: str) -> bool:
    """Whether a location on this machine has any file; a remote one is taken to have some."""
    if "://" in location and not location.startswith("file://"):
        return True

    for found in _local(location.removeprefix("file://")):
        if found.path.is_file() or next(files_under(found.path), None) is not None:
            return True
    return False


def _local(location: str) -> Iterator[Located]:
    path = REPOSITORY / Path(location).expanduser()
    if path.exists():
        yield Located(name=path.name, path=path)
        return

    # Path.glob takes no absolute patterns
    for name in sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207
        yield Located(name=Path(name).name, path=Path(name))


def _remote(url: str, fetched_dir: Path, budget: Budget) -> Iterator[Located]:
    filesystem, root = fsspec.core.url_to_fs(url)
    is_web = url.startswith(("http://", "https://"))
    folder = fetched_dir / hashlib.sha256(url.encode()).hexdigest()[:16]

    if not is_web and glob.has_magic(root):
        for path in sorted(filesystem.glob(root)):
            target = folder / _file_name(path)
            yield Located(name=target.name, path=_fetched(filesystem, path, target, budget))
    elif not is_web and filesystem.isdir(root):
        top = folder / _file_name(root)
        for path in sorted(filesystem.find(root)):
            below = safe_name(path.removeprefix(root).lstrip("/"))
            _fetched(filesystem, path, top / below, budget)
        yield Located(name=top.name, path=top)
    else:
        target = folder / _file_name(root.split("?")[0] if is_web else root)
        yield Located(name=target.name, path=_fetched(filesystem, root, target, budget))


def _file_name(path: str) -> str:
    name = safe_name(PurePosixPath(path).name or "download")
    if reason := odd_name(name):
        raise ValueError(f"{path!r}: {reason}; fetch it by hand and give its path")
    return name


def _fetched(filesystem: Any, path: str, target: Path, budget: Budget) -> Path:
    """Fetches one remote file unless it is there already, going on after a break; ConnectionError
    where no attempt succeeds."""
    try:
        info = filesystem.info(path)
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: no such remote file; correct download.<role>.locations"
        ) from error

    identity = {key: str(info[key]) for key in IDENTITY_KEYS if info.get(key) is not None}
    _forget_other(target, identity)

    if not target.exists():
        _fetch_with_patience(filesystem, path, target, info.get("size"), budget)
    return target


def _forget_other(target: Path, identity: Mapping[str, str]) -> None:
    """Removes what was fetched of another version of the remote file, and notes this one."""
    note = target.with_name(f".{target.name}.remote.json")
    text = json.dumps(identity, sort_keys=True)
    if not note.exists() or note.read_text(encoding="utf-8") != text or not identity:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        _part(target).unlink(missing_ok=True)
        note.write_text(text, encoding="utf-8")


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _fetch_with_patience(
    filesystem: Any, path: str, target: Path, num_bytes: int | None, budget: Budget
) -> None:
    for attempt in range(NUM_ATTEMPTS):
        try:
            _append_rest(filesystem, path, _part(target), num_bytes, budget)
            _part(target).replace(target)
            return
        except ValueError:
            # A limit: trying again changes nothing
            raise
        except Exception as error:
            # Every kind of store has its own exceptions for a broken connection
            broke = error
            if attempt + 1 < NUM_ATTEMPTS:
                time.sleep(FIRST_PAUSE_S * 2**attempt)

    raise ConnectionError(
        f"{path}: broke off {NUM_ATTEMPTS} times ({broke}); run again, it goes on there"
    ) from broke


def _append_rest(
    filesystem: Any, path: str, part: Path, num_bytes: int | None, budget: Budget
) -> None:
    """Appends to `part` what it lacks of the remote file; a server that cannot go on in the middle
    starts again."""
    have = part.stat().st_size if part.exists() else 0
    limit = budget.limits.max_total_bytes
    bar = tqdm(
        total=num_bytes,
        initial=have,
        unit="B",
        unit_scale=True,
        desc=path,
    )

    with bar, filesystem.open(path, "rb") as remote:
        try:
            remote.seek(have)
        except ValueError:
            # fsspec raises it for a stream without ranges
            have = 0

        with part.open("r+b" if have else "wb") as local:
            local.seek(have)
            while chunk := remote.read(CHUNK_BYTES):
                have += local.write(chunk)
                bar.update(len(chunk))
                if have > limit:
                    raise ValueError(
                        f"{path}: over limits.max_total_bytes {limit}; raise it if that is meant"
                    )
            local.truncate()

    if num_bytes is not None and have != num_bytes:
        raise EOFError(f"{have} of {num_bytes} bytes came")
