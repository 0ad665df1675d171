"""Recipes: optimiser, learning-rate schedule, averaging and precision as numbers, and what they
build."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from visage.strict import check_range

Tensors = tuple[Tensor, ...] | list[Tensor]
ParameterGroups = list[dict[str, object]]
# Adam's, as in the paper
BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class RecipeSettings:
    """How a network is trained; epochs and data belong to the stage.

    `optimiser`: an entry of OPTIMISERS. `momentum` and `nesterov` are SGD's; Adam and AdamW have
    betas in their place, and take 0 and false.
    `schedule`: `step` multiplies the rate by `decay_factor` after every `decay_fraction` of the run
    (the paper: x0.1 every 30 of 60 epochs = 0.5); `cosine` falls to `decay_factor` of the rate.
    Both start with a linear warm-up over `warmup_fraction` of the run. `ema_decay` > 0 averages the
    weights (0: off). `precision`: `auto` takes bfloat16 where the device computes in it, `float32`
    otherwise; losses are always float32.
    """

    optimiser: str
    momentum: float
    nesterov: bool
    learning_rate: float
    weight_decay: float
    batch_size: int
    schedule: Literal["step", "cosine"]
    decay_fraction: float
    decay_factor: float
    warmup_fraction: float
    ema_decay: float
    precision: Literal["auto", "float32", "bfloat16"]
    channels_last: bool

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            known = ", ".join(OPTIMISERS)
            raise ValueError(f"optimiser {self.optimiser!r} is unknown; known: {known}")

        if self.optimiser != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(
                f"{self.optimiser} has no momentum; give momentum: 0.0 and nesterov: false, or "
                f"optimiser: sgd"
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is true and momentum 0: give a momentum, 0.9 as usual")

        check_range(
            self,
            momentum=(0, 0.9999),
            learning_rate=(1e-12, 1e3),
            weight_decay=(0, 1e3),
            batch_size=(2, 1 << 20),
            decay_fraction=(1e-6, 1),
            decay_factor=(0, 1),
            warmup_fraction=(0, 0.99),
            ema_decay=(0, 0.999999),
        )


def parameter_groups(network: nn.Module, weight_decay: float) -> ParameterGroups:
    """Weight matrices and kernels decay; biases and BatchNorm's scales (one-dimensional) do not."""
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    kept = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def _adam(groups: ParameterGroups, recipe: RecipeSettings) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=recipe.learning_rate, betas=BETAS, eps=EPSILON)


def _adamw(groups: ParameterGroups, recipe: RecipeSettings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=BETAS, eps=EPSILON)


def _sgd(groups: ParameterGroups, recipe: RecipeSettings) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov
    )


OPTIMISERS: dict[str, Callable[[ParameterGroups, RecipeSettings], torch.optim.Optimizer]] = {
    "adam": _adam,
    "adamw": _adamw,
    "sgd": _sgd,
}


def build_optimiser(network: nn.Module, recipe: RecipeSettings) -> torch.optim.Optimizer:
    """The recipe's optimiser of the network's parameters."""
    return OPTIMISERS[recipe.optimiser](parameter_groups(network, recipe.weight_decay), recipe)


def learning_rate(recipe: RecipeSettings, progress: float) -> float:
    """The rate after the share `progress` (0 to 1) of a run."""
    if progress < recipe.warmup_fraction:
        return recipe.learning_rate * max(progress / recipe.warmup_fraction, 1e-3)
    if recipe.schedule == "step":
        num_decays = math.floor(progress / recipe.decay_fraction + 1e-9)
        return recipe.learning_rate * recipe.decay_factor**num_decays

    span = (progress - recipe.warmup_fraction) / (1 - recipe.warmup_fraction)
    low = recipe.decay_factor
    return recipe.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * span)))


def computing_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type that convolutions compute in: bfloat16 on `auto` only where hardware has it (AMX,
    AVX512-BF16, GPU)."""
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bfloat16 = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of `network` whose weights and BatchNorm statistics each `update_parameters` moves
    towards it; the decay warms up over the first steps."""

    @torch.no_grad()
    def move(own: Tensors, current: Tensors, _num_averaged: Tensor | int) -> None:
        # n_averaged is on the CPU; reading the argument, on a GPU, would wait for it
        count = int(average.n_averaged)
        warm_decay = min(decay, count / (9 + count))
        if own[0].is_floating_point():
            torch._foreach_lerp_(own, current, 1 - warm_decay)
        else:
            for mine, its in zip(own, current, strict=True):
                mine.copy_(its)

    average = AveragedModel(network, multi_avg_fn=move, use_buffers=True)
    count_updates(average, 0)
    return average


def count_updates(average: AveragedModel, num_updates: int) -> None:
    """Says how often the average was moved. The start counts as one of the averaged: of 0, torch
    would take the first step's weights as they are."""
    average.n_averaged.fill_(1 + num_updates)
