"""A model's folder gets model.int8.onnx, and what int8 changes beside it in the config.

    python -m visage.export.add_int8 MODEL_FOLDER PHOTOS [--count 1000]

PHOTOS is a folder of photos like those that the model was trained on. Their faces are found and cut
by the model itself: every second one measures the ranges of the maps, the others the difference
from model.onnx, which the configs then hold as `metrics.int8`. A minute or two for a small model.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from visage.detection.image_io import FORMATS
from visage.export.int8 import Int8Parity, measure_int8, write_int8
from visage.export.release import copy_with_config
from visage.inference.loading import load
from visage.inference.onnx_engine import INT8_FILE, ONNX_FILE
from visage.inference.photos import Model
from visage.inference.results import AlignedFace
from visage.networks.protocol import FaceBatch
from visage.parallel import batched
from visage.weights import load_model

BATCH_FACES = 32
SUFFIXES = {f".{name.lower()}" for name in FORMATS} | {".jpg"}


def add_int8(folder: Path, photos: Sequence[Path]) -> Int8Parity:
    """Writes model.int8.onnx into a model's folder and its difference into all of the folder's
    configs.

    Errors: ValueError for a folder without a complete model, a network that cannot be quantised,
    and photos with fewer than two faces.
    """
    network, config = load_model(folder)
    faces = list(_chosen_faces(load(folder, runtime="onnx"), photos))
    if len(faces) < 2:
        raise ValueError(f"{len(faces)} faces in {len(photos)} photos: give more photos")

    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        shutil.copytree(folder, made, dirs_exist_ok=True)
        write_int8(network, config, _batches(faces[::2]), made / INT8_FILE)
        found = measure_int8(made / INT8_FILE, made / ONNX_FILE, _batches(faces[1::2]))

        metrics = config.metrics | {"int8": dataclasses.asdict(found)}
        copy_with_config(made, folder, dataclasses.replace(config, metrics=metrics))
    return found


def _chosen_faces(model: Model, photos: Sequence[Path]) -> Iterator[AlignedFace]:
    """The face of each photo that training would take."""
    for result in model.predict_many(photos, keep_crops=True):
        for face in result:
            if face.chosen and face.aligned is not None:
                yield face.aligned


def _batches(faces: Sequence[AlignedFace]) -> Iterator[FaceBatch]:
    for some in batched(faces, BATCH_FACES):
        crops = [torch.from_numpy(face.crop_HWC.copy()).permute(2, 0, 1) for face in some]
        landmarks = [torch.from_numpy(face.landmarks_52) for face in some]
        yield FaceBatch(torch.stack(crops), torch.stack(landmarks))


def main() -> None:
    """The command line; what the user can correct ends it with one line and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m visage.export.add_int8", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="photos, spread over the folder")
    arguments = parser.parse_args()

    try:
        paths = sorted(path for path in arguments.photos.rglob("*") if path.suffix in SUFFIXES)
        spread = paths[:: max(1, len(paths) // arguments.count)][: arguments.count]
        found = add_int8(arguments.model, spread)
    except (OSError, ValueError) as error:
        print(f"visage.export.add_int8: {error}", file=sys.stderr)
        raise SystemExit(2) from error

    print(
        f"{arguments.model / INT8_FILE}: values of {found.num_faces} faces differ by "
        f"{found.mean_abs_difference:.3g} on average, {found.max_abs_difference:.3g} at most"
    )


if __name__ == "__main__":
    main()
