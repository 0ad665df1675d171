"""Networks by name. A network maps faces (B,3,H,W) to logits (B,K) and shows `features`, `pool` and
`head`.

`thin`, `tiny`, or any other rate of compression as `vgg-RATE`, the share of VGG-16's channels that
every convolution keeps: `vgg-0.125` is half as wide as Tiny, `vgg-0.5` Thin itself. `vgg16` is
VGG-16 whole, with its own 4096-wide layers, for comparison; its pooling is `flatten`, that of the
others `hybrid` or `gap`.
"""

from __future__ import annotations

from visage.networks.vgg import Pooling, ThinVGG, VGGConfig, initialise
from visage.networks.vgg16 import VGG16, VGG16Config

Network = ThinVGG | VGG16

COMPRESSIONS = {"thin": 0.5, "tiny": 0.25}
ANY_COMPRESSION, WHOLE = "vgg-", "vgg16"
NETWORKS = (*COMPRESSIONS, f"{ANY_COMPRESSION}RATE", WHOLE)
POOLINGS: tuple[Pooling, ...] = ("hybrid", "gap")
MIN_COMPRESSION = 1 / 64  # one channel is left of the first block's 64


def compression(name: str) -> float:
    """The share of VGG-16's channels that the network `name` keeps; a rate has one spelling, since
    configs compare."""
    if name in COMPRESSIONS:
        return COMPRESSIONS[name]
    try:
        rate = (
            float(name.removeprefix(ANY_COMPRESSION)) if name.startswith(ANY_COMPRESSION) else None
        )
    except ValueError:
        rate = None
    if rate is None:
        raise ValueError(
            f"network {name!r} is unknown; known: {', '.join(NETWORKS)} (as in "
            f"{ANY_COMPRESSION}0.125)"
        )
    if not MIN_COMPRESSION <= rate <= 1:
        raise ValueError(
            f"network {name!r}: give a rate of {MIN_COMPRESSION} to 1, the share of VGG-16's "
            f"channels"
        )
    if name != f"{ANY_COMPRESSION}{rate:.12g}":
        raise ValueError(f"network {name!r}: write {ANY_COMPRESSION}{rate:.12g}")
    return rate


def check(name: str, pooling: str) -> None:
    """Refuses a network that does not exist, or a pooling that it does not have."""
    known: tuple[str, ...] = ("flatten",)
    if name != WHOLE:
        compression(name)
        known = POOLINGS
    if pooling not in known:
        raise ValueError(f"network {name!r} has no pooling {pooling!r}; it has: {', '.join(known)}")


def build(name: str, pooling: Pooling, num_outputs: int, shared_head: bool = False) -> Network:
    """The network `name` with a head of `num_outputs`, weights as torch leaves them (see
    `initialise`)."""
    check(name, pooling)
    if name == WHOLE:
        return VGG16(VGG16Config(num_outputs=num_outputs, shared_head=shared_head))
    return ThinVGG(
        VGGConfig(
            compression=compression(name),
            pooling=pooling,
            num_outputs=num_outputs,
            shared_head=shared_head,
        )
    )


__all__ = [
    "NETWORKS",
    "VGG16",
    "Network",
    "Pooling",
    "ThinVGG",
    "VGGConfig",
    "build",
    "check",
    "initialise",
]
