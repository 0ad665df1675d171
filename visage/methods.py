"""Methods by name: what a head's logits are trained towards, and how they become a label
distribution.

Each method is one frozen record, with a dataclass of the settings that its loss takes. Every method
shares trunk, schedule and decoding. Legend: B batch, K labels of the grid, R = K - 1 ranks. The
formulas use the paper's letters: p, p-hat, x, y, lambda.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from visage.encodings import gaussian, interval, narrowest, ranking_encoding
from visage.labels import LabelGrid, expectation

KLReduction = Literal["sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """Of a loss that has nothing to set."""


@dataclass(frozen=True, kw_only=True)
class DLDLSettings:
    """`kl_reduction`: `sum` over the K labels (paper), or `mean` over them (released code).
    `min_sigma`: the least sigma of a target."""

    kl_reduction: KLReduction
    min_sigma: float

    def __post_init__(self) -> None:
        if not self.min_sigma > 0:
            raise ValueError(f"min_sigma is {self.min_sigma}: give more than 0")


@dataclass(frozen=True, kw_only=True)
class DLDLv2Settings(DLDLSettings):
    """DLDL's, and `lambda_`, which weighs the expectation loss (Eq. 12): the released code's
    lambda = 1, with the mean over labels, is the paper's lambda = K."""

    lambda_: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lambda_ >= 0:
            raise ValueError(f"lambda_ is {self.lambda_}: give 0 or more")


@dataclass(frozen=True, kw_only=True)
class MeanVarianceSettings:
    """Weights of the squared error of the mean (Pan et al. 2018: 0.2) and of the variance (0.05),
    which are added to the cross-entropy."""

    mean_weight: float
    variance_weight: float

    def __post_init__(self) -> None:
        if not (self.mean_weight >= 0 and self.variance_weight >= 0):
            raise ValueError(
                f"mean_weight is {self.mean_weight}, variance_weight {self.variance_weight}: give "
                f"0 or more"
            )


@dataclass(frozen=True, kw_only=True)
class Method:
    """`head_width(grid)` outputs; `loss(logits, label, sigma, grid, settings)` with an instance of
    the dataclass `settings`; `probabilities(logits, grid)`.

    `shared_head`: all outputs have one weight vector, and a bias each. `interval_loss(logits,
    label, half width, sigma, grid, settings)`: the loss for labels that are intervals; None where
    the method wants values.
    """

    head_width: Callable[[LabelGrid], int]
    loss: Callable[[Tensor, Tensor, Tensor, LabelGrid, Any], Tensor]
    probabilities: Callable[[Tensor, LabelGrid], Tensor]
    settings: type = NoSettings
    shared_head: bool = False
    interval_loss: Callable[[Tensor, Tensor, Tensor, Tensor, LabelGrid, Any], Tensor] | None = None


def kl_divergence(p_BK: Tensor, logits_BK: Tensor, reduction: KLReduction) -> Tensor:
    """Mean over the batch of KL(p || p-hat), p-hat = softmax(logits) (paper, Eq. 8-9); `mean`
    divides by K.

    From log-softmax in float32 at least, also under autocast; 0 ln 0 = 0.
    """
    logits_BK = _at_least_float32(logits_BK)
    divergence_BK = torch.special.xlogy(p_BK, p_BK) - p_BK * torch.log_softmax(logits_BK, dim=1)
    divergence: Tensor = divergence_BK.sum(dim=1).mean()
    return divergence / p_BK.shape[1] if reduction == "mean" else divergence


def softmax_probabilities(logits_BK: Tensor, _grid: LabelGrid) -> Tensor:
    """p-hat (paper, Eq. 8), (B,K)."""
    return torch.softmax(_at_least_float32(logits_BK), dim=1)


def expectation_error(logits_BK: Tensor, label_B: Tensor, grid: LabelGrid) -> Tensor:
    """|y-hat - y|, mean over the batch (paper, Eq. 11); scalar."""
    value_B = expectation(softmax_probabilities(logits_BK, grid).to(label_B.dtype), grid)
    return (value_B - label_B).abs().mean()


def expectation_loss(
    logits_BK: Tensor, label_B: Tensor, _sigma_B: Tensor, grid: LabelGrid, _settings: NoSettings
) -> Tensor:
    """ER: the expectation's error alone; sigma plays no part; scalar."""
    return expectation_error(logits_BK, label_B, grid)


def dldl_loss(
    logits_BK: Tensor, label_B: Tensor, sigma_B: Tensor, grid: LabelGrid, settings: DLDLSettings
) -> Tensor:
    """DLDL (Gao et al. 2017): the KL divergence alone; scalar."""
    p_BK = gaussian(label_B, sigma_B.clamp_min(settings.min_sigma), grid)
    return kl_divergence(p_BK, logits_BK, settings.kl_reduction)


def dldl_v2_loss(
    logits_BK: Tensor, label_B: Tensor, sigma_B: Tensor, grid: LabelGrid, settings: DLDLv2Settings
) -> Tensor:
    """L = KL(p || p-hat) + lambda |y-hat - y|, mean over the batch (paper, Eq. 12-13); scalar.

    Its gradient with respect to one face's logits is p-hat - p + lambda sign(y-hat - y) p-hat o (l
    - y-hat) (Eq. 17).
    """
    loss = dldl_loss(logits_BK, label_B, sigma_B, grid, settings)
    if settings.lambda_ == 0:
        return loss
    return loss + settings.lambda_ * expectation_error(logits_BK, label_B, grid)


def dldl_interval_loss(
    logits_BK: Tensor,
    label_B: Tensor,
    half_width_B: Tensor,
    sigma_B: Tensor,
    grid: LabelGrid,
    settings: DLDLSettings,
) -> Tensor:
    """DLDL with labels that are intervals: KL to `visage.encodings.interval`; scalar."""
    p_BK = interval(label_B, half_width_B, sigma_B.clamp_min(settings.min_sigma), grid)
    return kl_divergence(p_BK, logits_BK, settings.kl_reduction)


def dldl_v2_interval_loss(
    logits_BK: Tensor,
    label_B: Tensor,
    half_width_B: Tensor,
    sigma_B: Tensor,
    grid: LabelGrid,
    settings: DLDLv2Settings,
) -> Tensor:
    """DLDL-v2 with labels that are intervals: an expectation inside the interval has no error,
    elsewhere its distance from the interval; scalar."""
    loss = dldl_interval_loss(logits_BK, label_B, half_width_B, sigma_B, grid, settings)
    if settings.lambda_ == 0:
        return loss
    value_B = expectation(softmax_probabilities(logits_BK, grid).to(label_B.dtype), grid)
    beyond_B = ((value_B - label_B).abs() - half_width_B).clamp_min(0)
    return loss + settings.lambda_ * beyond_B.mean()


def nearest(label_B: Tensor, grid: LabelGrid) -> Tensor:
    """The number (B,) of the label nearest to each value."""
    places_B: Tensor = ((label_B - grid.minimum) / grid.step).round().long()
    return places_B.clamp(0, grid.num_labels - 1)


def nearest_label_error(logits_BK: Tensor, label_B: Tensor, grid: LabelGrid) -> Tensor:
    """Cross-entropy on the nearest label, mean over the batch; scalar."""
    return functional.cross_entropy(_at_least_float32(logits_BK), nearest(label_B, grid))


def dex_loss(
    logits_BK: Tensor, label_B: Tensor, _sigma_B: Tensor, grid: LabelGrid, _settings: NoSettings
) -> Tensor:
    """DEX (Rothe et al. 2015): cross-entropy on the nearest label, mean over the batch; scalar."""
    return nearest_label_error(logits_BK, label_B, grid)


def dex_released_loss(
    logits_BK: Tensor, label_B: Tensor, _sigma_B: Tensor, grid: LabelGrid, _settings: NoSettings
) -> Tensor:
    """What DLDL-v2's released code minimises under DEX's name: minus the nearest label's
    probability; scalar."""
    return functional.nll_loss(softmax_probabilities(logits_BK, grid), nearest(label_B, grid))


def mean_variance_loss(
    logits_BK: Tensor,
    label_B: Tensor,
    _sigma_B: Tensor,
    grid: LabelGrid,
    settings: MeanVarianceSettings,
) -> Tensor:
    """Pan, Han, Shan, Chen 2018: cross-entropy + mean_weight (m - y)^2 / 2 + variance_weight v,
    with mean m and variance v of p-hat in label units, mean over the batch; scalar."""
    p_BK = softmax_probabilities(logits_BK, grid).to(label_B.dtype)
    mean_B = expectation(p_BK, grid)
    variance_B = (p_BK * (grid.labels_as(p_BK) - mean_B[:, None]) ** 2).sum(dim=1)

    penalty_B = settings.mean_weight * (mean_B - label_B) ** 2 / 2
    penalty_B = penalty_B + settings.variance_weight * variance_B
    return nearest_label_error(logits_BK, label_B, grid) + penalty_B.mean()


def ranking_loss(
    logits_BR: Tensor, label_B: Tensor, _sigma_B: Tensor, grid: LabelGrid, _settings: NoSettings
) -> Tensor:
    """Ranking (Niu et al. 2016; DLDL-v2 section 3.2): R = K - 1 questions y > l_k, k = 1 .. K - 1,
    binary cross-entropy averaged over questions and batch; scalar."""
    logits_BR = _at_least_float32(logits_BR)
    target_BR = ranking_encoding(label_B, grid).to(logits_BR.dtype)
    return functional.binary_cross_entropy_with_logits(logits_BR, target_BR)


def coral_loss(
    logits_BR: Tensor, label_B: Tensor, sigma_B: Tensor, grid: LabelGrid, settings: NoSettings
) -> Tensor:
    """CORAL (Cao, Mirjalili, Raschka 2020, Eq. 4): as Ranking, summed over the questions, on a
    shared head; scalar."""
    return (grid.num_labels - 1) * ranking_loss(logits_BR, label_B, sigma_B, grid, settings)


def ranking_probabilities(logits_BR: Tensor, _grid: LabelGrid) -> Tensor:
    """The distribution (B,K) whose survival function the sigmoids are: the ranking-distribution
    identity (Eq. 2-6).

    Sigmoids that do not fall from label to label are sorted first, which leaves the number of those
    above 1/2 as it is: so the decoder `rank` gives Ranking's own prediction l[1 + #(p > 1/2)].
    """
    above_BR = torch.sigmoid(_at_least_float32(logits_BR)).sort(dim=1, descending=True).values
    above_previous_BK = functional.pad(above_BR, (1, 0), value=1.0)
    above_this_BK = functional.pad(above_BR, (0, 1), value=0.0)
    return above_previous_BK - above_this_BK


def regression_value(logits_B1: Tensor) -> Tensor:
    """MR's one output through tanh, in [-1, 1], (B,)."""
    return torch.tanh(_at_least_float32(logits_B1))[:, 0]


def scaled(label_B: Tensor, grid: LabelGrid) -> Tensor:
    """Labels mapped linearly from the grid's range to [-1, 1]."""
    return 2 * (label_B - grid.minimum) / (grid.maximum - grid.minimum) - 1


def mr_l1_loss(
    logits_B1: Tensor, label_B: Tensor, _sigma_B: Tensor, grid: LabelGrid, _settings: NoSettings
) -> Tensor:
    """Metric regression, l1 on the scale [-1, 1], mean over the batch; scalar."""
    return (regression_value(logits_B1) - scaled(label_B, grid)).abs().mean()


def mr_l2_loss(
    logits_B1: Tensor, label_B: Tensor, _sigma_B: Tensor, grid: LabelGrid, _settings: NoSettings
) -> Tensor:
    """Metric regression, squared error on the scale [-1, 1], mean over the batch; scalar."""
    return ((regression_value(logits_B1) - scaled(label_B, grid)) ** 2).mean()


def regression_probabilities(logits_B1: Tensor, grid: LabelGrid) -> Tensor:
    """The narrowest distribution (B,K) whose expectation is the regressed value: its two
    neighbouring labels."""
    value_B = (regression_value(logits_B1) + 1) * (grid.maximum - grid.minimum) / 2 + grid.minimum
    return narrowest(value_B, grid)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def one_output(_grid: LabelGrid) -> int:
    """1."""
    return 1


def one_output_a_label(grid: LabelGrid) -> int:
    """K."""
    return grid.num_labels


def one_output_a_question(grid: LabelGrid) -> int:
    """K - 1."""
    return grid.num_labels - 1


_SOFTMAX = Method(head_width=one_output_a_label, loss=dex_loss, probabilities=softmax_probabilities)
_RANKING = Method(
    head_width=one_output_a_question, loss=ranking_loss, probabilities=ranking_probabilities
)
_REGRESSION = Method(head_width=one_output, loss=mr_l1_loss, probabilities=regression_probabilities)
METHODS: dict[str, Method] = {
    "dldl_v2": replace(
        _SOFTMAX,
        loss=dldl_v2_loss,
        settings=DLDLv2Settings,
        interval_loss=dldl_v2_interval_loss,
    ),
    "dldl": replace(
        _SOFTMAX, loss=dldl_loss, settings=DLDLSettings, interval_loss=dldl_interval_loss
    ),
    "er": replace(_SOFTMAX, loss=expectation_loss),
    "dex": _SOFTMAX,
    "dex_released": replace(_SOFTMAX, loss=dex_released_loss),
    "mean_variance": replace(_SOFTMAX, loss=mean_variance_loss, settings=MeanVarianceSettings),
    "ranking": _RANKING,
    "coral": replace(_RANKING, loss=coral_loss, shared_head=True),
    "mr_l1": _REGRESSION,
    "mr_l2": replace(_REGRESSION, loss=mr_l2_loss),
}
