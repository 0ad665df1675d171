"""A model becomes files that others can run: safetensors with its card, and one ONNX file with the card inside.

The ONNX graph takes uint8 RGB crops `crops` (B,3,crop_px,crop_px), any B, and gives float32 `probabilities` (B,K) and
`value` (B,): normalisation, softmax and decoding are inside, so nobody retypes them. Two things are the caller's, and
`visage.predictor` does both on either engine: flip averaging, the mean over a crop and its mirror image; and then the
card's calibration, since the graph's probabilities are the method's own (`visage.calibration`: the mean to the power of
1 / temperature, renormalised; both ends of its central interval moved out by the offset).

Its weights are those of the safetensors file, rounding included; what float16 holds exactly is stored so and widened
on loading, which halves the file and changes no number. The file ends in a seal, the sha256 of all before it, as a
metadata entry of its own (protobuf messages may be appended), so that readers who do not know it are not disturbed.

    python -m visage.export MODEL_FOLDER RELEASED_FOLDER --name NAME --terms TEXT --metrics FILE.json

copies an exported model to a released one, under its own name, with terms and measured figures in both cards.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from visage.card import CARD_FILE, WEIGHTS_FILE, ModelCard, load_model, save_model
from visage.engine import Inference
from visage.predictor import Predictor
from visage.whole import write_whole

ONNX_FILE, INT8_FILE = "model.onnx", "model.int8.onnx"
OPSET = 18
CARD_KEY, SEAL_KEY = "visage.card", "visage.sha256"
HALVED_ELEMENTS = 1000  # tensors below are not worth a Cast node


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Greatest absolute differences of predicted values over `num_faces` faces, in label units.

    `max_abs_difference`: the ONNX file in ONNX Runtime against the safetensors file in torch, the same weights.
    `max_abs_rounding`: the safetensors file against the model it was made from: what storing as float16 costs.
    """

    num_faces: int
    max_abs_difference: float
    max_abs_rounding: float


def export_model(network: nn.Module, card: ModelCard, folder: Path, dtype: Literal["float32", "float16"]) -> ModelCard:
    """Writes safetensors, card and ONNX into `folder`; returns the card as written."""
    limit = torch.finfo(getattr(torch, dtype)).max
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool((tensor.abs() <= limit).all()):
            raise ValueError(f"{card.name}: {name} holds values beyond {dtype} (or nan); export with dtype: float32")
    written = save_model(folder, network, card, dtype)
    write_onnx(load_model(folder)[0], written, folder / ONNX_FILE)
    return written


def write_onnx(network: nn.Module, card: ModelCard, path: Path) -> None:
    """A network and its card as one sealed ONNX file, which appears whole or not at all."""
    model = onnx_graph(network, card)
    _halve(model)
    write_whole(path, stamped(model, card))


def onnx_graph(network: nn.Module, card: ModelCard) -> Any:
    """All of a prediction as an ONNX model, float32, without card and seal."""
    from onnxscript import optimizer

    own: Any = copy.deepcopy(network).cpu().float().eval()
    px = card.alignment.crop_px
    program = torch.onnx.export(
        Inference(own, card, torch.float32).eval().requires_grad_(False),
        (torch.zeros(2, 3, px, px, dtype=torch.uint8),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        input_names=["crops"],
        output_names=["probabilities", "value"],
        opset_version=OPSET,
        external_data=False,
        optimize=False,  # it would fold BatchNorm into weights that float16 then no longer holds exactly
        verbose=False,
    )
    assert program is not None
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    model = program.model_proto
    forget_the_machine(model)
    return model


def forget_the_machine(model: Any) -> None:
    """Drops the exporter's notes on every node: stack traces with the paths of the machine that exported."""
    for item in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        item.doc_string = ""
    for item in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del item.metadata_props[:]


def _halve(model: Any) -> None:
    """Stores large float32 tensors that float16 holds exactly as float16, each followed by a Cast back."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < HALVED_ELEMENTS:
            continue
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if (halves.astype(np.float32) == values).all():
            casts.append(helper.make_node("Cast", [f"{tensor.name}.half"], [tensor.name], to=TensorProto.FLOAT))
            tensor.CopyFrom(numpy_helper.from_array(halves, f"{tensor.name}.half"))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(casts + nodes)


def stamped(model: Any, card: ModelCard) -> bytes:
    """An ONNX model as file contents that carry the card (in place of any other) and end in their seal."""
    from onnx import helper

    helper.set_model_props(model, {CARD_KEY: card.to_json()})
    body: bytes = model.SerializeToString(deterministic=True)
    return body + _seal(body)


def _seal(body: bytes) -> bytes:
    """The serialised ModelProto {metadata_props: [{key: SEAL_KEY, value: sha256 of body}]}: field 14, wire type 2."""
    key, value = SEAL_KEY.encode(), hashlib.sha256(body).hexdigest().encode()
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value
    return b"\x72" + bytes([len(entry)]) + entry


def checked_bytes(path: Path) -> bytes:
    """The contents of an ONNX file whose seal is whole; ValueError otherwise."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; export the model first")
    data = path.read_bytes()
    length = len(_seal(b""))
    if data[-length:][:-64] != _seal(b"")[:-64]:
        raise ValueError(
            f"{path}: does not end in visage's seal: truncated, or not exported by visage; export it again"
        )
    if data[-length:] != _seal(data[:-length]):
        raise ValueError(f"{path}: its contents are not those that were sealed: edited or damaged; export it again")
    return data


class OnnxEngine:
    """An ONNX file's contents as an `Engine`, run by ONNX Runtime on the CPU."""

    def __init__(self, data: bytes) -> None:
        import onnxruntime

        self.session: Any = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def outputs(self, crops_BCHW: Tensor) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """uint8 crops -> probabilities (B,K) and values (B,), as any reader of the file gets them."""
        p_BK, value_B = self.session.run(["probabilities", "value"], {"crops": crops_BCHW.contiguous().numpy()})
        return p_BK, value_B

    def __call__(self, crops_BCHW: Tensor) -> Tensor:
        return torch.from_numpy(self.outputs(crops_BCHW)[0]).double()


def load_onnx(path: Path) -> Predictor:
    """The predictor that an ONNX file holds, card included.

    Raises ValueError for a file that is truncated or edited, without a card, of another label grid or crop size than
    its card's, or beside a card.json of another model.
    """
    engine = OnnxEngine(checked_bytes(path))
    notes = engine.session.get_modelmeta().custom_metadata_map
    if CARD_KEY not in notes:
        raise ValueError(f"{path}: carries no model card ({CARD_KEY}); export the model again")
    card = ModelCard.from_json(notes[CARD_KEY], str(path))
    px, num_labels = card.alignment.crop_px, card.grid.num_labels
    found = (engine.session.get_inputs()[0].shape[1:], engine.session.get_outputs()[0].shape[1:])
    if found != ([3, px, px], [num_labels]):
        raise ValueError(
            f"{path}: the graph maps {found[0]} to {found[1]}, its card says {[3, px, px]} to {[num_labels]}; "
            "export the model again"
        )
    beside = path.with_name(CARD_FILE)
    if beside.is_file() and ModelCard.read(beside) != card:
        raise ValueError(f"{path}: its card is not that of {beside}: files of two exports; copy one folder whole")
    return Predictor(engine, card)


def measure_parity(folder: Path, original: Predictor, batches: Iterable[Tensor]) -> Parity:
    """Compares an exported folder's two files, and both with the model they were made from, on batches of crops."""
    in_torch, in_onnx = Predictor.load(folder), load_onnx(folder / ONNX_FILE)
    raw = OnnxEngine(checked_bytes(folder / ONNX_FILE))
    num_faces, difference, rounding = 0, [0.0], [0.0]
    for crops_BCHW in batches:
        value_B = in_torch.predict_crops(crops_BCHW, flip=False).value
        theirs = (in_onnx.predict_crops(crops_BCHW, flip=False).value, raw.outputs(crops_BCHW)[1])
        difference += [float(np.abs(value_B - other_B).max()) for other_B in theirs]
        rounding.append(float(np.abs(value_B - original.predict_crops(crops_BCHW, flip=False).value).max()))
        num_faces += len(value_B)
    return Parity(num_faces=num_faces, max_abs_difference=max(difference), max_abs_rounding=max(rounding))


def release(exported: Path, released: Path, *, name: str, terms: str, metrics: dict[str, Any]) -> ModelCard:
    """Copies an exported model, all checks made, under its own name with terms and figures in both of its cards."""
    card = dataclasses.replace(load_model(exported)[1], name=name, terms=terms, metrics=metrics)
    load_onnx(exported / ONNX_FILE)
    copy_with_card(exported, released, card)
    return card


def copy_with_card(exported: Path, released: Path, card: ModelCard) -> None:
    """An exported model's files, weights and graph as they are, with another card beside and inside."""
    import onnx

    released.mkdir(parents=True, exist_ok=True)
    write_whole(released / WEIGHTS_FILE, (exported / WEIGHTS_FILE).read_bytes())
    for path in sorted(exported.glob("model*.onnx")):
        write_whole(released / path.name, stamped(onnx.load_from_string(checked_bytes(path)), card))
    card.write(released / CARD_FILE)


def main() -> None:
    """The command line of `release`."""
    parser = argparse.ArgumentParser(prog="python -m visage.export", description="an exported model -> a released one")
    parser.add_argument("exported", type=Path)
    parser.add_argument("released", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--terms", required=True, help="what the terms of the training data mean for these weights")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON with the measured figures")
    arguments = parser.parse_args()
    try:
        metrics = json.loads(arguments.metrics.read_text(encoding="utf-8"))
        release(arguments.exported, arguments.released, name=arguments.name, terms=arguments.terms, metrics=metrics)
    except (OSError, ValueError) as error:
        print(f"visage.export: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    print(
        f"{arguments.released}: "
        + ", ".join(f"{p.name} {p.stat().st_size} bytes" for p in arguments.released.iterdir())
    )


if __name__ == "__main__":
    main()
