"""A chain's file becomes the steps of its links.

A chain has members, each a list of links. A link is a data set's presets and settings; its training
starts from the model of the link before. Settings go on from link to link of a member, until
another value is given. Links that are alike, with all before them, are one step: a common first
link is trained once.

    settings: {finetune.epochs: 20}     # of all links
    members:
      one: [{data: morph_80_20}, {data: chalearn15, settings: {finetune.method: dldl}}]
      two: [{data: morph_80_20}, {data: chalearn15, settings: {finetune.method: dex}}]
    fuse: {fuse.rule: weights}          # settings of the fused model; null: none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.benchmark.grid import settings_of, with_settings
from flows.pipeline.dvc_stages import Declared
from flows.pipeline.step_cache import Brought, Step, plan
from stages.presets import read_yaml
from stages.settings import convert

START = "models/start"
MEMBERS = "models/members"
MODEL = "models/model"
BACKBONE = "models/backbone"
TRAINING = "finetune"
MEASURING = "evaluate"


@dataclass(frozen=True, kw_only=True)
class LinkSettings:
    """`data`: presets as for DATA=, the first wins; `settings`: dotted names of params.yaml."""

    data: tuple[str, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ChainSettings:
    """`settings` are of all links; a link's own win. `fuse`: settings of the model that is fused of
    all members, in dotted names, laid over those of the last member's last link; None for none."""

    settings: Mapping[str, Any]
    members: Mapping[str, tuple[LinkSettings, ...]]
    fuse: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("members: none; name one at least")
        for name, links in self.members.items():
            if not links:
                raise ValueError(f"members.{name}: no link; give one at least")


@dataclass(frozen=True, kw_only=True)
class PlannedLink:
    """A link of a member and its steps by stage name; `number` counts from 1."""

    member: str
    number: int
    link: LinkSettings
    params: Mapping[str, Any]
    steps: Mapping[str, Step]

    @property
    def name(self) -> str:
        return f"{self.member}, link {self.number}"


def read_chain(file: Path) -> ChainSettings:
    """Reads a chain's file: `settings` and `fuse` may be left out, and `data` may be one name."""
    document = {"settings": {}, "fuse": None, **read_yaml(file)}
    members = document.get("members")
    if isinstance(members, dict):
        document["members"] = {name: _links(links) for name, links in members.items()}
    settings: ChainSettings = convert(document, ChainSettings, str(file))
    return settings


def _links(links: Any) -> Any:
    """Links as their dataclass wants them; anything else as it is."""
    if not isinstance(links, list):
        return links
    full = []
    for link in links:
        if isinstance(link, dict):
            link = {"settings": {}, **link}
            if isinstance(link.get("data"), str):
                link["data"] = link["data"].split()
        full.append(link)
    return full


def planned(
    chain: ChainSettings, stages: Sequence[Declared], runs: Path
) -> dict[str, list[PlannedLink]]:
    """Each member's links with their steps, in order. ValueError for a setting that params.yaml
    does not have, or presets that do not exist."""
    return {
        name: _planned_member(name, links, chain.settings, stages, runs)
        for name, links in chain.members.items()
    }


def planned_fused(
    chain: ChainSettings,
    members: Mapping[str, Sequence[PlannedLink]],
    stages: Sequence[Declared],
    runs: Path,
) -> PlannedLink | None:
    """The model that is fused of every member's last link; None where the chain fuses nothing.

    The last member is the stage's own model, called `model`; its set is the one that chooses and
    tests.
    """
    if chain.fuse is None:
        return None
    if len(members) < 2:
        raise ValueError("fuse: one member alone is not fused; give two, or leave out fuse")

    *others, (_, own) = members.items()
    last = own[-1]
    brought = {
        f"{MEMBERS}/{name}": Brought(links[-1].steps[TRAINING], MODEL) for name, links in others
    }
    if len(own) > 1:
        brought[START] = Brought(own[-2].steps[TRAINING], MODEL)

    params = with_settings(last.params, chain.fuse, "fuse")
    needed = stages if params[TRAINING]["init"] == "backbone" else _without_backbone(stages)
    return PlannedLink(
        member="fused",
        number=1,
        link=LinkSettings(data=last.link.data, settings=chain.fuse),
        params=params,
        steps=plan(needed, params, MEASURING, runs, brought),
    )


def _without_backbone(stages: Sequence[Declared]) -> list[Declared]:
    """The stages of a training that starts from no backbone: nobody is pre-trained in vain."""
    return [stage for stage in stages if BACKBONE not in stage.outputs]


def _planned_member(
    member: str,
    links: Sequence[LinkSettings],
    settings: Mapping[str, Any],
    stages: Sequence[Declared],
    runs: Path,
) -> list[PlannedLink]:
    found: list[PlannedLink] = []
    changes = dict(settings)
    for number, link in enumerate(links, 1):
        changes |= link.settings
        brought = {}
        if found:
            changes["finetune.init"] = "model"
            brought[START] = Brought(found[-1].steps[TRAINING], MODEL)

        *first, last = link.data
        base = settings_of(last, {"extends": first})
        params = with_settings(base, changes, f"member {member}, link {number}")
        needed = stages if params[TRAINING]["init"] == "backbone" else _without_backbone(stages)
        steps = plan(needed, params, MEASURING, runs, brought)
        planned_link = PlannedLink(
            member=member, number=number, link=link, params=params, steps=steps
        )
        found.append(planned_link)
    return found
