"""One member of a fused model as a model of its own."""

from __future__ import annotations

import dataclasses

from visage.model_config import ModelConfig, NetworkConfig
from visage.networks import FUSED
from visage.networks.fused import FusedNetwork, plain_options


def member_model(
    network: FusedNetwork, config: ModelConfig, number: int
) -> tuple[FusedNetwork, ModelConfig]:
    """One member of a fused model as a model of its own that takes the fused model's crops and
    views, on its grid, not calibrated."""
    alone = network.options.alone(number)
    member = FusedNetwork(alone, [network.member(number)]).eval()
    shape = NetworkConfig(
        name=FUSED, options=plain_options(alone), num_outputs=alone.grid.num_labels
    )
    return member, dataclasses.replace(config, network=shape, calibration=None)
