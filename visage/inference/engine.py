"""A network with its config becomes an engine: crops and landmarks in, label distributions out, the
same numbers in a batch of any size.

The torch engine is here; `visage.inference.onnx_engine` runs the same graph in ONNX Runtime, and
`visage.inference.fusion` averages several engines. Legend: B crops, C pooled features, H and W crop
side in pixels, h and w side of the last maps, K labels of the grid, M outputs of the head.
"""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from visage.data.preprocess import evaluation_view
from visage.labels import DECODERS
from visage.methods import METHODS
from visage.model_config import ModelConfig
from visage.networks.protocol import FaceBatch, Network


class Engine(Protocol):
    """Whatever computes a model's label distributions.

    `needs_landmarks`: it takes no crop without its landmarks. `gives_features`: its faces can be
    observed for drift.
    """

    @property
    def needs_landmarks(self) -> bool: ...

    @property
    def gives_features(self) -> bool: ...

    def answer(
        self, crops_BCHW: Tensor, landmarks_B52: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """uint8 crops (B,3,H,W), B >= 1, and their landmarks in pixels of the crop -> probabilities
        (B,K), float64, and pooled features (B,C), float32, or None; all on the CPU.

        An engine that needs no landmarks ignores them.
        """


class Inference(nn.Module):
    """uint8 crops (B,3,H,W) and landmarks (B,5,2) -> probabilities (B,K), decoded values (B,) and
    pooled features (B,C): all of a prediction as one graph.

    The torch engine runs it and the ONNX export traces it. `head_dtype` is the type from the pooled
    features on. A float32 matrix product sums in an order that depends on the number of rows; in
    float64 that is far below what a float32 holds. float32 is what every ONNX runtime has.
    """

    def __init__(self, network: Network, config: ModelConfig, head_dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.config, self.head_dtype = network, config, head_dtype

    def forward(
        self, crops_BCHW: Tensor, landmarks_B52: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        features_BC = self.features(crops_BCHW, landmarks_B52)
        p_BK = self.probabilities(features_BC)
        value_B = DECODERS[self.config.decode](p_BK, self.config.grid)
        return p_BK, value_B, features_BC

    def maps(self, crops_BCHW: Tensor, landmarks_B52: Tensor | None) -> Tensor:
        """uint8 crops (B,3,H,W) -> the activation maps that score maps are drawn of, (B,C',h,w)."""
        view_BCHW = evaluation_view(crops_BCHW, self.config.normalise)
        return self.network.forward_features(FaceBatch(view_BCHW, landmarks_B52))

    def features(self, crops_BCHW: Tensor, landmarks_B52: Tensor | None) -> Tensor:
        """uint8 crops (B,3,H,W) -> what the head sees of them, (B,C)."""
        maps_BChw = self.maps(crops_BCHW, landmarks_B52)
        return self.network.forward_head(maps_BChw, landmarks_B52)

    def probabilities(self, features_BC: Tensor) -> Tensor:
        """Pooled features (B,C) -> (B,K), in the head's own type."""
        logits_BM = self.network.logits(features_BC, self.head_dtype)
        return METHODS[self.config.method].probabilities(logits_BM, self.config.grid)


class TorchEngine:
    """A network, on whichever device its weights are, as an `Engine`: float32 (no TF32), evaluation
    mode, on a copy of its own.

    On a CPU a crop's numbers are bit for bit those of its features in any batch: convolutions sum
    each crop alone, the head works in float64, and a single crop goes in twice, because a batch of
    one takes another path.
    """

    gives_features = True

    def __init__(self, network: Network, config: ModelConfig) -> None:
        own = copy.deepcopy(network).eval().float()
        own.to(memory_format=torch.channels_last)

        self.needs_landmarks = network.needs_landmarks
        self._inference = Inference(own, config, torch.float64)
        self._device = next(own.parameters()).device

    @torch.inference_mode()
    def answer(self, crops_BCHW: Tensor, landmarks_B52: Tensor | None) -> tuple[Tensor, Tensor]:
        num_crops = len(crops_BCHW)
        crops_BCHW = at_least_two(crops_BCHW).to(self._device)
        crops_BCHW = crops_BCHW.contiguous(memory_format=torch.channels_last)
        if landmarks_B52 is not None:
            landmarks_B52 = at_least_two(landmarks_B52).to(self._device)

        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            features_BC = self._inference.features(crops_BCHW, landmarks_B52)
            p_BK = self._inference.probabilities(features_BC)

        return p_BK[:num_crops].cpu(), features_BC[:num_crops].cpu()


def at_least_two(rows: Tensor) -> Tensor:
    """A single row twice, more rows as they are."""
    return rows if len(rows) > 1 else rows.expand(2, *rows.shape[1:])
