"""A container file (one photo in a record, in a format of its data set's own) becomes plain files
below the raw folder.

The data set's `Reader` (see records.py) says where each record ends, so a killed unpacking goes on
at the last mark: `<key>.part.json` in download's own folder, written every MARK_RECORDS records and
removed at the end. A record is listed where it is damaged, its name is impossible, or other bytes
have its place; a container without any photo is an error.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stages.ingest.archives import Budget, Placer, Unpacked, odd_name, safe_name
from stages.ingest.records import Reader, Record
from visage.atomic import atomic_write

MARK_RECORDS = 10_000


def unpack_container(
    path: Path, reader: Reader, raw_dir: Path, mark: Path, budget: Budget
) -> Unpacked:
    """Unpacks the container `path` into `raw_dir`, from `mark` on where that is there; ValueError
    names the file."""
    position, done = _read_mark(mark, budget)
    placer = Placer(raw_dir)

    bar = tqdm(
        total=path.stat().st_size,
        initial=position,
        unit="B",
        unit_scale=True,
        desc=f"unpack {path.name}",
    )
    records = reader(path, position, budget.limits.max_photo_bytes)
    with bar:
        for number, record in enumerate(records, start=1):
            _take(record, placer, budget, done)
            bar.update(record.end - bar.n)
            if number % MARK_RECORDS == 0:
                _write_mark(mark, {"position": record.end, "done": asdict(done)})

    if not done.num_files:
        why = f"; the first record: {done.skipped[0][1]}" if done.skipped else ""
        raise ValueError(f"{path}: holds no photo that its source can read{why}")
    return done


def _take(record: Record, placer: Placer, budget: Budget, done: Unpacked) -> None:
    reason = record.reason or _place(record, placer, budget)
    if reason is not None:
        done.skipped.append((record.name, reason))
    else:
        budget.add(record.name, len(record.photo))
        done.num_files += 1
        done.num_bytes += len(record.photo)


def _place(record: Record, placer: Placer, budget: Budget) -> str | None:
    """Writes a record's photo; the reason where that cannot be."""
    limit = budget.limits.max_photo_bytes
    if len(record.photo) > limit:
        return f"{len(record.photo)} bytes, over limits.max_photo_bytes {limit}"

    try:
        if reason := odd_name(safe_name(record.name)):
            return reason
        placer.place(record.name, io.BytesIO(record.photo))
    except ValueError as error:
        # Another record has its name
        return str(error)
    return None


def _read_mark(mark: Path, budget: Budget) -> tuple[int, Unpacked]:
    if not mark.is_file():
        return 0, Unpacked()

    noted = json.loads(mark.read_text(encoding="utf-8"))
    done = Unpacked(**noted["done"])
    budget.num_files += done.num_files
    budget.num_bytes += done.num_bytes

    return int(noted["position"]), done


def _write_mark(mark: Path, noted: Any) -> None:
    with atomic_write(mark) as part:
        part.write_text(json.dumps(noted), encoding="utf-8")
