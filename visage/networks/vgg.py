"""ThinAgeNet and TinyAgeNet: the VGG-16 body at a fraction of its width, batch-normalised, with
hybrid pooling.

DLDL-v2 section 3.4 and the released Torch7 code: 3x3 convolutions without bias, padding 1, each
followed by BatchNorm and ReLU; a 2x2 max-pool after each of the first four blocks. Hybrid pooling
is VGG's own fifth max-pool and then a global average; the ablation `gap` drops the fifth max-pool.
Legend: B batch, C channels, H height, W width, K outputs of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from torch import Tensor, nn

from visage.networks.head import Head, build_head
from visage.networks.protocol import FaceBatch, Network

# (channels, convolutions) of VGG-16-D
VGG16_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
Pooling = Literal["hybrid", "gap"]


class VGGBody(Network):
    """VGG-16's blocks; what pools their maps and which head follows is the subclass's.

    H and W must be at least 32; 224 in the paper. A convolution has either a BatchNorm or a bias.
    """

    head: Head

    def __init__(self, share: float, *, normalised: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        num_in = 3
        for channels, depth in VGG16_BLOCKS:
            width = round(channels * share)
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers.append(nn.Conv2d(num_in, width, 3, padding=1, bias=not normalised))
                if normalised:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                num_in = width
            self.blocks.append(nn.Sequential(*layers))

        self.num_features = num_in

    def forward_features(self, faces: FaceBatch) -> Tensor:
        """Activation maps F^j of the last convolution block (before the fifth max-pool),
        (B,C,H/16,W/16)."""
        maps_BCHW = self.blocks[0](faces.view_BCHW)
        for block in list(self.blocks)[1:]:
            maps_BCHW = block(nn.functional.max_pool2d(maps_BCHW, 2))
        return cast(Tensor, maps_BCHW)

    def quantised_modules(self) -> Sequence[str]:
        """Everything before the head, the first convolution and VGG-16's wide layers too: so
        bench/README.md's figures of int8 were measured."""
        return [
            name
            for name, module in self.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear) and module is not self.head
        ]


class ThinVGG(VGGBody):
    """The blocks at a share of their channels: Thin 0.5, Tiny 0.25."""

    def __init__(
        self, *, share: float, num_outputs: int, shared_head: bool, pooling: Pooling
    ) -> None:
        super().__init__(share, normalised=True)
        self.pooling = pooling
        self.head = build_head(self.num_features, num_outputs, shared_head)

    def forward_head(self, maps_BChw: Tensor, _landmarks_B52: Tensor | None) -> Tensor:
        """Hybrid (max 2x2, then global average) or global average pooling, (B,C)."""
        if self.pooling == "hybrid":
            maps_BChw = nn.functional.max_pool2d(maps_BChw, 2)
        return maps_BChw.mean(dim=(2, 3))
