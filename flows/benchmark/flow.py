"""The paper's tables, or a protocol of several folds, from one command, cell by cell, on the user's
own data.

    visage benchmark --size quick          (or: make benchmark SIZE=quick)
    visage protocol utkface_all_ages       (or: make protocol DATA=utkface_all_ages)

The second command runs all folds of a preset. Finished cells stay finished (`runs/`), so that the
command can be stopped and started at any time. Failed cells are tried again and named at the end.
The command writes reports/benchmark/NAME/TABLE.json and NAME.md; `--record` copies them to
docs/benchmark/, and `--only-write` makes them from the finished cells without running any.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows.benchmark.grid import (
    BenchmarkSettings,
    Cell,
    PriorRow,
    TableRow,
    TableSettings,
    WantedSettings,
    cells_of,
    read_benchmark,
    read_tables,
)
from flows.benchmark.results import document, refuse_unreadable
from flows.pipeline.dvc_stages import declared
from flows.pipeline.step_cache import REPOSITORY, run
from stages.settings import read_json
from visage.atomic import atomic_write
from visage.evaluation.bootstrap import Bootstrap, Estimate
from visage.evaluation.html import Table, title_of, with_interval
from visage.labels import LabelGrid
from visage.networks import any_options, build
from visage.networks.operations import count_macs

TABLES = REPOSITORY / "benchmarks" / "tables.yaml"
RESULTS = REPOSITORY / "reports" / "benchmark"
KEPT = REPOSITORY / "docs" / "benchmark"
BOOTSTRAP = Bootstrap(num_resamples=2000, interval=0.95, seed=0)
ABOUT = (
    "Brackets after a figure: Student's t over the seeds, or, of one seed, the bootstrap over "
    "people (pictures where nobody is known). Difference: MAE minus the reference's on the same "
    "faces, bootstrap over the same; bold where the interval leaves out 0. No correction for the "
    "number of rows. Folds: the test faces of all folds together."
)
PRIOR = (
    "As the paper's table has it (quoted, not run here; time: forward of 32 faces on an M40 GPU; "
    "external: more faces with labels than the set's own)."
)


def protocol_of(
    preset: str, seeds: Sequence[int]
) -> tuple[BenchmarkSettings, dict[str, TableSettings]]:
    """A preset, unchanged and with all its folds, as a benchmark of one row."""
    row = TableRow(stage="evaluate", settings={}, published={})
    table = TableSettings(
        title=f"Protocol of {preset}",
        metrics=("mae", "rmse", "pearson", "epsilon_error"),
        reference=preset,
        prior={},
        rows={preset: row},
    )

    wanted = {"protocol": WantedSettings(sets=(preset,), seeds=tuple(seeds))}
    return BenchmarkSettings(sets={preset: {}}, tables=wanted), {"protocol": table}


def page(name: str, found: Mapping[str, Any], tables: Mapping[str, TableSettings]) -> str:
    """The results as markdown, table by table with the machine and the code that made it."""
    parts = [f"# Benchmark {name}\n\nWritten by `visage benchmark`; edit nothing here. {ABOUT}"]

    for key, one in found.items():
        commits = ", ".join(commit[:12] for commit in one["git_commits"])
        parts.append(f"## {tables[key].title}")
        parts.append(f"Made by {', '.join(one['machines'])}; code {commits}.")

        for data, rows in one["sets"].items():
            table = rows_table(rows, tables[key], one["units"][data])
            parts += [f"{data}: {_budget_text(one['settings'][data])}", table.markdown()]
            if tables[key].prior:
                costs = costs_table(tables[key], one["settings"][data])
                parts += [f"{data}: what these networks cost, counted.", costs.markdown()]

        if tables[key].prior:
            parts += [PRIOR, prior_table(tables[key]).markdown()]

    return "\n\n".join(parts) + "\n"


def _budget_text(budget: Mapping[str, Any]) -> str:
    """The settings that all rows of a set share, in one line."""
    recipe = budget["recipe"]
    return (
        f"{budget['network']} at {budget['crop_px']} px from {budget['init']}, "
        f"{budget['epochs']} epochs, {recipe['optimiser']} {recipe['learning_rate']:g} "
        f"({recipe['schedule']}), batches of {recipe['batch_size']}, "
        f"augmentation {budget['augmentation']}; where a row does not say otherwise."
    )


def _sets_of(rows: Mapping[str, TableRow] | Mapping[str, PriorRow]) -> list[str]:
    """The sets for which rows have published figures, each once, in the order of the rows."""
    names: dict[str, None] = {}
    for row in rows.values():
        names |= dict.fromkeys(row.published)
    return list(names)


def rows_table(rows: Sequence[Mapping[str, Any]], table: TableSettings, unit: str) -> Table:
    """A line for each row, and a column for each published set."""
    published = _sets_of(table.rows)
    header = ["", *(title_of(metric, unit) for metric in table.metrics)]
    header += [f"MAE minus {table.reference}'s", "seeds better", "rule", "seeds"]
    # Results may be older than the table, and than the count of processor time.
    known = [row for row in rows if row["row"] in table.rows]
    timed = any("processor_hours" in row for row in known)
    header += ["training, processor hours"] * timed
    header += [f"published: {name}" for name in published]

    lines = [_line(row, table, published, timed) for row in known]
    return Table(caption="", header=header, rows=lines)


def costs_table(table: TableSettings, budget: Mapping[str, Any]) -> Table:
    """Parameters and multiply-accumulates of each row's network, at the crops and labels of a
    set."""
    num_labels = LabelGrid(**budget["grid"]).num_labels
    header = ["", "parameters (M)", f"multiply-accumulates a face of {budget['crop_px']} px (G)"]
    lines = []

    for name, row in table.rows.items():
        network = build(*_network_of(row, budget), num_labels)

        parameters = sum(weight.numel() for weight in network.parameters())
        macs = count_macs(network, budget["crop_px"])
        lines.append([name, f"{parameters / 1e6:.3f}", f"{macs / 1e9:.3f}"])

    return Table(caption="", header=header, rows=lines)


def _network_of(row: TableRow, budget: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and options of a row's network."""
    if "finetune.network" in row.settings:
        network = row.settings["finetune.network"]
        return network["name"], network["options"]

    changed = "finetune.network.name" in row.settings
    name = row.settings["finetune.network.name"] if changed else budget["network"]
    # Results may be older than this key. Where the name alone changes, options are those of VGG,
    # which change neither figure, so any legal value will do.
    options = budget.get("options") if name == budget["network"] else None
    return name, options or any_options(name)


def prior_table(table: TableSettings) -> Table:
    """The rows of other work that the paper quotes."""
    sets = _sets_of(table.prior)
    header = ["", "venue", "external", "single model", "parameters (M)", "time (ms)"]
    header += [f"{name}: {' / '.join(table.metrics)}" for name in sets]
    lines = [_prior_line(name, row, sets) for name, row in table.prior.items()]
    return Table(caption="", header=header, rows=lines)


def _prior_line(name: str, row: PriorRow, sets: Sequence[str]) -> list[str]:
    yes_or_no = {True: "yes", False: "no", None: ""}
    costs = [
        "" if row.parameters_millions is None else f"{row.parameters_millions:.1f}",
        "" if row.milliseconds is None else f"{row.milliseconds:.2f}",
    ]

    figures = []
    for one in sets:
        values = row.published.get(one, ())
        figures.append(" / ".join("-" if value is None else f"{value:.3f}" for value in values))

    return [
        name,
        row.venue,
        yes_or_no[row.external_labels],
        yes_or_no[row.single_model],
        *costs,
        *figures,
    ]


def _line(
    row: Mapping[str, Any], table: TableSettings, published: Sequence[str], timed: bool
) -> list[str]:
    theirs = [f"{row['processor_hours']:.2f}" if "processor_hours" in row else ""] * timed
    for name in published:
        values = table.rows[row["row"]].published.get(name, ())
        theirs.append(" / ".join(f"{value:.3f}" for value in values))
    if not row["seeds"]:
        return [row["row"], *["not run"] * (len(table.metrics) + 2), "", "", *theirs]

    metrics = row["metrics"]
    figures = [
        _figure(metric, metrics[metric]) if metric in metrics else "undefined"
        for metric in table.metrics
    ]
    folds = "" if row["num_folds"] == 1 else f", {row['num_folds']} folds"
    seeds = f"{len(row['seeds'])}{folds}"

    rule = row["decode"]
    if not row["flip"]:
        rule += ", no flip"
    if not row["converged"]:
        rule += ", fit cut short"

    return [row["row"], *figures, *_against(row), rule, seeds, *theirs]


def _figure(metric: str, figure: Mapping[str, float]) -> str:
    estimate = Estimate(value=figure["value"], low=figure["low"], high=figure["high"])
    return with_interval(metric, estimate, 3)


def _against(row: Mapping[str, Any]) -> list[str]:
    difference = row["against_reference"]
    if difference is None:
        return ["", ""]

    text = f"{difference['value']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f})"
    clear = difference["low"] > 0 or difference["high"] < 0
    return [
        f"**{text}**" if clear else text,
        f"{difference['num_seeds_better']} of {difference['num_seeds']}",
    ]


def write(
    name: str, found: Mapping[str, Any], tables: Mapping[str, TableSettings], record: bool
) -> None:
    """Writes RESULTS/NAME/TABLE.json for each table in `found`, and RESULTS/NAME.md with all tables
    that have such a file.

    `record` copies them to KEPT.
    """
    for key, one in found.items():
        text = json.dumps(one, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with atomic_write(RESULTS / name / f"{key}.json") as part:
            part.write_text(text, encoding="utf-8")

    files = {key: RESULTS / name / f"{key}.json" for key in tables}
    all_found = {key: read_json(path) for key, path in files.items() if path.is_file()}
    with atomic_write(RESULTS / f"{name}.md") as part:
        part.write_text(page(name, all_found, tables), encoding="utf-8")

    if record:
        shutil.copytree(RESULTS / name, KEPT / name, dirs_exist_ok=True)
        shutil.copyfile(RESULTS / f"{name}.md", KEPT / f"{name}.md")


def benchmark(
    what: str,
    *,
    seeds: Sequence[int],
    only_tables: Sequence[str],
    runs: Path,
    num_workers: int,
    num_threads: int,
    record: bool,
) -> dict[str, str]:
    """Runs the cells of a benchmark's file, or of a preset's protocol, and writes the tables;
    returns the failed steps with their reasons.

    `seeds` are those of a protocol. Without `only_tables` all tables of the file are made. No
    worker (`num_workers` 0) means that nothing runs and what is there is written.
    """
    file = Path(what)
    if file.suffix == ".yaml":
        settings = read_benchmark(file)
        tables = read_tables(TABLES)
    else:
        settings, tables = protocol_of(what, seeds)

    if odd := sorted(set(only_tables) - set(settings.tables)):
        raise ValueError(f"--table {odd[0]}: {what} has {', '.join(settings.tables)}")
    if only_tables:
        chosen = {name: settings.tables[name] for name in only_tables}
        settings = replace(settings, tables=chosen)

    cells = cells_of(settings, tables, declared(REPOSITORY), runs)
    refuse_unreadable(cells, tables)
    steps = {step.key: step for cell in cells for step in cell.steps}
    failed: dict[str, str] = {}
    if num_workers:
        failed = run(steps.values(), num_workers, num_threads)

    write(file.stem, _found(cells, tables), tables, record)
    print((RESULTS / f"{file.stem}.md").read_text(encoding="utf-8"))
    return failed


def _found(cells: Sequence[Cell], tables: Mapping[str, TableSettings]) -> dict[str, Any]:
    """Table -> its rows on each set, and where they come from."""
    found = {}
    for key, sets in document(cells, tables, BOOTSTRAP).items():
        mine = [cell for cell in cells if cell.table == key]
        own = {cell.data: cell.params for cell in mine if cell.row == tables[key].reference}
        notes = [done for cell in mine if (done := cell.step.done)]

        found[key] = {
            "machines": sorted({note["machine"]["words"] for note in notes}),
            "git_commits": sorted({note["git_commit"] for note in notes}),
            "units": {data: params["labels"]["unit"] for data, params in own.items()},
            "settings": {data: _budget(params) for data, params in own.items()},
            "sets": sets,
        }

    return found


def _budget(params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that all rows of a set share."""
    finetune = params["finetune"]
    kept = {"network": finetune["network"]["name"], "options": finetune["network"]["options"]}
    kept |= {name: finetune[name] for name in ("epochs", "init", "loss", "augmentation")}
    kept["grid"] = params["labels"]["grid"]
    recipe = finetune["recipes"][finetune["recipe"]]
    return {"crop_px": params["align"]["target"]["crop_px"], **kept, "recipe": recipe}
