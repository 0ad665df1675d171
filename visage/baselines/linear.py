"""What the three estimators have in common: examples in, one linear map out, fitted with strength
C.

C weighs the examples' losses against half the squared length of the weights, as in liblinear: the
larger, the less regularised. Legend: N examples, B faces, D features with the constant 1 (see
visage.baselines.features), O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from visage.strict import check_range


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """A fit ends when its gradient has shrunk to `tolerance` of its size at weights 0, or after
    `max_iterations`.

    `min_sigma`: floor of sigma in BFGS-LDL's targets. `tube`: errors up to it cost SVR nothing.
    Both are in label units.
    """

    max_iterations: int
    tolerance: float
    min_sigma: float
    tube: float

    def __post_init__(self) -> None:
        check_range(
            self,
            max_iterations=(1, None),
            tolerance=(1e-12, None),
            min_sigma=(1e-6, None),
            tube=(0, None),
        )


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Features (N,D), labels and sigmas (N,) in label units; all of the floating type in which a
    fit computes."""

    features_ND: Tensor
    label_N: Tensor
    sigma_N: Tensor


@dataclass(frozen=True, kw_only=True)
class LinearModel:
    """Weights (O,D), the number of iterations, and whether the fit converged in them."""

    weight_OD: Tensor
    num_iterations: int
    converged: bool

    def __call__(self, features_BD: Tensor) -> Tensor:
        """Outputs (B,O)."""
        outputs_BO: Tensor = features_BD @ self.weight_OD.T
        return outputs_BO
