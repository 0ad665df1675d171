"""The three networks of MTCNN behind one protocol on arrays, and the two programs that run them.

Weights are facenet-pytorch's on both sides. `onnx` needs ONNX Runtime alone, `torch` needs
facenet-pytorch. A backend's libraries are imported when it is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Backend = Literal["onnx", "torch"]


class CascadeNetworks(Protocol):
    """MTCNN's networks on pixels that are normalised to -1 .. 1, channels first."""

    def propose(self, pixels_BCHW: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Photos of any size -> regression (B, 4, h, w) and probability of a face (B, h, w)."""
        ...

    def refine(self, pixels_NCKK: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Candidates of 24 x 24 px -> regression (N, 4) and probability (N,)."""
        ...

    def output(self, pixels_NCKK: Float32Array) -> tuple[Float32Array, Float32Array, Float32Array]:
        """Candidates of 48 x 48 px -> regression (N, 4), landmarks (N, 10): all x, then all y,
        in sides of the box, and probability (N,)."""
        ...


def _onnx(num_threads: int) -> CascadeNetworks:
    from visage.detection.onnx_networks import OnnxNetworks

    return OnnxNetworks(num_threads)


def _torch(num_threads: int) -> CascadeNetworks:
    from visage.detection.torch_networks import TorchNetworks

    return TorchNetworks(num_threads)


BACKENDS: dict[str, Callable[[int], CascadeNetworks]] = {"onnx": _onnx, "torch": _torch}


def cascade_networks(backend: str, num_threads: int) -> CascadeNetworks:
    """The networks on a backend of BACKENDS; ValueError for an unknown one."""
    if backend not in BACKENDS:
        raise ValueError(f"detector backend {backend!r} is unknown; known: {', '.join(BACKENDS)}")
    if num_threads < 1:
        raise ValueError(f"num_threads is {num_threads}: give at least 1")
    return BACKENDS[backend](num_threads)
