"""Labels become distributions and encodings over a label grid: what a network is trained towards.

In torch, as the losses and the ONNX graphs that use them. Legend: B batch, K labels of the grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visage.labels import LabelGrid


def gaussian(label_B: Tensor, sigma_B: Tensor, grid: LabelGrid) -> Tensor:
    """Gaussian label distributions p_BK around the real-valued labels (paper, Eq. 1), renormalised
    to sum 1.

    Eq. 1 as printed does not sum to 1 on a grid, least of all near its ends. `label_B` and
    `sigma_B` (> 0) are in label units. The softmax of log-densities gives the nearest label, not
    0/0, where sigma is far below the step.
    """
    distance_BK = (grid.labels_as(label_B) - label_B[:, None]) / sigma_B[:, None]
    return torch.softmax(-0.5 * distance_BK**2, dim=1)


def interval(label_B: Tensor, half_width_B: Tensor, sigma_B: Tensor, grid: LabelGrid) -> Tensor:
    """Distributions p_BK of labels that are intervals, from `label - half_width` to `label +
    half_width`: flat inside, with ends blurred by `sigma` (> 0), renormalised to sum 1.

    p_k is in proportion to Phi((l_k - y + h) / sigma) - Phi((l_k - y - h) / sigma), a uniform
    density folded with a Gaussian. A half width of 0 is the Gaussian itself.
    """
    distance_BK = grid.labels_as(label_B) - label_B[:, None]
    half_B1 = half_width_B[:, None]
    sigma_B1 = sigma_B[:, None]
    above_BK = torch.special.ndtr((distance_BK + half_B1) / sigma_B1)
    flat_BK = above_BK - torch.special.ndtr((distance_BK - half_B1) / sigma_B1)

    total_B1 = flat_BK.sum(dim=1, keepdim=True)
    flat_BK = flat_BK / total_B1.clamp_min(torch.finfo(flat_BK.dtype).tiny)
    return torch.where(half_B1 > 0, flat_BK, gaussian(label_B, sigma_B, grid))


def narrowest(value_B: Tensor, grid: LabelGrid) -> Tensor:
    """The narrowest distributions (B,K) whose expectations are the values, which must be within the
    grid's range."""
    return (1 - (value_B[:, None] - grid.labels_as(value_B)).abs() / grid.step).clamp_min(0)


def normal_cdf(label_B: Tensor, sigma_B: Tensor, grid: LabelGrid) -> Tensor:
    """c_BK, the c.d.f. at every label of normal distributions around the labels (paper, Eq. 2)."""
    c_BK: Tensor = torch.special.ndtr(
        (grid.labels_as(label_B) - label_B[:, None]) / sigma_B[:, None]
    )
    return c_BK


def ranking_encoding(label_B: Tensor, grid: LabelGrid) -> Tensor:
    """p^rank (B,K-1): 1 where y > l_k, else 0; one minus the c.d.f. for sigma -> 0 (paper, Eq.
    3-4)."""
    return (label_B[:, None] > grid.labels_as(label_B)[:-1]).to(label_B.dtype)
