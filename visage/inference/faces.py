"""Crops to predictions: the inference path that evaluation uses, and photos go through.

Legend: B faces of a call, K labels of the grid, H and W crop side in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visage.data.preprocess import mirrored
from visage.inference.calibration import calibrated
from visage.inference.engine import Engine, TorchEngine
from visage.labels import DECODERS, LabelGrid, deviation
from visage.model_config import CalibrationConfig, ModelConfig
from visage.networks.protocol import FaceBatch, Network
from visage.weights import load_model

Floats = npt.NDArray[np.float64]
# Values (N,) and pooled features (N,C) of N faces
Observer = Callable[[Floats, npt.NDArray[np.float32]], None]

# Crops and mirrored crops that go through the network together; more gains nothing on a CPU
BATCH_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Of N faces: value, standard deviation, ends of the 80 % interval (N,), low <= value <= high,
    all in label units, float64; and the distribution over the grid (N,K), float32."""

    value: Floats
    std: Floats
    low: Floats
    high: Floats
    probabilities: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.value)


def predictions_of(
    p_BK: Tensor, value_B: Tensor, grid: LabelGrid, calibration: CalibrationConfig | None
) -> Predictions:
    """Distributions and the values decoded from them, both float64, as calibrated predictions."""
    p_BK, low_B, high_B = calibrated(p_BK, value_B, grid, calibration)
    return Predictions(
        value=value_B.numpy(),
        std=deviation(p_BK, grid).numpy(),
        low=low_B.numpy(),
        high=high_B.numpy(),
        probabilities=p_BK.float().numpy(),
    )


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of several batches, of one at least, as those of all their faces."""
    columns = {}
    for field in dataclasses.fields(Predictions):
        columns[field.name] = np.concatenate([getattr(part, field.name) for part in parts])
    return Predictions(**columns)


class CropPredictor:
    """A model that predicts for aligned faces.

    `network` is a torch network, or any other `Engine` that computes the same. `observe` gets each
    batch's values and pooled features, those of the faces and never of their mirror images;
    ValueError where the engine gives no features.
    """

    def __init__(
        self, network: Network | Engine, config: ModelConfig, *, observe: Observer | None = None
    ) -> None:
        self.config = config
        self._observe = observe
        self._engine: Engine
        if isinstance(network, Network):
            self._engine = TorchEngine(network, config)
        else:
            self._engine = network

        if observe is not None and not self._engine.gives_features:
            raise ValueError(
                f"model {config.name!r}: this ONNX file gives no pooled features to observe; "
                f"export the model again, or load its safetensors (Predictor.load)"
            )

    @property
    def needs_landmarks(self) -> bool:
        """Whether a crop must come with its landmarks."""
        return self._engine.needs_landmarks

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The model in a folder with safetensors and config.json; ValueError where they do not
        belong together."""
        return cls(*load_model(folder))

    def predict_crops(
        self, crops_BCHW: Tensor, landmarks_B52: Tensor | None = None, *, flip: bool = True
    ) -> Predictions:
        """Crops, uint8 RGB (B,3,crop_px,crop_px), cut as the config says, and the landmarks in them
        (float32, pixels of the crop) -> their predictions, in batches.

        On a CPU a face's numbers are the same in a batch of any size. Raises ValueError for crops
        or landmarks of another type or size, and for a model that needs landmarks and gets none.
        """
        self._check(crops_BCHW, landmarks_B52)
        if not self.needs_landmarks:
            landmarks_B52 = None

        parts = []
        size = BATCH_ROWS // 2 if flip else BATCH_ROWS
        for start in range(0, max(1, len(crops_BCHW)), size):
            rows = slice(start, start + size)
            some_B52 = None if landmarks_B52 is None else landmarks_B52[rows]
            parts.append(self._predict_batch(FaceBatch(crops_BCHW[rows], some_B52), flip))
        return joined(parts)

    def _check(self, crops_BCHW: Tensor, landmarks_B52: Tensor | None) -> None:
        """ValueError for what `predict_crops` does not take."""
        name = self.config.name
        px = self.config.alignment.crop_px
        if crops_BCHW.dtype != torch.uint8 or crops_BCHW.shape[1:] != (3, px, px):
            raise ValueError(
                f"crops of type {crops_BCHW.dtype} and shape {tuple(crops_BCHW.shape)}: model "
                f"{name!r} takes uint8 (B, 3, {px}, {px}); align the photos with the alignment of "
                f"its config"
            )

        if landmarks_B52 is None:
            if self.needs_landmarks:
                raise ValueError(
                    f"model {name!r} needs the five landmarks of each crop; give them with the "
                    f"crops, or give photos"
                )
            return

        if landmarks_B52.dtype != torch.float32 or landmarks_B52.shape != (len(crops_BCHW), 5, 2):
            raise ValueError(
                f"landmarks of type {landmarks_B52.dtype} and shape {tuple(landmarks_B52.shape)} "
                f"for {len(crops_BCHW)} crops: give float32 ({len(crops_BCHW)}, 5, 2), pixels of "
                f"the crop"
            )

    def _predict_batch(self, faces: FaceBatch, flip: bool) -> Predictions:
        """`faces` holds uint8 crops."""
        grid = self.config.grid
        decode = DECODERS[self.config.decode]
        num_faces = len(faces.view_BCHW)
        if not num_faces:
            nothing_BK = torch.zeros(0, grid.num_labels, dtype=torch.float64)
            return predictions_of(nothing_BK, nothing_BK[:, 0], grid, self.config.calibration)

        seen = with_mirror_images(faces) if flip else faces
        p_BK, features_BC = self._engine.answer(seen.view_BCHW, seen.landmarks_B52)
        if flip:
            face_BK, mirror_BK = p_BK.chunk(2)
            p_BK = (face_BK + mirror_BK) / 2
            value_B = (decode(face_BK, grid) + decode(mirror_BK, grid)) / 2
        else:
            value_B = decode(p_BK, grid)

        if self._observe is not None:
            assert features_BC is not None  # as the engine said when the predictor was made
            self._observe(value_B.numpy(), features_BC[:num_faces].numpy())
        return predictions_of(p_BK, value_B, grid, self.config.calibration)


def with_mirror_images(faces: FaceBatch) -> FaceBatch:
    """Faces (B) -> the faces, then their mirror images (2 B)."""
    mirror = mirrored(faces)
    view_BCHW = torch.cat([faces.view_BCHW, mirror.view_BCHW])
    if faces.landmarks_B52 is None or mirror.landmarks_B52 is None:
        return FaceBatch(view_BCHW, None)
    return FaceBatch(view_BCHW, torch.cat([faces.landmarks_B52, mirror.landmarks_B52]))
