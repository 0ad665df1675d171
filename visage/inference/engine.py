"""A network with its config becomes an engine: uint8 crops in, label distributions out, the same
numbers in any company.

The torch engine lives here; `visage.export.onnx_file` makes the one that runs in ONNX Runtime out
of the same graph. Legend: B crops, C channels, H and W crop side in pixels, h and w side of the
last maps, K labels of the grid, M outputs of the head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visage.data.preprocess import evaluation_view
from visage.labels import DECODERS
from visage.methods import METHODS
from visage.model_config import ModelConfig

Engine = Callable[
    [Tensor], Tensor
]  # uint8 crops (B,3,H,W), B >= 1 -> float64 probabilities (B,K) on the CPU


class Inference(nn.Module):
    """uint8 crops (B,3,H,W) -> probabilities (B,K) and decoded values (B,): all of a prediction as
    one graph.

    The torch engine runs it and the ONNX export traces it. `head_dtype` is the type from the pooled
    features on. A float32 matrix product sums in an order that depends on the number of rows; in
    float64 that is far below what a float32 holds. float32 is what every ONNX runtime has.
    """

    def __init__(self, network: nn.Module, config: ModelConfig, head_dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.config, self.head_dtype = network, config, head_dtype

    def forward(self, crops_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        p_BK = self.probabilities(self.pooled(crops_BCHW))
        return p_BK, DECODERS[self.config.decode](p_BK, self.config.grid)

    def maps(self, crops_BCHW: Tensor) -> Tensor:
        """uint8 crops (B,3,H,W) -> the activation maps of the last convolution block."""
        network: Any = self.network
        maps_BChw: Tensor = network.features(evaluation_view(crops_BCHW, self.config.normalise))
        return maps_BChw

    def pooled(self, crops_BCHW: Tensor) -> Tensor:
        """uint8 crops (B,3,H,W) -> what the head sees of them, (B,C)."""
        network: Any = self.network
        features_BC: Tensor = network.pool(self.maps(crops_BCHW))
        return features_BC

    def probabilities(self, features_BC: Tensor) -> Tensor:
        """Pooled maps (B,C) -> (B,K), in the head's own type."""
        network: Any = self.network
        weight_MC, bias_M = (
            value.to(self.head_dtype) for value in (network.head.weight, network.head.bias)
        )
        logits_BM = functional.linear(features_BC.to(self.head_dtype), weight_MC, bias_M)
        return METHODS[self.config.method].probabilities(logits_BM, self.config.grid)


class TorchEngine:
    """A network, wherever its weights lie, as an `Engine`: float32 (no TF32), evaluation mode, on a
    copy of its own.

    On a CPU a crop's numbers are bit for bit those of its features in any batch: convolutions sum
    each crop alone, the head works in float64, and a single crop goes in twice, because a batch of
    one takes another path.
    """

    def __init__(self, network: nn.Module, config: ModelConfig) -> None:
        own: Any = copy.deepcopy(network).eval().float()
        self._inference = Inference(
            own.to(memory_format=torch.channels_last), config, torch.float64
        )
        self._device = next(own.parameters()).device

    def __call__(self, crops_BCHW: Tensor) -> Tensor:
        return self._run(crops_BCHW)[0].cpu()

    def with_features(self, crops_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The same probabilities (B,K), and the pooled features (B,C), float32, that they were
        computed from."""
        p_BK, features_BC = self._run(crops_BCHW)
        return p_BK.cpu(), features_BC.cpu()

    @torch.inference_mode()
    def _run(self, crops_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        rows = crops_BCHW if len(crops_BCHW) > 1 else crops_BCHW.expand(2, -1, -1, -1)
        rows = rows.to(self._device).contiguous(memory_format=torch.channels_last)
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            features_BC = self._inference.pooled(rows)
            p_BK = self._inference.probabilities(features_BC)
        return p_BK[: len(crops_BCHW)], features_BC[: len(crops_BCHW)]
