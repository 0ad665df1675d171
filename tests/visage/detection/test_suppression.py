"""Suppression in numpy against torchvision's, box by box."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import nms as torchvision_nms

from visage.detection.suppression import ROWS, nms


@pytest.mark.parametrize("count", [0, 1, 30, ROWS, 3 * ROWS + 7])
@pytest.mark.parametrize("overlap", [0.5, 0.7])
def test_keeps_what_torchvision_keeps_in_its_order(count: int, overlap: float) -> None:
    rng = np.random.default_rng(count)
    # Whole pixels and few scores: overlaps of exactly the limit, and many ties.
    start = rng.integers(0, 60, (count, 2))
    boxes = np.concatenate([start, start + rng.integers(5, 25, (count, 2))], axis=1)
    boxes = boxes.astype(np.float32)
    scores = rng.integers(0, 20, count).astype(np.float32) / 20

    expected = torchvision_nms(torch.from_numpy(boxes), torch.from_numpy(scores), overlap)
    np.testing.assert_array_equal(nms(boxes, scores, overlap), expected.numpy())


def test_boxes_without_area_are_kept() -> None:
    boxes = np.array([[3, 3, 3, 3], [3, 3, 3, 3]], np.float32)
    expected = torchvision_nms(torch.from_numpy(boxes), torch.ones(2), 0.5)
    np.testing.assert_array_equal(nms(boxes, np.ones(2, np.float32), 0.5), expected.numpy())
