"""The training loop, gradient in sight, resumable at every epoch.

All randomness of an epoch comes from one generator seeded with (seed, epoch), so a run that was killed at any moment
and started again ends in the same weights, bit for bit on CPU with the same number of threads. Dropout knows none but
torch's global generator: every epoch seeds that one, too.
Legend: B batch, C channels, H height, W width, K outputs.
"""

from __future__ import annotations

import copy
import math
import pickle
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from visage.optim import RecipeSettings, build_optimiser, computing_dtype, learning_rate, update_average

Batch = tuple[Tensor, ...]  # network input (B,3,H,W), then the targets that the loss takes
Report = Callable[[int, Mapping[str, float]], None]


class Diverged(ValueError):
    """The loss of an epoch is not finite."""


class BrokenCheckpoint(ValueError):
    """A checkpoint that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained: an epoch's batches from its generator, their number, the loss, and a look at validation.

    `loss(logits, *targets)` is a scalar; `validate(network)` gives named figures, the empty dict where there is no
    validation split.
    """

    batches: Callable[[torch.Generator], Iterable[Batch]]
    num_batches: int
    loss: Callable[..., Tensor]
    validate: Callable[[nn.Module], dict[str, float]]


def available_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fit(
    network: nn.Module, task: Task, recipe: RecipeSettings, *, epochs: int, seed: int, checkpoint: Path,
    fingerprint: str, report: Report, micro_batches: int = 1,
) -> tuple[nn.Module, list[dict[str, float]]]:  # fmt: skip
    """Trains `network` in place for `epochs`; returns the model to keep (its average where the recipe has one) and
    one row of figures an epoch.

    `checkpoint` is rewritten after every epoch and continued from when its `fingerprint` (of settings and data) is
    this run's; another run's checkpoint is started over. Errors: Diverged, BrokenCheckpoint; less than one epoch.
    Where memory is short, `micro_batches` passes a batch in that many parts and adds up their gradients: the same step,
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
    state = _read_checkpoint(checkpoint, fingerprint)
    if state is not None:
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        history = state["history"]
    num_steps = epochs * task.num_batches

    for epoch in range(len(history), epochs):
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        torch.manual_seed(-1 - generator.initial_seed())
        network.train()
        total_loss, num_faces = torch.zeros((), device=device), 0
        for index, (faces_BCHW, *targets) in enumerate(_with_bar(task, generator, epoch, epochs)):
            step = epoch * task.num_batches + index
            rate = learning_rate(recipe, step / num_steps)
            for group in optimiser.param_groups:
                group["lr"] = rate
            faces_BCHW = faces_BCHW.contiguous(memory_format=layout)
            optimiser.zero_grad(set_to_none=True)
            for part_BCHW, *part_targets in _parts((faces_BCHW, *targets), micro_batches):
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    logits_BK = network(part_BCHW)
                loss = task.loss(logits_BK.float(), *part_targets)
                (loss * (len(part_BCHW) / len(faces_BCHW))).backward()  # type: ignore[no-untyped-call]
                total_loss += loss.detach() * len(part_BCHW)
            optimiser.step()
            if average is not network:
                update_average(average, network, recipe.ema_decay, step)
            num_faces += len(faces_BCHW)
        train_loss = total_loss.item() / num_faces
        if not math.isfinite(train_loss):
            raise Diverged(
                f"epoch {epoch + 1}: the training loss is {train_loss}; lower learning_rate, or set precision: float32"
            )
        row = {"epoch": epoch + 1.0, "train_loss": train_loss, "learning_rate": rate}
        row |= {"micro_batches": float(micro_batches)} if micro_batches > 1 else {}
        row |= task.validate(average) | {"seconds": time.perf_counter() - started}
        history.append(row)
        _write_checkpoint(checkpoint, fingerprint, network, average, optimiser, history)
        report(epoch + 1, row)
    return average.eval(), history


def _parts(batch: Batch, number: int) -> Iterable[Batch]:
    """A batch in `number` parts of about one size, of 2 faces at least: BatchNorm cannot train on one."""
    parts = max(1, min(number, len(batch[0]) // 2))
    return zip(*(tensor.tensor_split(parts) for tensor in batch), strict=True)


def _with_bar(task: Task, generator: torch.Generator, epoch: int, epochs: int) -> Iterable[Batch]:
    label = f"epoch {epoch + 1}/{epochs}"
    return tqdm(task.batches(generator), total=task.num_batches, desc=label, mininterval=2.0, leave=False)


def _write_checkpoint(
    path: Path, fingerprint: str, network: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer,
    history: list[dict[str, float]],
) -> None:  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    state = {"fingerprint": fingerprint, "network": network.state_dict(), "average": average.state_dict()}
    torch.save(state | {"optimiser": optimiser.state_dict(), "history": history}, part)
    part.replace(path)


def _read_checkpoint(path: Path, fingerprint: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        found = state["fingerprint"]
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, pickle.UnpicklingError) as error:
        raise BrokenCheckpoint(f"{path}: this checkpoint cannot be read ({error}); remove it to start over") from error
    if found == fingerprint:
        return state
    tqdm.write(f"{path}: of another run (its settings, data, code or torch differ); starting over")
    return None
