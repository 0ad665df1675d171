"""Pre-training on Ray Train: a `stages.pretrain.Runner` of several processes, on a GPU each where
there are any.

A process that dies, alone or with its machine, ends its group. Ray starts the group again, with
fewer processes if there is no room for as many. The group continues from the checkpoint of the last
epoch, which is in a folder that all machines share. After an error that a person must correct (a
damaged checkpoint, a full disk) there is no other try.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.scale_out.ray_cluster import ADDRESS
from stages.exit_status import ExitStatus, exit_status_of
from stages.pretrain import Runner, Training
from stages.settings import Report
from visage.strict import check_range

REFUSED = "refused.txt"  # the message of an error that a person must correct
PROGRESS = "progress.jsonl"  # what the first process reports
LOOK_SECONDS = 1.0  # between two readings of PROGRESS


@dataclass(frozen=True, kw_only=True)
class PretrainOut:
    """How many processes train, and what each has.

    There are `min_workers` to `num_workers` processes, as many as there is room for. The training
    ends when processes are lost more than `max_failures` times. Every `resize_seconds` Ray looks
    for room for more processes; a resize costs the epoch that has begun. Where memory is short,
    `micro_batches` splits a process's share of a batch into parts whose gradients are added up.
    """

    min_workers: int
    num_workers: int
    cpus_per_worker: int
    gpus_per_worker: int
    max_failures: int
    resize_seconds: float
    micro_batches: int

    def __post_init__(self) -> None:
        if not 1 <= self.min_workers <= self.num_workers:
            raise ValueError(
                f"min_workers is {self.min_workers}: give 1 to num_workers, which is "
                f"{self.num_workers}"
            )

        check_range(
            self,
            cpus_per_worker=(1, None),
            gpus_per_worker=(0, None),
            max_failures=(0, None),
            resize_seconds=(1, None),
            micro_batches=(1, None),
        )


def runner(settings: PretrainOut, storage: Path) -> Runner:
    """Trains on the Ray that this process is connected to; `storage` is a scratch folder that all
    machines share.

    Errors: ValueError for what a person must correct, ConnectionError when more processes were lost
    than `max_failures`.
    """

    def run(training: Training, report: Report) -> None:
        folder = storage / "train"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        num_parts = max(settings.micro_batches, training.micro_batches)
        training = dataclasses.replace(training, micro_batches=num_parts)

        with _passing_on(folder / PROGRESS, report):
            _fit(settings, folder, training)

        shutil.rmtree(folder, ignore_errors=True)

    return run


def _fit(settings: PretrainOut, folder: Path, training: Training) -> None:
    from ray import train as untyped
    from ray.train.torch import TorchConfig, TorchTrainer

    train: Any = untyped
    use_gpu = settings.gpus_per_worker > 0
    has = {"CPU": settings.cpus_per_worker}
    if use_gpu:
        has["GPU"] = settings.gpus_per_worker
    _refuse_what_does_not_fit(settings, has)

    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "training": training,
            "folder": folder,
            "threads": settings.cpus_per_worker,
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=(settings.min_workers, settings.num_workers),
            use_gpu=use_gpu,
            resources_per_worker=has,
            elastic_resize_monitor_interval_s=settings.resize_seconds,
        ),
        run_config=train.RunConfig(
            name="ray",
            storage_path=str(folder),
            failure_config=train.FailureConfig(settings.max_failures),
        ),
    )

    failure = None
    try:
        with _own_cluster():
            trainer.fit()
    except train.TrainingFailedError as error:
        failure = error

    refusal = _refusal(folder, failure)
    if refusal:
        raise ValueError(refusal) from failure
    if failure is not None and _lost(failure):
        raise ConnectionError(
            f"{settings.max_failures + 1} times processes of the training were lost "
            f"({_last_line(failure)}); the epochs that were finished are kept in "
            f"{training.checkpoint}: when the cause is gone, run the same command again"
        ) from failure
    if failure is not None:
        raise failure


def _refuse_what_does_not_fit(settings: PretrainOut, has: Mapping[str, int]) -> None:
    """ValueError where the nodes cannot hold `min_workers`: Ray would wait for more in silence."""
    import ray as untyped

    ray: Any = untyped
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = room_for(has, nodes)
    if room >= settings.min_workers:
        return

    each = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes)
    to_lower = "min_workers" if room else " or ".join(_too_many(has, nodes))
    raise ValueError(
        f"scale_out.pretrain.min_workers is {settings.min_workers}, of cpus_per_worker "
        f"{settings.cpus_per_worker} and gpus_per_worker {settings.gpus_per_worker} each, and "
        f"there is room for {room} (the nodes have: {each}); lower {to_lower}, or add nodes"
    )


def room_for(worker: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> int:
    """How many workers the nodes can hold, when nothing else runs there."""
    room = 0
    for node in nodes:
        room += min(int(node.get(kind, 0) // number) for kind, number in worker.items())
    return room


def _too_many(worker: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> list[str]:
    """The settings that no node can meet; all of them where no single one is the cause."""
    names = {"CPU": "cpus_per_worker", "GPU": "gpus_per_worker"}
    alone = [names[kind] for kind, number in worker.items() if room_for({kind: number}, nodes) == 0]
    return alone or [names[kind] for kind in worker]


@contextlib.contextmanager
def _own_cluster() -> Iterator[None]:
    """Sets RAY_ADDRESS to the connected Ray while the block lasts.

    Ray Train's cleaner asks the Ray that started last on this machine whether the training is
    alive, and ends the training if not. With RAY_ADDRESS it asks the Ray of this training.
    """
    import ray as untyped
    from ray.train.v2._internal import constants

    ray: Any = untyped
    constants.ENV_VARS_TO_PROPAGATE.add(ADDRESS)
    before = os.environ.get(ADDRESS)
    os.environ[ADDRESS] = ray.get_runtime_context().gcs_address

    try:
        yield
    finally:
        if before is None:
            del os.environ[ADDRESS]
        else:
            os.environ[ADDRESS] = before


def _refusal(folder: Path, failure: Exception | None) -> str | None:
    """The message of an error that a person must correct, from the file that a process wrote, or
    from the failure itself where no process could write one; None without such an error."""
    refused = folder / REFUSED
    has_file = refused.is_file()
    message = refused.read_text(encoding="utf-8") if has_file else ""
    if message:
        return message

    errors = [
        error for error in _worker_failures(failure) if exit_status_of(error) is ExitStatus.REFUSED
    ]
    if not errors and not has_file:
        return None

    cause = f"a process ended with: {errors[0]}" if errors else "a process ended"
    return (
        f"{cause}; and it could not write that down in the scratch folder {folder}: make room "
        f"there, or name another folder that all machines share, then run the same command again"
    )


def _worker_failures(failure: Exception | None) -> list[Exception]:
    return list(getattr(failure, "worker_failures", {}).values())


def _lost(failure: Exception) -> bool:
    """Whether processes died, and did not raise an exception of their own."""
    from ray.exceptions import RayError

    return any(isinstance(error, RayError) for error in _worker_failures(failure))


def _last_line(failure: Exception) -> str:
    return str(failure).strip().splitlines()[-1].strip()


def _work(config: dict[str, Any]) -> None:
    """One process of the group, from its start or from the last epoch's checkpoint."""
    import torch
    from ray import train
    from ray.train.v2._internal.execution import context as reporting

    # It would print a line for every report, in addition to ours.
    reporting.logger.setLevel(logging.WARNING)
    training: Training = config["training"]
    folder: Path = config["folder"]
    if (folder / REFUSED).is_file():
        return

    context: Any = train.get_context()
    torch.set_num_threads(config["threads"])
    is_first = context.get_world_rank() == 0
    num_processes = context.get_world_size()

    def report(step: int, values: Mapping[str, float]) -> None:
        if is_first:
            _note(folder, {"step": step, "values": dict(values)})
        train.report({"step": step, **values})

    with _refusals_kept(folder):
        if is_first:
            started = f"pretrain: {num_processes} processes, from the last checkpoint on"
            _note(folder, {"words": started})
        training(report)


@contextlib.contextmanager
def _refusals_kept(folder: Path) -> Iterator[None]:
    """Writes an error that a person must correct to a file; the next group sees it, and ends. On a
    full disk the file may stay empty."""
    try:
        yield
    except Exception as error:
        if exit_status_of(error) is ExitStatus.REFUSED:
            # Without the file the driver still has the error itself.
            with contextlib.suppress(OSError):
                (folder / REFUSED).write_text(str(error), encoding="utf-8")
        raise


def _note(folder: Path, document: Mapping[str, Any]) -> None:
    with (folder / PROGRESS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(document) + "\n")


@contextlib.contextmanager
def _passing_on(progress: Path, report: Report) -> Iterator[None]:
    """Reports here, in the driver, what the first process notes while it trains."""
    done = threading.Event()
    num_read = 0

    def pass_on() -> None:
        nonlocal num_read
        if not progress.is_file():
            return
        # The last piece is empty, or a line that is still being written.
        lines = progress.read_text(encoding="utf-8").split("\n")[:-1]

        for line in lines[num_read:]:
            document = json.loads(line)
            if "words" in document:
                print(document["words"], flush=True)
            else:
                report(document["step"], document["values"])
        num_read = len(lines)

    def look() -> None:
        while not done.wait(LOOK_SECONDS):
            pass_on()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        pass_on()
