"""A model's weights as safetensors, and model folders: written, and read with all checks.

Loading refuses a weights file that is truncated, edited or of another network, and a config edited
since: the weights carry a note of what they were trained to mean, the label grid above all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from visage.atomic import atomic_write
from visage.methods import METHODS
from visage.model_config import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    ModelConfig,
    WeightsConfig,
    current_network,
    current_normalise,
    find_config,
)
from visage.networks import build
from visage.networks.protocol import Network

# Of the note inside the weights file
MEANING_KEY = "visage"
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_weights(
    network: torch.nn.Module, path: Path, dtype: Literal["float32", "float16"], meaning: str = "{}"
) -> WeightsConfig:
    """A network's state as safetensors at `path`, written atomically, floating tensors stored as
    `dtype`.

    `meaning` travels inside the file; alone, since safetensors writes several notes in random
    order.
    """
    state = {}
    for name, value in network.state_dict().items():
        stored = value.to(DTYPES[dtype]) if value.is_floating_point() else value
        state[name] = stored.contiguous().cpu()

    with atomic_write(path) as part:
        save_file(state, part, metadata={MEANING_KEY: meaning})
        # safetensors makes it readable by its owner alone
        part.chmod(0o644)

    count = sum(parameter.numel() for parameter in network.parameters())
    return WeightsConfig(file=path.name, sha256=sha256_of(path), dtype=dtype, num_parameters=count)


def save_model(
    folder: Path,
    network: torch.nn.Module,
    config: ModelConfig,
    dtype: Literal["float32", "float16"],
) -> ModelConfig:
    """Writes weights and config into `folder` and returns the config as written (its `weights`
    filled in)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = write_weights(network, folder / WEIGHTS_FILE, dtype, config.meaning())
    written = dataclasses.replace(config, weights=weights)
    written.write(folder / CONFIG_FILE)
    return written


def build_network(config: ModelConfig, source: str) -> Network:
    """A config's network, without its weights; ValueError for an unknown network or method, or a
    network and a grid that do not belong together. `source` names the config in errors."""
    if config.method not in METHODS:
        raise ValueError(
            f"{source}: method {config.method!r} is unknown; known: {', '.join(METHODS)}"
        )

    method = METHODS[config.method]
    wanted = method.head_width(config.grid)
    shape = config.network
    if shape.num_outputs != wanted:
        grid = config.grid
        raise ValueError(
            f"{source}: the network has {shape.num_outputs} outputs, the label grid "
            f"{grid.minimum}:{grid.step}:{grid.maximum} needs {wanted}; config and model do not "
            f"belong together"
        )

    try:
        return build(shape.name, shape.options, shape.num_outputs, method.shared_head)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def load_model(folder: Path) -> tuple[Network, ModelConfig]:
    """The network (float32, evaluation mode) and its config; refuses what does not belong together
    with a ValueError."""
    source = find_config(folder) or folder / CONFIG_FILE
    config = ModelConfig.read(source)
    path = folder / config.weights.file
    if not path.is_file():
        raise ValueError(
            f"{path}: the weights that {source} names are missing; copy both files together"
        )

    found = sha256_of(path)
    if found != config.weights.sha256:
        raise ValueError(
            f"{path}: sha256 {found[:12]}… is not the config's {config.weights.sha256[:12]}…: the "
            f"file is truncated or was edited; fetch or export the model again"
        )
    _refuse_another_meaning(path, config)

    network = build_network(config, str(source))
    try:
        state = load_file(path)
        for name, value in state.items():
            if value.is_floating_point():
                state[name] = value.float()
        network.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{path}: not the weights of the config's network {config.network}: {error}"
        ) from error
    return network.eval(), config


def _refuse_another_meaning(path: Path, config: ModelConfig) -> None:
    """The weights' own note against the config; a file without one (another tool's) is held to its
    checksum alone."""
    try:
        with safe_open(path, "pt") as file:
            noted = json.loads((file.metadata() or {}).get(MEANING_KEY, "{}"))
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error

    if "network" in noted:
        noted["network"] = current_network(noted["network"])
    if "normalise" in noted:
        noted["normalise"] = current_normalise(noted["normalise"])
    meaning = json.loads(config.meaning())
    for name, value in noted.items():
        if meaning.get(name) != value:
            raise ValueError(
                f"{path}: these weights were trained with {name} {value}, the config says "
                f"{meaning.get(name)}; take the config that came with them"
            )
