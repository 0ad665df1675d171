"""Real-valued labels become distributions over a label grid, and distributions become values again.

Legend: B batch, K labels of the grid. Everything is in label units (years, score points), whatever
the grid's step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LabelGrid:
    """The ordered label vector l = [minimum : step : maximum] of DLDL-v2 section 3.1."""

    minimum: float
    step: float
    maximum: float

    def __post_init__(self) -> None:
        steps = (self.maximum - self.minimum) / self.step if self.step > 0 else -1.0
        if not 1 <= steps < 1e6 or abs(steps - round(steps)) > 1e-6:
            raise ValueError(
                f"label grid {self.minimum}:{self.step}:{self.maximum}: the step must be positive "
                f"and divide the range"
            )

    @property
    def num_labels(self) -> int:
        """K."""
        return round((self.maximum - self.minimum) / self.step) + 1

    def labels(self) -> np.ndarray:
        """l, shape (K,), float64."""
        return np.linspace(self.minimum, self.maximum, self.num_labels)

    def tensor(self, like: Tensor) -> Tensor:
        """l, shape (K,), on the device and of the type of `like`."""
        return torch.as_tensor(self.labels(), dtype=like.dtype, device=like.device)


def gaussian(label_B: Tensor, sigma_B: Tensor, grid: LabelGrid) -> Tensor:
    """Gaussian label distributions p_BK around the real-valued labels (paper, Eq. 1), renormalised
    to sum 1.

    Eq. 1 as printed does not sum to 1 on a grid, least of all near its ends. `label_B` and
    `sigma_B` (> 0) are in label units. The softmax of log-densities gives the nearest label, not
    0/0, where sigma is far below the step.
    """
    distance_BK = (grid.tensor(label_B) - label_B[:, None]) / sigma_B[:, None]
    return torch.softmax(-0.5 * distance_BK**2, dim=1)


def interval(label_B: Tensor, half_width_B: Tensor, sigma_B: Tensor, grid: LabelGrid) -> Tensor:
    """Distributions p_BK of labels that are intervals, from `label - half_width` to `label +
    half_width`: flat inside, with ends blurred by `sigma` (> 0), renormalised to sum 1.

    p_k is in proportion to Phi((l_k - y + h) / sigma) - Phi((l_k - y - h) / sigma), a uniform
    density folded with a Gaussian. A half width of 0 is the Gaussian itself.
    """
    distance_BK = grid.tensor(label_B) - label_B[:, None]
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
    return (1 - (value_B[:, None] - grid.tensor(value_B)).abs() / grid.step).clamp_min(0)


def normal_cdf(label_B: Tensor, sigma_B: Tensor, grid: LabelGrid) -> Tensor:
    """c_BK, the c.d.f. at every label of normal distributions around the labels (paper, Eq. 2)."""
    c_BK: Tensor = torch.special.ndtr((grid.tensor(label_B) - label_B[:, None]) / sigma_B[:, None])
    return c_BK


def ranking_encoding(label_B: Tensor, grid: LabelGrid) -> Tensor:
    """p^rank (B,K-1): 1 where y > l_k, else 0; one minus the c.d.f. for sigma -> 0 (paper, Eq.
    3-4)."""
    return (label_B[:, None] > grid.tensor(label_B)[:-1]).to(label_B.dtype)


def survival(p_BK: Tensor) -> Tensor:
    """P(y > l_k) = 1 - T p (paper, Eq. 5-6), (B,K-1).

    T_ij = 1 for i >= j makes T p the c.d.f.; as the paper prints T (i <= j), T p would be the
    survival function.
    """
    return p_BK.flip(1).cumsum(dim=1).flip(1)[:, 1:]


def expectation(p_BK: Tensor, grid: LabelGrid) -> Tensor:
    """Expected value of each distribution (paper, Eq. 10), shape (B,)."""
    return p_BK @ grid.tensor(p_BK)


def median(p_BK: Tensor, grid: LabelGrid) -> Tensor:
    """Median of each distribution, read as a piecewise linear c.d.f., shape (B,)."""
    return quantile(p_BK, grid, 0.5)


def argmax(p_BK: Tensor, grid: LabelGrid) -> Tensor:
    """The most probable label of each distribution, shape (B,)."""
    return grid.tensor(p_BK)[p_BK.argmax(dim=1)]


def rank(p_BK: Tensor, grid: LabelGrid) -> Tensor:
    """The first label at which the c.d.f. reaches one half, shape (B,): Ranking's l[1 + #(P(y >
    l_k) > 1/2)]."""
    return grid.tensor(p_BK)[(survival(p_BK) > 0.5).sum(dim=1)]


DECODERS: dict[str, Callable[[Tensor, LabelGrid], Tensor]] = {
    "expectation": expectation,
    "median": median,
    "argmax": argmax,
    "rank": rank,
}


def deviation(p_BK: Tensor, grid: LabelGrid) -> Tensor:
    """Standard deviation of each distribution in label units, shape (B,)."""
    offset_BK = grid.tensor(p_BK) - expectation(p_BK, grid)[:, None]
    return (p_BK * offset_BK**2).sum(dim=1).clamp_min(0).sqrt()


def quantile(p_BK: Tensor, grid: LabelGrid, mass: float) -> Tensor:
    """The value below which each distribution has `mass`, shape (B,).

    Each label's probability is spread evenly over its own cell [l_k - step/2, l_k + step/2]; the
    result is clamped to the grid's range.
    """
    cumulative_BK = p_BK.cumsum(dim=1)
    total_B = cumulative_BK[:, -1]

    index_B1 = (
        (cumulative_BK < (mass * total_B)[:, None])
        .sum(dim=1, keepdim=True)
        .clamp_max(grid.num_labels - 1)
    )

    inside_B1 = p_BK.gather(1, index_B1)
    before_B1 = cumulative_BK.gather(1, index_B1) - inside_B1
    share_B1 = ((mass * total_B)[:, None] - before_B1) / inside_B1.clamp_min(
        torch.finfo(p_BK.dtype).tiny
    )

    value_B1 = grid.tensor(p_BK)[index_B1] + (share_B1.clamp(0, 1) - 0.5) * grid.step
    return value_B1[:, 0].clamp(grid.minimum, grid.maximum)


def central_interval(p_BK: Tensor, grid: LabelGrid, mass: float = 0.8) -> tuple[Tensor, Tensor]:
    """The two ends, each (B,), of the central interval that holds `mass` of each distribution."""
    return quantile(p_BK, grid, (1 - mass) / 2), quantile(p_BK, grid, (1 + mass) / 2)
