"""One trial of a sweep: stages.finetune on shared faces, with each epoch reported to Tune as it
ends. Runs in Ray's workers.

A trial's folder holds its checkpoints and epochs.csv (a row for each epoch that ended), and at the
end history.csv and the model. A trial can resume on any node. It continues after its last epoch, or
starts over where no checkpoint can be read.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from flows.pipeline.file_lock import Locked, file_lock
from flows.sweep.space import Plan
from stages.exit_status import ExitStatus, exit_status_of
from stages.finetune import FinetuneSettings, finetune
from visage.atomic import atomic_write
from visage.data.face_table import FaceTable
from visage.training.checkpoint import BrokenCheckpoint
from visage.training.loop import Diverged

# In a trial's folder.
EPOCHS = "epochs.csv"
HISTORY = "history.csv"
MODEL = "model"
CHECKPOINTS = "checkpoints"

# Keys of what a trial reports to Tune.
EPOCH = "epoch"
METRIC = "val_mae"
DIVERGED = "diverged"
NO_OTHER_TRY = "no_other_try"

VALUES = "values"  # key of a trial's config
LEAST_BYTES = 4_000_000  # a file that did not fit may leave some free
TuneReport = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class TrialPaths:
    """The trial's own folder, the sweep's copies of the models that it can start from, and the
    folder of the faces (for messages alone)."""

    folder: Path
    backbone: Path
    start: Path
    faces: Path


def trial(
    config: Mapping[str, Any],
    *,
    plan: Plan,
    folder: Path,
    faces: Path,
    tables: Mapping[str, FaceTable],
) -> None:
    """The function that Tune starts: a trial of these values, on its own cores, in its own
    folder."""
    from ray import tune

    pin(plan.settings.cpus_per_trial)
    torch.set_num_threads(max(1, int(plan.settings.cpus_per_trial)))
    own = folder / tune.get_context().get_trial_id()
    paths = TrialPaths(
        folder=own,
        backbone=folder / "backbone",
        start=folder / "start",
        faces=faces,
    )

    try:
        # Many trials run at once: their progress bars would overwrite each other.
        with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
            settings = plan.trial_settings(config[VALUES])
            run_trial(settings, plan.max_epochs, paths, tables, tune.report)
    except Exception as error:
        reason = for_a_person(error, own)
        if reason:
            # As a result: Tune would write an error to a file, and the disk may be full.
            tune.report({METRIC: float("nan"), NO_OTHER_TRY: reason})
        raise


def for_a_person(error: BaseException, folder: Path) -> str | None:
    """The message of an error that other trials would meet too, such as missing rights or a full
    disk; None for other errors."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and exit_status_of(cause) is ExitStatus.REFUSED:
            return str(cause)
        cause = cause.__cause__ or cause.__context__

    # torch's own error on a full disk does not say so, so the disk is asked.
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < LEAST_BYTES:
        return f"{folder}: {os.strerror(errno.ENOSPC)} ({free_bytes} bytes are free): {error}"
    return None


def run_trial(
    settings: FinetuneSettings,
    max_epochs: int,
    paths: TrialPaths,
    tables: Mapping[str, FaceTable],
    report: TuneReport,
) -> None:
    """Trains the trial, from its last epoch on. `report` gets the figures of each epoch; those of
    an epoch that diverged are NaN."""
    reporter = TuneReporter(paths.folder, max_epochs, report)
    reporter.report_last_again()

    def open_faces(_folder: Path, splits: Sequence[str], _cache_mb: int) -> FaceTable:
        [split] = splits
        return tables[split]

    def train() -> None:
        finetune(
            settings,
            faces=paths.faces,
            backbone=paths.backbone,
            start=paths.start,
            checkpoints=paths.folder / CHECKPOINTS,
            model=paths.folder / MODEL,
            history=paths.folder / HISTORY,
            report=reporter.epoch,
            open_faces=open_faces,
        )

    try:
        try:
            train()
        except BrokenCheckpoint as error:
            # finetune tried the checkpoint of the epoch before, too.
            print(f"{error}: removed", flush=True)
            shutil.rmtree(paths.folder / CHECKPOINTS)
            train()
    except Diverged as error:
        print(error, flush=True)
        report({METRIC: float("nan"), DIVERGED: str(error)})
        return
    reporter.last(pd.read_csv(paths.folder / HISTORY))


class TuneReporter:
    """Reports a trial's epochs to Tune, and writes them to the trial's folder."""

    def __init__(self, folder: Path, max_epochs: int, report: TuneReport) -> None:
        self._folder = folder
        self._max_epochs = max_epochs
        self._report = report

        self._rows: dict[int, dict[str, float]] = {}
        if (folder / EPOCHS).is_file():
            for row in pd.read_csv(folder / EPOCHS).to_dict("records"):
                self._rows[int(row[EPOCH])] = {str(name): value for name, value in row.items()}

    def report_last_again(self) -> None:
        """Reports the last epoch of an earlier run again: Tune's decision on it may be lost."""
        if self._rows and max(self._rows) < self._max_epochs:
            self._report_epoch(max(self._rows))

    def epoch(self, step: int, row: Mapping[str, float]) -> None:
        """Writes the epoch down, and reports it unless it is the last one."""
        self._rows[step] = dict(row)
        rows = [self._rows[number] for number in sorted(self._rows)]
        with atomic_write(self._folder / EPOCHS) as part:
            pd.DataFrame(rows).to_csv(part, index=False)

        # Tune ends a trial at its last epoch, so that one waits until the model is written.
        if step < self._max_epochs:
            self._report_epoch(step)

    def last(self, history: pd.DataFrame) -> None:
        """Reports the last epoch, after the model was written."""
        step = int(history[EPOCH].iloc[-1])
        self._rows[step] = {str(name): float(value) for name, value in history.iloc[-1].items()}
        self._report_epoch(step)

    def _report_epoch(self, step: int) -> None:
        self._report(self._rows[step] | {EPOCH: step})


# -------------------------------------------------------------------------------
# Cores
# -------------------------------------------------------------------------------


class Cores:
    """Cores that this process has for itself among the trials of its machine, by a lock file for
    each core. The system releases the locks when the process ends, also after a kill."""

    def __init__(self) -> None:
        self._cores: set[int] = set()
        self._locks = ExitStack()

    def take(self, number: int) -> list[int]:
        """`number` cores, first those that it has already; an empty list where too few are
        free."""
        folder = Path(tempfile.gettempdir()) / f"visage-cores-{os.getuid()}"
        folder.mkdir(exist_ok=True)

        for core in sorted(_allowed() - self._cores):
            if len(self._cores) >= number:
                break
            with suppress(Locked):
                self._locks.enter_context(file_lock(folder / str(core), wait=False))
                self._cores.add(core)

        if len(self._cores) < number:
            self.release()
        return sorted(self._cores)[:number]

    def release(self) -> None:
        self._locks.close()
        self._cores = set()


def _allowed() -> set[int]:
    """The cores of the process, not of this thread, which may be pinned already."""
    return os.sched_getaffinity(os.getpid())


_CORES = Cores()


def pin(num_cpus: float) -> list[int]:
    """Pins this thread, and those that it starts, to as many cores as it has CPUs; a fraction of a
    core is left to the system."""
    cores = _CORES.take(int(num_cpus)) if num_cpus >= 1 else []
    if cores:
        os.sched_setaffinity(0, cores)
    return cores
