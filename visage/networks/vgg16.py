"""VGG-16 as published (Simonyan, Zisserman 2015, configuration D) with DEX's head: what the thin
networks are held against in DLDL-v2's Table 2, for parameters and time.

Convolutions with bias, no BatchNorm; the last 7x7 maps all go into two layers of 4096 with ReLU and
dropout. 224 px give 7x7; other crops are averaged to it, as torchvision does, so that any crop from
32 px has an answer. The wide layers are float32 products of the whole batch: a face's last bits
depend on its company, unlike the thin networks'. Legend: B batch, C channels, H height, W width, K
outputs of the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from visage.networks.vgg import SharedLinear, VGGBody

POOLED_PX, WIDE = 7, 4096
DROPOUT = 0.5


@dataclass(frozen=True, kw_only=True)
class VGG16Config:
    num_outputs: int
    shared_head: bool


class VGG16(VGGBody):
    """The blocks whole, and two wide layers."""

    def __init__(self, config: VGG16Config) -> None:
        super().__init__(1, normalised=False)
        self.wide = nn.Sequential(
            nn.Flatten(),
            nn.Linear(self.num_features * POOLED_PX**2, WIDE),
            nn.ReLU(inplace=True),
            nn.Dropout(DROPOUT),
            nn.Linear(WIDE, WIDE),
            nn.ReLU(inplace=True),
            nn.Dropout(DROPOUT),
        )
        self.num_features = WIDE
        self.head = (SharedLinear if config.shared_head else nn.Linear)(WIDE, config.num_outputs)

    def pool(self, maps_BCHW: Tensor) -> Tensor:
        """Fifth max-pool, 7x7 maps, both wide layers, (B,4096)."""
        maps_BCHW = nn.functional.max_pool2d(maps_BCHW, 2)
        if maps_BCHW.shape[-2:] != (POOLED_PX, POOLED_PX):
            maps_BCHW = nn.functional.adaptive_avg_pool2d(maps_BCHW, POOLED_PX)
        return cast(Tensor, self.wide(maps_BCHW))
