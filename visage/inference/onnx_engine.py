"""A model's ONNX file, its seal and config checked, as an engine that ONNX Runtime runs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visage.inference.photos import Predictor
from visage.model_config import CONFIG_FILE, ModelConfig

ONNX_FILE, INT8_FILE = "model.onnx", "model.int8.onnx"


CONFIG_KEY, SEAL_KEY = "visage.card", "visage.sha256"


def seal(body: bytes) -> bytes:
    """The serialised ModelProto {metadata_props: [{key: SEAL_KEY, value: sha256 of body}]}: field
    14, wire type 2."""
    key, value = SEAL_KEY.encode(), hashlib.sha256(body).hexdigest().encode()
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value
    return b"\x72" + bytes([len(entry)]) + entry


def checked_bytes(path: Path) -> bytes:
    """The contents of an ONNX file whose seal is whole; ValueError otherwise."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; export the model first")
    data = path.read_bytes()
    length = len(seal(b""))
    if data[-length:][:-64] != seal(b"")[:-64]:
        raise ValueError(
            f"{path}: does not end in visage's seal: truncated, or not exported by visage; export "
            f"it again"
        )
    if data[-length:] != seal(data[:-length]):
        raise ValueError(
            f"{path}: its contents are not those that were sealed: edited or damaged; export it "
            f"again"
        )
    return data


class OnnxEngine:
    """An ONNX file's contents as an `Engine`, run by ONNX Runtime on the CPU."""

    def __init__(self, data: bytes) -> None:
        import onnxruntime

        self.session: Any = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def outputs(
        self, crops_BCHW: Tensor
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """uint8 crops -> probabilities (B,K) and values (B,), as any reader of the file gets them."""
        p_BK, value_B = self.session.run(
            ["probabilities", "value"], {"crops": crops_BCHW.contiguous().numpy()}
        )
        return p_BK, value_B

    def __call__(self, crops_BCHW: Tensor) -> Tensor:
        return torch.from_numpy(self.outputs(crops_BCHW)[0]).double()


def load_onnx(path: Path) -> Predictor:
    """The predictor that an ONNX file holds, config included.

    Raises ValueError for a file that is truncated or edited, without a config, of another label
    grid or crop size than its config's, or beside a config.json of another model.
    """
    engine = OnnxEngine(checked_bytes(path))
    notes = engine.session.get_modelmeta().custom_metadata_map
    if CONFIG_KEY not in notes:
        raise ValueError(f"{path}: carries no config ({CONFIG_KEY}); export the model again")
    config = ModelConfig.from_json(notes[CONFIG_KEY], str(path))
    px, num_labels = config.alignment.crop_px, config.grid.num_labels
    found = (engine.session.get_inputs()[0].shape[1:], engine.session.get_outputs()[0].shape[1:])
    if found != ([3, px, px], [num_labels]):
        raise ValueError(
            f"{path}: the graph maps {found[0]} to {found[1]}, its config says {[3, px, px]} to "
            f"{[num_labels]}; "
            "export the model again"
        )
    beside = path.with_name(CONFIG_FILE)
    if beside.is_file() and ModelConfig.read(beside) != config:
        raise ValueError(
            f"{path}: its config is not that of {beside}: files of two exports; copy one folder "
            f"whole"
        )
    return Predictor(engine, config)
