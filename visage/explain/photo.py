"""One photo -> a picture with each of its faces, its score map, and the predicted distribution.

    python -m visage.explain.photo PHOTO OUT.png [--model FOLDER] [--flip | --no-flip]

The picture shows the photo's faces, the largest 8 of many. Shapes: F faces of the photo, H and W
crop side in pixels.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from visage.atomic import atomic_write_bytes
from visage.cli import add_model_options, default_model_folder
from visage.evaluation.plots import png
from visage.explain.plots import Pixels, face_sheet
from visage.explain.score_map import score_map
from visage.inference.photos import Model
from visage.inference.results import FacePrediction
from visage.networks.protocol import Network
from visage.weights import load_model

# Faces of a photo, the largest first.
MAX_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class ExplainedFace:
    """A face's prediction, its crop (H,W,3), its score map (H,W)."""

    prediction: FacePrediction
    crop_HW3: Pixels
    score_HW: npt.NDArray[np.float32]


def explain_photo(network: Network, model: Model, photo: Path, flip: bool) -> list[ExplainedFace]:
    """The faces of a photo, largest first; `network` is the model's own.

    Raises PhotoError for a photo that cannot be read.
    """
    result = model.predict(photo, flip=flip, keep_crops=True)
    if not result.faces:
        return []

    aligned = [face.aligned for face in result.faces if face.aligned is not None]
    crops_BCHW, landmarks_B52 = map(torch.from_numpy, model.stacked(aligned))
    scores = score_map(network, model.config, crops_BCHW, landmarks_B52, flip=flip).numpy()

    return [
        ExplainedFace(prediction=face, crop_HW3=crop.crop_HWC, score_HW=score)
        for face, crop, score in zip(result.faces, aligned, scores, strict=True)
    ]


def check_out(photo: Path, out: Path) -> None:
    """ValueError, before the work, where the picture cannot be written or would overwrite the
    photo."""
    if not out.parent.is_dir() or out.is_dir():
        raise ValueError(
            f"{out}: not a file in an existing folder; name one, such as explained.png"
        )
    if out.resolve() == photo.resolve():
        raise ValueError(f"{out}: this is the photo itself; give the picture another name")


def main() -> None:
    """The command line. A photo without a face, an unusable model or a wrong OUT ends it with one
    line and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m visage.explain.photo", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("photo", type=Path)
    parser.add_argument("out", type=Path)
    add_model_options(parser)
    arguments = parser.parse_args()

    try:
        check_out(arguments.photo, arguments.out)
        folder = arguments.model or default_model_folder(Path(__file__).resolve().parents[2])
        network, config = load_model(folder)
        faces = explain_photo(network, Model(network, config), arguments.photo, arguments.flip)
        if not faces:
            raise ValueError(f"{arguments.photo}: no face found, nothing to explain")
    except ValueError as error:
        print(f"visage.explain.photo: {error}", file=sys.stderr)
        raise SystemExit(2) from error

    if len(faces) > MAX_SHOWN:
        print(
            f"{arguments.photo}: {len(faces)} faces, the largest {MAX_SHOWN} are shown",
            file=sys.stderr,
        )
    faces = faces[:MAX_SHOWN]

    figure = face_sheet(
        f"{arguments.photo.name}: {config.quantity} by {config.name}",
        np.stack([face.crop_HW3 for face in faces]),
        np.stack([face.score_HW for face in faces]),
        config.grid.labels(),
        np.stack([face.prediction.distribution for face in faces]),
        None,
        np.array([face.prediction.value for face in faces]),
        config.unit,
    )
    atomic_write_bytes(arguments.out, png(figure))


if __name__ == "__main__":
    main()
