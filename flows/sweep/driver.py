"""The driver of a sweep, a process of its own (flows/sweep/flow.py starts it):

    python -m flows.sweep.driver --faces F --backbone B --start S --results R

It opens the training and validation faces once and puts them into Ray's shared memory. Tune runs
the trials, and the driver writes the results. The trials write to a folder named by a digest of
settings, data and code: the same command resumes an unfinished sweep there, and a command with
other settings, data or code starts a new sweep.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Ray and Tune read these when they are imported, so they are set first.
os.environ |= {
    # No tables in the terminal, and no files of Tune's own loggers.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune writes its state every second (10 s by default), without a warning about it.
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # An interrupt ends Tune; its own handler would return as if the sweep were done.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}

import numpy as np
import ray
import torch
from ray import tune

from flows.pipeline.workspace import Busy, only_one
from flows.scale_out.ray_cluster import NoCluster, connected, resources
from flows.sweep.results import (
    best_of,
    closing,
    ended_trials,
    epochs_in,
    trials_table,
    write_results,
)
from flows.sweep.search import (
    Listener,
    SchedulerState,
    SweepStopped,
    parameters,
    scheduler_of,
    tune_config,
)
from flows.sweep.space import SIGMA, Plan, SweepSettings, planned
from flows.sweep.trial import trial
from model_registry.sweep_runs import end_sweep, open_sweep
from stages.code import REPOSITORY, code_digest, names_in
from stages.exit_status import ExitStatus, exit_status_of
from stages.presets import read_params
from stages.settings import given_paths, load_section
from visage.atomic import atomic_write
from visage.data.face_table import FaceTable
from visage.model_config import CONFIG_FILE, WEIGHTS_FILE
from visage.training.provenance import table_digest
from visage.weights import sha256_of

BACKBONE = ("backbone.safetensors", "backbone.json")
SPARE_BYTES = 200_000_000  # of the object store, in addition to the faces
# The first one misses the files of Tune's loggers, which are switched off above.
NOISY_LOGGERS = ("ray.tune.analysis.experiment_analysis", "optuna")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The folders of finetune's faces and of the models that it can start from, and the one for the
    results."""

    params: Path
    faces: Path
    backbone: Path
    start: Path
    results: Path


def sweep(inputs: Inputs) -> None:
    """Runs the sweep of a params file, or the rest of it.

    Errors: ValueError, before anything starts, for a sweep that cannot run.
    """
    plan = planned(
        read_params(inputs.params),
        load_section(inputs.params, "sweep", SweepSettings),
        str(inputs.params),
    )
    base = plan.trial_settings({})

    tables = {
        split: FaceTable.open(inputs.faces, [split], base.cache_mb) for split in ("train", "val")
    }
    if len(tables["val"]) == 0:
        raise ValueError(
            f"{inputs.faces}: no validation faces, by which a sweep chooses; give the split a "
            f"val_fraction"
        )
    # fixed_sigma is only for faces without a sigma of their own.
    if SIGMA in plan.space and not np.isnan(tables["train"].sigma).any():
        print(f"{SIGMA} is left out: every training face has a sigma of its own", flush=True)
        plan = plan.without(SIGMA)

    folder = _folder(plan, inputs, tables)
    num_faces = len(tables["train"])
    # Each table leaves memory as soon as its shareable copy exists.
    shared = {split: tables.pop(split).shareable() for split in list(tables)}
    num_bytes = sum(table.num_bytes for table in shared.values())

    with only_one(folder), connected(num_bytes + SPARE_BYTES):
        _refuse_what_does_not_fit(plan.settings)
        trainable = _trainable(plan, inputs, folder, shared)
        shared.clear()
        _run_and_record(plan, inputs, folder, trainable, num_faces)


def _folder(plan: Plan, inputs: Inputs, tables: Mapping[str, FaceTable]) -> Path:
    """The sweep's own folder, with a copy of what the trials start from: later changes in the
    working copy do not reach it."""
    base = plan.trial_settings({})
    files: list[Path] = []
    if base.init == "backbone":
        files = [inputs.backbone / name for name in BACKBONE]
    if base.init == "model":
        files = [inputs.start / name for name in (WEIGHTS_FILE, CONFIG_FILE)]

    sections = [dataclasses.asdict(plan.settings), dataclasses.asdict(base)]
    parts = [json.dumps([*sections, sorted(plan.space)])]
    parts += [
        json.dumps([table_digest(table), table.alignment], sort_keys=True)
        for table in tables.values()
    ]
    # Another setting, face, weight or code is another sweep: the folder of this one stays.
    own_code = code_digest("stages.finetune:finetune", REPOSITORY, names_in(sections))
    parts += [own_code, torch.__version__, *map(sha256_of, files)]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    folder = (Path(plan.settings.folder) / f"{base.name}-{digest}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    copies = "backbone" if base.init == "backbone" else "start"
    for file in files:
        with atomic_write(folder / copies / file.name) as part:
            shutil.copyfile(file, part)

    return folder


def _refuse_what_does_not_fit(settings: SweepSettings) -> None:
    """ValueError where no node could ever run a trial: Tune would wait for one without end."""
    wanted = {"CPU": settings.cpus_per_trial, "GPU": settings.gpus_per_trial}

    for node in _nodes():
        has = node["Resources"]
        if node["Alive"] and all(has.get(kind, 0) >= number for kind, number in wanted.items()):
            return

    raise ValueError(
        f"sweep.cpus_per_trial is {settings.cpus_per_trial:g}, gpus_per_trial "
        f"{settings.gpus_per_trial:g}, and no node has as many (all nodes together: "
        f"{resources()}); lower them"
    )


def _nodes() -> list[dict[str, Any]]:
    untyped: Any = ray
    return list(untyped.nodes())


def _trainable(plan: Plan, inputs: Inputs, folder: Path, tables: Mapping[str, FaceTable]) -> Any:
    """The trial as Tune starts it; the tables are in Ray's shared memory, once per node."""
    wanted = {"cpu": plan.settings.cpus_per_trial, "gpu": plan.settings.gpus_per_trial}
    given = tune.with_parameters(
        trial,
        plan=plan,
        folder=folder,
        faces=inputs.faces,
        tables=dict(tables),
    )
    return tune.with_resources(given, wanted)


def _run_and_record(
    plan: Plan, inputs: Inputs, folder: Path, trainable: Any, num_faces: int
) -> None:
    """Runs the trials and writes their results, in one MLflow run."""
    about = {
        "sweep": dataclasses.asdict(plan.settings),
        "finetune": dataclasses.asdict(plan.trial_settings({})),
    }
    parent = open_sweep(plan.settings.experiment, folder.name, about)
    print(
        f"MLflow: experiment {plan.settings.experiment}, run {parent}; the trials write to "
        f"{folder}",
        flush=True,
    )

    try:
        started = time.monotonic()
        epochs_before = epochs_in(folder)
        results = _tuner(plan, folder, trainable, parent).fit()
        table = trials_table(plan, ended_trials(plan, folder, results))

        seconds = time.monotonic() - started
        num_epochs = epochs_in(folder) - epochs_before
        # A resumed sweep ran only part of its trials' epochs: it gets that share of the trials.
        share = num_epochs / max(1, table["epochs"].sum())
        throughput = {
            "seconds": seconds,
            "epochs": num_epochs,
            "faces_per_second": num_epochs * num_faces / seconds,
            "trials_per_hour": share * len(table) * 3600 / seconds,
        }
        write_results(plan, table, inputs.results)
    except BaseException:
        end_sweep(parent, {}, None)
        raise

    best = best_of(table)
    figures = {} if best is None else {"best_val_mae": best["last_val_mae"]}
    end_sweep(parent, throughput | figures, inputs.results)
    print(closing(plan, table, inputs.results, throughput), flush=True)


def _tuner(plan: Plan, folder: Path, trainable: Any, parent: str) -> tune.Tuner:
    """A new sweep, or the one that the folder holds, whose unfinished and failed trials resume."""
    space = parameters(plan)
    if tune.Tuner.can_restore(str(folder)) and any(folder.glob("experiment_state-*.json")):
        print("resuming the sweep in this folder", flush=True)
        return tune.Tuner.restore(str(folder), trainable, param_space=space, resume_errored=True)

    scheduler = scheduler_of(plan)
    listeners: list[Any] = [
        Listener(parent=parent, max_epochs=plan.max_epochs, num_trials=plan.num_trials)
    ]
    if scheduler is not None:
        listeners.append(SchedulerState(scheduler))
    run = tune.RunConfig(
        name=folder.name,
        storage_path=str(folder.parent),
        callbacks=listeners,
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=plan.settings.max_failures),
    )

    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune_config(plan, scheduler),
        run_config=run,
    )


def main() -> None:
    """The command line; what the user can correct ends it with one line and exit status 2."""
    given = given_paths("flows.sweep.driver", [field.name for field in dataclasses.fields(Inputs)])
    for logger in NOISY_LOGGERS:
        logging.getLogger(logger).setLevel(logging.ERROR)

    try:
        sweep(Inputs(**given))
    except Exception as error:
        message = _for_the_user(error)
        if message is None:
            raise
        print(f"visage sweep: {message}", file=sys.stderr)
        raise SystemExit(2) from error


def _for_the_user(error: BaseException | None) -> str | None:
    """The message of the first error in the chain of causes that a person can correct; None where
    there is none."""
    while error is not None:
        refused = isinstance(error, OSError) and exit_status_of(error) is ExitStatus.REFUSED
        if refused or isinstance(error, ValueError | Busy | NoCluster | SweepStopped):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


if __name__ == "__main__":
    main()
