"""The driver of a sweep, a process of its own (flows/sweep/flow.py starts it):

    python -m flows.sweep.driver --faces F --backbone B --start S --results R

Opens the training and validation faces once and lays them into Ray's shared memory, has Tune run
the trials, and writes the results. What the trials write lies in a folder named by a digest of
settings, data and code: the same command takes up an unfinished sweep there, another one begins its
own.
"""

from __future__ import annotations

import argparse
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

# Read at their import. Tune: no tables in the terminal, no files of its loggers, its state on disk
# often (else 10 s), and an interrupt ends it, where it would return as if the sweep were done.
os.environ |= {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
}
os.environ |= {
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
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
from stages.settings import load_section
from visage.atomic import atomic_write
from visage.data.face_table import FaceTable
from visage.model_config import CONFIG_FILE, WEIGHTS_FILE
from visage.training.provenance import table_digest
from visage.weights import sha256_of

BACKBONE = ("backbone.safetensors", "backbone.json")
SPARE_BYTES = 200_000_000  # of the object store, beside the faces


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where finetune's faces and what it starts from lie, and where the results go."""

    params: Path
    faces: Path
    backbone: Path
    start: Path
    results: Path


def sweep(inputs: Inputs) -> None:
    """Runs the sweep of a params file, or the rest of it; ValueError, before anything starts, for
    one that cannot."""
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
    if SIGMA in plan.space and not np.isnan(tables["train"].sigma).any():
        print(f"{SIGMA} is left out: every training face has a sigma of its own", flush=True)
        plan = plan.without(SIGMA)
    folder = _folder(plan, inputs, tables)
    num_faces = len(tables["train"])
    shared = {split: tables.pop(split).shareable() for split in list(tables)}
    with (
        only_one(folder),
        connected(sum(table.num_bytes for table in shared.values()) + SPARE_BYTES),
    ):
        _refuse_what_does_not_fit(plan.settings)
        trainable = _trainable(plan, inputs, folder, shared)
        shared.clear()
        _recorded(plan, inputs, folder, trainable, num_faces)


def _folder(plan: Plan, inputs: Inputs, tables: Mapping[str, FaceTable]) -> Path:
    """The sweep's own folder, with a copy of what the trials start from: what happens in the
    working copy does not touch it."""
    base = plan.trial_settings({})
    files: list[Path] = []
    if base.init == "backbone":
        files = [inputs.backbone / name for name in BACKBONE]
    if base.init == "model":
        files = [inputs.start / name for name in (WEIGHTS_FILE, CONFIG_FILE)]
    parts = [
        json.dumps(
            [dataclasses.asdict(one) for one in (plan.settings, base)] + [sorted(plan.space)]
        )
    ]
    parts += [
        json.dumps([table_digest(table), table.alignment], sort_keys=True)
        for table in tables.values()
    ]
    names = names_in([dataclasses.asdict(one) for one in (plan.settings, base)])
    own_code = code_digest("stages.finetune:finetune", REPOSITORY, names)
    parts += [own_code, torch.__version__, *map(sha256_of, files)]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    folder = (Path(plan.settings.folder) / f"{base.name}-{digest}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        copies = "backbone" if base.init == "backbone" else "start"
        with atomic_write(folder / copies / file.name) as part:
            shutil.copyfile(file, part)
    return folder


def _refuse_what_does_not_fit(settings: SweepSettings) -> None:
    """ValueError where no node could ever run a trial: Tune would wait for one without end."""
    wanted = {"CPU": settings.cpus_per_trial, "GPU": settings.gpus_per_trial}
    nodes = [node["Resources"] for node in _nodes() if node["Alive"]]
    if not any(
        all(node.get(kind, 0) >= number for kind, number in wanted.items()) for node in nodes
    ):
        raise ValueError(
            f"sweep.cpus_per_trial is {settings.cpus_per_trial:g}, gpus_per_trial "
            f"{settings.gpus_per_trial:g}, and no "
            f"node has as many (all nodes together: {resources()}); lower them"
        )


def _nodes() -> list[dict[str, Any]]:
    untyped: Any = ray
    return list(untyped.nodes())


def _trainable(plan: Plan, inputs: Inputs, folder: Path, tables: Mapping[str, FaceTable]) -> Any:
    """The trial as Tune starts it; the tables lie in Ray's shared memory, once a node."""
    wanted = {"cpu": plan.settings.cpus_per_trial, "gpu": plan.settings.gpus_per_trial}
    given = tune.with_parameters(
        trial, plan=plan, folder=folder, faces=inputs.faces, tables=dict(tables)
    )
    return tune.with_resources(given, wanted)


def _recorded(plan: Plan, inputs: Inputs, folder: Path, trainable: Any, num_faces: int) -> None:
    """Tune's part and its results, in one run of MLflow."""
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
        started, before = time.monotonic(), epochs_in(folder)
        table = trials_table(
            plan, ended_trials(plan, folder, _tuner(plan, folder, trainable, parent).fit())
        )
        seconds, num_epochs = time.monotonic() - started, epochs_in(folder) - before
        throughput = {
            "seconds": seconds,
            "epochs": num_epochs,
            "faces_per_second": num_epochs * num_faces / seconds,
        }
        throughput["trials_per_hour"] = (
            num_epochs / max(1, table["epochs"].sum()) * len(table) * 3600 / seconds
        )
        write_results(plan, table, inputs.results)
    except BaseException:
        end_sweep(parent, {}, None)
        raise
    best = best_of(table)
    figures = {} if best is None else {"best_val_mae": best["last_val_mae"]}
    end_sweep(parent, throughput | figures, inputs.results)
    print(closing(plan, table, inputs.results, throughput), flush=True)


def _tuner(plan: Plan, folder: Path, trainable: Any, parent: str) -> tune.Tuner:
    """A new sweep, or the one that the folder holds: unfinished and failed trials are taken up."""
    space = parameters(plan)
    if tune.Tuner.can_restore(str(folder)) and any(folder.glob("experiment_state-*.json")):
        print("taking up the sweep that was begun here", flush=True)
        return tune.Tuner.restore(str(folder), trainable, param_space=space, resume_errored=True)
    scheduler = scheduler_of(plan)
    listeners: list[Any] = [
        Listener(parent=parent, max_epochs=plan.max_epochs, num_trials=plan.num_trials)
    ]
    listeners += [SchedulerState(scheduler)] if scheduler is not None else []
    run = tune.RunConfig(
        name=folder.name,
        storage_path=str(folder.parent),
        callbacks=listeners,
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=plan.settings.max_failures),
    )
    return tune.Tuner(
        trainable, param_space=space, tune_config=tune_config(plan, scheduler), run_config=run
    )


def main() -> None:
    """The command line; what the user can correct ends it with one line and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.sweep.driver", description=__doc__.split("\n", 1)[0]
    )
    for name in ("params", "faces", "backbone", "start", "results"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for logger in (
        "ray.tune.analysis.experiment_analysis",
        "optuna",
    ):  # it misses the loggers' files
        logging.getLogger(logger).setLevel(logging.ERROR)
    inputs = Inputs(**{name: path.absolute() for name, path in vars(parser.parse_args()).items()})
    try:
        sweep(inputs)
    except Exception as error:
        message = _for_the_user(error)
        if message is None:
            raise
        print(f"flows.sweep.flow: {message}", file=sys.stderr)
        raise SystemExit(2) from error


def _for_the_user(error: BaseException | None) -> str | None:
    """The words of what a person can correct, by itself or as what another error came from."""
    while error is not None:
        refused = isinstance(error, OSError) and exit_status_of(error) is ExitStatus.REFUSED
        if refused or isinstance(error, ValueError | Busy | NoCluster | SweepStopped):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


if __name__ == "__main__":
    main()
