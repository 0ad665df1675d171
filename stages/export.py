"""The calibrated model becomes files that others can run, checked for parity on the test faces.

models/calibrated/ + data/target/faces/ -> models/export/{model.safetensors, config.json,
model.onnx, reference.json, parity.json}, and model.int8.onnx where `int8` is set.

For the test faces, the ONNX file must give torch's values with the same weights, within
`parity_tolerance`. The effect of storing the weights as float16 is measured too. The file in 8-bit
integers has its ranges measured on training faces and must stay within `int8_tolerance` of the ONNX
file. The reference holds sums over the exported model's predictions for training faces; served
faces are compared with it (visage.evaluation.drift). About 20 s, int8 as much again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from stages.settings import Report, print_report, stage_main
from visage.atomic import atomic_folder
from visage.data.face_table import FaceTable, evenly_spread
from visage.evaluation.drift import REFERENCE_FILE, Summary
from visage.export.int8 import measure_int8, write_int8
from visage.export.onnx_file import export_model, measure_parity
from visage.export.quantisable import check_quantisable
from visage.inference.faces import CropPredictor
from visage.inference.onnx_engine import INT8_FILE, ONNX_FILE
from visage.inference.predict_table import faces_of
from visage.model_config import ModelConfig
from visage.networks.protocol import FaceBatch, Network
from visage.weights import load_model

# The size that each file of a released model may have.
RELEASE_MB = 8
BATCH_FACES = 32


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """`dtype` is that of the stored weights. Parity is measured on at most `parity_faces` test
    faces; `parity_tolerance` is in label units.

    The ranges are measured on `int8_faces` training faces. `int8_tolerance` bounds the mean
    absolute difference, in label units, and with it what int8 can add to the mean absolute error.
    The reference is summed over `reference_faces` training faces.
    """

    dtype: Literal["float32", "float16"]
    parity_faces: int
    parity_tolerance: float
    int8: bool
    int8_faces: int
    int8_tolerance: float
    reference_faces: int

    def __post_init__(self) -> None:
        if self.reference_faces < 2:
            raise ValueError(
                f"reference_faces is {self.reference_faces}: drift is measured against two faces "
                f"at least"
            )


def export(
    settings: ExportSettings,
    *,
    model: Path,
    faces: Path,
    export: Path,
    report: Report = print_report,
) -> None:
    """Exports the model; see the module docstring. ValueError where parity is missed; nothing is
    written then."""
    network, config = load_model(model)
    if settings.int8:
        check_quantisable(config.network.name, network)
    test = _table(config, faces, "test")
    train = _table(config, faces, "train")

    with atomic_folder(export) as part:
        export_model(network, config, part, settings.dtype)
        parity = measure_parity(
            part,
            CropPredictor(network, config),
            _faces(test, network, settings.parity_faces, "parity"),
        )
        if not parity.max_abs_difference <= settings.parity_tolerance:
            raise ValueError(
                f"{model}: in ONNX its values differ by up to {parity.max_abs_difference:.3g} "
                f"{config.unit} from torch's, more than export.parity_tolerance "
                f"{settings.parity_tolerance}; nothing was exported"
            )

        numbers = dataclasses.asdict(parity)
        if settings.int8:
            numbers |= _export_int8(settings, part, test, train)
        _write_reference(settings, part, train)
        (part / "parity.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")

    sizes_mb: dict[str, float] = {}
    for path in sorted(export.glob("model.*")):
        suffix = path.name.removeprefix("model.")
        sizes_mb[f"{suffix}_mb"] = path.stat().st_size / 1e6
    report(0, numbers | sizes_mb)
    for name, size_mb in sizes_mb.items():
        if size_mb > RELEASE_MB:
            print(
                f"note: {name[:-3]} file of {size_mb:.1f} MB; a released model's may have "
                f"{RELEASE_MB} MB"
            )
    print(f"exported model: {export}")


def _export_int8(
    settings: ExportSettings, part: Path, test: FaceTable, train: FaceTable
) -> dict[str, float]:
    """Adds model.int8.onnx to the exported folder; gives its differences from model.onnx."""
    network, config = load_model(part)
    write_int8(
        network,
        config,
        _faces(train, network, settings.int8_faces, "int8 ranges"),
        part / INT8_FILE,
    )
    found = measure_int8(
        part / INT8_FILE,
        part / ONNX_FILE,
        _faces(test, network, settings.parity_faces, "int8 parity"),
    )

    if not found.mean_abs_difference <= settings.int8_tolerance:
        raise ValueError(
            f"{config.name}: in int8 the values of test faces differ by "
            f"{found.mean_abs_difference:.3g} {config.unit} on average, more than "
            f"export.int8_tolerance {settings.int8_tolerance}; nothing was exported; raise "
            f"export.int8_faces, or set export.int8: false"
        )

    numbers = dataclasses.asdict(found)
    del numbers["num_faces"]
    return {f"int8_{name}": value for name, value in numbers.items()}


def _faces(table: FaceTable, network: Network, num_faces: int, label: str) -> Iterator[FaceBatch]:
    """Batches of at most `num_faces` uint8 crops, with what the network needs, evenly spread over
    the table."""
    places = evenly_spread(len(table), num_faces)
    batches = np.array_split(places, -(-len(places) // BATCH_FACES))
    for rows in tqdm(batches, desc=label, unit="batch"):
        yield faces_of(table, rows, network.needs_landmarks)


def _write_reference(settings: ExportSettings, part: Path, train: FaceTable) -> None:
    """Adds reference.json to the exported folder: a summary of its model's predictions for training
    faces."""
    network, config = load_model(part)
    summary = Summary.of(
        config, window_faces=settings.reference_faces, block_faces=settings.reference_faces
    )
    predictor = CropPredictor(network, config, observe=summary.add)
    for faces in _faces(train, network, settings.reference_faces, "reference"):
        predictor.predict_crops(*faces)
    (part / REFERENCE_FILE).write_text(json.dumps(summary.as_document()) + "\n", encoding="utf-8")


def _table(config: ModelConfig, faces: Path, split: str) -> FaceTable:
    """The faces of a split; ValueError where there are none, or of another alignment than the
    config's."""
    table = FaceTable.open(faces, [split], 0)
    if not len(table):
        raise ValueError(
            f"{faces}: no faces of split {split!r} to check the export with; give the target role "
            f"that split"
        )

    if dataclasses.asdict(config.alignment) != table.alignment:
        raise ValueError(
            f"{faces}: aligned as {table.alignment}, the model's config says "
            f"{dataclasses.asdict(config.alignment)}; run align and finetune with the same settings"
        )

    return table


if __name__ == "__main__":
    stage_main("export", ExportSettings, export, ["model", "faces", "export"])
