"""The second stream of the two-stream apparent-age system (Yang et al. 2015): a network whose first
layer is 11x11 and that is batch-normalised.

Known of it are the first layer, the BatchNorm and the outputs; the rest is AlexNet's (Krizhevsky et
al. 2012), without its groups and its local response normalisation. Each convolution has a BatchNorm
and no bias; the last maps all go into two wide layers with ReLU and dropout. 256 px give 7x7 maps,
227 px 6x6 and 96 px 2x2; `pooled_px` says which, and other crops are averaged to it. As in VGG-16,
the wide layers are float32 products of the complete batch. Legend: B batch, C channels, H height,
W width, K outputs of the head.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from visage.networks.head import Head, build_head
from visage.networks.protocol import FaceBatch, Network

# (channels, kernel side, stride, padding) of AlexNet's convolutions
CONVOLUTIONS = ((96, 11, 4, 2), (256, 5, 1, 2), (384, 3, 1, 1), (384, 3, 1, 1), (256, 3, 1, 1))
# Convolutions, by number, whose maps are pooled before the next
POOLED = (0, 1)
DROPOUT = 0.5


def _convolution(num_in: int, width: int, kernel_px: int, stride: int, padding: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(num_in, width, kernel_px, stride, padding, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


class BNAlex(Network):
    """AlexNet's layers, batch-normalised, at a share of their channels; `wide` units in each wide
    layer, which see maps of `pooled_px` x `pooled_px`."""

    head: Head

    def __init__(
        self, *, share: float, num_outputs: int, shared_head: bool, wide: int, pooled_px: int
    ) -> None:
        super().__init__()
        self.pooled_px = pooled_px
        self.convolutions = nn.ModuleList()
        num_in = 3
        for channels, kernel_px, stride, padding in CONVOLUTIONS:
            width = round(channels * share)
            self.convolutions.append(_convolution(num_in, width, kernel_px, stride, padding))
            num_in = width

        self.wide = nn.Sequential(
            nn.Flatten(),
            nn.Linear(num_in * pooled_px**2, wide),
            nn.ReLU(inplace=True),
            nn.Dropout(DROPOUT),
            nn.Linear(wide, wide),
            nn.ReLU(inplace=True),
            nn.Dropout(DROPOUT),
        )
        self.num_features = wide
        self.head = build_head(wide, num_outputs, shared_head)

    def forward_features(self, faces: FaceBatch) -> Tensor:
        """Maps of the fifth convolution, before its max-pool: (B,C,15,15) of 256 px."""
        maps_BCHW = faces.view_BCHW
        for number, convolution in enumerate(self.convolutions):
            maps_BCHW = convolution(maps_BCHW)
            if number in POOLED:
                maps_BCHW = nn.functional.max_pool2d(maps_BCHW, 3, 2)
        return maps_BCHW

    def forward_head(self, maps_BChw: Tensor, _landmarks_B52: Tensor | None) -> Tensor:
        """Last max-pool, where the maps are as large as its window (crops from 64 px), and both
        wide layers, (B,wide)."""
        if min(maps_BChw.shape[-2:]) >= 3:
            maps_BChw = nn.functional.max_pool2d(maps_BChw, 3, 2)
        if maps_BChw.shape[-2:] != (self.pooled_px, self.pooled_px):
            maps_BChw = nn.functional.adaptive_avg_pool2d(maps_BChw, self.pooled_px)
        return cast(Tensor, self.wide(maps_BChw))
