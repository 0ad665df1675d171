"""A model becomes files that others can run: safetensors with its config, and one ONNX file with
the config inside.

The ONNX graph takes uint8 RGB crops `crops` (B,3,crop_px,crop_px), any B, and, only where the
network needs them, their `landmarks` (B,5,2), float32, pixels of the crop. It gives float32
`probabilities` (B,K), `value` (B,) and the pooled `features` (B,C): normalisation, softmax and
decoding are inside, so nobody retypes them. The caller does two things more, and
`visage.inference.faces` does both on either engine. First comes flip averaging, the mean over a
crop and its mirror image. Then the config's calibration follows, since the graph's probabilities
are the method's own (`visage.inference.calibration`: the mean to the power of 1 / temperature,
renormalised; both ends of its central interval moved out by the offset).

Its weights are those of the safetensors file, rounding included; what float16 holds exactly is
stored so and widened on loading, which halves the file and changes no number. The file ends in a
seal, the sha256 of all before it, as a metadata entry of its own (protobuf messages may be
appended), so that readers who do not know it are not disturbed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from visage.atomic import atomic_write_bytes
from visage.inference.faces import CropPredictor
from visage.inference.onnx_engine import (
    CONFIG_KEY,
    CROPS,
    FEATURES,
    LANDMARKS,
    ONNX_FILE,
    PROBABILITIES,
    VALUE,
    load_onnx,
    seal,
)
from visage.inference.torch_engine import Inference
from visage.model_config import ModelConfig
from visage.networks.protocol import FaceBatch, Network
from visage.weights import load_model, save_model

OPSET = 18
# Tensors of fewer elements are not worth a Cast node
HALVED_ELEMENTS = 1000


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Greatest absolute differences of predicted values over `num_faces` faces, in label units.

    `max_abs_difference`: the ONNX file in ONNX Runtime against the safetensors file in torch, the
    same weights. `max_abs_rounding`: the safetensors file against the model it was made from: what
    storing as float16 costs.
    """

    num_faces: int
    max_abs_difference: float
    max_abs_rounding: float


def export_model(
    network: Network, config: ModelConfig, folder: Path, dtype: Literal["float32", "float16"]
) -> ModelConfig:
    """Writes safetensors, config and ONNX into `folder`; returns the config as written."""
    limit = torch.finfo(getattr(torch, dtype)).max
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool((tensor.abs() <= limit).all()):
            raise ValueError(
                f"{config.name}: {name} holds values beyond {dtype} (or nan); export with dtype: "
                f"float32"
            )

    written = save_model(folder, network, config, dtype)
    write_onnx(load_model(folder)[0], written, folder / ONNX_FILE)
    return written


def write_onnx(network: Network, config: ModelConfig, path: Path) -> None:
    """A network and its config as one sealed ONNX file, written atomically."""
    model = onnx_graph(network, config)
    _halve(model)
    atomic_write_bytes(path, stamped(model, config))


def onnx_graph(network: Network, config: ModelConfig) -> Any:
    """All of a prediction as an ONNX model, float32, without config and seal."""
    from onnxscript import optimizer

    own = copy.deepcopy(network).cpu().float().eval()
    px = config.alignment.crop_px
    inputs = {CROPS: torch.zeros(2, 3, px, px, dtype=torch.uint8)}
    if network.needs_landmarks:
        # Any five points that span a face: the graph does not depend on them
        inputs[LANDMARKS] = torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(0)) * px
    batch = torch.export.Dim("batch", min=1)

    with warnings.catch_warnings():
        # Crops and landmarks share the batch's axis, which is what is wanted
        warnings.filterwarnings("ignore", message="# The axis name: batch will not be used")
        program = torch.onnx.export(
            Inference(own, config, torch.float32).eval().requires_grad_(False),
            tuple(inputs.values()),
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            input_names=list(inputs),
            output_names=[PROBABILITIES, VALUE, FEATURES],
            opset_version=OPSET,
            external_data=False,
            # It would fold BatchNorm into weights that float16 then no longer holds exactly
            optimize=False,
            verbose=False,
        )
    assert program is not None

    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    model = program.model_proto
    forget_the_machine(model)
    return model


def forget_the_machine(model: Any) -> None:
    """Drops the exporter's notes on every node: stack traces with the paths of the machine that
    exported."""
    graph = model.graph
    parts = [graph, *graph.node, *graph.value_info, *graph.initializer]

    model.doc_string = ""
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]


def _halve(model: Any) -> None:
    """Stores large float32 tensors that float16 holds exactly as float16, each followed by a Cast
    back."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < HALVED_ELEMENTS:
            continue
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if (halves.astype(np.float32) == values).all():
            name = f"{tensor.name}.half"
            casts.append(helper.make_node("Cast", [name], [tensor.name], to=TensorProto.FLOAT))
            tensor.CopyFrom(numpy_helper.from_array(halves, name))

    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(casts + nodes)


def stamped(model: Any, config: ModelConfig) -> bytes:
    """An ONNX model as file contents that carry the config (in place of any other) and end in their
    seal."""
    from onnx import helper

    helper.set_model_props(model, {CONFIG_KEY: config.to_json()})
    body: bytes = model.SerializeToString(deterministic=True)
    return body + seal(body)


def measure_parity(folder: Path, original: CropPredictor, batches: Iterable[FaceBatch]) -> Parity:
    """Compares an exported folder's two files, and both with the model they were made from, on
    batches of faces (uint8 crops)."""
    engine, config = load_onnx(folder / ONNX_FILE)
    in_torch = CropPredictor(*load_model(folder))
    in_onnx = CropPredictor(engine, config)
    num_faces = 0
    difference = [0.0]
    rounding = [0.0]

    for faces in batches:
        value_B = in_torch.predict_crops(*faces, flip=False).value
        in_graph_B = engine.outputs(*faces)[VALUE]
        in_runtime_B = in_onnx.predict_crops(*faces, flip=False).value
        difference += [float(np.abs(value_B - b).max()) for b in (in_runtime_B, in_graph_B)]
        original_B = original.predict_crops(*faces, flip=False).value
        rounding.append(float(np.abs(value_B - original_B).max()))
        num_faces += len(value_B)

    return Parity(
        num_faces=num_faces, max_abs_difference=max(difference), max_abs_rounding=max(rounding)
    )
