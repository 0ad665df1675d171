"""One trial of a sweep: stages.finetune on shared faces, its epochs reported to Tune as they end.
Runs in Ray's workers.

A trial's folder holds its checkpoints, epochs.csv (a row for every epoch that ended), and at its
end history.csv and the model. A trial that is taken up again, on whichever node, goes on after its
last epoch; without a checkpoint that can be read it starts over.
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

EPOCHS, HISTORY, MODEL, CHECKPOINTS = "epochs.csv", "history.csv", "model", "checkpoints"
NO_OTHER_TRY = "no_other_try"
LEAST_BYTES = 4_000_000  # a file that did not fit may leave some free
METRIC, DIVERGED, EPOCH, VALUES = "val_mae", "diverged", "epoch", "values"
TuneReport = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class TrialPaths:
    """The trial's own folder, the sweep's copies of what it starts from, and where the faces lie
    (for messages alone)."""

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
    """What Tune starts: the trial of these values, on its own cores, in its own folder."""
    from ray import tune

    pin(plan.settings.cpus_per_trial)
    torch.set_num_threads(max(1, int(plan.settings.cpus_per_trial)))
    own = folder / tune.get_context().get_trial_id()
    paths = TrialPaths(
        folder=own, backbone=folder / "backbone", start=folder / "start", faces=faces
    )
    try:
        with (
            Path(os.devnull).open("w") as nowhere,
            redirect_stderr(nowhere),
        ):  # progress bars of many trials at once
            run_trial(
                plan.trial_settings(config[VALUES]), plan.max_epochs, paths, tables, tune.report
            )
    except Exception as error:
        if reason := for_a_person(
            error, own
        ):  # as figures: an error would be written down, and there may be no room
            tune.report({METRIC: float("nan"), NO_OTHER_TRY: reason})
        raise


def for_a_person(error: BaseException, folder: Path) -> str | None:
    """The words of an error that other trials would meet, too: missing rights, a full disk. torch's
    own error on a full disk does not say so; the disk does."""
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(before)
    for one in chain:
        if isinstance(one, OSError) and exit_status_of(one) is ExitStatus.REFUSED:
            return str(one)
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
    """Trains the trial, from where it was; `report` gets each epoch's figures, a diverged one's
    as not a number."""
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
            print(f"{error}: removed", flush=True)
            shutil.rmtree(paths.folder / CHECKPOINTS)
            train()
    except Diverged as error:
        print(error, flush=True)
        report({METRIC: float("nan"), DIVERGED: str(error)})
        return
    reporter.last(pd.read_csv(paths.folder / HISTORY))


class TuneReporter:
    """Reports a trial's epochs to Tune, and keeps the trial's own record of them."""

    def __init__(self, folder: Path, max_epochs: int, report: TuneReport) -> None:
        self._folder, self._max_epochs, self._report = folder, max_epochs, report
        self._rows: dict[int, dict[str, float]] = {}
        if (folder / EPOCHS).is_file():
            for row in pd.read_csv(folder / EPOCHS).to_dict("records"):
                self._rows[int(row[EPOCH])] = {str(name): value for name, value in row.items()}

    def report_last_again(self) -> None:
        """The last epoch of an earlier start: what Tune decided on it may have been lost."""
        if self._rows and max(self._rows) < self._max_epochs:
            self._report_epoch(max(self._rows))

    def epoch(self, step: int, row: Mapping[str, float]) -> None:
        self._rows[step] = dict(row)
        with atomic_write(self._folder / EPOCHS) as part:
            pd.DataFrame([self._rows[number] for number in sorted(self._rows)]).to_csv(
                part, index=False
            )
        if (
            step < self._max_epochs
        ):  # the last one is reported when the model is written: Tune then ends the trial
            self._report_epoch(step)

    def last(self, history: pd.DataFrame) -> None:
        """The last epoch."""
        step = int(history[EPOCH].iloc[-1])
        self._rows[step] = {str(name): float(value) for name, value in history.iloc[-1].items()}
        self._report_epoch(step)

    def _report_epoch(self, step: int) -> None:
        self._report(self._rows[step] | {EPOCH: step})


# -------------------------------------------------------------------------------
# Cores
# -------------------------------------------------------------------------------


class Cores:
    """Cores that this process has for itself among the trials of its machine, by a locked file
    each; they are free again when it ends, however that comes about."""

    def __init__(self) -> None:
        self._cores: set[int] = set()
        self._locks = ExitStack()

    def take(self, number: int) -> list[int]:
        """`number` cores, those it has already first; the empty list where so many are not free."""
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
    """The cores of the process; a thread of it may be pinned already."""
    return os.sched_getaffinity(os.getpid())


_CORES = Cores()


def pin(num_cpus: float) -> list[int]:
    """This thread, and those it starts, on as many cores as it has CPUs; shares of a core are left
    to the system."""
    cores = _CORES.take(int(num_cpus)) if num_cpus >= 1 else []
    if cores:
        os.sched_setaffinity(0, cores)
    return cores
