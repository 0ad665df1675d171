"""ThinAgeNet and TinyAgeNet: the VGG-16 body at a fraction of its width, batch-normalised, with
hybrid pooling.

DLDL-v2 section 3.4 and the released Torch7 code: 3x3 convolutions without bias, padding 1, each
followed by BatchNorm and ReLU; a 2x2 max-pool after each of the first four blocks. Hybrid pooling
is VGG's own fifth max-pool and then a global average; the ablation `gap` drops the fifth max-pool.
Legend: B batch, C channels, H height, W width, K outputs of the head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

VGG16_BLOCKS = (
    (64, 2),
    (128, 2),
    (256, 3),
    (512, 3),
    (512, 3),
)  # (channels, convolutions) of VGG-16-D
Pooling = Literal["hybrid", "gap", "flatten"]  # the last is VGG-16's own (see vgg16.py)


@dataclass(frozen=True, kw_only=True)
class VGGConfig:
    """`compression` is the share of VGG-16's channels that every convolution keeps: Thin 0.5, Tiny
    0.25."""

    compression: float
    pooling: Pooling
    num_outputs: int
    shared_head: bool = False


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


class VGGBody(nn.Module):
    """Faces (B,3,H,W) -> logits (B,K): VGG-16's blocks, and the pooling and head of the network
    that has them.

    H and W must be at least 32; 224 in the paper. A convolution has either a BatchNorm or a bias.
    """

    head: nn.Linear | SharedLinear

    def __init__(self, compression: float, *, normalised: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        num_in = 3
        for channels, depth in VGG16_BLOCKS:
            width = round(channels * compression)
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers.append(nn.Conv2d(num_in, width, 3, padding=1, bias=not normalised))
                layers += [nn.BatchNorm2d(width)] if normalised else []
                layers.append(nn.ReLU(inplace=True))
                num_in = width
            self.blocks.append(nn.Sequential(*layers))
        self.num_features = num_in

    def features(self, faces_BCHW: Tensor) -> Tensor:
        """Activation maps F^j of the last convolution block (before the fifth max-pool),
        (B,C,H/16,W/16)."""
        maps_BCHW = self.blocks[0](faces_BCHW)
        for block in list(self.blocks)[1:]:
            maps_BCHW = block(nn.functional.max_pool2d(maps_BCHW, 2))
        return cast(Tensor, maps_BCHW)

    def pool(self, maps_BCHW: Tensor) -> Tensor:
        """What the head sees, (B,num_features)."""
        raise NotImplementedError

    def forward(self, faces_BCHW: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.pool(self.features(faces_BCHW))))


class ThinVGG(VGGBody):
    """The blocks at a fraction of their width."""

    def __init__(self, config: VGGConfig) -> None:
        super().__init__(config.compression, normalised=True)
        self.pooling = config.pooling
        self.head = (SharedLinear if config.shared_head else nn.Linear)(
            self.num_features, config.num_outputs
        )

    def pool(self, maps_BCHW: Tensor) -> Tensor:
        """Hybrid (max 2x2, then global average) or global average pooling, (B,C)."""
        if self.pooling == "hybrid":
            maps_BCHW = nn.functional.max_pool2d(maps_BCHW, 2)
        return maps_BCHW.mean(dim=(2, 3))


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """The released code's start: convolutions N(0, sqrt(2 / (k*k*out))), BatchNorm 1/0, biases 0.

    The released code leaves Torch7's Linear weights as they come: U(-1/sqrt(in), 1/sqrt(in)).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            spread = math.sqrt(
                2.0 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels)
            )
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
