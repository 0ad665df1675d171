"""The label grid, and label distributions over it become values, deviations and intervals.

Each formula is written once, for both libraries: a numpy array gives numpy (an answer needs no
torch), a torch tensor gives torch (losses, and the graph of an ONNX file). Legend: B batch, K
labels of the grid. Everything is in label units (years, score points), whatever the grid's step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

# A numpy array or a torch tensor
Array = TypeVar("Array", npt.NDArray[Any], "Tensor")


def library_of(array: object) -> Any:
    """numpy or torch: the library of an array. Its functions that are used with it, here and
    elsewhere, take the same arguments in both (torch reads `axis` and `keepdims` as numpy does)."""
    return np if isinstance(array, np.ndarray) else import_module("torch")


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

    def labels_as(self, like: Array) -> Array:
        """l, shape (K,), of the library, type and device of `like`."""
        labels_K: Array = library_of(like).asarray(
            self.labels(), dtype=like.dtype, device=like.device
        )
        return labels_K


def survival(p_BK: Array) -> Array:
    """P(y > l_k) = 1 - T p (paper, Eq. 5-6), (B,K-1).

    T_ij = 1 for i >= j makes T p the c.d.f.; as the paper prints T (i <= j), T p would be the
    survival function.
    """
    xp = library_of(p_BK)
    from_the_end_BK = xp.cumsum(xp.flip(p_BK, (1,)), axis=1)
    above_BR: Array = xp.flip(from_the_end_BK, (1,))[:, 1:]
    return above_BR


def expectation(p_BK: Array, grid: LabelGrid) -> Array:
    """Expected value of each distribution (paper, Eq. 10), shape (B,).

    A sum by rows, not a matrix product, whose order of summation depends on the number of rows.
    """
    value_B: Array = library_of(p_BK).sum(p_BK * grid.labels_as(p_BK), axis=1)
    return value_B


def median(p_BK: Array, grid: LabelGrid) -> Array:
    """Median of each distribution, read as a piecewise linear c.d.f., shape (B,)."""
    return quantile(p_BK, grid, 0.5)


def argmax(p_BK: Array, grid: LabelGrid) -> Array:
    """The most probable label of each distribution, shape (B,)."""
    label_B: Array = grid.labels_as(p_BK)[library_of(p_BK).argmax(p_BK, axis=1)]
    return label_B


def rank(p_BK: Array, grid: LabelGrid) -> Array:
    """The first label at which the c.d.f. reaches one half, shape (B,): Ranking's l[1 + #(P(y >
    l_k) > 1/2)]."""
    num_above_B = library_of(p_BK).sum(survival(p_BK) > 0.5, axis=1)
    label_B: Array = grid.labels_as(p_BK)[num_above_B]
    return label_B


DECODERS: dict[str, Callable[[Array, LabelGrid], Array]] = {
    "expectation": expectation,
    "median": median,
    "argmax": argmax,
    "rank": rank,
}


def deviation(p_BK: Array, grid: LabelGrid) -> Array:
    """Standard deviation of each distribution in label units, shape (B,)."""
    xp = library_of(p_BK)
    offset_BK = grid.labels_as(p_BK) - expectation(p_BK, grid)[:, None]
    deviation_B: Array = xp.sqrt(xp.clip(xp.sum(p_BK * offset_BK**2, axis=1), min=0.0))
    return deviation_B


def quantile(p_BK: Array, grid: LabelGrid, mass: float) -> Array:
    """The value below which each distribution has `mass`, shape (B,).

    Each label's probability is spread evenly over its own cell [l_k - step/2, l_k + step/2]; the
    result is clamped to the grid's range.
    """
    xp = library_of(p_BK)
    cumulative_BK = xp.cumsum(p_BK, axis=1)
    wanted_B = mass * cumulative_BK[:, -1]

    num_below_B = xp.sum(cumulative_BK < wanted_B[:, None], axis=1)
    index_B1 = xp.clip(num_below_B, max=grid.num_labels - 1)[:, None]
    # A mask, because a look-up by index would fix the batch's size in an ONNX graph
    here_BK = xp.arange(grid.num_labels, device=p_BK.device) == index_B1

    def at_the_label(values_BK: Array) -> Array:
        found_B: Array = xp.sum(xp.where(here_BK, values_BK, 0.0), axis=1)
        return found_B

    inside_B = at_the_label(p_BK)
    before_B = at_the_label(cumulative_BK) - inside_B
    tiny = float(xp.finfo(p_BK.dtype).tiny)
    share_B = (wanted_B - before_B) / xp.clip(inside_B, min=tiny)

    offset_B = (xp.clip(share_B, min=0.0, max=1.0) - 0.5) * grid.step
    value_B = at_the_label(grid.labels_as(p_BK)) + offset_B
    held_B: Array = xp.clip(value_B, min=grid.minimum, max=grid.maximum)
    return held_B


def central_interval(p_BK: Array, grid: LabelGrid, mass: float = 0.8) -> tuple[Array, Array]:
    """The two ends, each (B,), of the central interval that holds `mass` of each distribution."""
    return quantile(p_BK, grid, (1 - mass) / 2), quantile(p_BK, grid, (1 + mass) / 2)
