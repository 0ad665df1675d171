"""Whether a network can be exported in int8: known before anything is trained, and where ONNX
Runtime is not installed."""

from __future__ import annotations

from torch import nn

from visage.networks.protocol import Network


def check_quantisable(name: str, network: Network) -> None:
    """Refuses, with a ValueError, a network of whose convolutions none could be computed in int8.

    `name` is the network's in params.yaml.
    """
    modules = dict(network.named_modules())
    wanted = list(network.quantised_modules())
    if not wanted:
        raise ValueError(
            f"network {name!r} names no module to quantise: an int8 export would be no faster; set "
            f"export.int8: false"
        )

    for module in wanted:
        if not isinstance(modules.get(module), nn.Conv2d | nn.Linear):
            raise ValueError(
                f"network {name!r}: its quantised_modules name {module!r}, which is no convolution "
                f"and no linear layer of it; correct the network, or set export.int8: false"
            )
