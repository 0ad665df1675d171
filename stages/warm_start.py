"""What a training on labelled faces starts from: labels that lie on the grid, and the pre-trained
trunk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from stages.settings import read_json
from visage.data.face_table import FaceTable
from visage.labels import LabelGrid
from visage.weights import sha256_of


def refuse_off_grid(table: FaceTable, grid: LabelGrid, section: str) -> None:
    """ValueError where a face has no label, or one off the grid; `section` of the settings holds
    the grid."""
    off = ~((table.label >= grid.minimum) & (table.label <= grid.maximum))
    if off.any():
        worst = int(np.flatnonzero(off)[0])
        raise ValueError(
            f"{table.photo_id[worst]}: label {table.label[worst]} lies off the grid "
            f"{grid.minimum}..{grid.maximum} "
            f"({off.sum()} such faces); widen {section}.grid or narrow validate.target's label "
            f"range"
        )


def read_backbone(
    folder: Path, wanted: Mapping[str, Any], who: str, remedy: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the pretrain stage noted of its network, and the weights; ValueError where `who` wants
    it otherwise."""
    lineage: dict[str, Any] = read_json(folder / "backbone.json")
    for key, value in wanted.items():
        if lineage[key] != value:
            raise ValueError(
                f"{folder}: the backbone's {key} is {lineage[key]}, {who} has {value}; {remedy}"
            )
    if sha256_of(folder / "backbone.safetensors") != lineage["weights"]["sha256"]:
        raise ValueError(
            f"{folder / 'backbone.safetensors'}: truncated or edited; run the pretrain stage again"
        )
    return lineage, load_file(folder / "backbone.safetensors")
