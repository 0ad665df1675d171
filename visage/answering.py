"""A face table is put to a model: its eye is checked against the model's card, then its faces are answered in batches.

Crops are decoded while others are answered; memory holds a batch of them and every face's distribution.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from visage.card import ModelCard
from visage.faces import FaceTable, in_order
from visage.predictor import Predictions, Predictor, joined

DECODING_THREADS = 2


def check_eye(card: ModelCard, table: FaceTable, faces: Path) -> None:
    """Refuses faces that were cut or found in another way than the model was trained on."""
    for name, mine in (("alignment", card.alignment), ("detector", card.detector)):
        wanted = json.loads(json.dumps(dataclasses.asdict(mine)))
        found = getattr(table, name)
        if wanted != found:
            raise ValueError(
                f"{faces}: the faces' {name} is {found}, the model's card says {wanted}; align the photos with the "
                "card's settings, or train a model on these faces"
            )


def answer(predictor: Predictor, table: FaceTable, *, flip: bool, batch_size: int, task: str) -> Predictions:
    """The model's predictions for all faces, of one at least, asked batch by batch; `task` names the progress bar."""
    batches = in_order(table, batch_size, DECODING_THREADS, task)
    return joined([predictor.predict_crops(crops_BCHW, flip) for _, crops_BCHW in batches])
