"""What a forward pass costs: multiply-accumulates of convolutions and linear layers (DLDL-v2's
Table 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from visage.networks.vgg import SharedLinear


@torch.inference_mode()
def count_macs(network: nn.Module, px: int) -> int:
    """Multiply-accumulates for one face of `px` x `px`; biases, BatchNorm, ReLU and pooling are not
    counted."""
    macs = 0

    def count(layer: Any, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        macs += output.numel() * (layer.weight.numel() // layer.weight.shape[0])

    counted = [
        layer
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear | SharedLinear)
    ]
    hooks = [layer.register_forward_hook(count) for layer in counted]
    was_training = network.training
    try:
        network.eval()(torch.zeros(1, 3, px, px, device=next(network.parameters()).device))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return macs
