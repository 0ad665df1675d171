"""Which places of a face a model answers by: DLDL-v2's score maps (section 5.1, Eq. 23-24).

A score map is a weighted sum of the last convolution block's activation maps before pooling, scaled
up to the crop. How the maps are weighed depends on what the head's outputs are:

- one output a label (DLDL-v2, DLDL, ER, DEX, mean-variance): Eq. 24, every class map weighed by its
  probability;
- else (Ranking, CORAL, metric regression, where an output is a question or the value itself;
  VGG-16, whose head does not see the maps), where Eq. 24 has no meaning: the slope of the expected
  label with respect to each map, summed over its places (Grad-CAM without its rectifier, Selvaraju
  et al. 2017). High places push the value up, low ones down.

Only differences inside one map count: the same vector added to every w_k moves no probability, yet
adds its map to S. Legend: B crops, C channels, H and W crop side in pixels, h and w side of the
last maps, K labels of the grid.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visage.inference.engine import Inference
from visage.labels import expectation
from visage.methods import METHODS
from visage.model_config import ModelConfig


def score_map(network: nn.Module, config: ModelConfig, crops_BCHW: Tensor, flip: bool) -> Tensor:
    """`coarse_score_map` laid over the crops: float32 (B,H,W)."""
    return scaled_up(coarse_score_map(network, config, crops_BCHW, flip), crops_BCHW.shape[2])


def coarse_score_map(
    network: nn.Module, config: ModelConfig, crops_BCHW: Tensor, flip: bool
) -> Tensor:
    """uint8 crops (B,3,H,W) -> score maps as small as the last maps, float32 (B,h,w) on the CPU;
    the crops of one call go through the network together. With `flip` the mean of the map and the
    mirror image's map, mirrored back."""
    inference, crops_BCHW = _prepared(network, config, crops_BCHW)
    coarse_Bhw = coarse_map(inference, crops_BCHW)
    if flip:
        coarse_Bhw = (coarse_Bhw + coarse_map(inference, crops_BCHW.flip(3)).flip(2)) / 2
    return coarse_Bhw.cpu()


def pooled_features(network: nn.Module, config: ModelConfig, crops_BCHW: Tensor) -> Tensor:
    """uint8 crops (B,3,H,W) -> what the head sees of them, float32 (B,C) on the CPU."""
    inference, crops_BCHW = _prepared(network, config, crops_BCHW)
    with (
        torch.no_grad(),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
    ):
        return inference.pooled(crops_BCHW).cpu()


def _prepared(
    network: nn.Module, config: ModelConfig, crops_BCHW: Tensor
) -> tuple[Inference, Tensor]:
    """The predictor's own graph around a network that is left as it is, and the crops on its
    device."""
    own: Any = copy.deepcopy(network).eval().float()
    return Inference(own, config, torch.float64), crops_BCHW.to(next(own.parameters()).device)


@torch.no_grad()
def coarse_map(inference: Inference, crops_BCHW: Tensor) -> Tensor:
    """S = sum_k p_k A^k with A^k = sum_j w_kj F^j + b_k (Eq. 23-24), float32 (B,h,w).

    The sums are exchanged, S = sum_j (sum_k p_k w_kj) F^j + sum_k p_k b_k, so that no K class maps
    are ever held.
    """
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        maps_BChw = inference.maps(crops_BCHW)
    weight_BC, offset_B = map_weights(inference, maps_BChw)
    return (
        torch.einsum("bc,bchw->bhw", weight_BC.float(), maps_BChw) + offset_B.float()[:, None, None]
    )


def has_class_maps(config: ModelConfig) -> bool:
    """Whether the head has one output a label and sees the pooled maps themselves: then Eq. 24,
    else slopes."""
    return (
        METHODS[config.method].head_width(config.grid) == config.grid.num_labels
        and config.network.pooling != "flatten"
    )


def map_weights(inference: Inference, maps_BChw: Tensor) -> tuple[Tensor, Tensor]:
    """What each activation map counts (B,C) and what is added everywhere (B,), float64; see the
    module's head."""
    grid, network = inference.config.grid, inference.network
    pool: Any = network.pool
    head: Any = network.head
    if has_class_maps(inference.config):
        p_BK = inference.probabilities(pool(maps_BChw))
        return p_BK @ head.weight.to(p_BK.dtype), p_BK @ head.bias.to(p_BK.dtype)
    with torch.enable_grad():
        leaf_BChw = maps_BChw.detach().requires_grad_()
        value_B = expectation(inference.probabilities(pool(leaf_BChw)), grid)
        [slope_BChw] = torch.autograd.grad(value_B.sum(), leaf_BChw)
    slope_BC = slope_BChw.double().sum(dim=(2, 3))
    return slope_BC, slope_BC.new_zeros(len(slope_BC))


def scaled_up(coarse_Bhw: Tensor, px: int) -> Tensor:
    """Coarse maps as the eye lays them over a crop of `px` pixels: bilinear, (B,px,px)."""
    return functional.interpolate(
        coarse_Bhw[:, None], size=(px, px), mode="bilinear", align_corners=False
    )[:, 0]
