"""The `sweep` section of params.yaml: which settings of `finetune` are searched, over which values,
and how.

Paths are dotted names below `finetune`, or of what it takes of the shared sections. Every value
that a path may take is tried on the settings' own types before anything starts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from flows.benchmark.grid import with_settings
from stages.finetune import FinetuneSettings
from stages.settings import convert, section_settings, shared_fields
from visage.strict import check_range

SECTION = "finetune"
SIGMA, LAMBDA, STEP = "labels.fixed_sigma", "finetune.loss.lambda_", "labels.grid.step"


@dataclass(frozen=True, kw_only=True)
class RangeSettings:
    """All numbers from `low` to `high`."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low}, high {self.high}: low must be the smaller one")

    @property
    def ends(self) -> list[Any]:
        return [self.low, self.high]


@dataclass(frozen=True, kw_only=True)
class LogRangeSettings(RangeSettings):
    """The same, each power of ten as likely as the next."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise ValueError(f"low is {self.low}: a logarithmic range begins above 0")


@dataclass(frozen=True, kw_only=True)
class IntegerSettings:
    """All whole numbers from `low` to `high`, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low}, high {self.high}: low must be the smaller one")

    @property
    def ends(self) -> list[Any]:
        return [self.low, self.high]


@dataclass(frozen=True, kw_only=True)
class ChoiceSettings:
    """These values."""

    values: list[Any]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("values is empty: name at least one")
        if odd := [value for value in self.values if not isinstance(value, str | int | float)]:
            raise ValueError(f"values: {odd[0]!r} is neither a number nor a word")

    @property
    def ends(self) -> list[Any]:
        return self.values


Dimension = RangeSettings | LogRangeSettings | IntegerSettings | ChoiceSettings
KINDS: dict[str, type] = {
    "uniform": RangeSettings,
    "loguniform": LogRangeSettings,
    "integer": IntegerSettings,
    "choice": ChoiceSettings,
}


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """`search`: `optuna` draws `num_samples` settings, each from what is known by then, and ends
    the poor ones early (ASHA); `grid` runs all combinations of listed values and `lines` one
    dimension after the other, the rest as params.yaml has them, every trial to its end.

    `space`: path -> {kind: uniform | loguniform | integer, low, high} or {kind: choice, values}.
    `epochs` of a trial, null for those of finetune. ASHA: after `grace_epochs`, and each time
    `reduction_factor` as many, the best one in `reduction_factor` goes on. `cpus_per_trial` and
    `gpus_per_trial` may be shares; `max_concurrent` trials at a time, null for as many as fit. A
    trial that fails is taken up again `max_failures` times. `folder` keeps what the trials write;
    on a cluster it is one that all nodes have. `experiment`: MLflow's.
    """

    search: Literal["optuna", "grid", "lines"]
    space: dict[str, dict[str, Any]]
    num_samples: int
    seed: int
    epochs: int | None
    grace_epochs: int
    reduction_factor: int
    cpus_per_trial: float
    gpus_per_trial: float
    max_concurrent: int | None
    max_failures: int
    experiment: str
    folder: str

    def __post_init__(self) -> None:
        check_range(
            self,
            num_samples=(1, None),
            grace_epochs=(1, None),
            reduction_factor=(2, None),
            cpus_per_trial=(0.01, None),
            gpus_per_trial=(0, None),
            max_failures=(0, None),
        )
        for name, value in (("epochs", self.epochs), ("max_concurrent", self.max_concurrent)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: give 1 or more, or null")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep that can run: its dimensions, the settings that each trial changes, and its epochs,
    all phases."""

    settings: SweepSettings
    space: Mapping[str, Dimension]
    params: Mapping[str, Any]
    where: str
    max_epochs: int

    def trial_settings(self, values: Mapping[str, Any]) -> FinetuneSettings:
        """finetune's settings with these values; ValueError names the one that cannot be."""
        changed = with_settings(self.params, values, f"{self.where}: sweep.space")
        chosen = ", ".join(f"{path} = {value}" for path, value in values.items())
        settings = section_settings(
            changed, SECTION, FinetuneSettings, f"{self.where}: sweep.space with {chosen}"
        )
        return replace(settings, epochs=self.settings.epochs or settings.epochs)

    def listed(self) -> list[dict[str, Any]]:
        """Every trial of a search that draws nothing."""
        return SEARCHES[self.settings.search](self)

    def listed_values(self, path: str) -> list[Any]:
        """The values of a choice; in a line also params.yaml's own, which the other lines have."""
        values, own = list(_values(self, path)), setting(self.params, path)
        return (
            values if self.settings.search != "lines" or own in values else sorted([*values, own])
        )

    @property
    def num_trials(self) -> int:
        return self.settings.num_samples if self.settings.search == "optuna" else len(self.listed())

    def without(self, path: str) -> Plan:
        return replace(self, space={name: one for name, one in self.space.items() if name != path})


def planned(params: Mapping[str, Any], settings: SweepSettings, where: str) -> Plan:
    """The sweep that the settings describe; ValueError, before anything starts, for one that cannot
    run."""
    space = {path: _dimension(path, spec, where) for path, spec in settings.space.items()}
    if not space:
        raise ValueError(f"{where}: sweep.space is empty; name what to search, such as {LAMBDA}")
    plan = Plan(settings=settings, space=space, params=params, where=where, max_epochs=1)
    for path, dimension in space.items():
        for value in dimension.ends:
            plan.trial_settings({path: value})
    base = plan.trial_settings({})
    if settings.grace_epochs > base.epochs:
        raise ValueError(
            f"{where}: sweep.grace_epochs is {settings.grace_epochs}, a trial has {base.epochs} "
            f"epochs"
        )
    if settings.search != "optuna":
        plan.listed()
    return replace(plan, max_epochs=base.epochs * (2 if base.schedule == "two_stage" else 1))


def _dimension(path: str, spec: Mapping[str, Any], where: str) -> Dimension:
    shared = tuple(f"{of}.{name}" for name, of in shared_fields(FinetuneSettings).items())
    if not f"{path}.".startswith((f"{SECTION}.", *(f"{name}." for name in shared))):
        raise ValueError(
            f"{where}: sweep.space: {path!r} is no setting of {SECTION}; what can be searched is "
            f"{SECTION} itself and {', '.join(shared)}"
        )
    if path == f"{SECTION}.epochs":
        raise ValueError(
            f"{where}: sweep.space: {path} cannot be searched; sweep.epochs sets it for all trials"
        )
    rest = dict(spec)
    kind = rest.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(
            f"{where}: sweep.space.{path}: kind is {kind!r}; known: {', '.join(KINDS)}"
        )
    found: Dimension = convert(rest, KINDS[kind], f"{where}: sweep.space.{path}")
    return found


def _values(plan: Plan, path: str) -> Sequence[Any]:
    dimension = plan.space[path]
    if not isinstance(dimension, ChoiceSettings):
        raise ValueError(
            f"{plan.where}: sweep.search is {plan.settings.search}, which takes listed values "
            f"alone; {path} is a "
            "range: make it {kind: choice, values: [...]}, or search: optuna"
        )
    return dimension.values


def _grid(plan: Plan) -> list[dict[str, Any]]:
    """All combinations."""
    columns = [_values(plan, path) for path in plan.space]
    return [dict(zip(plan.space, row, strict=True)) for row in itertools.product(*columns)]


def _lines(plan: Plan) -> list[dict[str, Any]]:
    """One dimension after the other, the rest as params.yaml has them: the form of the paper's
    Table 7."""
    own = {path: setting(plan.params, path) for path in plan.space}
    rows = [own | {path: value} for path in plan.space for value in _values(plan, path)]
    return [row for place, row in enumerate(rows) if row not in rows[:place]]


SEARCHES: dict[str, Callable[[Plan], list[dict[str, Any]]]] = {"grid": _grid, "lines": _lines}


def setting(params: Mapping[str, Any], path: str) -> Any:
    """The value of a dotted name."""
    value: Any = params
    for key in path.split("."):
        value = value[key]
    return value
