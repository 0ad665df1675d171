"""What a forward pass costs in multiply-accumulates (DLDL-v2's Table 2), as torch counts them."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from visage.networks import FaceBatch, Network


def count_macs(network: Network, px: int) -> int:
    """Multiply-accumulates of convolutions and linear layers for one face of `px` x `px`; biases,
    BatchNorm, ReLU and pooling are not counted. Landmarks are at the middle."""
    device = next(network.parameters()).device
    face = FaceBatch(
        torch.zeros(1, 3, px, px, device=device), torch.full((1, 5, 2), px / 2, device=device)
    )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(face)
    # torch counts a multiplication and an addition as two operations
    return int(counter.get_total_flops()) // 2
