"""Non-maximum suppression of boxes, as torchvision.ops.nms computes it, in numpy.

The same float32 arithmetic in the same order, so the same boxes are kept, ties included.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

# Rows of the table of overlaps that are computed together: bounds its memory.
ROWS = 256


def nms(boxes_N4: Float32Array, score_N: Float32Array, max_overlap: float) -> Indices:
    """Indices of the boxes x0 y0 x1 y1 that are kept, the highest score first.

    A box is dropped if its intersection over union with a kept box of a higher score is more than
    `max_overlap`. Of equal scores the first comes first.
    """
    order = np.argsort(-score_N, kind="stable")
    left, top, right, bottom = boxes_N4[order].T.copy()
    area_N = (right - left) * (bottom - top)

    alive_N = np.ones(len(order), bool)
    # A double: the float32 overlap is compared with it unrounded, as in torchvision.
    limit = np.float64(max_overlap)
    for start in range(0, len(order), ROWS):
        rows = start + np.flatnonzero(alive_N[start : start + ROWS])
        columns = start + np.flatnonzero(alive_N[start:])

        width = np.minimum(right[rows, None], right[columns])
        width -= np.maximum(left[rows, None], left[columns])
        height = np.minimum(bottom[rows, None], bottom[columns])
        height -= np.maximum(top[rows, None], top[columns])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            overlaps = shared / (area_N[rows, None] + area_N[columns] - shared) > limit

        # The first columns are the rows themselves, in the same order.
        standing = np.ones(len(columns), bool)
        for row in range(len(rows)):
            if standing[row]:
                standing[row + 1 :] &= ~overlaps[row, row + 1 :]
        alive_N[columns] = standing

    return order[alive_N]
