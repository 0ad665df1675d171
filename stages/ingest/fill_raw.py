"""Locations become the raw folder: archives unpacked, folders and single files hard-linked (copied
across devices).

Container files are unpacked too, by the reader of their source. Nothing else is taken from the
folders of such a source.

State is in `raw_dir/.visage` and depends on the content alone: `plan.json` (what the folder is
being filled from) and one note per finished archive. An archive with a note is not unpacked again;
a run that was killed goes on. When the plan no longer holds something that the folder was filled
from, the folder is emptied and filled again, so that nothing in it is stale. A hard link shares its
bytes with the user's own file: photos in the raw folder are only ever read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stages.ingest.archives import CONTROL, Budget, Placer, odd_name, printable, unpack
from stages.ingest.containers import unpack_container
from stages.ingest.fetch import Located, locate
from stages.ingest.records import Reader, ReportSkip
from stages.ingest.split_archives import grouped_parts, is_archive
from visage.atomic import atomic_write
from visage.photo_files import files_under

CHUNK_BYTES = 1 << 20
PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One entry of the plan: an archive (its parts), a container (it has a reader), or a folder or
    file to link. `key` changes with its content."""

    name: str
    key: str
    paths: tuple[Path, ...]
    is_archive: bool
    reader: Reader | None


def fill_raw(
    locations: Sequence[str],
    sha256: Mapping[str, str],
    budget: Budget,
    raw_dir: Path,
    fetched_dir: Path,
    skip: ReportSkip,
    containers: Mapping[str, Reader],
) -> None:
    """Fills `raw_dir` from `locations`, each named file checked against `sha256` first."""
    located: list[Located] = []
    for location in locations:
        located += locate(location, fetched_dir, budget)
    if containers:
        wanted: list[Located] = []
        for found in located:
            wanted += _container_files(found, containers)
        located = wanted

    steps = _plan(located, sha256, containers)
    _begin(raw_dir, sorted([step.name, step.key] for step in steps))

    for step in steps:
        fill = _unpack_once if step.is_archive or step.reader is not None else _link
        fill(step, raw_dir, budget, skip)


def empty(raw_dir: Path) -> None:
    """Removes what download has put into `raw_dir`; ValueError if it did not fill this folder."""
    if raw_dir.exists() and any(raw_dir.iterdir()):
        if not (raw_dir / CONTROL).is_dir():
            raise ValueError(
                f"{raw_dir}: holds files that download did not put there; move them away"
            )
        shutil.rmtree(raw_dir)
    (raw_dir / CONTROL).mkdir(parents=True, exist_ok=True)


def file_sha256(path: Path) -> str:
    """The checksum of a file, with a progress bar where it takes long."""
    digest = hashlib.sha256()
    bar = tqdm(
        total=path.stat().st_size,
        unit="B",
        unit_scale=True,
        desc=f"sha256 {path.name}",
        delay=2,
    )

    with bar, path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _container_files(found: Located, containers: Mapping[str, Reader]) -> list[Located]:
    """A location's containers, and its archive if it is one; the other files of a folder are not
    wanted."""
    if found.path.is_file():
        is_wanted = is_archive(found.name) or found.path.suffix in containers
        return [found] if is_wanted else []

    names = [name for name in files_under(found.path) if Path(name).suffix in containers]
    return [Located(name=Path(name).name, path=found.path / name) for name in names]


def _plan(
    located: Sequence[Located], sha256: Mapping[str, str], containers: Mapping[str, Reader]
) -> list[Step]:
    files = [found for found in located if found.path.is_file()]
    unknown = sorted(set(sha256) - {found.name for found in files})
    if unknown:
        names = sorted({found.name for found in files})
        raise ValueError(f"sha256 names {unknown[0]!r}, but the locations give only {names}")
    hashes = {found.path: _checked_sha256(found, sha256) for found in files}

    steps: list[Step] = []
    archives = [found.path for found in files if is_archive(found.name)]
    for name, parts in grouped_parts(archives):
        archive = Step(
            name=name,
            key="+".join(hashes[part] for part in parts),
            paths=tuple(parts),
            is_archive=True,
            reader=None,
        )
        steps.append(archive)
    for found in located:
        if found.path in hashes and is_archive(found.name):
            continue
        key = hashes[found.path] if found.path in hashes else _listing_key(found.path)
        other = Step(
            name=found.name,
            key=key,
            paths=(found.path,),
            is_archive=False,
            reader=containers.get(found.path.suffix),
        )
        steps.append(other)

    named = [step.name for step in steps if step.reader is not None]
    if len(set(named)) < len(named):
        raise ValueError(
            f"two containers are named {max(named, key=named.count)}; give one another name"
        )
    return steps


def _listing_key(folder: Path) -> str:
    """Changes when a file below the folder comes, goes or changes its size."""
    digest = hashlib.sha256()
    for name in files_under(folder):
        num_bytes = (folder / name).stat().st_size
        digest.update(f"{name}\0{num_bytes}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _checked_sha256(found: Located, sha256: Mapping[str, str]) -> str:
    digest = file_sha256(found.path)
    if found.name in sha256 and sha256[found.name].lower() != digest:
        raise ValueError(
            f"{found.path}: sha256 expected {sha256[found.name]}, found {digest}; fetch the file "
            "again, or correct download.<role>.sha256 if you trust it"
        )
    return digest


def begin_parts(raw_dir: Path, names: Sequence[str]) -> None:
    """Prepares `raw_dir` for several sets, each in the folder of its name; what it held as one set
    is removed."""
    _begin(raw_dir, [["parts", *names]])


def _begin(raw_dir: Path, entries: list[list[str]]) -> None:
    """Empties `raw_dir` unless everything in it comes from the plan of these entries, then notes
    the plan."""
    plan = raw_dir / CONTROL / PLAN
    before = json.loads(plan.read_text(encoding="utf-8")) if plan.is_file() else None
    if before is None or any(entry not in entries for entry in before):
        empty(raw_dir)
    _write(plan, entries)


def _write(path: Path, document: Any) -> None:
    with atomic_write(path) as part:
        part.write_text(json.dumps(document, indent=1), encoding="utf-8")


def _unpack_once(step: Step, raw_dir: Path, budget: Budget, skip: ReportSkip) -> None:
    note = raw_dir / CONTROL / f"{hashlib.sha256(step.key.encode()).hexdigest()[:16]}.json"
    if note.is_file():
        done = json.loads(note.read_text(encoding="utf-8"))
        budget.num_files += done["num_files"]
        budget.num_bytes += done["num_bytes"]
    else:
        mark = note.with_suffix(".part.json")
        if step.reader is not None:
            unpacked = unpack_container(step.paths[0], step.reader, raw_dir, mark, budget)
        else:
            unpacked = unpack(step.name, step.paths, raw_dir, budget)

        done = {
            "name": step.name,
            "num_files": unpacked.num_files,
            "num_bytes": unpacked.num_bytes,
            "skipped": unpacked.skipped,
        }
        _write(note, done)
        mark.unlink(missing_ok=True)

    for photo_id, reason in done["skipped"]:
        skip(photo_id, reason)


def _link(step: Step, raw_dir: Path, budget: Budget, skip: ReportSkip) -> None:
    (path,) = step.paths
    placer = Placer(raw_dir)
    if path.is_file():
        _link_file(path, path.name, placer, budget)
        return

    if raw_dir.resolve().is_relative_to(path.resolve()):
        raise ValueError(
            f"{path}: holds the raw folder {raw_dir} itself; give the photos' own folder"
        )

    for name in tqdm(files_under(path), desc=f"link {step.name}", unit=" files", mininterval=1):
        photo_id = f"{step.name}/{name}"
        if reason := odd_name(photo_id):
            skip(printable(photo_id), reason)
        else:
            _link_file(path / name, photo_id, placer, budget)


def _link_file(source: Path, photo_id: str, placer: Placer, budget: Budget) -> None:
    budget.add(photo_id, source.stat().st_size)
    target = placer.target(photo_id)
    if target.exists() and target.samefile(source):
        return

    if not os.path.lexists(target):
        try:
            os.link(os.path.realpath(source), target)
            return
        except OSError:
            # Another device, a file system without links, someone else's file: copy
            pass
    with source.open("rb") as content:
        placer.place(photo_id, content)
