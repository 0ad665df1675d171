"""A benchmark's file becomes its cells: a table's row on a set with a seed and a fold, each with
all its settings.

Settings of a cell, each laid over the one before: params.yaml (the synthetic set), the set's preset
and those that the benchmark lays over it (`extends`), the benchmark's own changes for the set, the
row, the seed, the fold. A preset with several folds names them in its section `folds`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.pipeline.dvc_stages import Declared
from flows.pipeline.step_cache import REPOSITORY, Step, plan
from stages.presets import EXTENDS, SYNTHETIC, merged, read_yaml, with_presets
from stages.settings import convert

PRESETS = REPOSITORY / "presets"
SEED = "finetune.seed"
# The fold of a set without folds.
WHOLE = "whole"


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One line of a table: the stage whose predictions count, dotted settings, and published
    figures by set."""

    stage: str
    settings: Mapping[str, Any]
    published: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class PriorRow:
    """A line of the paper's table that is only quoted; None where the paper gives no value.

    `milliseconds`: forward of 32 faces on an M40. `published`: set -> one figure for each metric.
    """

    venue: str
    external_labels: bool | None
    single_model: bool | None
    parameters_millions: float | None
    milliseconds: float | None
    published: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """A table: its metrics, its rows, and the row that the others are compared with.

    `prior`: the rows of other work that the paper quotes. If there are any, the parameters and
    operations of the rows' networks are counted, too.
    """

    title: str
    metrics: tuple[str, ...]
    reference: str
    prior: Mapping[str, PriorRow]
    rows: Mapping[str, TableRow]

    def __post_init__(self) -> None:
        if self.reference not in self.rows:
            raise ValueError(
                f"reference {self.reference!r} is none of the rows {', '.join(self.rows)}"
            )


@dataclass(frozen=True, kw_only=True)
class WantedSettings:
    """The sets and seeds of a table."""

    sets: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """`sets`: preset name -> settings laid over it; among them `extends`, presets that win over it.
    `tables`: table name -> its sets and seeds."""

    sets: Mapping[str, Mapping[str, Any]]
    tables: Mapping[str, WantedSettings]

    def __post_init__(self) -> None:
        for name, wanted in self.tables.items():
            if odd := sorted(set(wanted.sets) - set(self.sets)):
                raise ValueError(f"tables.{name}: set {odd[0]!r} is none of {', '.join(self.sets)}")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One evaluation of a benchmark; `steps` lead to it, the last is `step`."""

    table: str
    row: str
    data: str
    seed: int
    fold: Any
    params: Mapping[str, Any]
    steps: tuple[Step, ...]

    @property
    def step(self) -> Step:
        return self.steps[-1]


def read_benchmark(file: Path) -> BenchmarkSettings:
    """Reads a benchmark's file."""
    settings: BenchmarkSettings = convert(read_yaml(file), BenchmarkSettings, str(file))
    return settings


def read_tables(file: Path) -> dict[str, TableSettings]:
    """Reads the definitions of all tables."""
    return {
        name: convert(value, TableSettings, f"{file}: {name}")
        for name, value in read_yaml(file).items()
    }


def cells_of(
    benchmark: BenchmarkSettings,
    tables: Mapping[str, TableSettings],
    stages: Sequence[Declared],
    runs: Path,
) -> list[Cell]:
    """All cells, seed by seed: a run that is cut short has complete tables of the first seeds."""
    if odd := sorted(set(benchmark.tables) - set(tables)):
        raise ValueError(f"tables: {odd[0]!r} is unknown; known: {', '.join(tables)}")

    bases = {name: settings_of(name, changes) for name, changes in benchmark.sets.items()}
    seeds: set[int] = set()
    for wanted in benchmark.tables.values():
        seeds.update(wanted.seeds)

    cells: list[Cell] = []
    for seed in sorted(seeds):
        for name, wanted in benchmark.tables.items():
            if seed not in wanted.seeds:
                continue
            for data in wanted.sets:
                cells += _cells(name, tables[name], data, seed, bases[data], stages, runs)
    return cells


def _cells(
    name: str,
    table: TableSettings,
    data: str,
    seed: int,
    base: Mapping[str, Any],
    stages: Sequence[Declared],
    runs: Path,
) -> Iterator[Cell]:
    folds: list[tuple[Any, dict[str, Any]]] = [(WHOLE, {})]
    if "folds" in base:
        key = base["folds"]["key"]
        folds = [(value, {key: value}) for value in base["folds"]["values"]]

    for row_name, row in table.rows.items():
        for fold, chosen in folds:
            changes = {**row.settings, SEED: seed, **chosen}
            params = with_settings(base, changes, f"table {name}, row {row_name}")
            steps = tuple(plan(stages, params, row.stage, runs).values())
            yield Cell(
                table=name,
                row=row_name,
                data=data,
                seed=seed,
                fold=fold,
                params=params,
                steps=steps,
            )


def settings_of(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a set, independent of the presets in use: params.yaml, the set's preset,
    those that `changes` extends, and a benchmark's changes."""
    base = read_yaml(REPOSITORY / "params.yaml")
    changes = dict(changes)
    presets = list(changes.pop(EXTENDS, []))
    if name != SYNTHETIC:
        presets.append(name)

    settings = with_presets(base, presets, PRESETS)
    _refuse_unknown(settings, changes, f"sets.{name}")
    return dict(merged(settings, changes))


def _refuse_unknown(params: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> None:
    """Raises ValueError for a setting that no stage has, before hours are spent on it.

    The settings below a download are not checked: its adapter defines them.
    """
    for name, value in changes.items():
        if name not in params:
            raise ValueError(
                f"{where}: params.yaml has no setting {name!r} there, only "
                f"{', '.join(map(str, params))}"
            )

        is_section = isinstance(value, Mapping) and isinstance(params[name], Mapping)
        if is_section and not where.endswith(".download"):
            _refuse_unknown(params[name], value, f"{where}.{name}")


def with_settings(
    params: Mapping[str, Any], changes: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """A copy of all settings in which dotted names have other values; ValueError for an unknown
    name."""
    changed = copy.deepcopy(dict(params))
    for name, value in changes.items():
        *parents, last = name.split(".")
        section: Any = changed
        for parent in parents:
            section = section[parent] if isinstance(section, dict) and parent in section else None
        if not isinstance(section, dict) or last not in section:
            raise ValueError(f"{where}: params.yaml has no setting {name!r}")
        section[last] = value

    return changed
