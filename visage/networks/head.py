"""The last linear layer of a network, and the weights that a network starts from.

Legend: B batch, C features, K outputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SharedLinear(nn.Module):
    """CORAL's head: one weight vector for all outputs, a bias for each. (B,C) -> (B,K)."""

    def __init__(self, num_features: int, num_outputs: int) -> None:
        super().__init__()
        self.vector_1C = nn.Parameter(torch.empty(1, num_features))
        self.bias = nn.Parameter(torch.empty(num_outputs))

    @property
    def weight(self) -> Tensor:
        """As a linear head has it, (K,C)."""
        return self.vector_1C.expand(len(self.bias), -1)

    def forward(self, features_BC: Tensor) -> Tensor:
        return nn.functional.linear(features_BC, self.weight, self.bias)


Head = nn.Linear | SharedLinear


def build_head(num_features: int, num_outputs: int, shared_head: bool) -> Head:
    """A linear layer, or CORAL's with one weight vector for all outputs."""
    kind = SharedLinear if shared_head else nn.Linear
    return kind(num_features, num_outputs)


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """The released code's start: convolutions N(0, sqrt(2 / (k*k*out))), BatchNorm 1/0, biases 0.

    The released code leaves Torch7's Linear weights as they come: U(-1/sqrt(in), 1/sqrt(in)). An
    LSTM starts as torch's, U(-1/sqrt(states), 1/sqrt(states)).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            spread = math.sqrt(2.0 / (height * width * module.out_channels))
            module.weight.normal_(0.0, spread, generator=generator)
            if module.bias is not None:
                module.bias.zero_()

        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()

        elif isinstance(module, nn.Linear | SharedLinear):
            weight = module.weight if isinstance(module, nn.Linear) else module.vector_1C
            bound = 1.0 / math.sqrt(weight.shape[1])
            weight.uniform_(-bound, bound, generator=generator)
            module.bias.zero_()

        elif isinstance(module, nn.LSTMCell):
            bound = 1.0 / math.sqrt(module.hidden_size)
            for parameter in module.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
