"""The training loop, gradient in sight, resumable at every epoch.

All randomness of an epoch comes from one generator seeded with (seed, epoch), so a run that was
killed at any moment and started again ends in the same weights, bit for bit on CPU with the same
number of threads. Dropout knows none but torch's global generator: every epoch seeds that one, too.

Several processes train one network where a process group of torch.distributed is there
(visage/training/distributed.py): each brings its share of every batch, the gradients are averaged
over all faces of the batch, and all take the same step. BatchNorm normalises each process's share
by itself; its running statistics are the first process's. The first one writes the checkpoint and
all read it: it knows nothing of their number, so fewer or more of them go on from it. Legend: B
batch, C channels, H height, W width, K outputs.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from visage.training import distributed
from visage.training.checkpoint import put_in_place, read_checkpoint, write_checkpoint
from visage.training.optim import (
    RecipeSettings,
    build_optimiser,
    computing_dtype,
    learning_rate,
    update_average,
)

Batch = tuple[Tensor, ...]  # network input (B,3,H,W), then the targets that the loss takes
Report = Callable[[int, Mapping[str, float]], None]


class Diverged(ValueError):
    """The loss of an epoch is not finite."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained: an epoch's batches from its generator, their number, the loss, and a look at
    validation.

    `loss(logits, *targets)` is a scalar, the mean over the faces; `validate(network)` gives named
    figures, the empty dict where there is no validation split. Among several processes, `batches`
    are this one's shares of the batches (`num_batches` in each process, from the same generator),
    and `validate` gives the same figures in all of them.
    """

    batches: Callable[[torch.Generator], Iterable[Batch]]
    num_batches: int
    loss: Callable[..., Tensor]
    validate: Callable[[nn.Module], dict[str, float]]


def fit(
    network: nn.Module,
    task: Task,
    recipe: RecipeSettings,
    *,
    epochs: int,
    seed: int,
    checkpoint: Path,
    fingerprint: str,
    report: Report,
    micro_batches: int = 1,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Trains `network` in place for `epochs`; returns the model to keep (its average where the
    recipe has one) and one row of figures an epoch.

    `checkpoint` is rewritten after every epoch and continued from when its `fingerprint` (of
    settings and data) is this run's; another run's checkpoint is started over. The one before is
    kept beside it, and gone on from where the newest is damaged. Errors: Diverged;
    BrokenCheckpoint, where both are damaged; less than one epoch; a checkpoint that cannot be
    written (the older one stays). In a group, every process calls `report`. Where memory is short,
    `micro_batches` passes a batch in that many parts and adds up their gradients: the same step,
    but that BatchNorm sees the statistics of a part. Such epochs say so in their row.
    """
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}: give 1 or more")
    device = next(network.parameters()).device
    dtype = computing_dtype(recipe.precision, device)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    network.to(memory_format=layout)
    average = copy.deepcopy(network).eval() if recipe.ema_decay > 0 else network
    optimiser = build_optimiser(network, recipe)
    history: list[dict[str, float]] = []
    found, state = read_checkpoint(checkpoint, fingerprint)
    if state is not None:
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        history = state["history"]
    _refuse_different_starts(checkpoint, len(history), device)
    put_in_place(found, checkpoint)  # now that all have read it
    stepping = distributed.joined(network)
    num_steps = epochs * task.num_batches

    for epoch in range(len(history), epochs):
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        torch.manual_seed(
            -1 - generator.initial_seed() - (distributed.rank() << 48)
        )  # each process has dropout of its own
        network.train()
        total_loss, num_faces = torch.zeros((), device=device), 0
        for index, (faces_BCHW, *targets) in enumerate(_with_bar(task, generator, epoch, epochs)):
            step = epoch * task.num_batches + index
            rate = learning_rate(recipe, step / num_steps)
            for group in optimiser.param_groups:
                group["lr"] = rate
            faces_BCHW = faces_BCHW.contiguous(memory_format=layout)
            optimiser.zero_grad(set_to_none=True)
            parts = _parts((faces_BCHW, *targets), micro_batches)
            mean_size = distributed.mean_count(len(faces_BCHW), device)
            for number, (part_BCHW, *part_targets) in enumerate(parts, 1):
                with distributed.apart(stepping, last=number == len(parts)):
                    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                        logits_BK = stepping(part_BCHW)
                    loss = task.loss(logits_BK.float(), *part_targets)
                    (loss * (len(part_BCHW) / mean_size)).backward()  # type: ignore[no-untyped-call]
                total_loss += loss.detach() * len(part_BCHW)
            optimiser.step()
            if average is not network:
                update_average(average, network, recipe.ema_decay, step)
            num_faces += len(faces_BCHW)
        loss_sum, face_count = distributed.totals([total_loss.item(), num_faces], device)
        train_loss = loss_sum / face_count
        if not math.isfinite(train_loss):
            raise Diverged(
                f"epoch {epoch + 1}: the training loss is {train_loss}; lower learning_rate, or "
                f"set precision: float32"
            )
        row = {"epoch": epoch + 1.0, "train_loss": train_loss, "learning_rate": rate}
        row |= {"micro_batches": float(micro_batches)} if micro_batches > 1 else {}
        row |= {"processes": float(distributed.num_ranks())} if distributed.in_group() else {}
        distributed.take_first(average)
        row |= task.validate(average) | {"seconds": time.perf_counter() - started}
        history.append(row)
        if distributed.rank() == 0:
            write_checkpoint(checkpoint, fingerprint, network, average, optimiser, history)
        report(epoch + 1, row)
    return average.eval(), history


def _parts(batch: Batch, number: int) -> list[Batch]:
    """A batch in `number` parts of about one size, of 2 faces at least: BatchNorm cannot train on
    one."""
    parts = max(1, min(number, len(batch[0]) // 2))
    return list(zip(*(tensor.tensor_split(parts) for tensor in batch), strict=True))


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
            f"number; checkpoints "
            "must lie in a folder that all machines share"
        )
