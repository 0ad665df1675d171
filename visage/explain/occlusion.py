"""How much larger a model's error is when a place of the face is hidden: DLDL-v2 section 5.2,
Fig. 8.

The crop is covered with squares of a seventh of its side, one after the other, and with stripes of
that height (32 x 32 and 32 x 224 of 224 px in the paper). Where the side does not divide,
neighbouring places differ by one pixel; together they always tile the crop.

A hidden place gets the mean colour that the model normalises by. In the paper it gets the mean of
all training faces, which is the same where `normalise` is the set's own
(visage.data.normalisation). The colour is rounded to 8 bits on the crop itself, by at most 1/510 of
the colour range. So the covered crop passes through the one predictor, whatever engine, flip
averaging and decoding it has, and the mirror image is covered at the mirrored place. The released
code covers image and mirror image at the same pixels, which mixes two places of the face.

Shapes: B faces of a call, N faces, P places, R resamples, H and W crop side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from visage.data.preprocess import PAPER_NORMALISE
from visage.evaluation.bootstrap import Bootstrap, Estimate
from visage.evaluation.metrics import FloatArray, IntArray
from visage.inference.faces import CropPredictor
from visage.model_config import NormaliseConfig
from visage.networks.protocol import FaceBatch

# Rows and columns of the crop.
Place = tuple[slice, slice]


def edges(px: int, count: int) -> list[int]:
    """`count` + 1 borders that cut `px` pixels into pieces that differ by at most one pixel.
    ValueError for too many."""
    if not 1 <= count <= px:
        raise ValueError(f"places_per_side is {count}, a crop has {px} px: give 1 to {px}")
    return [round(place * px / count) for place in range(count + 1)]


def stripes(px: int, count: int) -> list[Place]:
    """Horizontal stripes over the full width, from top to bottom."""
    borders = edges(px, count)
    return [(slice(top, bottom), slice(0, px)) for top, bottom in pairwise(borders)]


def squares(px: int, count: int) -> list[Place]:
    """`count` x `count` squares, row by row."""
    rows = [row for row, _ in stripes(px, count)]
    return [(row, column) for row in rows for column in rows]


def mean_colour(normalise: NormaliseConfig) -> Tensor:
    """The mean that the model normalises by, as the nearest colour of a crop, uint8 (3,).

    The mean of gradients is no colour: for a model that sees them it is the released mean."""
    if normalise.input == "sobel":
        normalise = PAPER_NORMALISE
    return (torch.tensor(normalise.mean) * 255).round().to(torch.uint8)


def covered(crops_BCHW: Tensor, place: Place, colour_C: Tensor) -> Tensor:
    """A copy of the crops with one place in one colour."""
    crops_BCHW = crops_BCHW.clone()
    crops_BCHW[:, :, place[0], place[1]] = colour_C[:, None, None]
    return crops_BCHW


def occlusion_errors(
    predictor: CropPredictor,
    faces: FaceBatch,
    label_B: FloatArray,
    places: Sequence[Place],
    flip: bool,
    on_batch: Callable[[int], object],
) -> FloatArray:
    """Absolute errors in label units (B, 1 + P) of faces as uint8 crops: with nothing covered, then
    with each place.

    `on_batch` gets the number of crops after each pass over them.
    """
    colour_C = mean_colour(predictor.config.normalise)
    hidden = (covered(faces.view_BCHW, place, colour_C) for place in places)

    columns = []
    for crops in [faces.view_BCHW, *hidden]:
        predictions = predictor.predict_crops(crops, faces.landmarks_B52, flip=flip)
        columns.append(np.abs(predictions.value - label_B))
        on_batch(len(crops))

    return np.stack(columns, axis=1)


def relative_losses(
    error_NP: FloatArray, cluster_N: IntArray, bootstrap: Bootstrap
) -> list[Estimate]:
    """(MAE with a place covered - MAE) / MAE of each place with its interval; `error_NP` as
    `occlusion_errors` has it.

    nan where the MAE itself is 0. All places share the same resamples.
    """
    mean_P = error_NP.mean(axis=0)
    mean_RP = bootstrap.averages(error_NP, cluster_N)
    with np.errstate(divide="ignore", invalid="ignore"):
        loss_P = mean_P[1:] / mean_P[0] - 1
        loss_RP = mean_RP[:, 1:] / mean_RP[:, :1] - 1

    losses = []
    for loss, draw_R in zip(loss_P, loss_RP.T, strict=True):
        low, high = bootstrap.ends(draw_R)
        value = float(loss) if np.isfinite(loss) else float("nan")
        losses.append(Estimate(value=value, low=low, high=high))
    return losses
