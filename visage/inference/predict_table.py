"""A face table is put to a model: its eye is checked against the model's config, then its faces are
answered in batches.

Crops are decoded while others are answered; memory holds a batch of them and every face's
distribution.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from visage.data.face_table import FaceTable, in_order
from visage.inference.faces import CropPredictor, Predictions, joined
from visage.model_config import ModelConfig

DECODING_THREADS = 2


def check_preprocessing(config: ModelConfig, table: FaceTable, faces: Path) -> None:
    """Refuses faces that were cut or found in another way than the model was trained on."""
    for name, mine in (("alignment", config.alignment), ("detector", config.detector)):
        wanted = json.loads(json.dumps(dataclasses.asdict(mine)))
        found = getattr(table, name)
        if wanted != found:
            raise ValueError(
                f"{faces}: the faces' {name} is {found}, the model's config says {wanted}; align "
                f"the photos with the "
                "config's settings, or train a model on these faces"
            )


def answer(
    predictor: CropPredictor, table: FaceTable, *, flip: bool, batch_size: int, task: str
) -> Predictions:
    """The model's predictions for all faces, of one at least, asked batch by batch; `task` names
    the progress bar."""
    batches = in_order(table, batch_size, DECODING_THREADS, task)
    return joined([predictor.predict_crops(crops_BCHW, flip) for _, crops_BCHW in batches])
