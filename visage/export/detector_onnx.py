"""MTCNN's three networks from facenet-pytorch's weights -> `visage/detection/mtcnn_onnx/*.onnx`.

    python -m visage.export.detector_onnx [--folder FOLDER]

The graphs are written node by node, so that the same weights give the same bytes. Each takes
`pixels` (B, 3, height, width), float32, normalised to -1 .. 1, and gives one output: two logits (no
face, face), four regression values and, in the output network, ten landmark coordinates.

ONNX Runtime computes convolutions in blocks of channels, and leaves that layout for every PRelu.
This takes more time than the convolutions. So PReLU with slope a is written as

    prelu(x) = a x + relu((1 - a) x)               where a <= 1
   -prelu(x) = -a x + relu((a - 1) x)              where a > 1; the next layer has its sign turned

as two convolutions over single pixels: the first has ReLU fused, the second has the sum fused.
In front of the first network's pooling, M = max(x) and K = max(a x) are pooled instead, and

    max(prelu(x)) = K + relu(M - K)                where a < 0
    max(prelu(x)) = prelu(M)                       where a >= 0

Results differ from torch's in the last digits only (tests/visage/export/test_detector_onnx.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from visage.atomic import atomic_write_bytes
from visage.detection.onnx_networks import FOLDER, PIXELS
from visage.detection.torch_networks import mtcnn_weights

Float32Array = npt.NDArray[np.float32]
Weights = dict[str, Float32Array]

OPSET = 18
IR_VERSION = 9
# Channels that ONNX Runtime computes together.
BLOCK = 16


class GraphWriter:
    """Nodes in order, each appended to the one before: `last` is the name of the latest output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.last = PIXELS

    def tensor(self, values: npt.ArrayLike) -> str:
        from onnx import numpy_helper

        name = f"t{len(self.tensors)}"
        array = np.ascontiguousarray(values, np.float32)
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        self.last = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [self.last], **attributes))
        return self.last

    def convolution(
        self, weight_OIKK: Float32Array, bias_O: Float32Array, source: str | None = None
    ) -> str:
        tensors = self.tensor(weight_OIKK), self.tensor(bias_O)
        return self.add("Conv", source or self.last, *tensors)

    def pool(self, side: int) -> str:
        """Maxima of squares, two pixels apart, the last square beyond the rim too."""
        return self.add(
            "MaxPool", self.last, kernel_shape=[side] * 2, strides=[2, 2], pads=[0, 0, 1, 1]
        )

    def linear_plus_relu(self, linear_OI: Float32Array, relu_OI: Float32Array) -> str:
        """linear x + relu(relu x), over the channels of each pixel."""
        source, no_bias_O = self.last, np.zeros(len(linear_OI), np.float32)
        self.convolution(relu_OI[:, :, None, None], no_bias_O)
        bent = self.add("Relu", self.last)
        straight = self.convolution(linear_OI[:, :, None, None], no_bias_O, source)
        return self.add("Add", straight, bent)

    def scaled_plus_relu(self, linear_C: Float32Array, relu_C: Float32Array) -> str:
        """The same, channel by channel."""
        source, count = self.last, len(linear_C)
        tensors = [self.tensor(values[:, None, None, None]) for values in (relu_C, linear_C)]
        self.add("Conv", source, tensors[0], group=count)
        bent = self.add("Relu", self.last)
        straight = self.add("Conv", source, tensors[1], group=count)
        return self.add("Add", straight, bent)

    def model(self, num_outputs: int, shape: list[int | str]) -> bytes:
        from onnx import TensorProto, checker, helper

        given = helper.make_tensor_value_info(PIXELS, TensorProto.FLOAT, ["batch", 3, *shape])
        sides = ["rows", "columns"] if isinstance(shape[0], str) else []
        gives = helper.make_tensor_value_info(
            self.last, TensorProto.FLOAT, ["batch", num_outputs, *sides]
        )
        graph = helper.make_graph(self.nodes, "mtcnn", [given], [gives], self.tensors)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
        checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString(deterministic=True)
        return data


def padded(values: Float32Array, count: int, axis: int = 0) -> Float32Array:
    """Zeros at the end of an axis, up to `count`."""
    widths = [(0, 0)] * values.ndim
    widths[axis] = (0, count - values.shape[axis])
    return np.pad(values, widths)


def blocks(count: int) -> int:
    return -(-count // BLOCK) * BLOCK


def prelu(graph: GraphWriter, slope_C: Float32Array) -> Float32Array:
    """Appends PReLU; returns the sign (C,) that its outputs have."""
    sign_C = np.where(slope_C <= 1, 1, -1).astype(np.float32)
    graph.scaled_plus_relu(sign_C * slope_C, np.abs(1 - slope_C))
    return sign_C


def bent_convolution(
    graph: GraphWriter, weights: Weights, number: str, sign_I: Float32Array
) -> Float32Array:
    """A convolution and its PReLU, channels in full blocks; returns its outputs' signs."""
    weight_OIKK = weights[f"conv{number}.weight"]
    count = blocks(len(weight_OIKK))
    weight_OIKK = padded(weight_OIKK, len(sign_I), axis=1) * sign_I[:, None, None]
    graph.convolution(padded(weight_OIKK, count), padded(weights[f"conv{number}.bias"], count))
    return prelu(graph, padded(weights[f"prelu{number}.weight"], count))


def propose_model(weights: Weights) -> bytes:
    """The proposal network: convolutions alone, any photo."""
    graph = GraphWriter()
    slope_C = weights["prelu1.weight"]
    turned = np.flatnonzero(slope_C < 0)
    count = blocks(len(slope_C))
    places = len(slope_C) + np.arange(len(turned))
    if places[-1] >= count:
        raise ValueError(f"{len(turned)} of {len(slope_C)} slopes are negative: no room for them")

    first_OIKK, bias_O = weights["conv1.weight"], weights["conv1.bias"]
    slopes = slope_C[turned]
    extra_OIKK = slopes[:, None, None, None] * first_OIKK[turned]
    graph.convolution(
        padded(np.concatenate([first_OIKK, extra_OIKK]), count),
        padded(np.concatenate([bias_O, slopes * bias_O[turned]]), count),
    )
    graph.pool(2)

    # Channels behind the 16 pooled ones: M of each channel, then K of those with a < 0.
    sign_C = padded(np.where(slope_C <= 1, 1, -1).astype(np.float32), count)
    sign_C[len(slope_C) :] = 1
    upper_C = padded(np.where(slope_C < 0, 0, slope_C).astype(np.float32), count)
    linear, bend = np.diag(sign_C * upper_C), np.diag(np.abs(1 - upper_C))
    linear[len(slope_C) :] = bend[len(slope_C) :] = 0
    linear[turned, places] = 1
    bend[turned, places] = -1
    graph.linear_plus_relu(linear, bend)

    sign_C = bent_convolution(graph, weights, "2", sign_C)
    sign_C = bent_convolution(graph, weights, "3", sign_C)
    last_OIKK = np.concatenate([weights["conv4_1.weight"], weights["conv4_2.weight"]])
    graph.convolution(
        last_OIKK * sign_C[:, None, None],
        np.concatenate([weights["conv4_1.bias"], weights["conv4_2.bias"]]),
    )
    return graph.model(6, ["height", "width"])


def candidate_model(
    weights: Weights, side: int, pools: tuple[int, ...], dense: str, heads: tuple[str, ...]
) -> bytes:
    """The second or third network: convolutions with their poolings, a dense layer, heads.

    Maxima do not commute with turned signs, so these are turned back in front of a pooling.
    """
    graph = GraphWriter()
    sign_C = np.ones(3, np.float32)
    for number, pool in enumerate((*pools, 0), start=1):
        if pool and weights[f"prelu{number}.weight"].max() > 1:
            sign_C = pooled_steep_convolution(graph, weights, str(number), sign_C)
        else:
            sign_C = bent_convolution(graph, weights, str(number), sign_C)
        if pool:
            graph.pool(pool)

    # facenet-pytorch reads the last map with its axes as width, height, channels.
    graph.add("Transpose", graph.last, perm=[0, 3, 2, 1])
    graph.add("Flatten", graph.last)
    weight_OI = weights[f"dense{dense}.weight"]
    sides = round((weight_OI.shape[1] / len(sign_C)) ** 0.5)
    matrix_IO = np.tile(sign_C, sides * sides)[:, None] * weight_OI.T
    tensors = graph.tensor(matrix_IO), graph.tensor(weights[f"dense{dense}.bias"])
    graph.add("Gemm", graph.last, *tensors)
    graph.add("PRelu", graph.last, graph.tensor(weights[f"prelu{dense}.weight"]))

    head_OI = np.concatenate([weights[f"dense{head}.weight"] for head in heads])
    bias_O = np.concatenate([weights[f"dense{head}.bias"] for head in heads])
    graph.add("Gemm", graph.last, graph.tensor(head_OI.T), graph.tensor(bias_O))
    return graph.model(len(head_OI), [side, side])


def pooled_steep_convolution(
    graph: GraphWriter, weights: Weights, number: str, sign_I: Float32Array
) -> Float32Array:
    """A convolution and its PReLU with slopes above 1; the signs are turned back by a last
    convolution over single pixels."""
    sign_C = bent_convolution(graph, weights, number, sign_I)
    graph.add("Conv", graph.last, graph.tensor(sign_C[:, None, None, None]), group=len(sign_C))
    return np.ones_like(sign_C)


def detector_models() -> dict[str, bytes]:
    """File name -> ONNX file, for the three networks of the installed facenet-pytorch."""
    weights = mtcnn_weights()
    return {
        "propose.onnx": propose_model(weights["propose"]),
        "refine.onnx": candidate_model(weights["refine"], 24, (3, 3), "4", ("5_1", "5_2")),
        "output.onnx": candidate_model(
            weights["output"], 48, (3, 3, 2), "5", ("6_1", "6_2", "6_3")
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m visage.export.detector_onnx")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    for name, data in detector_models().items():
        atomic_write_bytes(folder / name, data)
        print(f"{folder / name}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
