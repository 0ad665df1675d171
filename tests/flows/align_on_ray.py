"""An align run on Ray in a process of its own, as a flow's driver is, and work functions that do
more than align.

    python -m tests.flows.align_on_ray FOLDER     # a Bench of tests/stages/test_align.py
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from flows.scale_out.align_ray import AlignOut, runner
from flows.scale_out.ray_cluster import connected
from stages import align as stage
from stages.align import Runner, Work
from stages.face_shards import AlignedPhotos, RowDict
from tests.stages.test_align import SETTINGS, Bench

SHARDED = dataclasses.replace(SETTINGS, shard_rows=8)
OUT = AlignOut(actors_min=1, actors_max=2, cpus_per_actor=1)
CHUNK_ROWS = 2
CHUNK_SECONDS = 0.2
FATAL = "set/5.jpg"
LAST = {f"set/{number}.jpg" for number in range(40, 48)}


def noted(log: Path, work: Work, rows: list[RowDict]) -> AlignedPhotos:
    """Logs which process takes which photos, and then waits, so that a test can end the process
    meanwhile: a little, and as long as there is a file `hold` next to the log, or for photos of the
    last shard `hold_last`."""
    photos = [row["photo_id"] for row in rows]
    with log.open("a") as file:
        file.write(" ".join([str(os.getpid()), *photos]) + "\n")

    time.sleep(CHUNK_SECONDS)
    is_last = any(row["photo_id"] in LAST for row in rows)
    while log.with_name("hold").exists() or (is_last and log.with_name("hold_last").exists()):
        time.sleep(CHUNK_SECONDS)
    return work(rows)


def fatal(work: Work, rows: list[RowDict]) -> AlignedPhotos:
    """Ends the process at one photo, as a fault in a decoder does."""
    if any(row["photo_id"] == FATAL for row in rows):
        os.abort()
    return work(rows)


def failing(work: Work, rows: list[RowDict]) -> AlignedPhotos:
    del work
    raise OSError(f"no such disk for {len(rows)} photos")


def big(log: Path, work: Work, rows: list[RowDict]) -> AlignedPhotos:
    """A megabyte in place of each face."""
    with log.open("a") as file:
        file.write(f"{rows[0]['photo_id']}\n")
    return AlignedPhotos(
        rejects=[(row["photo_id"], "x" * 2**20) for row in rows], num_read=bool(work)
    )


def through(wrap: functools.partial[AlignedPhotos], inner: Runner) -> Runner:
    """The runner, with each actor's work wrapped."""

    def run(work: Work, chunks: Iterable[list[RowDict]]) -> Iterator[AlignedPhotos]:
        return inner(functools.partial(wrap, work), chunks)

    return run


def main() -> None:
    folder = Path(sys.argv[1])
    stage.CHUNK_ROWS = CHUNK_ROWS
    note = functools.partial(noted, folder / "log")

    with connected():
        Bench(folder).align(SHARDED, runner=through(note, runner(OUT, folder / "scratch")))


if __name__ == "__main__":
    main()
