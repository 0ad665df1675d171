"""The training loop, gradient in sight, resumable at every epoch.

All randomness of an epoch comes from one generator seeded with (seed, epoch), so a run that was
killed at any moment and started again ends in the same weights, bit for bit on CPU with the same
number of threads. Dropout draws from torch's global generator: every epoch seeds that one, too.

Several processes train one network where a process group of torch.distributed is there
(visage/training/distributed.py): each brings its share of every batch, the gradients are averaged
over all faces of the batch, and all take the same step. BatchNorm normalises each process's share
by itself; its running statistics are the first process's. The first one writes the checkpoint and
all read it. It does not depend on their number, so fewer or more of them go on from it. Legend: B
batch, C channels, H height, W width, K outputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor
from tqdm import tqdm

from visage.networks.protocol import FaceBatch, Network, Outputs
from visage.training import distributed
from visage.training.checkpoint import put_in_place, read_checkpoint, write_checkpoint
from visage.training.optim import (
    RecipeSettings,
    build_optimiser,
    computing_dtype,
    count_updates,
    learning_rate,
    moving_average,
)

Report = Callable[[int, Mapping[str, float]], None]


class Batch(NamedTuple):
    """The network's input, and the targets that the loss takes, a row a face each."""

    faces: FaceBatch
    targets: tuple[Tensor, ...]


class Diverged(ValueError):
    """The loss of an epoch is not finite."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained: an epoch's batches from its generator, their number, the loss, and a look at
    validation.

    `loss(logits, *targets)` is a scalar, the mean over the faces; that of each head that only
    trains is added `auxiliary_weight` times. `validate(network)` gives named
    figures, the empty dict where there is no validation split. Among several processes, `batches`
    are this one's shares of the batches (`num_batches` in each process, from the same generator),
    and `validate` gives the same figures in all of them.
    """

    batches: Callable[[torch.Generator], Iterable[Batch]]
    num_batches: int
    loss: Callable[..., Tensor]
    auxiliary_weight: float
    validate: Callable[[Network], dict[str, float]]


def fit(
    network: Network,
    task: Task,
    recipe: RecipeSettings,
    *,
    epochs: int,
    seed: int,
    checkpoint: Path,
    fingerprint: str,
    report: Report,
    micro_batches: int = 1,
) -> tuple[Network, list[dict[str, float]]]:
    """Trains `network` in place for `epochs`; returns the model to keep (its average where the
    recipe has one) and one row of figures an epoch.

    `checkpoint` is rewritten after every epoch. Training continues from it when its `fingerprint`
    (of settings and data) is this run's, and starts over otherwise. The one before is kept too, and
    training continues from that where the newest is damaged. Errors: Diverged; BrokenCheckpoint,
    where both are damaged; less than one epoch; a checkpoint that cannot be written (the older one
    stays). In a group, every process calls `report`. Where memory is short, `micro_batches` passes
    a batch in that many parts and adds up their gradients: the same step, except that BatchNorm
    sees the statistics of a part. The row of such an epoch says so.
    """
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}: give 1 or more")

    device = next(network.parameters()).device
    dtype = computing_dtype(recipe.precision, device)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    network.to(memory_format=layout)
    average = moving_average(network, recipe.ema_decay) if recipe.ema_decay > 0 else None
    kept = cast(Network, average.module).eval() if average is not None else network
    optimiser = build_optimiser(network, recipe)

    history: list[dict[str, float]] = []
    found, state = read_checkpoint(checkpoint, fingerprint)
    if state is not None:
        network.load_state_dict(state["network"])
        kept.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        history = state["history"]
        if average is not None:
            count_updates(average, len(history) * task.num_batches)
    _refuse_different_starts(checkpoint, len(history), device)
    put_in_place(found, checkpoint)  # now that all have read it

    stepping = distributed.joined(network)
    num_steps = epochs * task.num_batches

    for epoch in range(len(history), epochs):
        started, started_working = time.perf_counter(), time.process_time()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        # Each process has dropout of its own
        torch.manual_seed(-1 - generator.initial_seed() - (distributed.rank() << 48))
        network.train()
        total_loss = torch.zeros((), device=device)
        num_faces = 0

        for index, batch in enumerate(_with_bar(task, generator, epoch, epochs)):
            step = epoch * task.num_batches + index
            rate = learning_rate(recipe, step / num_steps)
            for group in optimiser.param_groups:
                group["lr"] = rate

            optimiser.zero_grad(set_to_none=True)
            parts = _parts(batch, micro_batches, layout)
            batch_size = len(batch.faces.view_BCHW)
            mean_size = distributed.mean_count(batch_size, device)
            for number, (faces, targets) in enumerate(parts, 1):
                part_size = len(faces.view_BCHW)
                with distributed.apart(stepping, last=number == len(parts)):
                    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                        outputs: Outputs = stepping(faces)
                    loss = _loss(task, outputs, targets)
                    (loss * (part_size / mean_size)).backward()  # type: ignore[no-untyped-call]
                total_loss += loss.detach() * part_size

            optimiser.step()
            if average is not None:
                average.update_parameters(network)
            num_faces += batch_size

        loss_sum, face_count = distributed.totals([total_loss.item(), num_faces], device)
        train_loss = loss_sum / face_count
        _refuse_diverged(epoch + 1, train_loss)

        row = {"epoch": epoch + 1.0, "train_loss": train_loss, "learning_rate": rate}
        row |= _circumstances(micro_batches)
        distributed.take_first(kept)
        row |= task.validate(kept) | {
            "seconds": time.perf_counter() - started,
            "processor_seconds": time.process_time() - started_working,
        }
        history.append(row)
        if distributed.rank() == 0:
            write_checkpoint(checkpoint, fingerprint, network, kept, optimiser, history)
        report(epoch + 1, row)

    return kept.eval(), history


def _loss(task: Task, outputs: Outputs, targets: Sequence[Tensor]) -> Tensor:
    """The loss of the head that predicts, and of those that only train; scalar, in float32."""
    loss = task.loss(outputs.logits_BK.float(), *targets)
    for logits_BK in outputs.auxiliary:
        loss = loss + task.auxiliary_weight * task.loss(logits_BK.float(), *targets)
    return loss


def _refuse_diverged(epoch: int, train_loss: float) -> None:
    if not math.isfinite(train_loss):
        raise Diverged(
            f"epoch {epoch}: the training loss is {train_loss}; lower learning_rate, or set "
            f"precision: float32"
        )


def _circumstances(micro_batches: int) -> dict[str, float]:
    """What an epoch's row says of how it was computed, where that is not the usual way."""
    row = {"micro_batches": float(micro_batches)} if micro_batches > 1 else {}
    row |= {"processes": float(distributed.num_ranks())} if distributed.in_group() else {}
    return row


def _parts(batch: Batch, number: int, layout: torch.memory_format) -> list[Batch]:
    """A batch in `number` parts of about one size, of 2 faces at least: BatchNorm cannot train on
    one. The memory format of views is `layout`."""
    view_BCHW = batch.faces.view_BCHW.contiguous(memory_format=layout)
    landmarks_B52 = batch.faces.landmarks_B52
    num_parts = max(1, min(number, len(view_BCHW) // 2))

    views = view_BCHW.tensor_split(num_parts)
    landmarks: Sequence[Tensor | None] = [None] * num_parts
    if landmarks_B52 is not None:
        landmarks = landmarks_B52.tensor_split(num_parts)

    faces = [FaceBatch(*part) for part in zip(views, landmarks, strict=True)]
    split_targets = [target.tensor_split(num_parts) for target in batch.targets]
    targets = zip(*split_targets, strict=True)
    return [Batch(*part) for part in zip(faces, targets, strict=True)]


def _with_bar(task: Task, generator: torch.Generator, epoch: int, epochs: int) -> Iterable[Batch]:
    label = f"epoch {epoch + 1}/{epochs}"
    return tqdm(
        task.batches(generator),
        total=task.num_batches,
        desc=label,
        mininterval=2.0,
        leave=False,
        disable=distributed.rank() > 0,
    )


def _refuse_different_starts(checkpoint: Path, num_epochs: int, device: torch.device) -> None:
    if distributed.totals([num_epochs], device)[0] != num_epochs * distributed.num_ranks():
        raise ValueError(
            f"{checkpoint}: this process found {num_epochs} finished epochs there, others another "
            f"number; put checkpoints into a folder that all machines share"
        )
