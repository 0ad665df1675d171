"""A network that looks at one place of the face and nowhere else: what explains a model must find
that place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.small_model import CROP_PX, small_config
from visage.model_config import ModelConfig

PLACES = 4  # squares to a side of the crop; the network's maps have as many
ROW, COLUMN = 2, 3


def one_place_config() -> ModelConfig:
    return small_config()


class OnePlace(nn.Module):
    """The brighter the crop's square (ROW, COLUMN), the older."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head = nn.Linear(1, config.grid.num_labels)
        with torch.no_grad():
            self.head.weight.copy_(torch.linspace(-9, 9, config.grid.num_labels)[:, None])
            self.head.bias.zero_()

    def features(self, view_BCHW: Tensor) -> Tensor:
        """(B,1,PLACES,PLACES), 0 everywhere else."""
        place_PP = torch.zeros(PLACES, PLACES)
        place_PP[ROW, COLUMN] = 1.0
        brightness: Tensor = nn.functional.avg_pool2d(
            view_BCHW.mean(dim=1, keepdim=True), CROP_PX // PLACES
        )
        return brightness * place_PP

    def pool(self, maps_BCHW: Tensor) -> Tensor:
        return maps_BCHW.mean(dim=(2, 3))
