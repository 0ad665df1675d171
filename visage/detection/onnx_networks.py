"""MTCNN's networks in ONNX Runtime, from the files that `python -m visage.export.detector_onnx`
made of facenet-pytorch's weights. Needs neither torch nor facenet-pytorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

Float32Array = npt.NDArray[np.float32]
FOLDER = Path(__file__).parent / "mtcnn_onnx"
PIXELS = "pixels"
# Candidates of one forward pass: their maps stay inside the processor's cache.
CHUNK = 16


class OnnxNetworks:
    """The protocol of `visage.detection.cascade_networks` in ONNX Runtime, on the processor."""

    def __init__(self, num_threads: int) -> None:
        self._propose = _session(FOLDER / "propose.onnx", num_threads)
        self._refine = _session(FOLDER / "refine.onnx", num_threads)
        self._output = _session(FOLDER / "output.onnx", num_threads)

    def propose(self, pixels_BCHW: Float32Array) -> tuple[Float32Array, Float32Array]:
        [maps_B6HW] = self._propose.run(None, {PIXELS: pixels_BCHW})
        return maps_B6HW[:, 2:], _face_probability(maps_B6HW[:, 0], maps_B6HW[:, 1])

    def refine(self, pixels_NCKK: Float32Array) -> tuple[Float32Array, Float32Array]:
        values_N6 = _in_chunks(self._refine, pixels_NCKK)
        return values_N6[:, 2:], _face_probability(values_N6[:, 0], values_N6[:, 1])

    def output(self, pixels_NCKK: Float32Array) -> tuple[Float32Array, Float32Array, Float32Array]:
        values_NV = _in_chunks(self._output, pixels_NCKK)
        probability_N = _face_probability(values_NV[:, 0], values_NV[:, 1])
        return values_NV[:, 2:6], values_NV[:, 6:], probability_N


def _session(path: Path, num_threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # Threads that wait must not use the processor.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )


def _in_chunks(session: Any, pixels_NCKK: Float32Array) -> Float32Array:
    parts = []
    for start in range(0, len(pixels_NCKK), CHUNK):
        parts += session.run(None, {PIXELS: pixels_NCKK[start : start + CHUNK]})
    return np.concatenate(parts)


def _face_probability(other: Float32Array, face: Float32Array) -> Float32Array:
    """The second value of a softmax over two logits."""
    with np.errstate(over="ignore"):
        probability: Float32Array = 1 / (1 + np.exp(other - face))
    return probability
