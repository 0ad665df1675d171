"""A model's ONNX file, its seal and config checked, as an engine that ONNX Runtime runs.

Files of format 2 have their config under another key and no output `features`: they are read as
well, but their faces cannot be observed for drift. Legend: B crops, C pooled features, K labels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from visage.inference.engine import Crops, Floats32, Floats64
from visage.model_config import ModelConfig, find_config

ONNX_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
# Keys of the file's metadata
CONFIG_KEY = "visage.config"
OLDER_CONFIG_KEY = "visage.card"  # the config's in format 2
SEAL_KEY = "visage.sha256"
# Inputs of the graph
CROPS = "crops"
LANDMARKS = "landmarks"  # only where the network needs them
# Outputs of the graph
PROBABILITIES = "probabilities"
VALUE = "value"
FEATURES = "features"


def seal(body: bytes) -> bytes:
    """The serialised ModelProto {metadata_props: [{key: SEAL_KEY, value: sha256 of body}]}: field
    14, wire type 2."""
    key = SEAL_KEY.encode()
    value = hashlib.sha256(body).hexdigest().encode()
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value
    return b"\x72" + bytes([len(entry)]) + entry


def checked_bytes(path: Path) -> bytes:
    """The contents of an ONNX file whose seal is intact; ValueError otherwise."""
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
    """An ONNX file's contents as an `Engine`, run by ONNX Runtime on the CPU.

    `config` is the file's own, ValueError where it has none; `source` names the file in errors.
    `num_threads`: those of one call; None leaves the number to ONNX Runtime.
    """

    def __init__(self, data: bytes, source: str, *, num_threads: int | None = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
            options.inter_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"]
        )
        self._input_names = [each.name for each in self._session.get_inputs()]
        self._output_names = [each.name for each in self._session.get_outputs()]
        self.config = self._read_config(source)

    @property
    def needs_landmarks(self) -> bool:
        return LANDMARKS in self._input_names

    @property
    def gives_features(self) -> bool:
        return FEATURES in self._output_names

    def outputs(
        self, crops_BCHW: npt.ArrayLike, landmarks_B52: npt.ArrayLike | None
    ) -> dict[str, Floats32]:
        """uint8 crops, and landmarks where the graph takes them -> the graph's outputs by name, as
        any reader of the file gets them."""
        inputs: dict[str, npt.NDArray[Any]] = {CROPS: np.ascontiguousarray(crops_BCHW)}
        if self.needs_landmarks:
            assert landmarks_B52 is not None
            inputs[LANDMARKS] = np.ascontiguousarray(landmarks_B52)

        outputs = self._session.run(self._output_names, inputs)
        return dict(zip(self._output_names, outputs, strict=True))

    def answer(
        self, crops_BCHW: Crops, landmarks_B52: Floats32 | None
    ) -> tuple[Floats64, Floats32 | None]:
        outputs = self.outputs(crops_BCHW, landmarks_B52)
        return outputs[PROBABILITIES].astype(np.float64), outputs.get(FEATURES)

    def _read_config(self, source: str) -> ModelConfig:
        """The config in the file's metadata; ValueError where there is none, or the graph is of
        another crop size or label grid."""
        notes = self._session.get_modelmeta().custom_metadata_map
        text = notes.get(CONFIG_KEY, notes.get(OLDER_CONFIG_KEY))
        if text is None:
            raise ValueError(f"{source}: carries no config ({CONFIG_KEY}); export the model again")
        config = ModelConfig.from_json(text, source)

        crops = self._session.get_inputs()[0]
        probabilities = self._session.get_outputs()[0]
        found = [crops.shape[1:], probabilities.shape[1:]]
        px = config.alignment.crop_px
        expected = [[3, px, px], [config.grid.num_labels]]
        if found != expected:
            raise ValueError(
                f"{source}: the graph maps {found[0]} to {found[1]}, its config says "
                f"{expected[0]} to {expected[1]}; export the model again"
            )
        return config


def load_onnx(path: Path, *, num_threads: int | None = 1) -> tuple[OnnxEngine, ModelConfig]:
    """The engine that an ONNX file holds, and its config: what a predictor is made of.

    Raises ValueError for a file that is truncated or edited, without a config, of another label
    grid or crop size than its config's, or in a folder with another model's config.json.
    """
    engine = OnnxEngine(checked_bytes(path), str(path), num_threads=num_threads)
    config_file = find_config(path.parent)
    if config_file is not None and ModelConfig.read(config_file) != engine.config:
        raise ValueError(
            f"{path}: its config is not that of {config_file}: files of two exports; copy the "
            f"complete folder"
        )
    return engine, engine.config
