"""Several networks as one: a view of a face goes through every member, and a rule makes one label
distribution of theirs.

Each member gives a distribution over its own label grid. It is laid on the fused grid so that its
expectation stays: a label between two of the fused grid's gives each its share, as
`visage.encodings.narrowest` does. With several views (zooms about the middle) a member's
distribution is the mean over them. The rules, for members m with distributions p_m and
expectations v_m:

- `mean`: the mean of all p_m.
- `weights`: sum_m w_m p_m, with w_m >= 0 and sum 1.
- `gate`: two streams, each the weighted mean of its members; the mean of both where their
  expectations differ by at most `threshold` label units, else the first stream's (the two-stream
  system of Yang et al. 2015: 11 years).
- `kernel`: a vote of remembered faces, each weighed by exp(-d / width), where d is the l1 distance
  between the members' distributions of the two faces (all side by side), the `neighbours` nearest
  alone (of the same system).

A fused network sees colours from 0 to 1: each member resizes, turns into its own input and
normalises by itself. Its logits are the logarithms of the fused probabilities, so that a softmax
gives these back. Legend: B batch, M members, V views, C features, K labels of the fused grid, J of
a member's, N remembered faces, H and W sides of a crop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from visage.encodings import narrowest
from visage.labels import LabelGrid, expectation
from visage.methods import METHODS
from visage.model_config import InputKind
from visage.networks.inputs import input_of, normalised
from visage.networks.protocol import FaceBatch, Network, Outputs
from visage.strict import from_plain

Rule = Literal["mean", "weights", "gate", "kernel"]
# The least probability whose logarithm is taken
LEAST = 1e-30
FIRST, SECOND = 1, 2


@dataclass(frozen=True, kw_only=True)
class MemberInput:
    """Kind of a member's input, and its mean and deviation."""

    input: InputKind
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class MemberNetwork:
    """A member's network, as its config has it."""

    name: str
    options: dict[str, Any]
    num_outputs: int


@dataclass(frozen=True, kw_only=True)
class MemberOptions:
    """A member: what its config says of its crops, its network and its outputs. `stream`: 1 or 2,
    for the rule `gate`. `sha256`: of the member's weights."""

    name: str
    sha256: str
    network: MemberNetwork
    method: str
    grid: LabelGrid
    normalise: MemberInput
    crop_px: int
    stream: int


@dataclass(frozen=True, kw_only=True)
class FusedOptions:
    """`crop_px`: side of the crops that the fused network sees. `weights`: one a member; with
    `gate` those of each stream sum to 1. `threshold` belongs to `gate`; `width`, `neighbours` and
    `num_remembered` to `kernel`; None or 0 elsewhere. `zooms`: one a view."""

    members: tuple[MemberOptions, ...]
    grid: LabelGrid
    crop_px: int
    rule: Rule
    weights: tuple[float, ...]
    threshold: float | None
    width: float | None
    neighbours: int
    num_remembered: int
    zooms: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.members) < 1 or len(self.weights) != len(self.members):
            raise ValueError(
                f"{len(self.members)} members and {len(self.weights)} weights: give one a member"
            )
        if not self.zooms or not all(0.5 <= zoom <= 2 for zoom in self.zooms):
            raise ValueError(f"zooms {list(self.zooms)}: give one at least, each of 0.5 to 2")

        for streams in self.streams():
            total = sum(weight for weight, member in self._weighed() if member.stream in streams)
            if not (min(self.weights) >= 0 and abs(total - 1) < 1e-6):
                raise ValueError(
                    f"weights {list(self.weights)}: give numbers of 0 or more that sum to 1"
                    + (", in each stream" if self.rule == "gate" else "")
                )
        if self.rule == "gate" and self.threshold is None:
            raise ValueError("rule gate: give a threshold in label units, such as 11")
        if self.rule == "kernel" and not (
            self.width and 0 < self.neighbours <= self.num_remembered
        ):
            raise ValueError(
                f"rule kernel: width {self.width}, {self.neighbours} neighbours of "
                f"{self.num_remembered} remembered faces; give a width above 0 and as many faces"
            )

    def streams(self) -> list[set[int]]:
        """The groups of members whose weights sum to 1."""
        return [{FIRST}, {SECOND}] if self.rule == "gate" else [{FIRST, SECOND}]

    def alone(self, number: int) -> FusedOptions:
        """The options of one member, with the same crops, views and grid."""
        return replace(
            self,
            members=(self.members[number],),
            rule="mean",
            weights=(1.0,),
            threshold=None,
            width=None,
            neighbours=0,
            num_remembered=0,
        )

    def _weighed(self) -> list[tuple[float, MemberOptions]]:
        return list(zip(self.weights, self.members, strict=True))


def fused_options(options: Mapping[str, Any]) -> FusedOptions:
    """Options as a config's JSON holds them, checked; ValueError otherwise."""
    found: FusedOptions = from_plain(
        dict(options), FusedOptions, "network 'fused': options", "fuse the models again"
    )
    return found


def plain_options(options: FusedOptions) -> dict[str, Any]:
    """Options as a config's JSON holds them."""
    return cast(dict[str, Any], _lists(asdict(options)))


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lists(item) for name, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple | list) else value


class FusedNetwork(Network):
    """The members' networks and the rule. `members` are built as the options say, in their order.

    `forward_features` passes the view on: the members' maps differ in size, so that score maps are
    made member by member (visage.explain.score_map).
    """

    def __init__(self, options: FusedOptions, members: Sequence[Network]) -> None:
        super().__init__()
        self.options = options
        self.members = nn.ModuleList(members)
        self.needs_landmarks = any(  # type: ignore[misc]
            member.needs_landmarks for member in members
        )
        self.num_features = len(options.zooms) * sum(member.num_features for member in members)

        for number, member in enumerate(options.members):
            grid = member.grid
            labels_J = torch.from_numpy(grid.labels())
            self.register_buffer(f"lay_{number}", narrowest(labels_J, options.grid), False)
            for view, zoom in enumerate(options.zooms):
                matrix = resampling(options.crop_px, member.crop_px, zoom)
                self.register_buffer(f"resample_{number}_{view}", matrix, False)
        if options.rule == "kernel":
            width = len(members) * options.grid.num_labels
            self.register_buffer("remembered_NX", torch.zeros(options.num_remembered, width))
            self.register_buffer("remembered_label_N", torch.zeros(options.num_remembered))

    def member(self, number: int) -> Network:
        """A member's network."""
        return cast(Network, self.members[number])

    def quantised_modules(self) -> Sequence[str]:
        """Those of all members."""
        return [
            f"members.{number}.{name}"
            for number in range(len(self.members))
            for name in self.member(number).quantised_modules()
        ]

    def forward(self, faces: FaceBatch) -> Outputs:
        features_BC = self.forward_head(faces.view_BCHW, faces.landmarks_B52)
        logits_BK = self.logits(features_BC, torch.float32)
        return Outputs(logits_BK=logits_BK, features_BC=features_BC, auxiliary=())

    def forward_features(self, faces: FaceBatch) -> Tensor:
        """The view itself."""
        return faces.view_BCHW

    def forward_head(self, maps_BChw: Tensor, landmarks_B52: Tensor | None) -> Tensor:
        """Colours from 0 to 1 -> the features of all members and views side by side, (B,C)."""
        features = []
        for number in range(len(self.members)):
            for view in range(len(self.options.zooms)):
                seen = self.seen_by(number, view, FaceBatch(maps_BChw, landmarks_B52))
                network = self.member(number)
                member_maps = network.forward_features(seen)
                features.append(network.forward_head(member_maps, seen.landmarks_B52))
        return torch.cat(features, dim=1)

    def seen_by(self, number: int, view: int, faces: FaceBatch) -> FaceBatch:
        """What a member sees of a view: resized, as its own input, normalised."""
        view_BCHW, landmarks_B52 = faces
        member = self.options.members[number]
        zoom = self.options.zooms[view]
        if zoom != 1 or member.crop_px != self.options.crop_px:
            matrix = cast(Tensor, getattr(self, f"resample_{number}_{view}")).to(view_BCHW.dtype)
            view_BCHW = matrix @ view_BCHW @ matrix.mT
            if landmarks_B52 is not None:
                middle = self.options.crop_px / 2
                scale = zoom * member.crop_px / self.options.crop_px
                landmarks_B52 = (landmarks_B52 - middle) * scale + member.crop_px / 2

        own = member.normalise
        view_BCHW = normalised(input_of(view_BCHW, own.input), own.mean, own.std)
        return FaceBatch(view_BCHW, landmarks_B52)

    def logits(self, features_BC: Tensor, dtype: torch.dtype) -> Tensor:
        """The logarithms of the fused distribution (B,K)."""
        p_BK = self.combined(self.distributions(features_BC, dtype))
        return p_BK.clamp_min(LEAST).log()

    def distributions(self, features_BC: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Each member's distribution over the fused grid, the mean over the views, (B,K)."""
        found = []
        start = 0
        for number, member in enumerate(self.options.members):
            network = self.member(number)
            views = []
            for _ in self.options.zooms:
                own_BC = features_BC[:, start : start + network.num_features]
                start += network.num_features
                logits_BM = network.logits(own_BC, dtype)
                views.append(METHODS[member.method].probabilities(logits_BM, member.grid))
            p_BJ = views[0] if len(views) == 1 else torch.stack(views).mean(dim=0)
            lay_JK = cast(Tensor, getattr(self, f"lay_{number}")).to(p_BJ.dtype)
            found.append(p_BJ @ lay_JK)
        return found

    def combined(self, members: Sequence[Tensor]) -> Tensor:
        """The members' distributions (B,K) -> the fused one (B,K)."""
        options = self.options
        if options.rule == "kernel":
            return self._vote(torch.cat(list(members), dim=1))
        if options.rule != "gate":
            return _weighted(members, options.weights)

        first_BK, second_BK = (self._stream(members, stream) for stream in (FIRST, SECOND))
        first_B = expectation(first_BK, options.grid)
        second_B = expectation(second_BK, options.grid)
        agree_B = (first_B - second_B).abs() <= cast(float, options.threshold)
        return torch.where(agree_B[:, None], (first_BK + second_BK) / 2, first_BK)

    def _stream(self, members: Sequence[Tensor], stream: int) -> Tensor:
        numbers = [
            number for number, one in enumerate(self.options.members) if one.stream == stream
        ]
        weights = [self.options.weights[number] for number in numbers]
        return _weighted([members[number] for number in numbers], weights)

    def _vote(self, all_BX: Tensor) -> Tensor:
        remembered_NX = cast(Tensor, self.remembered_NX).to(all_BX.dtype)
        label_N = cast(Tensor, self.remembered_label_N).to(all_BX.dtype)
        distance_BN = (all_BX[:, None] - remembered_NX).abs().sum(dim=2)
        near_BN = torch.topk(-distance_BN, self.options.neighbours, dim=1)
        weight_BN = torch.softmax(near_BN.values / cast(float, self.options.width), dim=1)
        labels_NK = narrowest(label_N, self.options.grid)
        return (weight_BN[:, :, None] * labels_NK[near_BN.indices]).sum(dim=1)


def _weighted(members: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = members[0] * weights[0]
    for p_BK, weight in zip(members[1:], weights[1:], strict=True):
        total = total + p_BK * weight
    return total


def resampling(side: int, wanted: int, zoom: float) -> Tensor:
    """The (wanted, side) matrix that takes a row of `side` pixels to `wanted` of them, zoomed about
    the middle; bilinear, averaged on the way down, black beyond the ends."""
    scale = zoom * wanted / side
    reach = max(1.0, 1 / scale)  # of the triangle, in pixels of the source
    places_W = (torch.arange(wanted, dtype=torch.float64) + 0.5 - wanted / 2) / scale + side / 2
    centres_H = torch.arange(side, dtype=torch.float64) + 0.5
    matrix_WH = (1 - (places_W[:, None] - centres_H).abs() / reach).clamp_min(0)

    # A pixel whose place is in the picture is a mean of the picture's pixels
    inside_W = (places_W >= 0) & (places_W <= side)
    total_W1 = matrix_WH.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return (matrix_WH / total_W1 * inside_W[:, None]).float()
