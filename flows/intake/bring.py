"""A watched folder or bucket becomes `incoming/<role>/labelled` under DVC: labelled photos as they
come.

`labels.csv` is in the watched place, next to the photos that it names or above their folders; its
columns are those of `download.<role>.incoming` in params.yaml. The table is checked first: a wrong
table brings nothing in. Then every photo in it that is new or changed is copied under a temporary
name and renamed. The table itself comes last, and `dvc add` takes the folder. A killed run resumes
with the next one. Photos are never deleted; a photo that the table no longer names is no longer
used. A line whose photo cannot be taken is listed in `incoming/.state/<role>.refused.csv`.

A look at a folder of 10,000 photos without anything new takes under a second. The state is in
`incoming/.state`; without it, photos are copied once more, and nothing else differs.
"""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from flows.intake.database import Copy, IntakeDatabase
from flows.intake.storage import LocalStorage, RemoteStorage, StoredFile, open_storage
from flows.intake.table import LABELLED, Wanted, read_wanted, usable_lines
from flows.pipeline.file_lock import Locked, file_lock
from stages.ingest.fill_raw import file_sha256
from visage.atomic import atomic_write

CHUNK_BYTES = 1 << 20
STATE = ".state"
Storage = LocalStorage | RemoteStorage


class StillWritten(ValueError):
    """The table changed while it was read."""


@dataclass(frozen=True, kw_only=True)
class Intake:
    """The changes since DVC last took the folder.

    `new`: photos that are new; `changed`: with another content or line; `gone`: no longer in the
    table. `refused` lines brought no photo; the file `refused_list` gives the reasons. `is_new`:
    DVC took the folder.
    """

    new: int
    changed: int
    gone: int
    refused: int
    refused_list: Path
    is_new: bool


def look(watch: str, folder: Path) -> Intake:
    """Brings new and changed photos at `watch` (a path, or any fsspec URL) into `folder`, which is
    `incoming/<role>` of a working copy.

    Errors: ValueError names what is wrong; then nothing is brought in.
    """
    folder = folder.absolute()
    if _pointer(folder).is_file() and not (folder / LABELLED).is_dir():
        raise ValueError(
            f"{folder / LABELLED}: its photos are not in this working copy; say `dvc pull "
            f"{_pointer(folder)}`"
        )

    wanted = read_wanted(folder)
    storage = open_storage(watch, folder.parents[1])
    state = folder.parent / STATE
    state.mkdir(parents=True, exist_ok=True)

    with (
        _only_intake(state / f"{folder.name}.lock"),
        IntakeDatabase(state / f"{folder.name}.sqlite") as database,
    ):
        table = state / f"{folder.name}.table.part"
        _fetch_table(storage, wanted.table, table)
        database.set_watched_place(str(storage))
        try:
            database.add_lines(usable_lines(table, wanted, database))
        except ValueError as error:
            raise ValueError(
                f"{storage}/{wanted.table}: {error}. Nothing was brought in; correct the table"
            ) from error

        database.note_found(storage.files(database.folders()))
        _bring(storage, wanted, folder / LABELLED, state / f"{folder.name}.part", database)

        sha256 = _put_table(table, folder / LABELLED / wanted.table)
        refused_list = state / f"{folder.name}.refused.csv"
        refused = _write_refused(database, refused_list)

        new, changed, gone = database.counts()
        is_new = (
            new + changed + gone > 0
            or database.added_table() != sha256
            or not _pointer(folder).is_file()
        )
        if is_new:
            _dvc_add(folder)
            database.note_added(sha256)

    return Intake(
        new=new,
        changed=changed,
        gone=gone,
        refused=refused,
        refused_list=refused_list,
        is_new=is_new,
    )


@contextmanager
def _only_intake(path: Path) -> Iterator[None]:
    """Holds the role's lock; ValueError if another process works on the same role."""
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(path, wait=False))
        except Locked as error:
            raise ValueError(f"{path}: {error}; let that intake end") from error
        yield


def _fetch_table(storage: Storage, name: str, part: Path) -> None:
    """Copies the watched table to `part`; ValueError if it is missing, or is being written."""
    before = storage.find(name)
    if before is None:
        raise ValueError(
            f"{storage}: there is no {name}; put the table there, or correct the watched place"
        )

    with storage.open(name) as content:
        _copy(content, part)

    if storage.find(name) != before or part.stat().st_size != before.num_bytes:
        raise StillWritten(
            f"{storage}/{name}: changes while it is read; look again when it is written"
        )


def _copy(content: IO[bytes], part: Path) -> str:
    """Writes `content` as `part`; returns its sha256."""
    digest = hashlib.sha256()
    with part.open("wb") as file:
        while chunk := content.read(CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _bring(
    storage: Storage, wanted: Wanted, labelled: Path, part: Path, database: IntakeDatabase
) -> None:
    """Copies the listed photos that are new or changed; no photo is ever there in part."""
    labelled.mkdir(parents=True, exist_ok=True)
    progress = tqdm(
        database.found(),
        total=database.num_listed(),
        desc=f"look at {storage}",
        unit=" photos",
    )

    for found, number, copied in progress:
        if (
            copied is not None
            and copied.stamp == found.stamp
            and _is_unchanged(found.name, copied, labelled, database)
        ):
            continue

        if found.num_bytes > wanted.max_photo_bytes:
            reason = f"{found.num_bytes} bytes, over limits.max_photo_bytes"
            database.refuse(number, found.name, reason)
            continue

        try:
            copy = _copy_photo(storage, found, labelled / found.name, part)
            database.note_copy(found.name, copy)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            database.refuse(number, found.name, "a photo already has the name of its folder")
        except FileNotFoundError:
            database.refuse(number, found.name, "went away while it was looked at")
        except PermissionError:
            database.refuse(number, found.name, "may not be read")


def _is_unchanged(name: str, copied: Copy, labelled: Path, database: IntakeDatabase) -> bool:
    """Whether a photo is still the same as when it was copied. A photo that DVC has linked or
    checked out again has another time, so that it is read once."""
    target = labelled / name
    if not target.is_file():
        return False

    status = target.stat()
    if (status.st_size, status.st_mtime_ns) == (copied.num_bytes, copied.mtime_ns):
        return True

    is_same = file_sha256(target) == copied.sha256
    if is_same:
        database.note_copy(name, copied._replace(mtime_ns=status.st_mtime_ns))
    return is_same


def _copy_photo(storage: Storage, found: StoredFile, target: Path, part: Path) -> Copy:
    """Copies a photo to `target`, unless the same bytes are already there: DVC's links to its cache
    stay."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with storage.open(found.name) as content:
        sha256 = _copy(content, part)
    if not target.is_file() or file_sha256(target) != sha256:
        part.replace(target)

    status = target.stat()
    return Copy(found.stamp, sha256, status.st_size, status.st_mtime_ns)


def _put_table(table: Path, target: Path) -> str:
    """Moves the table to `target`; returns its sha256."""
    sha256 = file_sha256(table)
    if not target.is_file() or file_sha256(target) != sha256:
        target.parent.mkdir(parents=True, exist_ok=True)
        table.replace(target)
    table.unlink(missing_ok=True)
    return sha256


def _write_refused(database: IntakeDatabase, path: Path) -> int:
    """Lists the lines that bring no photo; returns their number."""
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["line", "photo", "reason"])
        writer.writerows(database.refused())
    return database.num_refused()


def _pointer(folder: Path) -> Path:
    """The file that git tracks in place of the labelled folder."""
    return folder / f"{LABELLED}.dvc"


def _dvc_add(folder: Path) -> None:
    """Runs `dvc add`; ValueError if DVC does not take the folder, such as when another DVC runs."""
    command = [sys.executable, "-m", "dvc", "add", str(folder / LABELLED)]
    done = subprocess.run(
        command,
        cwd=folder.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )

    if done.returncode != 0:
        message = done.stderr.strip().removeprefix("ERROR: ")
        raise ValueError(
            f"dvc add {folder / LABELLED}: {message}\n"
            "The photos are there; look again when that is settled"
        )
