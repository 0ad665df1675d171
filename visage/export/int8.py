"""A model in 8-bit integers: the ONNX file again, its convolutions computed in int8, several times
as fast.

Static quantisation: BatchNorm is folded into the convolutions, every output channel's weights get a
scale of their own, and the range of every map is measured once, on training faces. The network says
which of its modules are computed in int8 (`Network.quantised_modules`), and max-pooling and ReLU
between them. The uint8 crops, their normalisation and everything else (head, softmax, decoding,
linear layers that are not named, sampling of regions, LSTMs) stay as they are in model.onnx. So do
config and seal: `load_onnx` reads both files in the same way. Integer sums have no order, so a
face's maps are the same in any batch. Weights use 7 of the 8 bits: a CPU without VNNI adds two
products in 16 bits, where 8 would overflow and give other numbers than elsewhere.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from torch.nn.utils.fusion import fuse_conv_bn_weights

from visage.atomic import atomic_write_bytes
from visage.export.onnx_file import forget_the_machine, onnx_graph, stamped
from visage.export.quantisable import check_quantisable
from visage.inference.faces import CropPredictor
from visage.inference.onnx_engine import CROPS, LANDMARKS, load_onnx
from visage.model_config import ModelConfig
from visage.networks.protocol import FaceBatch, Network

WEIGHTED = ("Conv", "Gemm")
WEIGHTLESS = ("MaxPool", "Relu")
# Folding and shapes are done: no advice to do them
PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}
# What a parameter's name in the graph begins with (visage.inference.engine)
NETWORK = "network"


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
    """Batches of faces, uint8 crops, in the form in which ONNX Runtime asks for them."""

    def __init__(self, batches: Iterable[FaceBatch], needs_landmarks: bool) -> None:
        self._batches = iter(batches)
        self._needs_landmarks = needs_landmarks

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        faces = next(self._batches, None)
        if faces is None:
            return None

        inputs: dict[str, npt.NDArray[Any]] = {CROPS: faces.view_BCHW.contiguous().numpy()}
        if self._needs_landmarks:
            assert faces.landmarks_B52 is not None
            inputs[LANDMARKS] = faces.landmarks_B52.numpy()
        return inputs


CalibrationDataReader.register(CalibrationFaces)


def write_int8(
    network: Network, config: ModelConfig, batches: Iterable[FaceBatch], path: Path
) -> None:
    """A network and its config as one sealed ONNX file in int8, ranges measured on `batches` of
    training faces (uint8 crops).

    ValueError where the network names nothing that can be quantised, or something of it would stay
    float.
    """
    check_quantisable(config.network.name, network)
    graph = onnx_graph(network, config)
    quantised = _quantised_nodes(graph, network)
    fold_norms(graph)
    weighted = [node for node in graph.graph.node if node.op_type in WEIGHTED]
    excluded = [node.name for node in weighted if node.name not in quantised]
    onnx.helper.set_model_props(graph, PREPARED)

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".int8.") as folder:
        part = Path(folder) / path.name
        quantize_static(
            graph,
            part,
            CalibrationFaces(batches, network.needs_landmarks),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*WEIGHTED, *WEIGHTLESS],
            nodes_to_exclude=excluded,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            calibrate_method=CalibrationMethod.MinMax,
        )
        model = onnx.load(part)

    _check_quantised(config, model, quantised)
    forget_the_machine(model)
    atomic_write_bytes(path, stamped(model, config))


def _quantised_nodes(graph: Any, network: Network) -> set[str]:
    """The names of the nodes that compute the network's `quantised_modules`."""
    weights = {f"{NETWORK}.{name}.weight" for name in network.quantised_modules()}
    return {
        node.name
        for node in graph.graph.node
        if node.op_type in WEIGHTED and node.input[1] in weights
    }


def _check_quantised(config: ModelConfig, model: Any, quantised: set[str]) -> None:
    """ValueError where a node that should be computed in int8 still has float weights."""
    widened: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            widened.update(node.output)

    nodes = [node for node in model.graph.node if node.name in quantised]
    left = [node.name for node in nodes if not {node.input[0], node.input[1]} <= widened]
    if left:
        raise ValueError(
            f"network {config.network.name!r}: in int8 {', '.join(sorted(left))} would stay float; "
            f"leave them out of quantised_modules, or set export.int8: false"
        )


def fold_norms(model: Any) -> None:
    """Makes every BatchNorm after a convolution part of it, in place, whatever network the graph
    is of."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {}
    readers: dict[str, int] = {output.name: 1 for output in graph.output}
    for node in graph.node:
        for name in node.output:
            made_by[name] = node
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1

    norms = [node for node in graph.node if node.op_type == "BatchNormalization"]
    for norm in norms:
        convolution = made_by.get(norm.input[0])
        if convolution is None or convolution.op_type != "Conv" or readers[norm.input[0]] > 1:
            continue
        graph.initializer.extend(_fold(convolution, norm, weights))
        graph.node.remove(norm)

    used: set[str] = set()
    for node in graph.node:
        used.update(node.input)
    unused = [tensor for tensor in graph.initializer if tensor.name not in used]
    for tensor in unused:
        graph.initializer.remove(tensor)


def _fold(convolution: Any, norm: Any, weights: dict[str, Any]) -> list[Any]:
    """Makes a convolution compute what it and the BatchNorm after it computed; its new weight and
    bias, under new names, since a network may use the old ones twice."""
    [epsilon] = [each.f for each in norm.attribute if each.name == "epsilon"]
    own = _tensors(convolution.input[1:], weights)
    bias = own[1] if len(own) > 1 else None
    scale, shift, mean, variance = _tensors(norm.input[1:], weights)

    folded = fuse_conv_bn_weights(own[0], bias, mean, variance, epsilon, scale, shift)
    names = [f"{convolution.name}.folded.{part}" for part in ("weight", "bias")]
    del convolution.input[1:]
    convolution.input.extend(names)
    convolution.output[0] = norm.output[0]

    made = []
    for value, name in zip(folded, names, strict=True):
        made.append(numpy_helper.from_array(value.detach().numpy(), name))
    return made


def _tensors(names: Iterable[str], weights: dict[str, Any]) -> list[torch.Tensor]:
    """Copies of a graph's tensors, by name."""
    arrays = [numpy_helper.to_array(weights[name]) for name in names]
    return [torch.from_numpy(array.copy()) for array in arrays]


def measure_int8(path: Path, exact: Path, batches: Iterable[FaceBatch]) -> Int8Parity:
    """What int8 changes: the file `path` against the float file `exact`, on batches of faces (uint8
    crops)."""
    rough = CropPredictor(*load_onnx(path))
    fine = CropPredictor(*load_onnx(exact))
    differences = []
    for faces in batches:
        rough_B = rough.predict_crops(*faces, flip=False).value
        fine_B = fine.predict_crops(*faces, flip=False).value
        differences.append(np.abs(rough_B - fine_B))

    difference_N = np.concatenate(differences)
    return Int8Parity(
        num_faces=len(difference_N),
        max_abs_difference=float(difference_N.max()),
        mean_abs_difference=float(difference_N.mean()),
    )
