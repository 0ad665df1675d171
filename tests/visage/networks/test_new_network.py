"""A new network is three places: its file, its entry in the dict, its test. Here it is a file of a
temporary package, with landmarks and a head that only trains, which no network of visage has."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from stages.finetune import finetune
from stages.pretrain import pretrain
from tests.small_faces import (
    RECIPE,
    finetune_settings,
    marked,
    pretrain_settings,
    some_faces,
    write_faces,
)
from visage.networks import NETWORKS, FaceBatch, Family, NetworkSettings, build, initialise
from visage.weights import load_model

FILE = '''
"""Nothing but the mean colours, and where the landmarks lie."""
import torch
from torch import nn

from visage.networks.head import build_head
from visage.networks.protocol import FaceBatch, Network, Outputs


class Toy(Network):
    needs_landmarks = True
    auxiliary_heads = ("side_head",)

    def __init__(self, *, num_outputs, shared_head, width):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.second = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.num_features = width + 10
        self.head = build_head(self.num_features, num_outputs, shared_head)
        self.side_head = nn.Linear(width, num_outputs)

    def forward_features(self, faces):
        return torch.relu(self.second(torch.relu(self.first(faces.view_BCHW))))

    def forward_head(self, maps_BChw, landmarks_B52, /):
        places_BF = landmarks_B52.flatten(1) / 32
        return torch.cat([maps_BChw.mean(dim=(2, 3)), places_BF], dim=1)

    def forward(self, faces):
        outputs = super().forward(faces)
        if not self.training:
            return outputs
        side_BK = self.side_head(outputs.features_BC[:, :-10])
        return outputs._replace(auxiliary=(side_BK,))
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NetworkSettings]:
    """Its file and its entry in the dict; no other place of visage or its stages changes."""
    package = tmp_path / "package" / "networks_to_train"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "toy.py").write_text(FILE, encoding="utf-8")
    monkeypatch.syspath_prepend(package.parent)
    module = importlib.import_module("networks_to_train.toy")
    monkeypatch.setitem(NETWORKS, "toy", Family(build=module.Toy, options={"width": (4, 8)}))
    yield NetworkSettings(name="toy", options={"width": 8})
    for name in ("networks_to_train", "networks_to_train.toy"):
        sys.modules.pop(name)


def test_a_new_network_pre_trains_fine_tunes_and_comes_back(
    tmp_path: Path, toy: NetworkSettings
) -> None:
    faces = write_faces(tmp_path / "faces", marked(some_faces(64, 16, 0)))
    pretrain(
        pretrain_settings(network=toy, epochs=1),
        faces=faces,
        checkpoints=tmp_path / "pretrain",
        backbone=tmp_path / "backbone",
        history=tmp_path / "pretrain.csv",
        report=lambda *_: None,
    )
    recipe = dataclasses.replace(RECIPE, learning_rate=0.02)
    finetune(
        finetune_settings(network=toy, init="backbone", epochs=12, recipes={"small": recipe}),
        faces=faces,
        backbone=tmp_path / "backbone",
        start=tmp_path / "none",
        checkpoints=tmp_path / "finetune",
        model=tmp_path / "model",
        history=tmp_path / "finetune.csv",
        report=lambda *_: None,
    )

    backbone = json.loads((tmp_path / "backbone" / "backbone.json").read_text(encoding="utf-8"))
    assert backbone["network"] == {"name": "toy", "options": {"width": 8}}
    history = pd.read_csv(tmp_path / "finetune.csv")
    assert history["train_loss"].iloc[-1] < 0.9 * history["train_loss"].iloc[0]
    network, config = load_model(tmp_path / "model")
    assert (config.network.name, config.network.options) == ("toy", {"width": 8})
    assert network.quantised_modules() == ["second"]

    # The head that only trains was trained, and landmarks decide with the picture
    fresh = build("toy", {"width": 8}, 11)
    initialise(fresh, torch.Generator().manual_seed(0))
    side, fresh_side = (one.state_dict()["side_head.weight"] for one in (network, fresh))
    assert (side - fresh_side).abs().max() > 0.01
    view_BCHW = torch.zeros(2, 3, 32, 32)
    landmarks_B52 = torch.stack([torch.zeros(5, 2), torch.full((5, 2), 20.0)])
    outputs = network(FaceBatch(view_BCHW, landmarks_B52))
    assert outputs.auxiliary == ()
    assert not torch.allclose(outputs.logits_BK[0], outputs.logits_BK[1])


def test_its_options_are_checked_as_those_of_any_other(toy: NetworkSettings) -> None:
    with pytest.raises(ValueError, match="network 'toy': width is 5; give 4 or 8"):
        dataclasses.replace(toy, options={"width": 5})
    with pytest.raises(ValueError, match=r"network 'toy-0\.5' is unknown; known: .*toy"):
        dataclasses.replace(toy, name="toy-0.5")
