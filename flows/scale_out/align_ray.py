"""The align stage's chunks over the actors of a Ray cluster: an `align.Runner` on Ray Data.

First, the chunks are written to small parquet files in a scratch folder, one file per task, so that
the driver holds no rows, whatever their number. Each actor runs the stage's own work with its own
detector. Ray Data returns the results in the chunks' order, and starts no more tasks than its share
of the object store can hold. A worker or node that dies is replaced, and its task runs again.

A photo that ends its process (a fault in a decoder, too little memory) would do so for ever. So
each chunk's start is noted in the scratch folder. After two deaths its photos are tried one by one,
and a photo that ends a process twice becomes a reject.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray import cloudpickle
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from stages.align import Runner, Work
from stages.face_shards import AlignedPhotos, RowDict
from visage.atomic import atomic_write_bytes

TASK_CHUNKS = 4  # per file: what an actor takes at a time, and what its death costs
READERS = 2  # processes that read task files
DEATHS = 2  # of workers at a chunk or a photo, before it is suspected
CHUNK_SCHEMA = pa.schema([("number", pa.int64()), ("rows", pa.string())])
PREFIX = "align-chunks-"
TASK_METADATA = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
ALL_PHOTOS = ""  # stands for the chunk itself among its photo_ids


class AlignStopped(RuntimeError):
    """Alignment on Ray cannot continue; the message says why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class AlignOut:
    """The smallest and the largest number of actors on the cluster, and the processors that one
    actor reserves (its work keeps one busy)."""

    actors_min: int
    actors_max: int
    cpus_per_actor: float

    def __post_init__(self) -> None:
        if not 1 <= self.actors_min <= self.actors_max:
            raise ValueError(
                f"actors_min is {self.actors_min}, actors_max {self.actors_max}: give 1 or more, "
                f"the larger one last"
            )

        if self.cpus_per_actor <= 0:
            raise ValueError(
                f"cpus_per_actor is {self.cpus_per_actor}: give more than 0 (1 is right for most "
                f"machines)"
            )


def runner(settings: AlignOut, scratch: Path) -> Runner:
    """For `stages.align.align(runner=)`, on the Ray that is connected; every node must see
    `scratch`.

    Errors, when it runs: AlignStopped (scratch folder full, a chunk that no worker survives, an
    error of the work).
    """

    def run(work: Work, chunks: Iterable[list[RowDict]]) -> Iterator[AlignedPhotos]:
        with _own_folder(scratch.resolve()) as folder:
            num_chunks = _write_tasks(chunks, folder / "tasks")
            if num_chunks:
                _check_fit(settings)
                yield from _results(settings, work, folder, num_chunks)

    return run


@contextmanager
def _own_folder(scratch: Path) -> Iterator[Path]:
    """An empty folder for this run, removed at its end; those of killed runs are removed first."""
    scratch.mkdir(parents=True, exist_ok=True)
    for stale in scratch.glob(f"{PREFIX}*"):
        shutil.rmtree(stale)

    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=scratch))
    try:
        for name in ("tasks", "marks"):
            (folder / name).mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_tasks(chunks: Iterable[list[RowDict]], tasks: Path) -> int:
    """Writes the chunks in order, TASK_CHUNKS to a file; returns how many chunks there are."""
    numbered = enumerate(chunks)
    num_chunks = 0

    for index in itertools.count():
        rows = [
            {"number": number, "rows": json.dumps(chunk)}
            for number, chunk in itertools.islice(numbered, TASK_CHUNKS)
        ]
        if not rows:
            return num_chunks

        num_chunks += len(rows)
        table = pa.Table.from_pylist(rows, schema=CHUNK_SCHEMA)
        try:
            pq.write_table(table, tasks / f"{index:07d}.parquet")
        except OSError as error:
            raise AlignStopped(
                f"{tasks.parents[1]}: the scratch folder takes no more than {index} files of rows "
                f"({error}); free about 200 bytes a photo there, or name another folder that every "
                f"node sees"
            ) from error

    raise AssertionError


def _check_fit(settings: AlignOut) -> None:
    """ValueError where no node can hold an actor: Ray would wait for one in silence."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    cpus = [node["Resources"].get("CPU", 0) for node in nodes if node["Alive"]]
    largest = max(cpus, default=0)

    if largest < settings.cpus_per_actor:
        raise ValueError(
            f"cpus_per_actor is {settings.cpus_per_actor}, and the largest node has {largest:g}: "
            f"give less"
        )


class TaskFiles(Datasource):
    """A task for each file. Ray's own parquet reader would open all files first, in a dozen
    processes."""

    def __init__(self, files: list[Path]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.files = files

    def estimate_inmemory_data_size(self) -> None:
        return None  # unknown

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        return [ReadTask(functools.partial(_read_task, path), TASK_METADATA) for path in self.files]


def _read_task(path: Path) -> list[pa.Table]:
    return [pq.read_table(path)]


def _results(
    settings: AlignOut, work: Work, folder: Path, num_chunks: int
) -> Iterator[AlignedPhotos]:
    """Sends the tasks through the actors; yields the results in the chunks' order."""
    _quieten()
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    files = sorted((folder / "tasks").iterdir())

    with ray.data.DataContext.current(context):
        # Reading reserves no processor: the actors may hold all of them, and it would wait for one
        # without end.
        data = ray.data.read_datasource(
            TaskFiles(files),
            override_num_blocks=len(files),
            num_cpus=0,
            concurrency=READERS,
        )
        data = data.map_batches(
            ChunkWorker,
            fn_constructor_args=[work, folder / "marks", Path.cwd()],
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=settings.actors_min, max_size=settings.actors_max
            ),
            num_cpus=settings.cpus_per_actor,
        )

    num_results = 0
    try:
        for row in data.iter_rows():
            number = row["number"]
            assert number == num_results, f"result {number} came in the place of {num_results}"
            num_results += 1
            result: AlignedPhotos | AlignStopped = cloudpickle.loads(row["result"])
            if isinstance(result, AlignStopped):
                raise result
            yield result
    except ray.exceptions.RayError as error:
        raise AlignStopped(
            f"Ray: {str(error).splitlines()[0]}; its logs and dashboard show more"
        ) from error

    assert num_results == num_chunks, f"{num_results} results of {num_chunks} chunks"


def _quieten() -> None:
    """In the terminal the stage's own bar shows the progress. Ray Data's warnings stay, and its log
    file has everything."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.WARNING)

    # It would warn that the progress bars are disabled.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)


class ChunkWorker:
    """An actor: chunks become results, by the work that the stage passed. `folder` is the driver's
    working directory, to which the paths are relative."""

    def __init__(self, work: Work, marks: Path, folder: Path) -> None:
        os.chdir(folder)
        self.work = work
        self.marks = marks

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One chunk (`number` (1,), `rows` (1,) as JSON) -> `number` (1,), `result` (1,), as Ray
        pickles.

        An error is a result too: the earlier chunks come back before it, and the user sees its
        message alone.
        """
        [number] = batch["number"]
        [rows] = batch["rows"]

        result: AlignedPhotos | AlignStopped
        try:
            result = survive(self.work, json.loads(rows), self.marks / f"{number}.json")
        except AlignStopped as error:
            result = error
        except Exception as error:
            result = AlignStopped(f"{type(error).__name__}: {error}")

        data: bytes = cloudpickle.dumps(result)  # type: ignore[no-untyped-call]
        return {"number": batch["number"], "result": np.array([data], dtype=object)}


def survive(work: Work, rows: list[RowDict], mark: Path) -> AlignedPhotos:
    """The chunk's result, in however many processes. The file `mark` says what earlier processes
    were working on when they died.

    The first DEATHS tries take all photos of the chunk at once; later tries look for photos that
    end the process. The other photos are then done together as before, so that a chunk that lost
    its workers for other reasons has the same bytes. Errors: AlignStopped where no single photo is
    the cause.
    """
    deaths: list[str] = json.loads(mark.read_text()) if mark.is_file() else []

    def marked(part: list[RowDict], name: str) -> AlignedPhotos:
        atomic_write_bytes(mark, json.dumps([*deaths, name]).encode())
        return work(part)

    counts = Counter(deaths)
    if counts[ALL_PHOTOS] >= 2 * DEATHS:
        raise AlignStopped(
            f"{len(deaths)} workers died at the photos from {rows[0]['photo_id']} to "
            f"{rows[-1]['photo_id']}, none at one of them alone: give an actor more memory (fewer "
            f"actors a node), or see Ray's logs for the reason"
        )

    fatal = {row["photo_id"] for row in rows if counts[row["photo_id"]] >= DEATHS}
    others = [row for row in rows if row["photo_id"] not in fatal]
    if counts[ALL_PHOTOS] >= DEATHS:
        for row in others:
            marked([row], row["photo_id"])

    aligned = marked(others, ALL_PHOTOS)
    aligned.rejects += [(photo_id, "ends the process that works on it") for photo_id in fatal]
    place = {row["photo_id"]: index for index, row in enumerate(rows)}
    aligned.rejects.sort(key=lambda reject: place[reject[0]])
    mark.unlink()
    return aligned
