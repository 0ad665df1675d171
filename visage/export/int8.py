"""A model in 8-bit integers: the ONNX file again, its convolutions computed in int8, several times
as fast.

Static quantisation: BatchNorm is folded into the convolutions, every output channel's weights get a
scale of their own, and the range of every map is measured once, on training faces. The uint8 crops,
their normalisation and all after the pooled features (head, softmax, decoding) stay as they are in
model.onnx, and so do config and seal: `load_onnx` reads both files alike. Integer sums have no
order, so a face's maps are the same in any batch. Weights use 7 of the 8 bits: a CPU without VNNI
adds two products in 16 bits, where 8 would overflow and give other numbers than elsewhere.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from visage.atomic import atomic_write_bytes
from visage.export.onnx_file import forget_the_machine, onnx_graph, stamped
from visage.inference.onnx_engine import load_onnx
from visage.model_config import ModelConfig

WEIGHTED, WEIGHTLESS = ("Conv", "Gemm"), ("MaxPool", "Relu")
PREPARED = {
    "onnx.quant.pre_process": "onnxruntime.quant"
}  # folding and shapes are done: no advice to do them
BODY = ("network.blocks.", "network.wide.")  # the parameters up to the pooled features


@dataclass(frozen=True, kw_only=True)
class Int8Parity:
    """Absolute differences of predicted values between two ONNX files over `num_faces` faces, in
    label units.

    The mean is the most that the mean absolute error can differ by.
    """

    num_faces: int
    max_abs_difference: float
    mean_abs_difference: float


class CalibrationFaces:
    """Batches of uint8 crops (B,3,H,W) in the form in which ONNX Runtime asks for them."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        crops_BCHW = next(self._batches, None)
        return None if crops_BCHW is None else {"crops": crops_BCHW.contiguous().numpy()}


CalibrationDataReader.register(CalibrationFaces)


def write_int8(
    network: nn.Module, config: ModelConfig, batches: Iterable[Tensor], path: Path
) -> None:
    """A network and its config as one sealed ONNX file in int8, ranges measured on `batches` of
    training crops."""
    graph = onnx_graph(folded(network), config)
    onnx.helper.set_model_props(graph, PREPARED)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".int8.") as folder:
        part = Path(folder) / path.name
        quantize_static(
            graph,
            part,
            CalibrationFaces(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*WEIGHTED, *WEIGHTLESS],
            nodes_to_exclude=[node.name for node in graph.graph.node if _is_head(node)],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            calibrate_method=CalibrationMethod.MinMax,
        )
        model = onnx.load(part)
    forget_the_machine(model)
    atomic_write_bytes(path, stamped(model, config))


def _is_head(node: Any) -> bool:
    return node.op_type in WEIGHTED and not any(name.startswith(BODY) for name in node.input)


def folded(network: nn.Module) -> nn.Module:
    """A copy of a network whose BatchNorm layers are part of the convolutions before them."""
    own: Any = copy.deepcopy(network).eval()
    own.blocks = nn.ModuleList(nn.Sequential(*_without_norms(list(block))) for block in own.blocks)
    return own  # type: ignore[no-any-return]


def _without_norms(layers: list[Any]) -> Iterator[nn.Module]:
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(following, nn.BatchNorm2d):
            yield fuse_conv_bn_eval(layer, following)
        elif not isinstance(layer, nn.BatchNorm2d):
            yield layer


def measure_int8(path: Path, exact: Path, batches: Iterable[Tensor]) -> Int8Parity:
    """What int8 changes: the file `path` against the one it was made beside, on batches of crops."""
    rough, fine = load_onnx(path), load_onnx(exact)
    difference_N = np.concatenate(
        [
            np.abs(
                rough.predict_crops(crops, flip=False).value
                - fine.predict_crops(crops, flip=False).value
            )
            for crops in batches
        ]
    )
    return Int8Parity(
        num_faces=len(difference_N),
        max_abs_difference=float(difference_N.max()),
        mean_abs_difference=float(difference_N.mean()),
    )
