"""The continuous ranked probability score: how well a distribution on a label grid predicts the
label.

It is proper (honest distributions score best) and counts in label units. One mislabelled face costs
its distance; with a likelihood it would cost the logarithm of a number near 0. Gneiting and Raftery
2007, section 4.2. Shapes: N faces, K labels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from visage.labels import LabelGrid

FloatArray = npt.NDArray[np.float64]

# Faces whose distributions are held together in float64.
BATCH = 4096


def batches(num_faces: int) -> Iterator[slice]:
    """The rows of all faces, BATCH at a time."""
    return (slice(start, start + BATCH) for start in range(0, num_faces, BATCH))


def crps(
    probability_NK: npt.NDArray[np.floating], label_K: FloatArray, truth_N: FloatArray
) -> FloatArray:
    """Continuous ranked probability score of distributions on a grid: E|X - y| - E|X - X'| / 2,
    exact, (N,).

    With the c.d.f. F constant between neighbouring labels, E|X - X'| / 2 is the sum of F (1 - F)
    times their distance. Gneiting and Raftery 2007, Eq. 21. Label units; a distribution on one
    label scores its absolute error.
    """
    probability = probability_NK.astype(np.float64)
    distance_N = (probability * np.abs(label_K - truth_N[:, None])).sum(axis=1)
    cdf_NK = np.cumsum(probability, axis=1)[:, :-1]
    return np.asarray(distance_N - (cdf_NK * (1.0 - cdf_NK)) @ np.diff(label_K))


def batched_crps(
    probability_NK: npt.NDArray[np.float32], grid: LabelGrid, label_N: FloatArray
) -> FloatArray:
    """The CRPS of every face (N,), a bounded number of distributions at a time."""
    parts = [
        crps(probability_NK[rows], grid.labels(), label_N[rows]) for rows in batches(len(label_N))
    ]
    return np.concatenate([np.empty(0), *parts])
