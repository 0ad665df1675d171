"""Crops -> features of length 1: what the estimators see of a face, from any extractor.

The paper normalises by l2 and does nothing else: no standardisation, no reduction of dimensions. A
constant 1 is appended to the features. Its weight is the estimator's bias, and is regularised as
the others are, as in liblinear. Legend: B faces of a batch, N faces, C channels, D features
with the constant.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from visage.data.face_table import FaceTable, in_order
from visage.data.preprocess import evaluation_view
from visage.model_config import NormaliseConfig
from visage.networks.protocol import FaceBatch, Network

# uint8 crops (B,3,H,W) -> features of any length (B,D-1), float32.
Extractor = Callable[[Tensor], Tensor]


def trunk_extractor(network: Network, normalise: NormaliseConfig) -> Extractor:
    """What the head of a network sees, (B,C): 256 features of Thin, 128 of Tiny. Runs on the device
    of the network's weights.

    Pooling is the network's own, hybrid in the paper. ValueError for a network that needs
    landmarks.
    """
    if network.needs_landmarks:
        raise ValueError(
            "the two-stage baselines see crops alone: give them a backbone that needs no landmarks"
        )

    network.eval()
    device = next(network.parameters()).device

    def extract(crops_BCHW: Tensor) -> Tensor:
        view_BCHW = evaluation_view(crops_BCHW.to(device), normalise)
        maps_BChw = network.forward_features(FaceBatch(view_BCHW, None))
        return network.forward_head(maps_BChw, None).float().cpu()

    return extract


@torch.inference_mode()
def described(crops_BCHW: Tensor, extract: Extractor, flip: bool) -> Tensor:
    """Crops -> what the estimators see, (B,D); with `flip` the mean over a face and its mirror
    image.

    The mean is taken before the length becomes 1: the mean of unit vectors is no unit vector.
    Features that are all 0, as BIF's of a crop in one colour, stay so.
    """
    features = extract(crops_BCHW)
    if flip:
        features = (features + extract(crops_BCHW.flip(3))) / 2
    return functional.pad(functional.normalize(features, dim=1), (0, 1), value=1.0)


def features_of(
    table: FaceTable,
    extract: Extractor,
    width: int,
    *,
    flip: bool,
    batch_size: int,
    num_workers: int,
) -> Tensor:
    """All faces of a table as the estimators see them, (N,D) with D = `width`, float32: 4 N D
    bytes."""
    features_ND = torch.empty(len(table), width)
    for rows, crops_BCHW in in_order(table, batch_size, num_workers, "features"):
        features_ND[rows] = described(crops_BCHW, extract, flip)
    return features_ND
