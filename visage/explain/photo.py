"""One photo -> a picture with each of its faces, its score map, and the predicted distribution.

    visage explain PHOTO [OUT.png] [--model NAME] [--flip | --no-flip]

The picture shows the photo's faces, the largest 8 of many. Shapes: F faces of the photo, H and W
crop side in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from visage.atomic import atomic_write_bytes
from visage.evaluation.plots import png
from visage.explain.plots import Pixels, face_sheet
from visage.explain.score_map import score_map
from visage.inference.loading import model_folder
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


def explain_file(photo: Path, out: Path, model: str | Path | None, flip: bool) -> int:
    """Writes the picture `out` of a photo's faces; returns how many faces there are, of which the
    largest MAX_SHOWN are shown. `model` as in `visage.load`.

    Raises ValueError for a photo without a face, an unreadable one, an unusable model or a wrong
    `out`.
    """
    check_out(photo, out)
    network, config = load_model(model_folder(model))
    faces = explain_photo(network, Model(network, config), photo, flip)
    if not faces:
        raise ValueError(f"{photo}: no face found, nothing to explain")

    shown = faces[:MAX_SHOWN]
    figure = face_sheet(
        f"{photo.name}: {config.quantity} by {config.name}",
        np.stack([face.crop_HW3 for face in shown]),
        np.stack([face.score_HW for face in shown]),
        config.grid.labels(),
        np.stack([face.prediction.distribution for face in shown]),
        None,
        np.array([face.prediction.value for face in shown]),
        config.unit,
    )
    atomic_write_bytes(out, png(figure))
    return len(faces)
