"""VGG-16 as published (Simonyan, Zisserman 2015, configuration D) with DEX's head: what the thin
networks are held against in DLDL-v2's Table 2, for parameters and time.

Convolutions with bias, no BatchNorm; the last 7x7 maps all go into two layers of 4096 with ReLU and
dropout. 224 px give 7x7; other crops are averaged to it, as torchvision does, so that any crop from
32 px has a prediction. The wide layers are float32 products of the complete batch: a face's last
bits depend on the other faces of its batch, unlike the thin networks'. Legend: B batch, C channels,
H height, W width, K outputs of the head.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from visage.networks.head import build_head
from visage.networks.vgg import VGGBody

POOLED_PX = 7
WIDE = 4096
DROPOUT = 0.5

# Layers of torchvision's vgg16 by name, and where their weights belong here; the rest is its head.
TORCHVISION_NAMES = {
    "features.0": "blocks.0.0",
    "features.2": "blocks.0.2",
    "features.5": "blocks.1.0",
    "features.7": "blocks.1.2",
    "features.10": "blocks.2.0",
    "features.12": "blocks.2.2",
    "features.14": "blocks.2.4",
    "features.17": "blocks.3.0",
    "features.19": "blocks.3.2",
    "features.21": "blocks.3.4",
    "features.24": "blocks.4.0",
    "features.26": "blocks.4.2",
    "features.28": "blocks.4.4",
    "classifier.0": "wide.1",
    "classifier.3": "wide.4",
}


class VGG16(VGGBody):
    """The blocks at full width, and two wide layers."""

    def __init__(self, *, num_outputs: int, shared_head: bool) -> None:
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
        self.head = build_head(WIDE, num_outputs, shared_head)

    def forward_head(self, maps_BChw: Tensor, _landmarks_B52: Tensor | None) -> Tensor:
        """Fifth max-pool, 7x7 maps, both wide layers, (B,4096)."""
        maps_BChw = nn.functional.max_pool2d(maps_BChw, 2)
        if maps_BChw.shape[-2:] != (POOLED_PX, POOLED_PX):
            maps_BChw = nn.functional.adaptive_avg_pool2d(maps_BChw, POOLED_PX)
        return cast(Tensor, self.wide(maps_BChw))
