"""A model predicts for a face table. How its faces were cut and found is checked against the
model's config first; then they go through the model in batches.

Crops are decoded while others are predicted; memory holds a batch of them and every face's
distribution. Legend: B faces of a batch.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visage.data.face_table import FaceTable, in_order
from visage.inference.faces import CropPredictor, Predictions, joined
from visage.model_config import ModelConfig
from visage.networks.protocol import FaceBatch

DECODING_THREADS = 2


def check_preprocessing(config: ModelConfig, table: FaceTable, faces: Path) -> None:
    """Refuses faces that were cut or found in another way than the model was trained on."""
    for name, mine in (("alignment", config.alignment), ("detector", config.detector)):
        wanted = json.loads(json.dumps(dataclasses.asdict(mine)))
        found = getattr(table, name)
        if wanted != found:
            raise ValueError(
                f"{faces}: the faces' {name} is {found}, the model's config says {wanted}; align "
                f"the photos with the config's settings, or train a model on these faces"
            )


def landmarks_of(table: FaceTable, rows: np.ndarray, needs_landmarks: bool) -> Tensor | None:
    """The landmarks in the crops of some faces, (B,5,2), where a network needs them."""
    return torch.from_numpy(table.landmarks[rows]) if needs_landmarks else None


def faces_of(table: FaceTable, rows: np.ndarray, needs_landmarks: bool) -> FaceBatch:
    """The uint8 crops of some faces, with their landmarks where a network needs them."""
    return FaceBatch(table.decode(rows), landmarks_of(table, rows, needs_landmarks))


def answer(
    predictor: CropPredictor, table: FaceTable, *, flip: bool, batch_size: int, task: str
) -> Predictions:
    """The model's predictions for all faces, of one at least, batch by batch; `task` names the
    progress bar."""
    parts = []
    for rows, crops_BCHW in in_order(table, batch_size, DECODING_THREADS, task):
        landmarks_B52 = landmarks_of(table, rows, predictor.needs_landmarks)
        parts.append(predictor.predict_crops(crops_BCHW, landmarks_B52, flip=flip))
    return joined(parts)
