"""Several processes train one network as one process would: same gradients, same checkpoint, about
the same curve."""

from __future__ import annotations

import dataclasses
import os
import signal
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from stages.pretrain import Training, pretrain
from tests.in_processes import in_processes
from tests.small_faces import RECIPE, pretrain_settings, some_faces, write_faces
from tests.visage.training.test_loop import (
    bright,
    silent,
    small_network,
    task,
    without_batch_norm,
)
from visage.training import distributed
from visage.training.checkpoint import read_finished
from visage.training.loop import Batch, fit

HOW = dataclasses.replace(RECIPE, ema_decay=0.5, channels_last=False)
SIZES = (7, 6, 4)


def shares(generator: torch.Generator) -> Iterator[Batch]:
    """Each process's share of the same batches, of unequal sizes; alone, all of them."""
    for size in SIZES:
        faces_BCHW = torch.randn(size, 3, 8, 8, generator=generator)
        first, last = (
            size * number // distributed.num_ranks()
            for number in (distributed.rank(), distributed.rank() + 1)
        )
        yield bright(faces_BCHW[first:last])


def train(
    folder: Path, network: nn.Module, epochs: int, micro_batches: int, checkpoint: str = "last.pt"
) -> None:
    fit(
        network,
        task(batches=shares, num_batches=len(SIZES)),
        HOW,
        epochs=epochs,
        seed=3,
        checkpoint=folder / checkpoint,
        fingerprint="x",
        report=silent,
        micro_batches=micro_batches,
    )


def train_without_batch_norm(folder: Path, epochs: int, micro_batches: int) -> None:
    train(folder, without_batch_norm(), epochs, micro_batches)


def state_of(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "last.pt", weights_only=True)
    return state


def same_training(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for part in ("network", "average"):
        for name, value in wanted[part].items():
            torch.testing.assert_close(found[part][name], value, rtol=1e-4, atol=1e-5)
    losses = [[row["train_loss"] for row in state["history"]] for state in (found, wanted)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(("num_ranks", "micro_batches"), [(2, 1), (2, 2), (3, 1)])
def test_gradient_of_several_processes_is_that_of_one(
    tmp_path: Path, num_ranks: int, micro_batches: int
) -> None:
    """Of shares of 3 and 4 faces too, or of 2, 2 and 3; each face counts alike."""
    train_without_batch_norm(tmp_path, 2, 1)
    folder = tmp_path / "together"
    assert in_processes(
        num_ranks, tmp_path / "store", train_without_batch_norm, folder, 2, micro_batches
    ) == ([0] * num_ranks)
    same_training(state_of(folder), state_of(tmp_path))
    assert [row["processes"] for row in state_of(folder)["history"]] == [num_ranks] * 2


def test_fewer_and_more_processes_go_on_from_the_same_checkpoint(tmp_path: Path) -> None:
    train_without_batch_norm(tmp_path / "whole", 3, 1)
    folder = tmp_path / "elastic"
    for epochs, num_ranks in ((1, 2), (2, 1), (3, 2)):
        store = tmp_path / f"store-{epochs}"
        assert set(in_processes(num_ranks, store, train_without_batch_norm, folder, epochs, 1)) == {
            0
        }
    # the schedule knows the number of epochs, so that the rates differ from those of one run; the
    # epochs do not
    assert [row["processes"] for row in state_of(folder)["history"]] == [2, 1, 2]
    assert [row["epoch"] for row in state_of(folder)["history"]] == [1, 2, 3]


def gathered(folder: Path) -> None:
    network = small_network()
    train(folder, network, 2, 1)
    (folder / f"{distributed.rank()}.txt").write_text(
        str([parameter.double().sum().item() for parameter in network.parameters()])
    )


def test_processes_end_in_the_same_weights(tmp_path: Path) -> None:
    """With BatchNorm, whose statistics are each process's own and are kept from the first."""
    assert in_processes(2, tmp_path / "store", gathered, tmp_path) == [0, 0]
    assert (tmp_path / "0.txt").read_text() == (tmp_path / "1.txt").read_text()


def with_own_folder(folder: Path) -> None:
    """As if no folder were shared: the first process finds an epoch there, the other none."""
    with pytest.raises(
        ValueError, match=r"last\.pt: this process found \d finished epochs .* all machines share"
    ):
        train(folder / str(distributed.rank()), without_batch_norm(), 2, 1)


def test_checkpoints_that_are_not_shared_are_refused(tmp_path: Path) -> None:
    train(tmp_path / "0", without_batch_norm(), 1, 1)
    assert in_processes(2, tmp_path / "store", with_own_folder, tmp_path) == [0, 0]


# -------------------------------------------------------------------------------
# The stage
# -------------------------------------------------------------------------------


def curve(folder: Path, faces: Path, seed: int, num_ranks: int, epochs: int = 5) -> np.ndarray:
    """The training losses of a run of the stage."""

    def together(training: Training, _report: Any) -> None:
        assert set(in_processes(num_ranks, folder / "store", training, silent)) == {0}

    recipe = dataclasses.replace(RECIPE, batch_size=32, learning_rate=5e-3)
    settings = pretrain_settings(
        epochs=epochs, seed=seed, recipes={"small": recipe}, augmentation="none"
    )
    folder.mkdir()
    pretrain(
        settings,
        faces=faces,
        checkpoints=folder,
        backbone=folder / "backbone",
        history=folder / "history.csv",
        report=silent,
        runner=together,
    )
    return pd.read_csv(folder / "history.csv")["train_loss"].to_numpy()


def test_loss_curve_of_two_processes_is_that_of_one_within_noise(tmp_path: Path) -> None:
    """Means of seeds against one another; what chance explains is known from the spread over seeds
    of one process."""
    faces = write_faces(tmp_path / "faces", some_faces(256, 0, 0), num_shards=7)
    one, two = (
        np.array([curve(tmp_path / f"{number}-{seed}", faces, seed, number) for seed in range(4)])
        for number in (1, 2)
    )
    noise = max(statistics.mean(one.std(axis=0, ddof=1)), 0.02)
    assert (np.abs(one.mean(axis=0) - two.mean(axis=0)) < 4 * noise * np.sqrt(2 / 4)).all()
    assert one.mean(axis=0)[-1] < 0.8 * one.mean(axis=0)[0]  # there is something to see


def die_in_the_second_epoch(training: Training) -> None:
    """The last process is killed as soon as the first epoch is reported; the first one has a broken
    line."""

    def report(step: int, _values: Mapping[str, float]) -> None:
        if step == 1 and distributed.rank() == distributed.num_ranks() - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    training(report)


def test_what_is_left_of_a_group_ends_and_the_next_one_goes_on(tmp_path: Path) -> None:
    faces, attempts = write_faces(tmp_path / "faces", some_faces(24, 6, 0)), []

    def runner(training: Training, _report: Any) -> None:
        attempts.append(in_processes(2, tmp_path / "first", die_in_the_second_epoch, training))
        first = torch.load(training.checkpoint, weights_only=True)["history"]
        with pytest.raises(
            ValueError, match=r"last\.pt: the training has not finished its 3 epochs"
        ):
            read_finished(training.checkpoint, training.fingerprint, training.network(), 3)
        attempts.append(in_processes(1, tmp_path / "second", training, silent))
        assert torch.load(training.checkpoint, weights_only=True)["history"][:1] == first

    pretrain(
        pretrain_settings(epochs=3),
        faces=faces,
        checkpoints=tmp_path,
        backbone=tmp_path / "backbone",
        history=tmp_path / "history.csv",
        report=silent,
        runner=runner,
    )
    assert attempts[0][1] == -signal.SIGKILL
    assert attempts[0][0] not in (0, -signal.SIGKILL)
    assert attempts[1] == [0]
    assert pd.read_csv(tmp_path / "history.csv")["processes"].tolist() == [2, 1, 1]
    assert not torch.distributed.is_initialized()
