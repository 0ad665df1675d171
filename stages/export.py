"""The calibrated model becomes files that others can run, held to parity on the test faces.

models/calibrated/ + data/target/faces/ -> models/export/{model.safetensors, card.json, model.onnx, parity.json}
The ONNX file must give the test faces the values that torch gives them with the same weights, within
`parity_tolerance`; what storing the weights as float16 changed is measured beside it. About 20 s.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from stages.settings import Report, print_report, stage_main
from visage.card import ModelCard, load_model
from visage.export import export_model, measure_parity
from visage.faces import FaceTable
from visage.predictor import Predictor

RELEASE_MB = 8  # what a released model may weigh, each file
BATCH_FACES = 32


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """`dtype` of the stored weights; parity on at most `parity_faces` test faces, `parity_tolerance` in label units."""

    dtype: Literal["float32", "float16"]
    parity_faces: int
    parity_tolerance: float


def export(settings: ExportSettings, *, model: Path, faces: Path, export: Path, report: Report = print_report) -> None:
    """Exports the model; see the module docstring. ValueError where parity is missed: nothing is written then."""
    network, card = load_model(model)
    table = FaceTable.open(faces, ["test"], 0)
    _check(card, table, faces)
    places = np.unique(np.linspace(0, len(table) - 1, min(settings.parity_faces, len(table))).round().astype(np.int64))
    batches = np.array_split(places, -(-len(places) // BATCH_FACES))
    with _folder_written_whole(export) as part:
        export_model(network, card, part, settings.dtype)
        crops = (table.decode(batch) for batch in tqdm(batches, desc="parity", unit="batch"))
        parity = measure_parity(part, Predictor(network, card), crops)
        if not parity.max_abs_difference <= settings.parity_tolerance:
            raise ValueError(
                f"{model}: in ONNX its values differ by up to {parity.max_abs_difference:.3g} {card.unit} from "
                f"torch's, more than export.parity_tolerance {settings.parity_tolerance}; nothing was exported"
            )
        numbers = dataclasses.asdict(parity)
        (part / "parity.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    sizes_mb = {f"{path.suffix[1:]}_mb": path.stat().st_size / 1e6 for path in sorted(export.glob("model.*"))}
    report(0, numbers | sizes_mb)
    for name, size_mb in sizes_mb.items():
        if size_mb > RELEASE_MB:
            print(f"note: {name[:-3]} file of {size_mb:.1f} MB; a released model's may have {RELEASE_MB} MB")
    print(f"exported model: {export}")


def _check(card: ModelCard, table: FaceTable, faces: Path) -> None:
    if not len(table):
        raise ValueError(f"{faces}: no faces of split 'test' to hold the export to; give the target role a test split")
    if dataclasses.asdict(card.alignment) != table.alignment:
        raise ValueError(
            f"{faces}: aligned as {table.alignment}, the model's card says {dataclasses.asdict(card.alignment)}; "
            "run align and finetune with the same settings"
        )


@contextmanager
def _folder_written_whole(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place when the block ends well and goes when it does not."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


if __name__ == "__main__":
    stage_main("export", ExportSettings, export, ["model", "faces", "export"])
