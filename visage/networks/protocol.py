"""What every network takes and gives: the seam between networks and everything else.

Training, evaluation, export, score maps, drift and serving use a network only through this file.
`forward_features`, `forward_head` and `num_features` are timm's words. Legend: B batch, C channels,
H and W crop side in pixels, h and w side of the maps, K outputs of the head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from visage.networks.head import Head


class FaceBatch(NamedTuple):
    """Normalised crops, and the places of their five landmarks.

    `view_BCHW` is float32 (B,3,H,W). `landmarks_B52` holds x and y of left eye, right eye, nose
    tip, left and right mouth corner (left and right in the picture), in pixels of the crop, where
    pixel i covers [i, i + 1); augmentation moves and mirrors them with the view. None where the
    network needs no landmarks.
    """

    view_BCHW: Tensor
    landmarks_B52: Tensor | None


class Outputs(NamedTuple):
    """Logits (B,K), the features (B,C) that they were computed from, and the logits of each head
    that only trains: they take part in the loss, never in a prediction."""

    logits_BK: Tensor
    features_BC: Tensor
    auxiliary: tuple[Tensor, ...]


class Network(nn.Module, ABC):
    """A network of faces. `head` is the last linear layer, from `num_features` to K outputs;
    `auxiliary_heads` names the modules of the heads that only train."""

    needs_landmarks: ClassVar[bool] = False
    auxiliary_heads: ClassVar[tuple[str, ...]] = ()
    num_features: int
    head: Head

    @abstractmethod
    def forward_features(self, faces: FaceBatch) -> Tensor:
        """The activation maps (B,C',h,w) that score maps are drawn of."""

    @abstractmethod
    def forward_head(self, maps_BChw: Tensor, landmarks_B52: Tensor | None, /) -> Tensor:
        """The maps -> what the head sees, (B,num_features)."""

    def logits(self, features_BC: Tensor, dtype: torch.dtype) -> Tensor:
        """What the head gives for the features, (B,K), computed in `dtype`."""
        weight_KC = self.head.weight.to(dtype)
        bias_K = self.head.bias.to(dtype)
        return nn.functional.linear(features_BC.to(dtype), weight_KC, bias_K)

    def auxiliary_names(self) -> Sequence[str]:
        """What reports call the heads that only train, in the order of `Outputs.auxiliary`: nothing
        where they are not to be measured."""
        return ()

    def quantised_modules(self) -> Sequence[str]:
        """Names of the convolutions that an int8 export computes in 8 bits: all but the first."""
        convolutions = [
            name for name, module in self.named_modules() if isinstance(module, nn.Conv2d)
        ]
        return convolutions[1:]

    def forward(self, faces: FaceBatch) -> Outputs:
        """Normalised faces -> outputs; networks with several heads override it."""
        maps_BChw = self.forward_features(faces)
        features_BC = self.forward_head(maps_BChw, faces.landmarks_B52)
        return Outputs(logits_BK=self.head(features_BC), features_BC=features_BC, auxiliary=())
