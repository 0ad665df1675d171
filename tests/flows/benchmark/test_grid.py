"""Benchmarks' files against params.yaml: what they set exists, budgets are equal, cells are what
they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.benchmark.flow import TABLES, protocol_of
from flows.benchmark.grid import (
    BenchmarkSettings,
    WantedSettings,
    cells_of,
    read_benchmark,
    read_tables,
    settings_of,
    with_settings,
)
from flows.pipeline.dvc_stages import declared
from tests.imports import REPOSITORY

FILES = sorted(path for path in TABLES.parent.glob("*.yaml") if path != TABLES)
SHARED = (
    "epochs",
    "recipe",
    "seed",
    "batch_size",
    "init",
    "cache_mb",
    "align",
    "download",
    "validate",
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_benchmarks_name_tables_and_presets_that_exist(file: Path) -> None:
    benchmark = read_benchmark(file)
    tables = read_tables(TABLES)
    cells = cells_of(benchmark, tables, declared(REPOSITORY), Path("runs"))
    assert {cell.table for cell in cells} == set(benchmark.tables)
    assert {cell.data for cell in cells} <= set(benchmark.sets)


@pytest.mark.parametrize("name", read_tables(TABLES))
def test_rows_of_a_table_have_equal_budgets(name: str) -> None:
    table = read_tables(TABLES)[name]
    # Rows that change options of DHAA alone are for sets whose preset has it
    params = settings_of("drawn_dhaa" if name.startswith("dhaa") else "synthetic", {})
    for row in table.rows.values():
        with_settings(params, row.settings, name)  # every name exists
        assert not [key for key in row.settings if set(key.split(".")) & set(SHARED)]
        assert all(len(values) in (1, len(table.metrics)) for values in row.published.values())


def test_table_7_published_stands_beside_the_loss_that_made_it() -> None:
    """The released code averages KL over labels: a summed row of one lambda is another loss."""
    rows = read_tables(TABLES)["sensitivity"].rows
    reductions = {
        name: row.settings.get("finetune.loss.kl_reduction", "sum") for name, row in rows.items()
    }
    assert {name for name, row in rows.items() if row.published} == {
        name for name, reduction in reductions.items() if reduction == "mean"
    }
    for name, reduction in reductions.items():
        assert reduction in name.replace("averaged", "mean").replace("summed", "sum")

    by_name = {name: row.published["chalearn15"][0] for name, row in rows.items() if row.published}
    assert by_name["lambda 0.01 averaged, step 1"] == 3.223
    assert by_name["lambda 1 averaged, step 1"] == 3.135


def test_rows_of_a_table_differ() -> None:
    for table in read_tables(TABLES).values():
        described = [(row.stage, sorted(row.settings.items())) for row in table.rows.values()]
        assert all(described.count(one) == 1 for one in described)


def test_cells_come_seed_by_seed_and_share_the_backbone() -> None:
    benchmark = BenchmarkSettings(
        sets={"synthetic": {"finetune": {"epochs": 2}}},
        tables={"augmentation_pooling": WantedSettings(sets=("synthetic",), seeds=(1, 0))},
    )
    cells = cells_of(benchmark, read_tables(TABLES), declared(REPOSITORY), Path("runs"))
    assert [cell.seed for cell in cells] == [0, 0, 0, 1, 1, 1]
    assert {cell.params["finetune"]["epochs"] for cell in cells} == {2}
    assert [cell.params["finetune"]["seed"] for cell in cells] == [0, 0, 0, 1, 1, 1]

    backbones = [
        next(step.key for step in cell.steps if step.stage.name == "pretrain") for cell in cells
    ]
    plain, gap, hybrid, *others = backbones
    assert plain == hybrid != gap
    assert others == [plain, gap, hybrid]
    assert len({cell.step.key for cell in cells}) == 6


def test_a_protocol_has_a_cell_for_every_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    folds = {"key": "download.target.split.fold", "values": [0, 1, 2]}
    base = settings_of("synthetic", {}) | {"folds": folds}
    monkeypatch.setattr("flows.benchmark.grid.settings_of", lambda *_: base)

    settings, tables = protocol_of("synthetic", [0, 1])
    cells = cells_of(settings, tables, declared(REPOSITORY), Path("runs"))
    assert [(cell.seed, cell.fold) for cell in cells] == [
        (seed, fold) for seed in (0, 1) for fold in (0, 1, 2)
    ]
    assert [cell.params["download"]["target"]["split"]["fold"] for cell in cells] == [0, 1, 2] * 2


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"finetune.methode": "er"}, "no setting 'finetune.methode'"),
        ({"finetune.loss.lambda_.x": 1}, "no setting 'finetune.loss.lambda_.x'"),
    ],
)
def test_a_setting_that_is_not_there_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        with_settings(settings_of("synthetic", {}), changes, "here")


def test_a_set_without_folds_has_one_that_all_seeds_share() -> None:
    """Otherwise no face of one seed would be found again in another."""
    settings, tables = protocol_of("synthetic", [0, 1, 2])
    cells = cells_of(settings, tables, declared(REPOSITORY), Path("runs"))
    assert {cell.fold for cell in cells} == {"whole"}


@pytest.mark.parametrize(
    "changes", [{"finetune": {"epoch": 6}}, {"finetuning": {}}, {"align": {"target": {"px": 1}}}]
)
def test_a_change_of_a_set_that_no_stage_knows_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError,
        match=r"sets.synthetic.*: params.yaml has no setting '(epoch|finetuning|px)' there",
    ):
        settings_of("synthetic", changes)


def test_presets_may_be_laid_over_the_set_of_a_benchmark() -> None:
    changed = settings_of("scut_fbp", {"extends": ["dldl_v2_paper"], "finetune": {"epochs": 2}})
    assert (changed["finetune"]["network"]["name"], changed["finetune"]["epochs"]) == ("thin", 2)
    assert changed["labels"]["quantity"] == "attractiveness"


def test_settings_are_copied() -> None:
    params = settings_of("synthetic", {})
    with_settings(params, {"finetune.loss.lambda_": 5.0}, "here")
    assert params["finetune"]["loss"]["lambda_"] == 1.0


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'faces' is none of synthetic"):
        BenchmarkSettings(
            sets={"synthetic": {}},
            tables={"single_stage": WantedSettings(sets=("faces",), seeds=(0,))},
        )
    with pytest.raises(ValueError, match=r"no such preset; there are synthetic, .*utkface_coral"):
        settings_of("utkfase", {})

    (tmp_path / "b.yaml").write_text(
        "sets: {synthetic: {}}\ntables: {table_six: {sets: [synthetic], seeds: [0]}}\n"
    )
    benchmark = read_benchmark(tmp_path / "b.yaml")
    with pytest.raises(ValueError, match="'table_six' is unknown; known: single_stage"):
        cells_of(benchmark, read_tables(TABLES), declared(REPOSITORY), tmp_path)


def test_presets_are_those_of_the_repository() -> None:
    assert settings_of("utkface_coral", {})["download"]["target"]["source"] == "utkface"
    assert TABLES.parents[1] == REPOSITORY
