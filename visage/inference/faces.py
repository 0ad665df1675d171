"""Crops to predictions: the inference path that evaluation uses, and photos go through.

All in numpy, whatever the engine computes with. Legend: B faces of a call, K labels of the grid, H
and W crop side in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from visage.data.mirror import mirrored
from visage.inference.calibration import calibrated
from visage.inference.engine import Crops, Engine, Floats32, Floats64
from visage.labels import DECODERS, LabelGrid, deviation
from visage.model_config import CalibrationConfig, ModelConfig

if TYPE_CHECKING:
    from visage.networks.protocol import Network

# Values (N,) and pooled features (N,C) of N faces
Observer = Callable[[Floats64, Floats32], None]

# Crops and mirrored crops that go through the network together; more gains nothing on a CPU
BATCH_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Of N faces: value, standard deviation, ends of the 80 % interval (N,), low <= value <= high,
    all in label units, float64; and the distribution over the grid (N,K), float32."""

    value: Floats64
    std: Floats64
    low: Floats64
    high: Floats64
    probabilities: Floats32

    def __len__(self) -> int:
        return len(self.value)


def predictions_of(
    p_BK: Floats64, value_B: Floats64, grid: LabelGrid, calibration: CalibrationConfig | None
) -> Predictions:
    """Distributions and the values decoded from them, both float64, as calibrated predictions."""
    p_BK, low_B, high_B = calibrated(p_BK, value_B, grid, calibration)
    return Predictions(
        value=value_B,
        std=deviation(p_BK, grid),
        low=low_B,
        high=high_B,
        probabilities=p_BK.astype(np.float32),
    )


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of several batches, of one at least, as those of all their faces."""
    columns = {}
    for field in dataclasses.fields(Predictions):
        columns[field.name] = np.concatenate([getattr(part, field.name) for part in parts])
    return Predictions(**columns)


class CropPredictor:
    """A model that predicts for aligned faces.

    `network` is an `Engine`, or a torch network, which becomes one. `observe` gets each batch's
    values and pooled features, those of the faces and never of their mirror images; ValueError
    where the engine gives no features.
    """

    def __init__(
        self, network: Engine | Network, config: ModelConfig, *, observe: Observer | None = None
    ) -> None:
        self.config = config
        self._observe = observe
        self._engine = as_engine(network, config)

        if observe is not None and not self._engine.gives_features:
            raise ValueError(
                f"model {config.name!r}: this ONNX file gives no pooled features to observe; "
                f"export the model again, or load its safetensors (runtime='torch')"
            )

    @property
    def needs_landmarks(self) -> bool:
        """Whether a crop must come with its landmarks."""
        return self._engine.needs_landmarks

    def predict_crops(
        self,
        crops_BCHW: npt.ArrayLike,
        landmarks_B52: npt.ArrayLike | None = None,
        *,
        flip: bool = True,
    ) -> Predictions:
        """Crops, uint8 RGB (B,3,crop_px,crop_px), cut as the config says, and the landmarks in them
        (float32, pixels of the crop) -> their predictions, in batches.

        A torch tensor on the CPU is taken as well, without a copy. On a CPU a face's numbers are
        the same in a batch of any size. Raises ValueError for crops or landmarks of another type or
        size, and for a model that needs landmarks and gets none.
        """
        crops = np.asarray(crops_BCHW)
        landmarks = None if landmarks_B52 is None else np.asarray(landmarks_B52)
        self._check(crops, landmarks)
        if not self.needs_landmarks:
            landmarks = None

        parts = []
        size = BATCH_ROWS // 2 if flip else BATCH_ROWS
        for start in range(0, max(1, len(crops)), size):
            rows = slice(start, start + size)
            some_B52 = None if landmarks is None else landmarks[rows]
            parts.append(self._predict_batch(crops[rows], some_B52, flip))
        return joined(parts)

    def _check(self, crops_BCHW: Crops, landmarks_B52: Floats32 | None) -> None:
        """ValueError for what `predict_crops` does not take."""
        name = self.config.name
        px = self.config.alignment.crop_px
        if crops_BCHW.dtype != np.uint8 or crops_BCHW.shape[1:] != (3, px, px):
            raise ValueError(
                f"crops of type {crops_BCHW.dtype} and shape {crops_BCHW.shape}: model {name!r} "
                f"takes uint8 (B, 3, {px}, {px}); align the photos with the alignment of its config"
            )

        if landmarks_B52 is None:
            if self.needs_landmarks:
                raise ValueError(
                    f"model {name!r} needs the five landmarks of each crop; give them with the "
                    f"crops, or give photos"
                )
            return

        if landmarks_B52.dtype != np.float32 or landmarks_B52.shape != (len(crops_BCHW), 5, 2):
            raise ValueError(
                f"landmarks of type {landmarks_B52.dtype} and shape {landmarks_B52.shape} for "
                f"{len(crops_BCHW)} crops: give float32 ({len(crops_BCHW)}, 5, 2), pixels of the "
                f"crop"
            )

    def _predict_batch(
        self, crops_BCHW: Crops, landmarks_B52: Floats32 | None, flip: bool
    ) -> Predictions:
        grid = self.config.grid
        decode = DECODERS[self.config.decode]
        num_faces = len(crops_BCHW)
        if not num_faces:
            nothing_BK = np.zeros((0, grid.num_labels))
            return predictions_of(nothing_BK, nothing_BK[:, 0], grid, self.config.calibration)

        if flip:
            crops_BCHW, landmarks_B52 = with_mirror_images(crops_BCHW, landmarks_B52)
        p_BK, features_BC = self._engine.answer(crops_BCHW, landmarks_B52)
        if flip:
            face_BK, mirror_BK = np.split(p_BK, 2)
            p_BK = (face_BK + mirror_BK) / 2
            value_B = (decode(face_BK, grid) + decode(mirror_BK, grid)) / 2
        else:
            value_B = decode(p_BK, grid)

        if self._observe is not None:
            assert features_BC is not None  # as the engine said when the predictor was made
            self._observe(value_B, features_BC[:num_faces])
        return predictions_of(p_BK, value_B, grid, self.config.calibration)


def with_mirror_images(
    crops_BCHW: Crops, landmarks_B52: Floats32 | None
) -> tuple[Crops, Floats32 | None]:
    """Faces (B) -> the faces, then their mirror images (2 B)."""
    mirror_BCHW, mirrored_B52 = mirrored(crops_BCHW, landmarks_B52)
    crops_BCHW = np.concatenate([crops_BCHW, mirror_BCHW])
    if landmarks_B52 is None or mirrored_B52 is None:
        return crops_BCHW, None
    return crops_BCHW, np.concatenate([landmarks_B52, mirrored_B52])


def as_engine(
    network: Engine | Network, config: ModelConfig, *, num_threads: int | None = None
) -> Engine:
    """An engine as it is; a torch network as one that computes on `num_threads` threads."""
    if isinstance(network, Engine):
        return network
    # Here, because an answer of another engine needs no torch
    from visage.inference.torch_engine import TorchEngine

    return TorchEngine(network, config, num_threads=num_threads)
