"""Networks by name. A network maps faces (B,3,H,W) to logits (B,K) and shows `features`, `pool` and `head`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from visage.networks.vgg import Pooling, ThinVGG, VGGConfig, initialise


def _thin_vgg(compression: float, pooling: Pooling, num_outputs: int, shared_head: bool) -> ThinVGG:
    return ThinVGG(
        VGGConfig(compression=compression, pooling=pooling, num_outputs=num_outputs, shared_head=shared_head)
    )


NETWORKS: dict[str, Callable[[Pooling, int, bool], ThinVGG]] = {
    "thin": partial(_thin_vgg, 0.5),
    "tiny": partial(_thin_vgg, 0.25),
}


def build(name: str, pooling: Pooling, num_outputs: int, shared_head: bool = False) -> ThinVGG:
    """The network `name` with a head of `num_outputs`, weights as torch leaves them (see `initialise`)."""
    if name not in NETWORKS:
        raise ValueError(f"network {name!r} is unknown; known: {', '.join(NETWORKS)}")
    return NETWORKS[name](pooling, num_outputs, shared_head)


__all__ = ["NETWORKS", "Pooling", "ThinVGG", "VGGConfig", "build", "initialise"]
