"""ResNet-18 (He et al. 2016, Table 1), at any share of its channels, with torchvision's layout.

The names of the state dict are torchvision's (conv1, bn1, layer1 to layer4), so that its weights
fit; `head` stands in the place of `fc`. Legend: B batch, C channels, h and w side of the maps, H/32
and W/32 of the crop.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from visage.networks.head import build_head
from visage.networks.protocol import FaceBatch, Network

# (channels, stride) of layer1 to layer4
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
# Residual units of a stage
UNITS = 2

# Parts of torchvision's resnet18 by name, which are those here; the rest is its head.
TORCHVISION_PARTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
TORCHVISION_NAMES = {name: name for name in TORCHVISION_PARTS}


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions with a shortcut, which is a 1x1 convolution where shapes differ."""

    def __init__(self, num_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

        self.downsample: nn.Sequential | None = None
        if stride != 1 or num_in != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(num_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, maps_BChw: Tensor) -> Tensor:
        shortcut_BChw = maps_BChw if self.downsample is None else self.downsample(maps_BChw)

        maps_BChw = self.relu(self.bn1(self.conv1(maps_BChw)))
        maps_BChw = self.bn2(self.conv2(maps_BChw))

        return cast(Tensor, self.relu(maps_BChw + shortcut_BChw))


def residual_stage(num_in: int, width: int, stride: int) -> nn.Sequential:
    """A stage: residual units, of which the first has the stride and changes the width."""
    units = [ResidualUnit(num_in, width, stride)]
    units += [ResidualUnit(width, width, 1) for _ in range(UNITS - 1)]
    return nn.Sequential(*units)


class ResNet18(Network):
    """Stem, four stages of two residual units, global average pooling, head."""

    def __init__(self, *, share: float, num_outputs: int, shared_head: bool) -> None:
        super().__init__()
        num_in = round(STAGES[0][0] * share)
        self.conv1 = nn.Conv2d(3, num_in, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(num_in)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        for number, (channels, stride) in enumerate(STAGES, 1):
            width = round(channels * share)
            self.add_module(f"layer{number}", residual_stage(num_in, width, stride))
            num_in = width

        self.num_features = num_in
        self.head = build_head(num_in, num_outputs, shared_head)

    def forward_features(self, faces: FaceBatch) -> Tensor:
        """Activation maps of the last stage, (B,C,H/32,W/32)."""
        maps_BChw = self.relu(self.bn1(self.conv1(faces.view_BCHW)))
        maps_BChw = self.maxpool(maps_BChw)
        for number in range(1, len(STAGES) + 1):
            maps_BChw = self.get_submodule(f"layer{number}")(maps_BChw)
        return cast(Tensor, maps_BChw)

    def forward_head(self, maps_BChw: Tensor, _landmarks_B52: Tensor | None) -> Tensor:
        """Global average pooling, (B,C)."""
        return maps_BChw.mean(dim=(2, 3))
