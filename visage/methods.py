"""Methods by name: what a head's logits are trained towards, and how they become a label distribution.

One frozen record a method, no if-chain; every method shares trunk, schedule and decoding.
Legend: B batch, K labels of the grid. The formulas use the paper's letters: p, p-hat, x, y, lambda.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from visage.labels import LabelGrid, expectation, gaussian

KLReduction = Literal["sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """`lambda_` weighs the expectation loss (Eq. 12); `kl_reduction` sums over the K labels (paper) or averages over
    them (released code, whose lambda = 1 is the paper's lambda = K); `min_sigma` is the floor of sigma in targets."""

    lambda_: float
    kl_reduction: KLReduction
    min_sigma: float

    def __post_init__(self) -> None:
        if not (self.lambda_ >= 0 and self.min_sigma > 0):
            raise ValueError(f"lambda_ is {self.lambda_}, min_sigma {self.min_sigma}: give 0 or more, and more than 0")


@dataclass(frozen=True, kw_only=True)
class Method:
    """`head_width(grid)` outputs; `loss(logits, label, sigma, grid, settings)`; `probabilities(logits, grid)`."""

    head_width: Callable[[LabelGrid], int]
    loss: Callable[[Tensor, Tensor, Tensor, LabelGrid, LossSettings], Tensor]
    probabilities: Callable[[Tensor, LabelGrid], Tensor]


def kl_divergence(p_BK: Tensor, logits_BK: Tensor, reduction: KLReduction) -> Tensor:
    """Mean over the batch of KL(p || p-hat), p-hat = softmax(logits) (paper, Eq. 8-9); `mean` divides by K.

    From log-softmax in float32 at least, also under autocast; 0 ln 0 = 0.
    """
    logits_BK = logits_BK if logits_BK.dtype == torch.float64 else logits_BK.float()
    divergence_BK = torch.special.xlogy(p_BK, p_BK) - p_BK * torch.log_softmax(logits_BK, dim=1)
    divergence: Tensor = divergence_BK.sum(dim=1).mean()
    return divergence / p_BK.shape[1] if reduction == "mean" else divergence


def softmax_probabilities(logits_BK: Tensor, _grid: LabelGrid) -> Tensor:
    """p-hat (paper, Eq. 8), (B,K)."""
    return torch.softmax(logits_BK if logits_BK.dtype == torch.float64 else logits_BK.float(), dim=1)


def expectation_loss(
    logits_BK: Tensor, label_B: Tensor, _sigma_B: Tensor, grid: LabelGrid, _settings: LossSettings
) -> Tensor:
    """ER, |y-hat - y| alone, mean over the batch (paper, Eq. 11); sigma and lambda play no part; scalar."""
    value_B = expectation(softmax_probabilities(logits_BK, grid).to(label_B.dtype), grid)
    return (value_B - label_B).abs().mean()


def dldl_v2_loss(
    logits_BK: Tensor, label_B: Tensor, sigma_B: Tensor, grid: LabelGrid, settings: LossSettings
) -> Tensor:
    """L = KL(p || p-hat) + lambda |y-hat - y|, mean over the batch (paper, Eq. 12-13); scalar.

    Its gradient with respect to one face's logits is p-hat - p + lambda sign(y-hat - y) p-hat o (l - y-hat) (Eq. 17).
    """
    p_BK = gaussian(label_B, sigma_B.clamp_min(settings.min_sigma), grid)
    loss = kl_divergence(p_BK, logits_BK, settings.kl_reduction)
    if settings.lambda_ == 0:
        return loss
    return loss + settings.lambda_ * expectation_loss(logits_BK, label_B, sigma_B, grid, settings)


def one_output_a_label(grid: LabelGrid) -> int:
    """K."""
    return grid.num_labels


METHODS: dict[str, Method] = {
    "dldl_v2": Method(head_width=one_output_a_label, loss=dldl_v2_loss, probabilities=softmax_probabilities),
    "er": Method(head_width=one_output_a_label, loss=expectation_loss, probabilities=softmax_probabilities),
}
