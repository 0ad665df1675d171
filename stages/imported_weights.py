"""Weights that a network starts from, and a file of them under torchvision's names.

Nothing is fetched here. Pre-training starts from such a file or from scratch; stages/warm_start.py
has the other starts of fine-tuning.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from visage.model_config import NormaliseConfig
from visage.networks import Network, NetworkSettings, from_torchvision
from visage.weights import sha256_of

# The normalisation that torchvision's weights were trained with.
IMAGENET_NORMALISE = NormaliseConfig(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """A state dict under torchvision's names, as safetensors or from torch.save, and the file's
    checksum."""

    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Start:
    """Weights by name. `ancestor` is where they come from, with all ancestors before it
    (`training.start` of a model's config; None from scratch). `with_heads`: whether the heads are
    taken too. `new_parts`: other modules that it has no weights for."""

    state: Mapping[str, Tensor]
    ancestor: dict[str, Any] | None
    with_heads: bool
    new_parts: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Differs between starts with different weights."""
        return "scratch" if self.ancestor is None else str(self.ancestor["sha256"])

    def load_into(self, network: Network, source: str) -> None:
        """Fills the network with the weights; ValueError, which names the `source`, where they are
        those of another network or width."""
        if self.ancestor is None:
            return

        own = network.state_dict()
        heads = tuple(f"{name}." for name in ("head", *network.auxiliary_heads))
        taken = {
            name: value
            for name, value in self.state.items()
            if self.with_heads or not name.startswith(heads)
        }

        # torchvision's older files do not hold BatchNorm's counters, which nothing here reads.
        new = (*heads, *(f"{name}." for name in self.new_parts))
        expected = [
            name
            for name in own
            if not name.startswith(new) and not name.endswith("num_batches_tracked")
        ]
        odd = [name for name in expected if name not in taken]
        odd += [
            name
            for name, value in taken.items()
            if name not in own or own[name].shape != value.shape
        ]
        if odd:
            there = _shape(taken, odd[0])
            here = _shape(own, odd[0])
            raise ValueError(
                f"{source}: not the weights of this network ({odd[0]} is {there} there, {here} "
                f"here; {len(odd)} such); take those of the same network and width"
            )

        network.load_state_dict(own | taken)


SCRATCH = Start(state={}, ancestor=None, with_heads=False)


def _shape(state: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(state[name].shape)) if name in state else "missing"


def imported_start(
    imported: ImportSettings | None, network: NetworkSettings, normalise: NormaliseConfig
) -> Start:
    """The trunk that a file holds under torchvision's names.

    Errors: ValueError for a file that is missing, of another checksum, unreadable, or of another
    network; and for faces that are not normalised as torchvision's were.
    """
    if imported is None:
        raise ValueError("init is import and imported null; give imported: {file, sha256}")
    from_torchvision(network.name, network.options, {})  # refused before the file is read
    if normalise != IMAGENET_NORMALISE:
        raise ValueError(
            f"init is import and normalise {plain(normalise)}; torchvision's weights were trained "
            f"with {plain(IMAGENET_NORMALISE)}: set normalise to it"
        )

    state = _read_imported(Path(imported.file), imported.sha256)
    own = from_torchvision(network.name, network.options, state)
    return Start(
        state=own.state,
        ancestor={"name": Path(imported.file).name, "sha256": imported.sha256, "start": None},
        with_heads=False,
        new_parts=own.new_parts,
    )


def _read_imported(file: Path, sha256: str) -> dict[str, Tensor]:
    if not file.is_file():
        raise ValueError(f"{file}: no such file of weights; fetch it yourself, then name it here")
    found = sha256_of(file)
    if found != sha256:
        raise ValueError(
            f"{file}: sha256 {found} is not imported.sha256, {sha256}; fetch the file again, or "
            f"name the checksum of the one you trust"
        )

    # torch.load has no error of its own: the unpickler's errors come through as they are.
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state: dict[str, Tensor] = torch.load(file, weights_only=True, map_location="cpu")
    except (
        SafetensorError,
        pickle.UnpicklingError,
        EOFError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            f"{file}: not a state dict ({error}); give safetensors, or what torch.save makes of one"
        ) from error

    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise ValueError(f"{file}: not a state dict of tensors; give the weights alone")
    return state


def plain(normalise: NormaliseConfig) -> dict[str, Any]:
    """The normalisation as JSON gives it back: lists in place of tuples."""
    document: dict[str, Any] = json.loads(json.dumps(asdict(normalise)))
    return document
