"""An exported model becomes a released one, with its own name, terms and measured figures.

visage release MODEL_FOLDER RELEASED_FOLDER --name NAME --terms TEXT --metrics FILE.json
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from visage.atomic import atomic_write_bytes
from visage.export.onnx_file import stamped
from visage.inference.onnx_engine import ONNX_FILE, checked_bytes, load_onnx
from visage.model_config import CONFIG_FILE, ModelConfig
from visage.weights import load_model


def release(
    exported: Path, released: Path, *, name: str, terms: str, metrics: dict[str, Any]
) -> ModelConfig:
    """Copies an exported model, all checks made, under its own name with terms and figures in both
    of its configs."""
    config = dataclasses.replace(load_model(exported)[1], name=name, terms=terms, metrics=metrics)
    load_onnx(exported / ONNX_FILE)
    copy_with_config(exported, released, config)
    return config


def copy_with_config(exported: Path, released: Path, config: ModelConfig) -> None:
    """An exported model's files, weights and graph as they are, with another config, both as
    config.json and inside the graph."""
    import onnx

    released.mkdir(parents=True, exist_ok=True)
    weights = config.weights.file
    atomic_write_bytes(released / weights, (exported / weights).read_bytes())
    for path in sorted(exported.glob("model*.onnx")):
        model = onnx.load_from_string(checked_bytes(path))
        atomic_write_bytes(released / path.name, stamped(model, config))
    config.write(released / CONFIG_FILE)
