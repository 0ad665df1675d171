"""DHAA: deep hybrid-aligned architecture for facial age estimation, at any share of its channels.

ResNet-18's stem and first stage make one map that all branches share. Aligned region pooling
(visage/networks/regions.py) cuts regions from it with the face's landmarks: g1 is the map itself,
g2 and g3 the face at two zooms, l1, l2 and l3 left eye, nose and mouth. Every region has a second
stage of its own. A branch is three sub-networks: of g1 to g3 (global), of l1 to l3 (local), and of
c1 to c3, where c_k is g_k and l_k together (global-local). A sub-network ends in a vector z of 128;
an LSTM runs over the branch's three, and its summed states are the branch's features. The last head
sees all branches' features; a head of each z only trains.

Where the paper says nothing: the tail's convolution is 1x1 (`tail_kernel`), the LSTM's states are
as long as z, regions come in the order g1, g2, g3 and eye, nose, mouth. docs/papers.md has the
reasons. Legend: B batch, C channels, h and w side of the shared map, V length of z, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from visage.networks.head import build_head
from visage.networks.protocol import FaceBatch, Network, Outputs
from visage.networks.regions import REGIONS, Kind, RegionPooling
from visage.networks.resnet import STAGES, residual_stage

# Sub-networks of each branch, in the order in which the LSTM sees them
BRANCHES = {
    "global": ("g1", "g2", "g3"),
    "local": ("l1", "l2", "l3"),
    "global_local": ("c1", "c2", "c3"),
}
LETTERS = {"global": "g", "local": "l", "global_local": "c"}
Branches = Literal[
    "global+local+global_local",
    "global",
    "local",
    "global_local",
    "global+local",
    "global+global_local",
    "local+global_local",
]
Fusion = Literal["lstm", "fc"]
# What no imported weights hold
NEW_PARTS = ("tails", "fusions")


class DHAA(Network):
    """The three branches, or some of them, and their fusion.

    `regions`: how they are cut. `fusion`: an LSTM over a branch's three vectors, or one linear
    layer of all three. `vector`: length of z and of a branch's features. `region_side`: cells of a
    region's map, or `shared` for those of the shared map.
    """

    needs_landmarks = True
    auxiliary_heads = ("part_heads",)

    def __init__(
        self,
        *,
        share: float,
        num_outputs: int,
        shared_head: bool,
        branches: Branches,
        regions: Kind,
        fusion: Fusion,
        vector: int,
        tail_kernel: int,
        region_side: Literal["shared"] | int,
        template: str,
        face_scale: float,
        global_zoom: float,
        local_zoom: float,
    ) -> None:
        super().__init__()
        widths = [round(channels * share) for channels, _ in STAGES]
        strides = [stride for _, stride in STAGES]
        self.branches = tuple(branches.split("+"))
        parts = parts_of(branches)
        entries = entries_of(branches)

        self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = residual_stage(widths[0], widths[0], strides[0])

        self.pooling = RegionPooling(
            tuple(name for name in entries if name in REGIONS),
            kind=regions,
            template_name=template,
            face_scale=face_scale,
            global_zoom=global_zoom,
            local_zoom=local_zoom,
            side=None if region_side == "shared" else region_side,
        )
        self.entries = nn.ModuleDict(
            {name: residual_stage(widths[0], widths[1], strides[1]) for name in entries}
        )
        self.trunks = nn.ModuleDict()
        for name in parts:
            num_in = widths[1] * len(entry_names(name))
            self.trunks[name] = nn.Sequential(
                residual_stage(num_in, widths[2], strides[2]),
                residual_stage(widths[2], widths[3], strides[3]),
            )
        self.tails = nn.ModuleDict({name: Tail(widths[3], vector, tail_kernel) for name in parts})
        kinds = {"lstm": LSTMFusion, "fc": LinearFusion}
        # Under a letter each: "global" is a keyword, which the exporter of ONNX cannot write
        self.fusions = nn.ModuleDict(
            {LETTERS[name]: kinds[fusion](vector) for name in self.branches}
        )

        self.num_features = vector * len(self.branches)
        self.head = build_head(self.num_features, num_outputs, shared_head)
        self.part_heads = nn.ModuleDict(
            {name: build_head(vector, num_outputs, shared_head) for name in parts}
        )

    def forward_features(self, faces: FaceBatch) -> Tensor:
        """The map that all branches share, (B,C,H/4,W/4)."""
        maps_BChw = self.relu(self.bn1(self.conv1(faces.view_BCHW)))
        return cast(Tensor, self.layer1(self.maxpool(maps_BChw)))

    def forward_head(self, maps_BChw: Tensor, landmarks_B52: Tensor | None) -> Tensor:
        """Regions, sub-networks and their fusion, (B,num_features)."""
        return self._fused(self._vectors(maps_BChw, landmarks_B52))

    def forward(self, faces: FaceBatch) -> Outputs:
        """Logits of the last head, and of the head of each sub-network."""
        vectors = self._vectors(self.forward_features(faces), faces.landmarks_B52)
        features_BC = self._fused(vectors)
        auxiliary = tuple(self.part_heads[name](z_BV) for name, z_BV in vectors.items())
        return Outputs(
            logits_BK=self.head(features_BC), features_BC=features_BC, auxiliary=auxiliary
        )

    def auxiliary_names(self) -> tuple[str, ...]:
        """The sub-networks, in the order of `Outputs.auxiliary`."""
        return tuple(self.part_heads)

    def _vectors(self, maps_BChw: Tensor, landmarks_B52: Tensor | None) -> dict[str, Tensor]:
        """z (B,V) of each sub-network."""
        assert landmarks_B52 is not None
        regions = self.pooling(maps_BChw, landmarks_B52)
        regions["g1"] = self.pooling.shared(maps_BChw)
        entered = {name: entry(regions[name]) for name, entry in self.entries.items()}

        vectors = {}
        for name, trunk in self.trunks.items():
            seen = [entered[entry] for entry in entry_names(name)]
            maps_BCvv = seen[0] if len(seen) == 1 else torch.cat(seen, dim=1)
            vectors[name] = self.tails[name](trunk(maps_BCvv))
        return vectors

    def _fused(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """z of all sub-networks -> the branches' features, (B,num_features)."""
        features = []
        for branch in self.branches:
            z_3BV = torch.stack([vectors[name] for name in BRANCHES[branch]])
            features.append(self.fusions[LETTERS[branch]](z_3BV))
        return torch.cat(features, dim=1)


class RowLinear(nn.Linear):
    """A linear layer that gives a row the same bits in a batch of any size, in evaluation.

    A matrix product sums in an order that depends on the number of rows; a product a row does not.
    Training takes the faster one.
    """

    def forward(self, rows_BC: Tensor) -> Tensor:
        return linear(rows_BC, self.weight, self.bias, by_row=not self.training)


def linear(rows_BC: Tensor, weight_VC: Tensor, bias_V: Tensor, *, by_row: bool) -> Tensor:
    """(B,C) -> (B,V); see `RowLinear`."""
    if not by_row:
        return nn.functional.linear(rows_BC, weight_VC, bias_V)
    weight_BVC = weight_VC.expand(rows_BC.shape[0], -1, -1)
    return torch.bmm(weight_BVC, rows_BC[:, :, None])[:, :, 0] + bias_V


class Tail(nn.Module):
    """Maps of a sub-network -> z: a convolution with BatchNorm and ReLU, global average, linear."""

    def __init__(self, num_in: int, vector: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_in, vector, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(vector)
        self.relu = nn.ReLU(inplace=True)
        self.linear = RowLinear(vector, vector)

    def forward(self, maps_BChw: Tensor) -> Tensor:
        maps_BVhw = self.relu(self.bn(self.conv(maps_BChw)))
        return cast(Tensor, self.linear(maps_BVhw.mean(dim=(2, 3))))


class LSTMFusion(nn.Module):
    """Three vectors (3,B,V) in order -> the sum of the LSTM's three states, (B,V)."""

    def __init__(self, vector: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(vector, vector)

    def forward(self, z_3BV: Tensor) -> Tensor:
        hidden_BV = memory_BV = torch.zeros_like(z_3BV[0])
        total_BV = torch.zeros_like(z_3BV[0])
        for z_BV in z_3BV.unbind():
            hidden_BV, memory_BV = self._step(z_BV, hidden_BV, memory_BV)
            total_BV = total_BV + hidden_BV
        return total_BV

    def _step(self, z_BV: Tensor, hidden_BV: Tensor, memory_BV: Tensor) -> tuple[Tensor, Tensor]:
        """nn.LSTMCell, with linear layers by row in evaluation."""
        cell, by_row = self.cell, not self.training
        gates = linear(z_BV, cell.weight_ih, cell.bias_ih, by_row=by_row)
        gates = gates + linear(hidden_BV, cell.weight_hh, cell.bias_hh, by_row=by_row)
        write, forget, candidate, show = gates.chunk(4, dim=1)

        memory_BV = forget.sigmoid() * memory_BV + write.sigmoid() * candidate.tanh()
        return show.sigmoid() * memory_BV.tanh(), memory_BV


class LinearFusion(nn.Module):
    """Three vectors (3,B,V) -> one linear layer of all of them, ReLU, (B,V)."""

    def __init__(self, vector: int) -> None:
        super().__init__()
        self.linear = RowLinear(3 * vector, vector)

    def forward(self, z_3BV: Tensor) -> Tensor:
        return cast(Tensor, self.linear(torch.cat(list(z_3BV.unbind()), dim=1)).relu())


def parts_of(branches: str) -> tuple[str, ...]:
    """The sub-networks of branches, in their order."""
    found: tuple[str, ...] = ()
    for branch in branches.split("+"):
        found += BRANCHES[branch]
    return found


def entry_names(part: str) -> tuple[str, ...]:
    """The regions that a sub-network sees: c2 sees g2 and l2."""
    return (f"g{part[1]}", f"l{part[1]}") if part[0] == "c" else (part,)


def entries_of(branches: str) -> tuple[str, ...]:
    """The regions that the branches need, each once."""
    names: dict[str, None] = {}
    for part in parts_of(branches):
        names |= dict.fromkeys(entry_names(part))
    return tuple(sorted(names))


def inflated(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Tensor]:
    """A ResNet-18's weights, with torchvision's names, for every sub-network.

    A convolution of c_k sees g_k and l_k one after the other: it gets the kernels twice, halved, so
    that two equal inputs give what one gave.
    """
    found = {}
    for name, value in state.items():
        layer, _, rest = name.partition(".")
        if layer in ("conv1", "bn1", "layer1"):
            found[name] = value
        elif layer == "layer2":
            for entry in entries_of(options["branches"]):
                found[f"entries.{entry}.{rest}"] = value
        elif layer in ("layer3", "layer4"):
            for part in parts_of(options["branches"]):
                doubles = part[0] == "c" and name in DOUBLED
                own = torch.cat([value, value], dim=1) / 2 if doubles else value
                found[f"trunks.{part}.{int(layer[-1]) - 3}.{rest}"] = own
    return found


# The convolutions that see the maps of the second stage
DOUBLED = ("layer3.0.conv1.weight", "layer3.0.downsample.0.weight")
