"""MTCNN's networks in torch, as facenet-pytorch ships them: what the align stage uses. Only this
module imports facenet-pytorch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from facenet_pytorch import MTCNN
from torch import Tensor, nn

from visage.device import threads

Float32Array = npt.NDArray[np.float32]


def mtcnn_weights() -> dict[str, dict[str, Float32Array]]:
    """facenet-pytorch's weights by the network's part in the cascade and the tensor's name."""
    networks = MTCNN(device=torch.device("cpu"))
    parts = {"propose": networks.pnet, "refine": networks.rnet, "output": networks.onet}
    weights = {}
    for part, network in parts.items():
        weights[part] = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return weights


class TorchNetworks:
    """The protocol of `visage.detection.cascade_networks` in torch, on the processor."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        networks = MTCNN(device=torch.device("cpu"))
        # The small convolutions prefer channels last.
        self._propose, self._refine, self._output = (
            network.eval().to(memory_format=torch.channels_last)
            for network in (networks.pnet, networks.rnet, networks.onet)
        )

    def propose(self, pixels_BCHW: Float32Array) -> tuple[Float32Array, Float32Array]:
        regression_B4HW, score_B2HW = self._run(self._propose, pixels_BCHW)
        return regression_B4HW, score_B2HW[:, 1]

    def refine(self, pixels_NCKK: Float32Array) -> tuple[Float32Array, Float32Array]:
        regression_N4, score_N2 = self._run(self._refine, pixels_NCKK)
        return regression_N4, score_N2[:, 1]

    def output(self, pixels_NCKK: Float32Array) -> tuple[Float32Array, Float32Array, Float32Array]:
        regression_N4, points_NP, score_N2 = self._run(self._output, pixels_NCKK)
        return regression_N4, points_NP, score_N2[:, 1]

    def _run(self, network: nn.Module, pixels_NCHW: Float32Array) -> list[Float32Array]:
        pixels = torch.from_numpy(pixels_NCHW).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), threads(self._num_threads):
            outputs: tuple[Tensor, ...] = network(pixels)
        return [output.numpy() for output in outputs]
