"""A network that looks at one place of the face and nowhere else: what explains a model must find
that place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.small_model import CROP_PX, small_config
from visage.model_config import ModelConfig
from visage.networks import FaceBatch, Network

PLACES = 4  # squares to a side of the crop; the network's maps have as many
ROW, COLUMN = 2, 3


def one_place_config() -> ModelConfig:
    return small_config()


class OnePlace(Network):
    """The brighter the crop's square (ROW, COLUMN), the older."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_features = 1
        self.head = nn.Linear(1, config.grid.num_labels)
        with torch.no_grad():
            self.head.weight.copy_(torch.linspace(-9, 9, config.grid.num_labels)[:, None])
            self.head.bias.zero_()

    def forward_features(self, faces: FaceBatch) -> Tensor:
        """(B,1,PLACES,PLACES), 0 everywhere else."""
        place_PP = torch.zeros(PLACES, PLACES)
        place_PP[ROW, COLUMN] = 1.0
        brightness: Tensor = nn.functional.avg_pool2d(
            faces.view_BCHW.mean(dim=1, keepdim=True), CROP_PX // PLACES
        )
        return brightness * place_PP

    def forward_head(self, maps_BChw: Tensor, _landmarks_B52: Tensor | None) -> Tensor:
        return maps_BChw.mean(dim=(2, 3))
