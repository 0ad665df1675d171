"""Recipes: optimiser, learning-rate schedule, averaging and precision as numbers, and what they
build."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from visage.strict import check_range


@dataclass(frozen=True, kw_only=True)
class RecipeSettings:
    """How a network is trained; epochs and data belong to the stage.

    `schedule`: `step` multiplies the rate by `decay_factor` after every `decay_fraction` of the run
    (the paper: x0.1 every 30 of 60 epochs = 0.5); `cosine` falls to `decay_factor` of the rate.
    Both start with a linear warm-up over `warmup_fraction` of the run. `ema_decay` > 0 averages the
    weights (0: off). `precision`: `auto` takes bfloat16 where the device computes in it, `float32`
    otherwise; losses are always float32.
    """

    optimiser: Literal["adam", "adamw"]
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
        check_range(
            self,
            learning_rate=(1e-12, 1e3),
            weight_decay=(0, 1e3),
            batch_size=(2, 1 << 20),
            decay_fraction=(1e-6, 1),
            decay_factor=(0, 1),
            warmup_fraction=(0, 0.99),
            ema_decay=(0, 0.999999),
        )


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight matrices and kernels decay; biases and BatchNorm's scales (one-dimensional) do not."""
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    kept = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def build_optimiser(network: nn.Module, recipe: RecipeSettings) -> torch.optim.Optimizer:
    """Adam or AdamW with the paper's betas (0.9, 0.999) and epsilon 1e-8."""
    kinds: dict[str, type[torch.optim.Adam]] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    return kinds[recipe.optimiser](
        parameter_groups(network, recipe.weight_decay),
        lr=recipe.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
    )


def learning_rate(recipe: RecipeSettings, progress: float) -> float:
    """The rate after the share `progress` (0 to 1) of a run."""
    if progress < recipe.warmup_fraction:
        return recipe.learning_rate * max(progress / recipe.warmup_fraction, 1e-3)
    if recipe.schedule == "step":
        return recipe.learning_rate * recipe.decay_factor ** math.floor(
            progress / recipe.decay_fraction + 1e-9
        )
    span = (progress - recipe.warmup_fraction) / (1 - recipe.warmup_fraction)
    low = recipe.decay_factor
    return recipe.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * span)))


def computing_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type that convolutions compute in: bfloat16 on `auto` only where hardware has it (AMX,
    AVX512-BF16, GPU)."""
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    if device.type == "cuda":
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float32
        )
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float, num_updates: int) -> None:
    """Moves `average` (weights and BatchNorm statistics) towards `network`; the decay warms up over
    the first steps."""
    decay = min(decay, (1 + num_updates) / (10 + num_updates))
    pairs = list(zip(average.state_dict().values(), network.state_dict().values(), strict=True))
    floats = [(mine, its) for mine, its in pairs if mine.is_floating_point()]
    torch._foreach_lerp_([mine for mine, _ in floats], [its for _, its in floats], 1 - decay)
    for mine, its in pairs:
        if not mine.is_floating_point():
            mine.copy_(its)
