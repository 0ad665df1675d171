"""Several models of the same quantity become one: by their values, or by their distributions.

Each of M models predicts a value v_m and the standard deviation s_m of its distribution. Taken as
an equally weighted mixture, the predictions have

    label  = mean_m v_m                      (DHAA, section 3.1: coarse labels)
    spread = sqrt(mean_m (v_m - label)^2)    how far the models disagree
    sigma  = sqrt(spread^2 + mean_m s_m^2)   the mixture's deviation (law of total variance)

in label units. Of one model, spread is 0 and sigma is its own. `FusedEngine` mixes the
distributions themselves. Legend: M models, N faces, B crops, K labels, C pooled features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from visage.inference.engine import Crops, Engine, Floats32, Floats64


class Combined(NamedTuple):
    """Of N faces, in label units."""

    label_N: Floats64
    spread_N: Floats64
    sigma_N: Floats64


def combined(values_MN: Floats64, stds_MN: Floats64) -> Combined:
    """Values and standard deviations of M models -> the label of each face, its spread and its
    sigma."""
    spread_N = values_MN.std(axis=0)
    sigma_N = np.sqrt(spread_N**2 + (stds_MN**2).mean(axis=0))
    return Combined(label_N=values_MN.mean(axis=0), spread_N=spread_N, sigma_N=sigma_N)


class FusedEngine:
    """Engines of one grid and one alignment as an `Engine`: the weighted mean of their
    distributions, and their pooled features concatenated.

    `members`: each engine and its weight; ValueError where the weights are not positive numbers
    that sum to 1.
    """

    def __init__(self, members: Sequence[tuple[Engine, float]]) -> None:
        weights = [weight for _, weight in members]
        if not (all(weight > 0 for weight in weights) and math.isclose(sum(weights), 1.0)):
            raise ValueError(
                f"the members' weights are {weights}: give positive numbers that sum to 1"
            )
        self._members = list(members)

    @property
    def needs_landmarks(self) -> bool:
        return any(engine.needs_landmarks for engine, _ in self._members)

    @property
    def gives_features(self) -> bool:
        return all(engine.gives_features for engine, _ in self._members)

    def answer(
        self, crops_BCHW: Crops, landmarks_B52: Floats32 | None
    ) -> tuple[Floats64, Floats32 | None]:
        outputs = [engine.answer(crops_BCHW, landmarks_B52) for engine, _ in self._members]

        p_BK = np.zeros_like(outputs[0][0])
        for (_, weight), (member_BK, _) in zip(self._members, outputs, strict=True):
            p_BK += weight * member_BK

        if not self.gives_features:
            return p_BK, None
        features = [features_BC for _, features_BC in outputs if features_BC is not None]
        return p_BK, np.concatenate(features, axis=1)
