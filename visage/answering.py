"""A face table is put to a model: its eye is checked against the model's card, then its faces are answered in batches.

Crops are decoded while others are answered; memory holds a batch of them and every face's distribution.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from visage.card import ModelCard
from visage.faces import FaceTable, prefetched
from visage.predictor import Predictions, Predictor

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
    """The model's predictions for all faces, decoded and asked batch by batch; `task` names the progress bar."""
    order = [np.arange(start, min(start + batch_size, len(table))) for start in range(0, len(table), batch_size)]
    numbers = {name: np.empty(len(table)) for name in ("value", "std", "low", "high")}
    probabilities = np.empty((len(table), predictor.card.grid.num_labels), np.float32)
    with tqdm(total=len(table), unit="face", desc=task) as bar:
        for rows, crops_BCHW in prefetched(table, order, DECODING_THREADS):
            told = predictor.predict_crops(crops_BCHW, flip)
            for name, column in numbers.items():
                column[rows] = getattr(told, name)
            probabilities[rows] = told.probabilities
            bar.update(len(rows))
    return Predictions(**numbers, probabilities=probabilities)
