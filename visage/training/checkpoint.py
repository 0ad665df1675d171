"""Checkpoints of a training: written after every epoch, checksums compared when read, and the one
before kept too."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from visage.training import distributed


class BrokenCheckpoint(ValueError):
    """A checkpoint that cannot be read."""


def read_finished(
    checkpoint: Path, fingerprint: str, network: nn.Module, epochs: int
) -> list[dict[str, float]]:
    """Fills `network` with the model that a finished `fit` keeps; its history. Errors: ValueError
    where it did not finish."""
    _, state = read_checkpoint(checkpoint, fingerprint)
    if state is None or len(state["history"]) < epochs:
        raise ValueError(
            f"{checkpoint}: the training has not finished its {epochs} epochs; run the same "
            f"command again"
        )
    network.load_state_dict(state["average"])
    history: list[dict[str, float]] = state["history"]
    return history


def put_in_place(found: Path, checkpoint: Path) -> None:
    """The checkpoint before takes the place of the damaged one, which must not become the one
    before."""
    if found != checkpoint and distributed.rank() == 0:
        found.replace(checkpoint)


def write_checkpoint(
    path: Path,
    fingerprint: str,
    network: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    history: list[dict[str, float]],
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    epoch = len(history)
    state: dict[str, Any] = {
        "fingerprint": fingerprint,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "history": history,
    }

    try:
        _save(state, part)
        _keep_before(path, epoch)
    except OSError as error:
        part.unlink(missing_ok=True)
        kept = f"that of epoch {epoch - 1} is kept" if path.exists() else "there is none yet"
        message = (
            f"the checkpoint of epoch {epoch} cannot be written ({error.strerror or error}); "
            f"{kept}; make room, then run the same command again"
        )
        raise OSError(error.errno, message, str(path)) from error

    part.replace(path)


def _save(state: dict[str, Any], path: Path) -> None:
    """torch.save, which says of a full disk no more than `unexpected pos`; OSError says what it
    was."""
    try:
        torch.save(state, path)
    except RuntimeError:
        # Writing more fails as well, and gives the system's reason
        with path.open("ab") as file:
            file.write(b"\0" * (1 << 20))
            file.flush()
            os.fsync(file.fileno())
        raise


def _before(path: Path) -> Path:
    """The file of the checkpoint before the newest."""
    return path.with_suffix(f".before{path.suffix}")


def _keep_before(path: Path, epoch: int) -> None:
    """The newest checkpoint, which that of `epoch` will replace, becomes the one before; another
    run's does not."""
    before = _before(path)
    if epoch == 1:
        before.unlink(missing_ok=True)
        return

    link = before.with_name(f".{before.name}.part")
    link.unlink(missing_ok=True)
    link.hardlink_to(path)
    link.replace(before)


def read_checkpoint(path: Path, fingerprint: str) -> tuple[Path, dict[str, Any] | None]:
    """The checkpoint of this run, if there is one, and its file: `path`, or the one before where
    that is damaged."""
    if not path.is_file():
        return path, None

    found = path
    try:
        state = _read_verified(found)
    except BrokenCheckpoint as error:
        found = _before(path)
        try:
            state = _read_verified(found)
        except BrokenCheckpoint:
            raise BrokenCheckpoint(f"{error}; remove it to start over") from error
        epoch = len(state["history"])
        tqdm.write(
            f"{error}; going on from the checkpoint before it, {found.name}, of epoch {epoch}"
        )

    if state["fingerprint"] == fingerprint:
        return found, state
    tqdm.write(f"{found}: of another run (its settings, data, code or torch differ); starting over")
    return found, None


def _read_verified(path: Path) -> dict[str, Any]:
    """A checkpoint with every byte as it was written. Errors: BrokenCheckpoint."""
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        state["fingerprint"], state["history"]
        # torch.load compares no checksums
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        raise BrokenCheckpoint(f"{path}: this checkpoint cannot be read ({error})") from error

    if damaged is not None:
        raise BrokenCheckpoint(
            f"{path}: this checkpoint cannot be read (the checksum of {damaged} differs)"
        )
    return state
