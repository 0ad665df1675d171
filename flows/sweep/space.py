"""The `sweep` section of params.yaml: which settings of `finetune` are searched, over which values,
and how.

Paths are dotted names below `finetune`, or below the shared sections that it reads. Every listed
value, and both ends of every range, are converted to the settings' own types before anything
starts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from flows.benchmark.grid import with_settings
from stages.finetune import FinetuneSettings, loss_settings
from stages.settings import convert, section_settings, shared_fields
from visage.methods import METHODS
from visage.strict import check_range

SECTION = "finetune"
SIGMA = "labels.fixed_sigma"
LAMBDA = "finetune.loss.lambda_"
STEP = "labels.grid.step"


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
    """All numbers from `low` to `high`, each power of ten as likely as the next."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise ValueError(f"low is {self.low}: a logarithmic range begins above 0")


@dataclass(frozen=True, kw_only=True)
class IntegerSettings:
    """All integers from `low` to `high`, both included."""

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
        for value in self.values:
            if not isinstance(value, str | int | float):
                raise ValueError(f"values: {value!r} is neither a number nor a word")

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
    """Which settings are searched, how, and with which resources.

    `search`: `optuna` draws `num_samples` settings, each from the results so far, and ends poor
    trials early (ASHA). `grid` runs all combinations of the listed values. `lines` varies one
    dimension after the other and leaves the rest as in params.yaml. `grid` and `lines` run every
    trial to its end.

    `space`: path -> {kind: uniform | loguniform | integer, low, high} or {kind: choice, values}.
    `epochs` of a trial; null takes those of finetune. ASHA: after `grace_epochs`, and again after
    each `reduction_factor` times as many, one trial in `reduction_factor` continues, the best.
    `cpus_per_trial` and `gpus_per_trial` may be fractions. `max_concurrent` trials run at a time,
    null for as many as fit. A trial that fails resumes up to `max_failures` times. The trials write
    to `folder`; on a cluster, all nodes must see it. `experiment` is MLflow's.
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
    """A sweep that can run. `params` is what each trial changes, `where` the file it is from, and
    `max_epochs` the epochs of a trial in all phases."""

    settings: SweepSettings
    space: Mapping[str, Dimension]
    params: Mapping[str, Any]
    where: str
    max_epochs: int

    def trial_settings(self, values: Mapping[str, Any]) -> FinetuneSettings:
        """finetune's settings with these values; ValueError names a value that is not allowed."""
        changed = with_settings(self.params, values, f"{self.where}: sweep.space")
        chosen = ", ".join(f"{path} = {value}" for path, value in values.items())
        where = f"{self.where}: sweep.space with {chosen}"
        settings = section_settings(changed, SECTION, FinetuneSettings, where)

        # finetune.loss is a plain dictionary; the method's own settings check its values.
        if settings.method not in METHODS:
            raise ValueError(
                f"{where}: finetune.method is {settings.method!r}; known: {', '.join(METHODS)}"
            )
        try:
            loss_settings(settings)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

        return replace(settings, epochs=self.settings.epochs or settings.epochs)

    def listed(self) -> list[dict[str, Any]]:
        """Every trial of a search that draws nothing."""
        return SEARCHES[self.settings.search](self)

    def listed_values(self, path: str) -> list[Any]:
        """The values of a choice; with `lines` also the one in params.yaml, which the other lines
        have."""
        values = list(_values(self, path))
        own = setting(self.params, path)
        if self.settings.search == "lines" and own not in values:
            return sorted([*values, own])
        return values

    @property
    def num_trials(self) -> int:
        if self.settings.search == "optuna":
            return self.settings.num_samples
        return len(self.listed())

    def without(self, path: str) -> Plan:
        kept = {name: dimension for name, dimension in self.space.items() if name != path}
        return replace(self, space=kept)


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

    num_phases = 2 if base.schedule == "two_stage" else 1
    return replace(plan, max_epochs=base.epochs * num_phases)


def _dimension(path: str, spec: Mapping[str, Any], where: str) -> Dimension:
    shared = [f"{of}.{name}" for name, of in shared_fields(FinetuneSettings).items()]
    prefixes = tuple(f"{name}." for name in (SECTION, *shared))
    if not f"{path}.".startswith(prefixes):
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
            f"alone; {path} is a range: make it {{kind: choice, values: [...]}}, or search: optuna"
        )
    return dimension.values


def _grid(plan: Plan) -> list[dict[str, Any]]:
    """All combinations."""
    columns = [_values(plan, path) for path in plan.space]
    return [dict(zip(plan.space, row, strict=True)) for row in itertools.product(*columns)]


def _lines(plan: Plan) -> list[dict[str, Any]]:
    """One dimension after the other, the rest as in params.yaml: the form of the paper's
    Table 7."""
    own = {path: setting(plan.params, path) for path in plan.space}
    rows = [own | {path: value} for path in plan.space for value in _values(plan, path)]
    return [row for index, row in enumerate(rows) if row not in rows[:index]]


SEARCHES: dict[str, Callable[[Plan], list[dict[str, Any]]]] = {"grid": _grid, "lines": _lines}


def setting(params: Mapping[str, Any], path: str) -> Any:
    """The value of a dotted name."""
    value: Any = params
    for key in path.split("."):
        value = value[key]
    return value
