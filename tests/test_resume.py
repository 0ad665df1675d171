"""Trainings killed with SIGKILL, anywhere, and started again end in the same weights, bit for bit.

Each training runs in a process of its own, forked from a server that has the stages imported. It is
killed before a step of the optimiser, in the middle of writing a checkpoint, right after one, or by
the clock; then another process goes on, and is killed too, until one comes to the end.
"""

from __future__ import annotations

import dataclasses
import os
import random
import signal
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from stages.finetune import finetune
from stages.pretrain import pretrain
from tests.small_faces import RECIPE, finetune_settings, pretrain_settings, some_faces, write_faces
from visage.training import loop
from visage.weights import load_model, sha256_of

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(
    ["tests.test_resume", "torch._dynamo"]
)  # the latter: what an optimiser imports, 4 s
HAS_BFLOAT16 = torch.cpu._is_avx512_bf16_supported()
KILLED = -signal.SIGKILL
EPOCHS = 3  # of 3 steps: 20 faces in batches of 8
KINDS = {
    "finetune": finetune_settings(epochs=EPOCHS, augmentation="extended"),
    "finetune bfloat16": finetune_settings(
        epochs=EPOCHS, recipes={"small": dataclasses.replace(RECIPE, precision="bfloat16")}
    ),
    "finetune two_stage": finetune_settings(
        epochs=EPOCHS,
        schedule="two_stage",
        recipes={
            "small": dataclasses.replace(RECIPE, optimiser="adam", ema_decay=0.0, schedule="step")
        },
    ),
    "finetune sgd": finetune_settings(
        epochs=EPOCHS,
        recipes={
            "small": dataclasses.replace(RECIPE, optimiser="sgd", momentum=0.9, nesterov=True)
        },
    ),
    "pretrain": pretrain_settings(epochs=EPOCHS),
}
ALL_KINDS = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(
            "bfloat16" in kind and not HAS_BFLOAT16, reason="this CPU has no bfloat16"
        ),
    )
    for kind in KINDS
]


def kill_oneself(*_arguments: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_step(number: int) -> None:
    """Dies before the optimiser's step `number` of this process, counted from 0."""
    count = iter(range(number + 1))
    register_optimizer_step_pre_hook(lambda *_: kill_oneself() if next(count) == number else None)


def within_checkpoint(number: int) -> None:
    """Dies with half of this process' checkpoint `number` on disk."""
    count, plain = iter(range(number + 1)), torch.save

    def half(state: Any, path: Path) -> None:
        plain(state, path)
        if next(count) == number:
            os.truncate(path, path.stat().st_size // 2)
            kill_oneself()

    loop.torch.save = half


def train(
    kind: str, folder: Path, faces: Path, die: Callable[[int], None] | None, number: int
) -> None:
    """One attempt, in this process."""
    torch.set_num_threads(1)
    if die:
        die(number)

    def report(step: int, _values: Mapping[str, float]) -> None:
        if die is kill_after_epoch and step == number:
            kill_oneself()

    paths = {
        "faces": faces,
        "checkpoints": folder / "checkpoints",
        "history": folder / "history.csv",
    }
    if kind == "pretrain":
        pretrain(
            KINDS[kind],  # type: ignore[arg-type]
            **paths,
            backbone=folder / "made",
            report=report,
        )
    else:
        finetune(
            KINDS[kind],  # type: ignore[arg-type]
            **paths,
            backbone=folder / "none",
            start=folder / "none",
            model=folder / "made",
            report=report,
        )


def kill_after_epoch(_number: int) -> None:
    """Dies in the report of an epoch, its checkpoint just written."""


def attempt(
    kind: str,
    folder: Path,
    faces: Path,
    die: Callable[[int], None] | None = None,
    number: int = 0,
    seconds: float | None = None,
) -> int:
    """Trains in a process of its own, killed from outside after `seconds`; its exit status, -9 if
    it was killed."""
    process = FORKS.Process(target=train, args=(kind, folder, faces, die, number))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def weights_of(folder: Path) -> str:
    (made,) = (folder / "made").glob("*.safetensors")
    return sha256_of(made)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faces(tmp_path_factory.mktemp("faces"), some_faces())


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_killed_again_and_again_ends_in_the_same_weights(
    tmp_path: Path, faces: Path, kind: str
) -> None:
    assert attempt(kind, tmp_path / "uninterrupted", faces) == 0
    folder = tmp_path / "killed"
    deaths: list[tuple[Callable[[int], None], int]] = [
        (before_step, 1),  # nothing saved yet
        (within_checkpoint, 0),
        (before_step, 5),  # in the second epoch: goes on from the first
        (within_checkpoint, 0),
        (before_step, 0),
        (kill_after_epoch, 2),
        (before_step, 2),  # the last step of joint training
    ]
    if kind == "finetune two_stage":
        deaths += [
            (kill_after_epoch, 3),
            (before_step, 1),
            (within_checkpoint, 1),
            (before_step, 4),
        ]
    for die, number in deaths:
        assert attempt(kind, folder, faces, die, number) == KILLED
        assert not (folder / "made").exists()
    assert attempt(kind, folder, faces) == 0
    assert weights_of(folder) == weights_of(tmp_path / "uninterrupted")
    assert (folder / "history.csv").exists()


def test_killed_by_the_clock_ends_in_the_same_weights(tmp_path: Path, faces: Path) -> None:
    """Wherever the clock strikes: in imports, decoding, a step, a checkpoint, the model's files."""
    kind, clock = "finetune", random.Random(0)
    assert attempt(kind, tmp_path / "uninterrupted", faces) == 0
    folder = tmp_path / "killed"
    for _ in range(6):
        assert attempt(kind, folder, faces, seconds=clock.uniform(0.05, 1.0)) in (KILLED, 0)
    assert attempt(kind, folder, faces) == 0
    assert weights_of(folder) == weights_of(tmp_path / "uninterrupted")


def test_kill_between_weights_and_card_leaves_a_folder_that_is_no_model(
    tmp_path: Path, faces: Path
) -> None:
    """The folder appears with both files, or not at all."""
    assert attempt("finetune", tmp_path, faces, die_before_the_config) == KILLED
    assert not (tmp_path / "made").exists()
    assert attempt("finetune", tmp_path, faces) == 0
    load_model(tmp_path / "made")


def die_before_the_config(_number: int) -> None:
    """Dies when the weights are in place and the config is not."""
    from visage.model_config import ModelConfig

    ModelConfig.write = kill_oneself  # type: ignore[assignment]
