"""Which places of a face a model's value depends on: DLDL-v2's score maps (section 5.1, Eq. 23-24).

A score map is a weighted sum of the network's activation maps before pooling, scaled up to the
crop. How the maps are weighed depends on what the head's outputs are:

- one output a label (DLDL-v2, DLDL, ER, DEX, mean-variance), computed from the pooled maps: Eq. 24,
  every class map weighed by its probability;
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
from dataclasses import asdict, replace

import torch
from torch import Tensor
from torch.nn import functional

from visage.data.mirror import mirrored
from visage.inference.torch_engine import Inference
from visage.labels import expectation
from visage.methods import METHODS
from visage.model_config import ModelConfig, NetworkConfig
from visage.networks.fused import FusedNetwork
from visage.networks.protocol import FaceBatch, Network


def score_map(
    network: Network,
    config: ModelConfig,
    crops_BCHW: Tensor,
    landmarks_B52: Tensor | None = None,
    *,
    flip: bool,
) -> Tensor:
    """`coarse_score_map` laid over the crops: float32 (B,H,W)."""
    coarse_Bhw = coarse_score_map(network, config, crops_BCHW, landmarks_B52, flip=flip)
    return scaled_up(coarse_Bhw, crops_BCHW.shape[2])


def coarse_score_map(
    network: Network,
    config: ModelConfig,
    crops_BCHW: Tensor,
    landmarks_B52: Tensor | None = None,
    *,
    flip: bool,
) -> Tensor:
    """uint8 crops (B,3,H,W) and their landmarks -> score maps as small as the last maps, float32
    (B,h,w) on the CPU; the crops of one call go through the network together. With `flip` the mean
    of the map and the mirror image's map, mirrored back."""
    inference, faces = _prepared(network, config, crops_BCHW, landmarks_B52)
    coarse_Bhw = coarse_map(inference, faces)
    if flip:
        mirror = FaceBatch(*mirrored(*faces))
        coarse_Bhw = (coarse_Bhw + coarse_map(inference, mirror).flip(2)) / 2
    return coarse_Bhw.cpu()


def pooled_features(
    network: Network,
    config: ModelConfig,
    crops_BCHW: Tensor,
    landmarks_B52: Tensor | None = None,
) -> Tensor:
    """uint8 crops (B,3,H,W) -> what the head sees of them, float32 (B,C) on the CPU."""
    inference, faces = _prepared(network, config, crops_BCHW, landmarks_B52)
    with (
        torch.no_grad(),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
    ):
        return inference.features(*faces).cpu()


def _prepared(
    network: Network, config: ModelConfig, crops_BCHW: Tensor, landmarks_B52: Tensor | None
) -> tuple[Inference, FaceBatch]:
    """The predictor's own graph around a network that is left as it is, and the crops on its
    device."""
    own = copy.deepcopy(network).eval().float()
    device = next(own.parameters()).device
    if landmarks_B52 is not None:
        landmarks_B52 = landmarks_B52.to(device)
    faces = FaceBatch(crops_BCHW.to(device), landmarks_B52)
    return Inference(own, config, torch.float64), faces


@torch.no_grad()
def coarse_map(inference: Inference, faces: FaceBatch) -> Tensor:
    """The score map of faces as uint8 crops, float32 (B,h,w); of a fused network the weighted sum
    of its members' maps."""
    network = inference.network
    if isinstance(network, FusedNetwork):
        return _members_map(network, inference.config, faces)
    return _own_map(inference, faces)


@torch.no_grad()
def _members_map(network: FusedNetwork, config: ModelConfig, faces: FaceBatch) -> Tensor:
    """The members' maps of the first view, each by its own head, as large as the largest; weighed
    as the rule weighs the members (a vote's and a gate's by the weights of the options)."""
    options = network.options
    maps = []
    for number, member in enumerate(options.members):
        own = replace(
            config,
            network=NetworkConfig(**asdict(member.network)),
            grid=member.grid,
            method=member.method,
            alignment=replace(config.alignment, crop_px=member.crop_px),
        )
        inference = SeenInference(network.member(number), own, torch.float64)
        view_BCHW = faces.view_BCHW.float() / 255
        seen = network.seen_by(number, 0, FaceBatch(view_BCHW, faces.landmarks_B52))
        maps.append(_own_map(inference, seen))

    side = max(coarse_Bhw.shape[1] for coarse_Bhw in maps)
    scaled = [scaled_up(coarse_Bhw, side) for coarse_Bhw in maps]
    total = sum(options.weights)
    weighed = [part * weight / total for part, weight in zip(scaled, options.weights, strict=True)]
    return torch.stack(weighed).sum(dim=0)


class SeenInference(Inference):
    """A member's graph from what it sees on: its input is normalised already."""

    def maps(self, crops_BCHW: Tensor, landmarks_B52: Tensor | None) -> Tensor:
        return self.network.forward_features(FaceBatch(crops_BCHW, landmarks_B52))


@torch.no_grad()
def _own_map(inference: Inference, faces: FaceBatch) -> Tensor:
    """S = sum_k p_k A^k with A^k = sum_j w_kj F^j + b_k (Eq. 23-24), float32 (B,h,w), of faces as
    uint8 crops.

    The sums are exchanged, S = sum_j (sum_k p_k w_kj) F^j + sum_k p_k b_k, so that no K class maps
    are ever held.
    """
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        maps_BChw = inference.maps(*faces)
    weight_BC, offset_B = map_weights(inference, maps_BChw, faces.landmarks_B52)

    sum_Bhw = torch.einsum("bc,bchw->bhw", weight_BC.float(), maps_BChw)
    return sum_Bhw + offset_B.float()[:, None, None]


def has_class_maps(network: Network, config: ModelConfig) -> bool:
    """Whether the head has one output a label and sees the pooled maps themselves: then Eq. 24,
    else slopes."""
    method = METHODS[config.method]
    one_output_a_label = method.head_width(config.grid) == config.grid.num_labels
    return one_output_a_label and _head_sees_pooled_maps(network, config.alignment.crop_px)


@torch.no_grad()
def _head_sees_pooled_maps(network: Network, px: int) -> bool:
    """Whether `forward_head` pools each map to a number of its own.

    Pooling returns the number of a map that is the same at every place, and a head that mixes maps
    does not. So the network gets maps of random numbers, one number for each map.
    """
    own = copy.deepcopy(network).cpu().float().eval()

    landmarks_B52 = torch.rand(1, 5, 2, generator=torch.Generator().manual_seed(0)) * px
    probe = FaceBatch(torch.zeros(1, 3, px, px), landmarks_B52)
    maps_BChw = own.forward_features(probe)
    if maps_BChw.shape[1] != own.num_features:
        return False

    number_BC = torch.rand(maps_BChw.shape[:2], generator=torch.Generator().manual_seed(1))
    constant_BChw = number_BC[:, :, None, None].expand_as(maps_BChw)
    return torch.allclose(own.forward_head(constant_BChw, landmarks_B52), number_BC, rtol=1e-4)


def map_weights(
    inference: Inference, maps_BChw: Tensor, landmarks_B52: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The weight of each activation map (B,C) and what is added everywhere (B,), float64; see the
    module's docstring."""
    network = inference.network
    if has_class_maps(network, inference.config):
        features_BC = network.forward_head(maps_BChw, landmarks_B52)
        p_BK = inference.probabilities(features_BC)
        head = network.head
        return p_BK @ head.weight.to(p_BK.dtype), p_BK @ head.bias.to(p_BK.dtype)

    with torch.enable_grad():
        leaf_BChw = maps_BChw.detach().requires_grad_()
        features_BC = network.forward_head(leaf_BChw, landmarks_B52)
        value_B = expectation(inference.probabilities(features_BC), inference.config.grid)
        [slope_BChw] = torch.autograd.grad(value_B.sum(), leaf_BChw)
    slope_BC = slope_BChw.double().sum(dim=(2, 3))
    return slope_BC, slope_BC.new_zeros(len(slope_BC))


def scaled_up(coarse_Bhw: Tensor, px: int) -> Tensor:
    """Coarse maps laid over a crop of `px` pixels: bilinear, (B,px,px)."""
    scaled_B1HW = functional.interpolate(
        coarse_Bhw[:, None],
        size=(px, px),
        mode="bilinear",
        align_corners=False,
    )
    return scaled_B1HW[:, 0]
