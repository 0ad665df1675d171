"""Score maps of served faces: how they are computed, and how a page can lay them over the face.

A page gets a PNG with transparency, as a data: address, and the crop's corners in the photo.

Legend: h, w side of the network's last maps; R red, G green, B blue, A opacity.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from visage.detection import align
from visage.inference.faces import BATCH_ROWS
from visage.inference.photos import Model
from visage.inference.results import AlignedFace
from visage.model_config import AlignmentConfig
from visage.server.pictures import to_base64

Floats = npt.NDArray[np.float32]

# From weak to strong: dark violet, red, yellow; weak places let the face through
COLOURS_RGB = np.array([(40, 0, 80), (190, 30, 70), (250, 130, 30), (255, 250, 130)], np.float32)
MAX_OPACITY = 190


class ScoreMaps(Protocol):
    """Aligned faces -> their score maps (h,w), at the resolution of the network's last maps."""

    def __call__(self, faces: Sequence[AlignedFace], flip: bool) -> list[Floats]: ...


def torch_score_maps(folder: Path, predictor: Model) -> tuple[ScoreMaps | None, str]:
    """How score maps are drawn: by PyTorch, from the folder's safetensors, both loaded when the
    first is asked for. None, and why, where one of the two is missing."""
    if find_spec("torch") is None:
        return None, "it needs PyTorch; pip install 'visage[torch]' on the server"
    if not (folder / predictor.config.weights.file).is_file():
        return None, f"it needs {predictor.config.weights.file} beside the model's config"

    @functools.cache
    def network() -> Any:
        from visage.weights import load_model

        return load_model(folder)[0]

    def maps(faces: Sequence[AlignedFace], flip: bool) -> list[Floats]:
        import torch

        from visage.explain.score_map import coarse_score_map

        found: list[Floats] = []
        for start in range(0, len(faces), BATCH_ROWS):
            crops, landmarks = predictor.stacked(faces[start : start + BATCH_ROWS])
            maps_Bhw = coarse_score_map(
                network(),
                predictor.config,
                torch.as_tensor(crops),
                torch.as_tensor(landmarks),
                flip=flip,
            )
            found.extend(maps_Bhw.numpy())
        return found

    return maps, ""


def as_png(map_hw: Sequence[Sequence[float]], crop_px: int) -> str:
    """A map as a PNG of the crop's size, a data: address. Its least value is transparent, its
    largest one opaque; only differences inside a map mean something."""
    values_hw = np.asarray(map_hw, np.float32)
    span = float(np.ptp(values_hw))
    if span > 0:
        values_hw = (values_hw - values_hw.min()) / span
    else:
        values_hw = np.zeros_like(values_hw)

    image = Image.fromarray(values_hw).resize((crop_px, crop_px), Image.Resampling.BICUBIC)
    strength_HW = np.clip(np.asarray(image), 0.0, 1.0)
    stream = io.BytesIO()
    Image.fromarray(_coloured(strength_HW)).save(stream, "PNG")
    return to_base64(stream.getvalue(), "png")


def _coloured(strength_HW: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    places = np.linspace(0.0, 1.0, len(COLOURS_RGB))
    channels = [np.interp(strength_HW, places, column) for column in COLOURS_RGB.T]
    channels.append(MAX_OPACITY * strength_HW)
    return np.round(np.stack(channels, axis=2)).astype(np.uint8)


def corners_in_photo(landmarks: Any, how: AlignmentConfig) -> list[list[float]]:
    """The corners of a face's crop (top left, top right, bottom right, bottom left), x y in pixels
    of the upright photo."""
    template_52 = align.template(how.template, how.crop_px, how.face_scale)
    matrix_23 = align.similarity(np.array(landmarks, np.float32), template_52)
    inverse_22 = np.linalg.inv(matrix_23[:, :2])

    px = how.crop_px
    corners_42 = np.array([(0, 0), (px, 0), (px, px), (0, px)], np.float64)
    in_photo_42 = (corners_42 - matrix_23[:, 2]) @ inverse_22.T
    return [[float(x), float(y)] for x, y in in_photo_42]
