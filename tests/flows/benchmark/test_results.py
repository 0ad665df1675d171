"""Cells with known predictions become rows with known figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flows.benchmark.flow import KEPT, TABLES, costs_table, page, prior_table
from flows.benchmark.grid import Cell, TableRow, TableSettings, read_tables
from flows.benchmark.results import document, refuse_unreadable
from flows.pipeline.dvc_stages import Declared
from flows.pipeline.step_cache import Step
from visage.evaluation.bootstrap import Bootstrap

BOOTSTRAP = Bootstrap(num_resamples=300, interval=0.95, seed=0)
FACES = Declared(name="align", command=(), params=(), inputs=(), outputs=("data/target/faces",))
PREDICTIONS = "reports/predictions.parquet"
EVALUATE = Declared(
    name="evaluate",
    command=(),
    params=(),
    inputs=FACES.outputs,
    outputs=(PREDICTIONS, "reports/metrics.json"),
)
ROWS = {
    name: TableRow(stage="evaluate", settings={}, published={"morph": (1.969,)})
    for name in ("good", "bad", "none")
}
TABLE = TableSettings(
    title="A table", metrics=("mae", "epsilon_error"), reference="good", prior={}, rows=ROWS
)
LABEL = np.linspace(20, 60, 60)


def cell(
    folder: Path, row: str, seed: int, error: np.ndarray | None, fold: int = 0, key: str = ""
) -> Cell:
    """A cell whose predictions are off by `error`; None: not finished."""
    nothing: dict[str, Any] = {"params": {}, "written_as": {}}
    faces = Step(stage=FACES, inputs={}, key="f", folder=folder / "faces", **nothing)
    name = key or f"{row}{seed}{fold}"
    inputs = {"data/target/faces": faces}
    step = Step(stage=EVALUATE, inputs=inputs, key=name, folder=folder / name, **nothing)
    (step.folder / "reports").mkdir(parents=True, exist_ok=True)

    photos = [f"{number}.jpg" for number in range(len(LABEL))]
    shards = step.folder / "data" / "target" / "faces"
    shards.mkdir(parents=True, exist_ok=True)
    who = {
        "photo_id": photos,
        "person": None,
        "sha256": [f"{number // 2}" for number in range(len(LABEL))],
    }
    pd.DataFrame(who).to_parquet(shards / "part-0.parquet")

    if error is not None:
        predicted = {
            "photo_id": photos,
            "label": LABEL,
            "sigma": np.nan,
            "split": "test",
            "prediction": LABEL + error,
        }
        pd.DataFrame(predicted).to_parquet(step.output(PREDICTIONS))
        (step.folder / ".done.json").write_text(
            json.dumps({"machine": {"words": "a machine"}, "git_commit": "abc"})
        )
        decision = {"decode": "expectation", "flip": True, "model": {"name": "x"}}
        step.output("reports/metrics.json").write_text(json.dumps({"decision": decision}))

    params = {"labels": {"epsilon_sigma": 2.0}, "evaluate": {"decode": "expectation"}}
    return Cell(
        table="t", row=row, data="set", seed=seed, fold=fold, params=params, steps=(faces, step)
    )


def rows(cells: list[Cell]) -> dict[str, Any]:
    return {row["row"]: row for row in document(cells, {"t": TABLE}, BOOTSTRAP)["t"]["set"]}


def everything(sets: dict[str, Any]) -> dict[str, Any]:
    """Rows as the benchmark keeps them, with their origin."""
    recipe = {"optimiser": "adamw", "learning_rate": 1e-3, "schedule": "cosine", "batch_size": 64}
    budget = {
        "network": "tiny",
        "crop_px": 48,
        "init": "backbone",
        "epochs": 6,
        "augmentation": "none",
        "recipe": recipe,
    }

    origin = {"machines": ["a machine"], "git_commits": ["abc"], "units": {"set": "years"}}
    return origin | {"settings": {"set": budget}, "sets": sets}


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (4, len(LABEL)))


def test_figures_are_means_over_seeds_with_students_interval(
    tmp_path: Path, noise: np.ndarray
) -> None:
    found = rows([cell(tmp_path, "good", seed, noise[seed]) for seed in range(3)])["good"]
    values = np.abs(noise[:3]).mean(axis=1)
    assert found["metrics"]["mae"]["values"] == pytest.approx(values)

    # Student's t, 2 degrees of freedom, 97.5 %.
    half = 4.302652729911275 * values.std(ddof=1) / np.sqrt(3)
    mae = found["metrics"]["mae"]
    assert [mae["value"], mae["low"], mae["high"]] == pytest.approx(
        [values.mean(), values.mean() - half, values.mean() + half]
    )

    assert found["metrics"]["epsilon_error"]["value"] == pytest.approx(
        (1 - np.exp(-(noise[:3] ** 2) / 8)).mean()
    )
    assert found["against_reference"] is None


def test_training_s_processor_time_stands_beside_the_error(
    tmp_path: Path, noise: np.ndarray
) -> None:
    """The mean over the seeds of the sum over the epochs, where a training says it."""
    cells = []
    for seed, seconds in enumerate((1000.0, 2000.0)):
        one = cell(tmp_path, "good", seed, noise[seed])
        trained = Declared(
            name="finetune",
            command=("python",),
            inputs=(),
            params=(),
            outputs=("reports/history/finetune.csv",),
        )
        folder = tmp_path / f"finetune{seed}"
        step = Step(
            stage=trained, params={}, inputs={}, written_as={}, key=folder.name, folder=folder
        )
        history = step.output("reports/history/finetune.csv")
        history.parent.mkdir(parents=True)
        history.write_text(f"epoch,processor_seconds\n1,800\n2,{seconds}\n", encoding="utf-8")
        cells.append(replace(one, steps=(step, *one.steps)))
    found = rows([*cells, cell(tmp_path, "bad", 0, noise[0])])
    assert found["good"]["processor_hours"] == pytest.approx(2300 / 3600)
    text = page("x", {"t": everything({"set": list(found.values())})}, {"t": TABLE})
    assert "training, processor hours" in text
    assert "| 0.64 |" in text


def test_one_seed_has_a_bootstrap_interval_over_pictures(tmp_path: Path, noise: np.ndarray) -> None:
    mae = rows([cell(tmp_path, "good", 0, noise[0])])["good"]["metrics"]["mae"]
    assert mae["low"] < np.abs(noise[0]).mean() < mae["high"]

    twice = cell(tmp_path / "same", "good", 0, np.repeat(noise[0][::2], 2))
    pairs = rows([twice])["good"]["metrics"]["mae"]
    alone = np.abs(noise[0][::2])
    assert pairs["high"] - pairs["low"] == pytest.approx(
        2 * 1.96 * alone.std() / np.sqrt(len(alone)), rel=0.2
    )


def test_differences_are_paired_by_face(tmp_path: Path, noise: np.ndarray) -> None:
    # Each face is 0.1 further off: the difference is certain, though the errors scatter by 1.
    worse = noise + 0.1 * np.sign(noise)
    cells = [cell(tmp_path, "good", seed, noise[seed]) for seed in range(3)]
    cells += [cell(tmp_path, "bad", seed, worse[seed]) for seed in range(2)]
    difference = rows(cells)["bad"]["against_reference"]
    assert [difference[end] for end in ("value", "low", "high")] == pytest.approx([0.1] * 3)
    assert (difference["num_seeds"], difference["num_seeds_better"]) == (2, 0)
    assert difference["share_below"] == 0


def test_folds_of_a_seed_are_one(tmp_path: Path, noise: np.ndarray) -> None:
    cells = [cell(tmp_path, "good", 0, noise[fold], fold) for fold in range(2)]
    found = rows(cells)["good"]
    assert (found["num_folds"], found["num_faces"], found["seeds"]) == (2, 120, [0])
    assert found["metrics"]["mae"]["value"] == pytest.approx(np.abs(noise[:2]).mean())


def test_unfinished_seeds_are_left_out_and_unfinished_rows_say_so(
    tmp_path: Path, noise: np.ndarray
) -> None:
    cells = [cell(tmp_path, "good", 0, noise[0], 0), cell(tmp_path, "good", 0, None, 1)]
    cells += [cell(tmp_path, "good", 1, noise[1], fold) for fold in range(2)]
    cells += [cell(tmp_path, "bad", 0, None)]
    found = rows(cells)
    assert found["good"]["seeds"] == [1]
    assert found["bad"] == {"row": "bad", "seeds": []}
    text = page("x", {"t": everything({"set": list(found.values())})}, {"t": TABLE})
    assert "| bad | not run | not run |" in text
    assert "1.969" in text


def test_seeds_that_change_nothing_count_once(tmp_path: Path, noise: np.ndarray) -> None:
    cells = [cell(tmp_path, "good", seed, noise[0], key="same") for seed in range(3)]
    assert rows(cells)["good"]["seeds"] == [0]


def test_page_says_which_differences_are_clear(tmp_path: Path, noise: np.ndarray) -> None:
    cells = [
        cell(tmp_path, "good", 0, noise[0]),
        cell(tmp_path, "bad", 0, noise[0] + np.sign(noise[0])),
    ]
    cells += [cell(tmp_path, "none", 0, noise[1])]
    found = document(cells, {"t": TABLE}, BOOTSTRAP)
    text = page("x", {"t": everything(found["t"])}, {"t": TABLE})

    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    assert "**+1.000 (+1.000 to +1.000)**" in lines["bad"]
    assert "0 of 1" in lines["bad"]
    assert "**" not in lines["none"]


def test_a_metric_without_sigmas_is_undefined_and_left_out(
    tmp_path: Path, noise: np.ndarray
) -> None:
    one = cell(tmp_path, "good", 0, noise[0])
    one.params["labels"]["epsilon_sigma"] = None
    found = rows([one])
    assert set(found["good"]["metrics"]) == {"mae"}
    text = page("x", {"t": everything({"set": list(found.values())})}, {"t": TABLE})
    assert "undefined" in text
    json.dumps(found, allow_nan=False)


def test_fits_that_were_cut_short_say_so(tmp_path: Path, noise: np.ndarray) -> None:
    one = cell(tmp_path, "good", 0, noise[0])
    decision = {"decode": "rank", "flip": False, "model": {"strength": 10.0, "converged": False}}
    one.step.output("reports/metrics.json").write_text(json.dumps({"decision": decision}))
    found = rows([one])
    assert "rank, no flip, fit cut short" in page(
        "x", {"t": everything({"set": list(found.values())})}, {"t": TABLE}
    )


def test_what_cannot_be_read_is_refused_before_it_runs(tmp_path: Path) -> None:
    cells = [cell(tmp_path, "good", 0, None)]
    refuse_unreadable(cells, {"t": TABLE})
    with pytest.raises(ValueError, match="metric 'maee' is unknown; known: mae"):
        refuse_unreadable(cells, {"t": replace(TABLE, metrics=("maee",))})
    with pytest.raises(ValueError, match=r"stage align leaves no predictions.parquet"):
        refuse_unreadable([replace(cells[0], steps=cells[0].steps[:1])], {"t": TABLE})


def test_kept_results_are_what_their_page_says() -> None:
    """docs/benchmark/*.md is written from the JSON files next to it, and fits the present
    tables."""
    tables = read_tables(TABLES)
    for written in sorted(KEPT.glob("*.md")):
        files = {key: KEPT / written.stem / f"{key}.json" for key in tables}
        found = {
            key: json.loads(path.read_text(encoding="utf-8"))
            for key, path in files.items()
            if path.is_file()
        }

        assert found
        assert written.read_text(encoding="utf-8") == page(written.stem, found, tables)


def test_table_2_counts_its_networks_and_quotes_the_others() -> None:
    """Thin and Tiny at the paper's size (3.7 M and 0.9 M, section 3.3), and lines with gaps."""
    table = read_tables(TABLES)["networks_age"]
    grid = {"minimum": 0, "step": 1, "maximum": 100}
    budget = {"network": "tiny", "crop_px": 224, "grid": grid}
    rows = {row[0]: row[1:] for row in costs_table(table, budget).rows}
    assert rows == {"TinyAgeNet": ["0.935", "0.975"], "ThinAgeNet": ["3.708", "3.858"]}

    quoted = prior_table(table)
    lines = {row[0]: dict(zip(quoted.header, row, strict=True)) for row in quoted.rows}
    assert lines["Human"]["chalearn15: mae / epsilon_error"] == "- / 0.340"
    assert lines["LDAE (eleven models)"]["parameters (M)"] == "1480.6"
    assert lines["LDAE (eleven models)"]["single model"] == "no"
    assert lines["DRFs"]["time (ms)"] == ""
    for name in ("TinyAgeNet", "ThinAgeNet"):
        published = table.rows[name].published
        assert table.prior[f"DLDL-v2, {name}"].published == published


@pytest.mark.parametrize("name", read_tables(TABLES))
def test_quoted_lines_have_a_figure_a_metric(name: str) -> None:
    table = read_tables(TABLES)[name]
    for row in table.prior.values():
        assert all(len(values) in (1, len(table.metrics)) for values in row.published.values())


def test_a_table_without_quoted_lines_has_no_more_columns() -> None:
    found = {
        "machines": ["m"],
        "git_commits": ["c"],
        "units": {"set": "years"},
        "settings": {},
        "sets": {},
    }
    assert "As the paper's table" not in page("t", {"t": found}, {"t": TABLE})
