"""Networks by name: `build(name, options, num_outputs, shared_head)`.

`thin`, `tiny`, or any other share of VGG-16's channels as `vgg-SHARE`: `vgg-0.125` is half as wide
as Tiny, `vgg-0.5` Thin itself; their option `pooling` is `hybrid` or `gap`. `vgg16` is VGG-16
complete, with its own 4096-wide layers. `resnet18`, and any share of its channels as
`resnet18-SHARE`; `dhaa` and `dhaa-SHARE` likewise. `bn_alex`, and any share of it, is the second
stream of the two-stream system; its options are `wide` and `pooled_px`. A new network is its own
file and its entry in `NETWORKS`. `fused` is made of trained ones (visage/networks/fused.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from torch import Tensor

from visage.methods import METHODS
from visage.networks import dhaa, regions, resnet, vgg16
from visage.networks.alex import BNAlex
from visage.networks.dhaa import DHAA
from visage.networks.fused import FusedNetwork, FusedOptions, fused_options
from visage.networks.head import initialise
from visage.networks.protocol import FaceBatch, Network, Outputs
from visage.networks.resnet import ResNet18
from visage.networks.vgg import ThinVGG
from visage.networks.vgg16 import VGG16

Options = Mapping[str, Any]
State = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Between:
    """The legal values of an option that is a number; `usual` is the one of the paper."""

    least: float
    most: float
    usual: float

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return self.least <= value <= self.most

    def __str__(self) -> str:
        return f"a number from {self.least:g} to {self.most:g}"


Legal = tuple[object, ...] | Between


@dataclass(frozen=True, kw_only=True)
class Family:
    """Networks of one definition: how they are built, what they can be asked for.

    `build(num_outputs=, shared_head=, **options)` gives the network, with `share=` too where
    `least_share` is not None. `options`: each option with its legal values, all to be given.
    `least_share`: NAME-SHARE keeps that share of the channels, between this and 1. `full_width`:
    whether NAME alone is the share 1.

    `imports(state, options)`: what torchvision's weights are here, by name; None where they cannot
    be imported. `new_parts`: modules that no such weights are for. `trunk`: the family whose
    backbones have torchvision's names too, so that one of the same share can be imported.
    """

    build: Callable[..., Network]
    options: Mapping[str, Legal]
    least_share: float | None = None
    full_width: bool = True
    imports: Callable[[State, Options], dict[str, Tensor]] | None = None
    new_parts: tuple[str, ...] = ()
    trunk: str | None = None


def renamed(names: Mapping[str, str], state: State, _options: Options) -> dict[str, Tensor]:
    """The weights of the parts in `names`, under the names that these parts have here."""
    found = {}
    for name, value in state.items():
        for part, own in names.items():
            if name.startswith(f"{part}."):
                found[own + name.removeprefix(part)] = value
    return found


VGG_OPTIONS: Mapping[str, Legal] = {"pooling": ("hybrid", "gap")}
DHAA_OPTIONS: Mapping[str, Legal] = {
    "branches": get_args(dhaa.Branches),
    "regions": get_args(regions.Kind),
    "fusion": get_args(dhaa.Fusion),
    "vector": (128, 64),
    "tail_kernel": (1, 3),
    "region_side": ("shared", 56),
    "template": ("whole_face", "five_point_112"),
    "face_scale": Between(least=0.25, most=4, usual=1),
    "global_zoom": Between(least=1, most=4, usual=1.2),
    "local_zoom": Between(least=1, most=8, usual=2),
}
# AlexNet's own 4096 units and smaller ones; 7x7 maps of crops of 256 px, 6x6 of 227, 2x2 of 96
ALEX_OPTIONS: Mapping[str, Legal] = {"wide": (4096, 1024, 256), "pooled_px": (7, 6, 2)}
# Of trained models, not trained itself: no family of NETWORKS
FUSED = "fused"
# One channel is left of the first layer's 64
LEAST_SHARE = 1 / 64

NETWORKS: dict[str, Family] = {
    "thin": Family(build=partial(ThinVGG, share=0.5), options=VGG_OPTIONS),
    "tiny": Family(build=partial(ThinVGG, share=0.25), options=VGG_OPTIONS),
    "vgg": Family(build=ThinVGG, options=VGG_OPTIONS, least_share=LEAST_SHARE, full_width=False),
    "vgg16": Family(build=VGG16, options={}, imports=partial(renamed, vgg16.TORCHVISION_NAMES)),
    "resnet18": Family(
        build=ResNet18,
        options={},
        least_share=LEAST_SHARE,
        imports=partial(renamed, resnet.TORCHVISION_NAMES),
    ),
    "dhaa": Family(
        build=DHAA,
        options=DHAA_OPTIONS,
        least_share=LEAST_SHARE,
        imports=dhaa.inflated,
        new_parts=dhaa.NEW_PARTS,
        trunk="resnet18",
    ),
    "bn_alex": Family(build=BNAlex, options=ALEX_OPTIONS, least_share=LEAST_SHARE),
}


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """A network's name and options, as params.yaml gives them."""

    name: str
    options: dict[str, Any]

    def __post_init__(self) -> None:
        if self.name == FUSED:
            raise ValueError(
                f"network {FUSED!r} is made of trained models by the stage fuse, not trained"
            )
        check(self.name, self.options)


def any_options(name: str) -> dict[str, Any]:
    """Options that the network `name` takes, each with the first, or the usual, of its legal
    values."""
    family, _ = _family_and_share(name)
    return {
        option: legal.usual if isinstance(legal, Between) else legal[0]
        for option, legal in family.options.items()
    }


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
    if name == FUSED:
        for member in fused_options(options).members:
            check(member.network.name, member.network.options)
        return

    family, _ = _family_and_share(name)
    for option in options:
        if option not in family.options:
            has = ", ".join(family.options) or "none"
            raise ValueError(f"network {name!r} has no option {option!r}; its options: {has}")

    for option, legal in family.options.items():
        words = str(legal) if isinstance(legal, Between) else " or ".join(map(str, legal))
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
    if name == FUSED:
        return _build_fused(fused_options(options))

    family, share = _family_and_share(name)
    width = {} if share is None else {"share": share}
    return family.build(num_outputs=num_outputs, shared_head=shared_head, **width, **options)


def _build_fused(options: FusedOptions) -> Network:
    """The members' networks in one."""
    members = []
    for member in options.members:
        own = member.network
        shared_head = METHODS[member.method].shared_head
        members.append(build(own.name, own.options, own.num_outputs, shared_head))
    return FusedNetwork(options, members)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Weights for a network by name; none are there for the modules `new_parts`."""

    state: dict[str, Tensor]
    new_parts: tuple[str, ...]


def from_torchvision(name: str, options: Options, state: State) -> Imported:
    """What a state dict under torchvision's names is in the network `name`; ValueError where
    torchvision has no weights of it."""
    family, _ = _family_and_share(name)
    if family.imports is None:
        *known, last = [each for each, one in NETWORKS.items() if one.imports is not None]
        raise ValueError(
            f"network {name!r} has no weights under torchvision's names; those of "
            f"{', '.join(known)} and {last} can be imported"
        )
    return Imported(state=family.imports(state, options), new_parts=family.new_parts)


def trunk_of(name: str) -> str | None:
    """The network whose backbones `from_torchvision` takes for the network `name`; None where
    there is none."""
    family, _ = _family_and_share(name)
    _, dash, share = name.partition("-")
    return None if family.trunk is None else f"{family.trunk}{dash}{share}"


def _family_and_share(name: str) -> tuple[Family, float | None]:
    """The entry of NETWORKS that `name` belongs to, and the share of the channels where it takes
    one. A share has one spelling, since configs compare."""
    own_name, dash, text = name.partition("-")
    family = NETWORKS.get(own_name)
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
            f"network {name!r}: give a share of {family.least_share} to 1 of {own_name}'s channels"
        )
    spelling = f"{own_name}-{share:.12g}"
    if share == 1 and family.full_width:
        spelling = own_name
    if name != spelling:
        raise ValueError(f"network {name!r}: write {spelling}")
    return family, share


def _unknown(name: str) -> ValueError:
    known = ", ".join(known_networks())
    return ValueError(f"network {name!r} is unknown; known: {known} (as in vgg-0.125)")


__all__ = [
    "FUSED",
    "NETWORKS",
    "Between",
    "FaceBatch",
    "Family",
    "Imported",
    "Network",
    "NetworkSettings",
    "Outputs",
    "any_options",
    "build",
    "check",
    "from_torchvision",
    "initialise",
    "known_networks",
    "trunk_of",
]
