"""A network with its config as an engine that torch runs; and all of a prediction as one graph.

Legend: B crops, C pooled features, H and W crop side in pixels, h and w side of the last maps, K
labels of the grid, M outputs of the head.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from visage.data.preprocess import evaluation_view
from visage.device import threads
from visage.inference.engine import Crops, Floats32, Floats64
from visage.labels import DECODERS
from visage.methods import METHODS
from visage.model_config import ModelConfig
from visage.networks.protocol import FaceBatch, Network


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
    one takes another path. `num_threads`: torch's while it computes; None leaves torch as it is.
    """

    gives_features = True

    def __init__(
        self, network: Network, config: ModelConfig, *, num_threads: int | None = None
    ) -> None:
        own = copy.deepcopy(network).eval().float()
        own.to(memory_format=torch.channels_last)

        self.needs_landmarks = network.needs_landmarks
        self._inference = Inference(own, config, torch.float64)
        self._device = next(own.parameters()).device
        self._num_threads = num_threads

    @torch.inference_mode()
    def answer(
        self, crops_BCHW: Crops, landmarks_B52: Floats32 | None
    ) -> tuple[Floats64, Floats32]:
        num_crops = len(crops_BCHW)
        seen_BCHW = self._rows(crops_BCHW).contiguous(memory_format=torch.channels_last)
        points_B52 = None if landmarks_B52 is None else self._rows(landmarks_B52)

        with (
            self._threads(),
            torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            ),
        ):
            features_BC = self._inference.features(seen_BCHW, points_B52)
            p_BK = self._inference.probabilities(features_BC)

        return p_BK[:num_crops].cpu().numpy(), features_BC[:num_crops].cpu().numpy()

    def _rows(self, rows: Crops | Floats32) -> Tensor:
        """An array on the engine's device, a single row twice."""
        # torch takes no array that is read-only or has negative strides
        own = torch.from_numpy(np.require(rows, requirements=["C", "W"]))
        if len(own) == 1:
            own = own.expand(2, *own.shape[1:])
        return own.to(self._device)

    def _threads(self) -> AbstractContextManager[None]:
        return nullcontext() if self._num_threads is None else threads(self._num_threads)
