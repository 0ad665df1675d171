"""The training loop, gradient in sight, resumable at every epoch.

All randomness of an epoch comes from one generator seeded with (seed, epoch), so a run that was killed at any moment
and started again ends in the same weights, bit for bit on CPU with the same number of threads. Dropout knows none but
torch's global generator: every epoch seeds that one, too.

Several processes train one network where a process group of torch.distributed is there (visage/ranks.py): each brings
its share of every batch, the gradients are averaged over all faces of the batch, and all take the same step. BatchNorm
normalises each process's share by itself; its running statistics are the first process's. The first one writes the
checkpoint and all read it: it knows nothing of their number, so fewer or more of them go on from it.
Legend: B batch, C channels, H height, W width, K outputs.
"""

from __future__ import annotations

import copy
import math
import os
import pickle
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from visage import ranks
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

    `loss(logits, *targets)` is a scalar, the mean over the faces; `validate(network)` gives named figures, the empty
    dict where there is no validation split. Among several processes, `batches` are this one's shares of the batches
    (`num_batches` in each process, from the same generator), and `validate` gives the same figures in all of them.
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
    this run's; another run's checkpoint is started over. The one before is kept beside it, and gone on from where the
    newest is damaged. Errors: Diverged; BrokenCheckpoint, where both are damaged; less than one epoch; a checkpoint
    that cannot be written (the older one stays). In a group, every process calls `report`.
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
    found, state = _read_checkpoint(checkpoint, fingerprint)
    if state is not None:
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        history = state["history"]
    _refuse_different_starts(checkpoint, len(history), device)
    _put_in_place(found, checkpoint)  # now that all have read it
    stepping = ranks.joined(network)
    num_steps = epochs * task.num_batches

    for epoch in range(len(history), epochs):
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        torch.manual_seed(-1 - generator.initial_seed() - (ranks.rank() << 48))  # each process has dropout of its own
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
            mean_size = ranks.mean_count(len(faces_BCHW), device)
            for number, (part_BCHW, *part_targets) in enumerate(parts, 1):
                with ranks.apart(stepping, last=number == len(parts)):
                    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                        logits_BK = stepping(part_BCHW)
                    loss = task.loss(logits_BK.float(), *part_targets)
                    (loss * (len(part_BCHW) / mean_size)).backward()  # type: ignore[no-untyped-call]
                total_loss += loss.detach() * len(part_BCHW)
            optimiser.step()
            if average is not network:
                update_average(average, network, recipe.ema_decay, step)
            num_faces += len(faces_BCHW)
        loss_sum, face_count = ranks.totals([total_loss.item(), num_faces], device)
        train_loss = loss_sum / face_count
        if not math.isfinite(train_loss):
            raise Diverged(
                f"epoch {epoch + 1}: the training loss is {train_loss}; lower learning_rate, or set precision: float32"
            )
        row = {"epoch": epoch + 1.0, "train_loss": train_loss, "learning_rate": rate}
        row |= {"micro_batches": float(micro_batches)} if micro_batches > 1 else {}
        row |= {"processes": float(ranks.num_ranks())} if ranks.in_group() else {}
        ranks.take_first(average)
        row |= task.validate(average) | {"seconds": time.perf_counter() - started}
        history.append(row)
        if ranks.rank() == 0:
            _write_checkpoint(checkpoint, fingerprint, network, average, optimiser, history)
        report(epoch + 1, row)
    return average.eval(), history


def read_finished(checkpoint: Path, fingerprint: str, network: nn.Module, epochs: int) -> list[dict[str, float]]:
    """Fills `network` with the model that a finished `fit` keeps; its history. Errors: ValueError where it did not
    finish."""
    _, state = _read_checkpoint(checkpoint, fingerprint)
    if state is None or len(state["history"]) < epochs:
        raise ValueError(f"{checkpoint}: the training has not finished its {epochs} epochs; run the same command again")
    network.load_state_dict(state["average"])
    history: list[dict[str, float]] = state["history"]
    return history


def _parts(batch: Batch, number: int) -> list[Batch]:
    """A batch in `number` parts of about one size, of 2 faces at least: BatchNorm cannot train on one."""
    parts = max(1, min(number, len(batch[0]) // 2))
    return list(zip(*(tensor.tensor_split(parts) for tensor in batch), strict=True))


def _with_bar(task: Task, generator: torch.Generator, epoch: int, epochs: int) -> Iterable[Batch]:
    label = f"epoch {epoch + 1}/{epochs}"
    return tqdm(task.batches(generator), total=task.num_batches, desc=label, mininterval=2.0, leave=False,
                disable=ranks.rank() > 0)  # fmt: skip


def _refuse_different_starts(checkpoint: Path, num_epochs: int, device: torch.device) -> None:
    if ranks.totals([num_epochs], device)[0] != num_epochs * ranks.num_ranks():
        raise ValueError(
            f"{checkpoint}: this process found {num_epochs} finished epochs there, others another number; checkpoints "
            "must lie in a folder that all machines share"
        )


def _put_in_place(found: Path, checkpoint: Path) -> None:
    """The checkpoint before takes the place of the damaged one, which must not become the one before."""
    if found != checkpoint and ranks.rank() == 0:
        found.replace(checkpoint)


def _write_checkpoint(
    path: Path, fingerprint: str, network: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer,
    history: list[dict[str, float]],
) -> None:  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    state: dict[str, Any] = {
        "fingerprint": fingerprint,
        "network": network.state_dict(),
        "average": average.state_dict(),
    }
    try:
        _save(state | {"optimiser": optimiser.state_dict(), "history": history}, part)
        _keep_before(path, len(history))
    except OSError as error:
        part.unlink(missing_ok=True)
        kept = f"that of epoch {len(history) - 1} is kept" if path.exists() else "there is none yet"
        raise OSError(
            error.errno,
            f"the checkpoint of epoch {len(history)} cannot be written ({error.strerror or error}); {kept}; make room, "
            "then run the same command again",
            str(path),
        ) from error
    part.replace(path)


def _save(state: dict[str, Any], path: Path) -> None:
    """torch.save, which says of a full disk no more than `unexpected pos`; OSError says what it was."""
    try:
        torch.save(state, path)
    except RuntimeError:
        with path.open("ab") as file:  # more of it fails as well, and gives the system's reason
            file.write(b"\0" * (1 << 20))
            file.flush()
            os.fsync(file.fileno())
        raise


def _before(path: Path) -> Path:
    """Where the checkpoint before the newest lies."""
    return path.with_suffix(f".before{path.suffix}")


def _keep_before(path: Path, epoch: int) -> None:
    """The newest checkpoint, which that of `epoch` will replace, becomes the one before; another run's does not."""
    before = _before(path)
    if epoch == 1:
        before.unlink(missing_ok=True)
        return
    link = before.with_name(f".{before.name}.part")
    link.unlink(missing_ok=True)
    link.hardlink_to(path)
    link.replace(before)


def _read_checkpoint(path: Path, fingerprint: str) -> tuple[Path, dict[str, Any] | None]:
    """The checkpoint of this run, if there is one, and its file: `path`, or the one before where that is damaged."""
    if not path.is_file():
        return path, None
    try:
        found, state = path, _read_whole(path)
    except BrokenCheckpoint as error:
        try:
            found, state = _before(path), _read_whole(_before(path))
        except BrokenCheckpoint:
            raise BrokenCheckpoint(f"{error}; remove it to start over") from error
        epoch = len(state["history"])
        tqdm.write(f"{error}; going on from the checkpoint before it, {found.name}, of epoch {epoch}")
    if state["fingerprint"] == fingerprint:
        return found, state
    tqdm.write(f"{found}: of another run (its settings, data, code or torch differ); starting over")
    return found, None


def _read_whole(path: Path) -> dict[str, Any]:
    """A checkpoint with every byte as it was written. Errors: BrokenCheckpoint."""
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        state["fingerprint"], state["history"]
        with zipfile.ZipFile(path) as archive:  # torch.load compares no checksums
            damaged = archive.testzip()
    except (
        RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, pickle.UnpicklingError, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise BrokenCheckpoint(f"{path}: this checkpoint cannot be read ({error})") from error
    if damaged is not None:
        raise BrokenCheckpoint(f"{path}: this checkpoint cannot be read (the checksum of {damaged} differs)")
    return state
