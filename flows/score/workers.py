"""Makes shards in several processes, each of which loads the model once.

If a process ends over a photo (a decoder's bug, no memory left), or is silent for too long, only
that photo is lost: its shard is done again photo by photo, and the photo that caused the failure
becomes a reject with its reason. Pools of the standard library cannot show which work ended a
process, and cannot end one that hangs.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait

from flows.score.shards import Job, ModelFolder, PhotoFailed, Scorer, ScoreSettings
from visage.parallel import die_with_parent

# Silent processes are checked this often.
LOOK_S = 0.5


def make_shards(
    photos: str, model: ModelFolder, settings: ScoreSettings, jobs: Iterable[Job]
) -> Iterator[Job]:
    """Makes shards; yields each job when its file is written."""
    if settings.num_workers:
        yield from _in_processes(photos, model, settings, iter(jobs))
    else:
        scorer = Scorer(photos, model, settings)
        yield from (_made(scorer, job) for job in jobs)


def _made(scorer: Scorer, job: Job) -> Job:
    while True:
        try:
            scorer.write(job, lambda _: None)
            return job
        except PhotoFailed as error:
            job = job.blaming(error.place, error.reason)


class Worker:
    """One process and its present job.

    The process sends pairs: "photo" (begun), "made", "failed" or "error", each with a value.
    """

    job: Job
    # Of the photo that was begun last.
    place: int | None
    heard_s: float

    def __init__(self, photos: str, model: ModelFolder, settings: ScoreSettings) -> None:
        context = get_context("forkserver")
        # So that torch is imported once, not once in each process.
        context.set_forkserver_preload(["visage.detection.mtcnn"])

        self.patience_s = settings.max_photo_seconds
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_work,
            args=(theirs, photos, model, settings),
            daemon=True,
        )
        self.process.start()
        theirs.close()

    def give(self, job: Job) -> None:
        self.job = job
        self.place = None
        self.heard_s = time.monotonic()
        # A process that is gone is found by `news`.
        with suppress(OSError):
            self.connection.send(job)

    def news(self) -> tuple[str, str] | None:
        """The end of the job, with the reason; None while the process works on it."""
        try:
            while self.connection.poll():
                kind, value = self.connection.recv()
                self.heard_s = time.monotonic()
                if kind != "photo":
                    return kind, value
                self.place = value
        except (EOFError, OSError):
            self.process.join()
            return "ended", f"the process that looked at it ended ({_cause(self.process.exitcode)})"

        if self.place is not None and time.monotonic() - self.heard_s > self.patience_s:
            return "ended", f"looking at it took more than {self.patience_s:g} seconds"
        return None

    def blamed(self, reason: str) -> Job:
        """The job for the next try."""
        if self.place is None:
            raise ValueError(f"{self.job.path}: a process failed before its first photo: {reason}")
        return self.job.blaming(self.place, reason)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"signal {-exitcode}"
    return f"exit status {exitcode}"


def _in_processes(
    photos: str, model: ModelFolder, settings: ScoreSettings, jobs: Iterator[Job]
) -> Iterator[Job]:
    busy: list[Worker] = []
    idle: list[Worker] = []
    again: deque[Job] = deque()

    try:
        while True:
            while len(busy) < settings.num_workers:
                job = again.popleft() if again else next(jobs, None)
                if job is None:
                    break
                worker = idle.pop() if idle else Worker(photos, model, settings)
                busy.append(worker)
                worker.give(job)
            if not busy:
                return

            wait([worker.connection for worker in busy], LOOK_S)
            news_of = [(worker, news) for worker in busy if (news := worker.news())]
            for worker, (kind, reason) in news_of:
                busy.remove(worker)
                if kind == "ended":
                    worker.stop()
                else:
                    idle.append(worker)

                if kind == "error":
                    raise ValueError(reason)
                if kind == "made":
                    yield worker.job
                else:
                    again.append(worker.blamed(reason))
    finally:
        for worker in busy + idle:
            worker.stop()


def _work(connection: Connection, photos: str, model: ModelFolder, settings: ScoreSettings) -> None:
    """A process: makes shards as they come, until the run ends."""
    # Ctrl-C is handled by the run's own process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()

    try:
        scorer = Scorer(photos, model, settings)
        while True:
            try:
                scorer.write(connection.recv(), lambda place: connection.send(("photo", place)))
                connection.send(("made", ""))
            except PhotoFailed as error:
                connection.send(("failed", error.reason))
    except ValueError as error:
        connection.send(("error", str(error)))
