"""What several models say of the same faces becomes one label, its spread and its sigma.

Each of M models answers with a value v_m and the standard deviation s_m of its distribution. Taken
as an equally weighted mixture, the answers have

    label  = mean_m v_m                                        (DHAA, section 3.1: coarse labels)
    spread = sqrt(mean_m (v_m - label)^2)                      how far the models disagree
    sigma  = sqrt(spread^2 + mean_m s_m^2)                     the mixture's standard deviation (law of total variance)

in label units. Of one model, spread is 0 and sigma is its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Combined(NamedTuple):
    """Of N faces, in label units."""

    label_N: Floats
    spread_N: Floats
    sigma_N: Floats


def combined(values_MN: Floats, stds_MN: Floats) -> Combined:
    """Values and standard deviations of M models -> the label of each face, its spread and its
    sigma."""
    spread_N = values_MN.std(axis=0)
    return Combined(
        values_MN.mean(axis=0), spread_N, np.sqrt(spread_N**2 + (stds_MN**2).mean(axis=0))
    )
