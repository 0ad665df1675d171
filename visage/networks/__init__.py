"""Networks by name: `build(name, options, num_outputs, shared_head)`.

`thin`, `tiny`, or any other share of VGG-16's channels as `vgg-SHARE`: `vgg-0.125` is half as wide
as Tiny, `vgg-0.5` Thin itself; their option `pooling` is `hybrid` or `gap`. `vgg16` is VGG-16
complete, with its own 4096-wide layers. `resnet18`, and any share of its channels as
`resnet18-SHARE`. A new network is its own file and its entry in `NETWORKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from visage.networks import resnet, vgg16
from visage.networks.head import initialise
from visage.networks.protocol import FaceBatch, Network, Outputs
from visage.networks.resnet import ResNet18
from visage.networks.vgg import ThinVGG
from visage.networks.vgg16 import VGG16

Options = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Family:
    """Networks of one definition: how they are built, what they can be asked for.

    `build(num_outputs=, shared_head=, **options)` gives the network, with `share=` too where
    `least_share` is not None. `options`: each option with its legal values, all to be given.
    `least_share`: NAME-SHARE keeps that share of the channels, between this and 1. `full_width`:
    whether NAME alone is the share 1. `torchvision_names`: parts of torchvision's network of this
    definition, and their names here; None where weights cannot be imported.
    """

    build: Callable[..., Network]
    options: Mapping[str, tuple[object, ...]]
    least_share: float | None = None
    full_width: bool = True
    torchvision_names: Mapping[str, str] | None = None


VGG_OPTIONS: Mapping[str, tuple[object, ...]] = {"pooling": ("hybrid", "gap")}
# One channel is left of the first layer's 64
LEAST_SHARE = 1 / 64

NETWORKS: dict[str, Family] = {
    "thin": Family(build=partial(ThinVGG, share=0.5), options=VGG_OPTIONS),
    "tiny": Family(build=partial(ThinVGG, share=0.25), options=VGG_OPTIONS),
    "vgg": Family(build=ThinVGG, options=VGG_OPTIONS, least_share=LEAST_SHARE, full_width=False),
    "vgg16": Family(build=VGG16, options={}, torchvision_names=vgg16.TORCHVISION_NAMES),
    "resnet18": Family(
        build=ResNet18,
        options={},
        least_share=LEAST_SHARE,
        torchvision_names=resnet.TORCHVISION_NAMES,
    ),
}


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """A network's name and options, as params.yaml gives them."""

    name: str
    options: dict[str, Any]

    def __post_init__(self) -> None:
        check(self.name, self.options)


def any_options(name: str) -> dict[str, Any]:
    """Options that the network `name` takes, each with the first of its legal values."""
    family, _ = _family_and_share(name)
    return {option: legal[0] for option, legal in family.options.items()}


def known_networks() -> list[str]:
    """The names that `build` takes, NAME-SHARE where a share of the channels can be given."""
    names = []
    for name, family in NETWORKS.items():
        if family.full_width:
            names.append(name)
        if family.least_share is not None:
            names.append(f"{name}-SHARE")
    return names


def check(name: str, options: Options) -> None:
    """ValueError for a network that does not exist, or options that it does not have."""
    family, _ = _family_and_share(name)
    for option in options:
        if option not in family.options:
            has = ", ".join(family.options) or "none"
            raise ValueError(f"network {name!r} has no option {option!r}; its options: {has}")

    for option, legal in family.options.items():
        words = " or ".join(map(str, legal))
        if option not in options:
            raise ValueError(f"network {name!r} needs the option {option!r}: {words}")
        if options[option] not in legal:
            raise ValueError(f"network {name!r}: {option} is {options[option]!r}; give {words}")


def build(name: str, options: Options, num_outputs: int, shared_head: bool = False) -> Network:
    """The network `name` with a head of `num_outputs`, weights as torch leaves them (see
    `initialise`).

    Errors: ValueError as `check`.
    """
    check(name, options)
    family, share = _family_and_share(name)
    width = {} if share is None else {"share": share}
    return family.build(num_outputs=num_outputs, shared_head=shared_head, **width, **options)


def torchvision_names(name: str) -> Mapping[str, str]:
    """Parts of torchvision's network, and their names in the network `name`; ValueError where
    torchvision has no weights of it."""
    family, _ = _family_and_share(name)
    if family.torchvision_names is None:
        known = [each for each, one in NETWORKS.items() if one.torchvision_names is not None]
        raise ValueError(
            f"network {name!r} has no weights under torchvision's names; those of "
            f"{' and '.join(known)} can be imported"
        )
    return family.torchvision_names


def _family_and_share(name: str) -> tuple[Family, float | None]:
    """The entry of NETWORKS that `name` belongs to, and the share of the channels where it takes
    one. A share has one spelling, since configs compare."""
    family_name, dash, text = name.partition("-")
    family = NETWORKS.get(family_name)
    if family is None or (dash and family.least_share is None) or not (dash or family.full_width):
        raise _unknown(name)
    if family.least_share is None:
        return family, None
    if not dash:
        return family, 1.0

    try:
        share = float(text)
    except ValueError:
        raise _unknown(name) from None
    if not family.least_share <= share <= 1:
        raise ValueError(
            f"network {name!r}: give a share of {family.least_share} to 1 of {family_name}'s "
            f"channels"
        )
    spelling = f"{family_name}-{share:.12g}"
    if share == 1 and family.full_width:
        spelling = family_name
    if name != spelling:
        raise ValueError(f"network {name!r}: write {spelling}")
    return family, share


def _unknown(name: str) -> ValueError:
    known = ", ".join(known_networks())
    return ValueError(f"network {name!r} is unknown; known: {known} (as in vgg-0.125)")


__all__ = [
    "NETWORKS",
    "FaceBatch",
    "Family",
    "Network",
    "NetworkSettings",
    "Outputs",
    "build",
    "check",
    "initialise",
    "known_networks",
    "torchvision_names",
]
