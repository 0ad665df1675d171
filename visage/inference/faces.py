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
from torch import Tensor, nn

from visage.inference.calibration import calibrated
from visage.inference.engine import Engine, TorchEngine
from visage.labels import DECODERS, LabelGrid, deviation
from visage.model_config import CalibrationConfig, ModelConfig
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
    numbers = {"value": value_B, "std": deviation(p_BK, grid), "low": low_B, "high": high_B}
    return Predictions(
        **{k: v.numpy() for k, v in numbers.items()}, probabilities=p_BK.float().numpy()
    )


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of several batches, of one at least, as those of all their faces."""
    names = [field.name for field in dataclasses.fields(Predictions)]
    return Predictions(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    )


class CropPredictor:
    """A model that answers aligned faces. `network` is a torch network or any other `Engine` that
    computes the same."""

    def __init__(self, network: nn.Module | Engine, config: ModelConfig) -> None:
        self.config = config
        self._engine: Engine = (
            TorchEngine(network, config) if isinstance(network, nn.Module) else network
        )
        self._observe: Observer | None = None

    @property
    def observe(self) -> Observer | None:
        """Hears each batch's values and pooled features, those of the faces and never of their
        mirror images; None: nobody does. Setting it raises ValueError where the engine gives no
        features (ONNX)."""
        return self._observe

    @observe.setter
    def observe(self, observer: Observer | None) -> None:
        if observer is not None and not isinstance(self._engine, TorchEngine):
            raise ValueError(
                f"model {self.config.name!r}: this engine gives no pooled features to observe; "
                f"load the model's "
                "safetensors (Predictor.load), not its ONNX file"
            )
        self._observe = observer

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The model in a folder with safetensors and config.json; ValueError where they do not
        belong together."""
        return cls(*load_model(folder))

    def predict_crops(self, crops_BCHW: Tensor, flip: bool = True) -> Predictions:
        """Crops, uint8 RGB (B,3,crop_px,crop_px), cut as the config says -> their predictions, in
        batches.

        On a CPU a face's numbers are the same in any company. Raises ValueError for crops of
        another type or size.
        """
        px = self.config.alignment.crop_px
        if crops_BCHW.dtype != torch.uint8 or crops_BCHW.shape[1:] != (3, px, px):
            raise ValueError(
                f"crops of type {crops_BCHW.dtype} and shape {tuple(crops_BCHW.shape)}: model "
                f"{self.config.name!r} takes "
                f"uint8 (B, 3, {px}, {px}); align the photos with the alignment of its config"
            )
        size = BATCH_ROWS // 2 if flip else BATCH_ROWS
        starts = range(0, max(1, len(crops_BCHW)), size)
        return joined(
            [self._predict_batch(crops_BCHW[start : start + size], flip) for start in starts]
        )

    def _predict_batch(self, crops_BCHW: Tensor, flip: bool) -> Predictions:
        grid, decode = self.config.grid, DECODERS[self.config.decode]
        if not len(crops_BCHW):
            nothing_BK, nothing_B = (
                torch.zeros(0, *shape, dtype=torch.float64) for shape in ((grid.num_labels,), ())
            )
            return predictions_of(nothing_BK, nothing_B, grid, self.config.calibration)
        p_BK, features_BC = self._answer(
            torch.cat([crops_BCHW, crops_BCHW.flip(3)]) if flip else crops_BCHW
        )
        if flip:
            face_BK, mirror_BK = p_BK.chunk(2)
            p_BK, value_B = (
                (face_BK + mirror_BK) / 2,
                (decode(face_BK, grid) + decode(mirror_BK, grid)) / 2,
            )
        else:
            value_B = decode(p_BK, grid)
        if self._observe is not None and features_BC is not None:
            self._observe(value_B.numpy(), features_BC[: len(crops_BCHW)].numpy())
        return predictions_of(p_BK, value_B, grid, self.config.calibration)

    def _answer(self, crops_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Crops -> probabilities, and the pooled features where somebody observes them."""
        if self._observe is None:
            return self._engine(crops_BCHW), None
        assert isinstance(self._engine, TorchEngine)  # the setter lets no other through
        return self._engine.with_features(crops_BCHW)
