"""What a training starts from: labels that are on the grid, and the weights of an earlier training.

A start is a backbone (the pretrain stage's), a fine-tuned model, or a file under torchvision's
names (stages/imported_weights.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from stages.imported_weights import Start, plain
from stages.settings import read_json
from visage.data.face_table import FaceTable
from visage.labels import LabelGrid
from visage.model_config import CONFIG_FILE, ModelConfig, NormaliseConfig, find_config
from visage.networks import Imported, from_torchvision, trunk_of
from visage.strict import from_plain
from visage.weights import load_model, sha256_of


def refuse_off_grid(table: FaceTable, grid: LabelGrid, section: str) -> None:
    """ValueError where a face has no label, or one off the grid; `section` of the settings holds
    the grid."""
    off = ~((table.label >= grid.minimum) & (table.label <= grid.maximum))
    if off.any():
        first = int(np.flatnonzero(off)[0])
        raise ValueError(
            f"{table.photo_id[first]}: label {table.label[first]} is off the grid "
            f"{grid.minimum}..{grid.maximum} ({off.sum()} such faces); widen {section}.grid or "
            f"narrow validate.target's label range"
        )


def read_backbone(
    folder: Path, wanted: Mapping[str, Any], who: str, remedy: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The pretrain stage's backbone.json and weights; ValueError where they do not have the values
    `wanted`. In errors, `who` names what has those values."""
    document: dict[str, Any] = read_json(folder / "backbone.json")
    for key, value in wanted.items():
        if document[key] != value:
            raise ValueError(
                f"{folder}: the backbone's {key} is {document[key]}, {who} has {value}; {remedy}"
            )

    weights = folder / "backbone.safetensors"
    if sha256_of(weights) != document["weights"]["sha256"]:
        raise ValueError(f"{weights}: truncated or edited; run the pretrain stage again")

    return document, load_file(weights)


def backbone_start(folder: Path, wanted: Mapping[str, Any]) -> Start:
    """The trunk of the pretrain stage's network, or what it is in a network that takes its weights
    (`visage.networks.trunk_of`); ValueError where fine-tuning has other settings."""
    network = wanted["network"]
    trunk: dict[str, Any] = {"name": trunk_of(network["name"]), "options": {}}
    is_trunk = read_json(folder / "backbone.json")["network"] == trunk
    if is_trunk:
        wanted = {**wanted, "network": trunk}

    remedy = "run the pretrain stage with the same settings, or set finetune.init: scratch"
    document, state = read_backbone(folder, wanted, "fine-tuning", remedy)
    own = Imported(state=state, new_parts=())
    if is_trunk:
        own = from_torchvision(network["name"], network["options"], state)

    ancestor = {
        "name": "backbone",
        "sha256": document["weights"]["sha256"],
        "data": {"train": document["data"]},
        "start": document["start"],
    }
    return Start(state=own.state, ancestor=ancestor, with_heads=False, new_parts=own.new_parts)


def backbone_normalise(folder: Path) -> NormaliseConfig:
    """The normalisation of the backbone's faces."""
    document = read_json(folder / "backbone.json")
    normalise: NormaliseConfig = from_plain(
        document["normalise"],
        NormaliseConfig,
        f"{folder}: normalise",
        "run the pretrain stage again",
    )
    return normalise


def started_config(folder: Path) -> ModelConfig:
    """The config of the model to start from; ValueError where there is none."""
    _refuse_no_model(folder)
    return ModelConfig.read(find_config(folder) or folder / CONFIG_FILE)


def _refuse_no_model(folder: Path) -> None:
    if not folder.is_dir() or not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder}: no model to start from; copy a model's folder here, or set finetune.init: "
            f"backbone"
        )


def model_start(
    folder: Path, wanted: Mapping[str, Any], grid: LabelGrid, head: Literal["keep", "fresh"]
) -> Start:
    """The weights of another fine-tuned model; with `keep`, those of its head too.

    Errors: ValueError for a model of another network, alignment or normalisation, and for a head of
    another grid that is to be kept.
    """
    _refuse_no_model(folder)
    network, config = load_model(folder)
    has = {
        "network": {"name": config.network.name, "options": config.network.options},
        "alignment": asdict(config.alignment),
        "normalise": plain(config.normalise),
    }
    for key, value in wanted.items():
        if has[key] != value:
            raise ValueError(
                f"{folder}: the model's {key} is {has[key]}, fine-tuning has {value}; take a model "
                f"with the same {key}, or set finetune's to the model's"
            )

    if head == "keep" and config.grid != grid:
        raise ValueError(
            f"{folder}: the model's grid is {_words(config.grid)}, fine-tuning has {_words(grid)}; "
            f"set finetune.start_head: fresh, or finetune.grid to the model's"
        )

    ancestor = {
        "name": config.name,
        "sha256": config.weights.sha256,
        "data": config.data,
        "start": config.training.get("start"),
    }
    return Start(state=network.state_dict(), ancestor=ancestor, with_heads=head == "keep")


def _words(grid: LabelGrid) -> str:
    return f"{grid.minimum}:{grid.step}:{grid.maximum}"
