"""Steps of many settings: what is shared, what is run, what a failure leaves."""

from __future__ import annotations

import copy
import json
import multiprocessing
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import flows.pipeline.step_cache
from flows.pipeline.dvc_stages import Declared, declared
from flows.pipeline.step_cache import RESOLVED, last_line, plan, run
from stages.presets import read_params
from tests.flows import toy
from tests.imports import REPOSITORY
from tests.stages.photo_sets import lay


@pytest.fixture(autouse=True)
def fresh_digests() -> None:
    """Every test is a process of its own to the digests of code."""
    flows.pipeline.step_cache._code.cache_clear()


@pytest.fixture(scope="module")
def stages() -> list[Declared]:
    return declared(REPOSITORY)


def test_stages_are_those_of_dvc_yaml_in_an_order_that_runs(stages: list[Declared]) -> None:
    made: set[str] = set()
    for stage in stages:
        sources: set[str] = set()
        if stage.name == "settings":
            sources = {"params.yaml", "presets", "stages/presets.py"}
        elif stage.name.startswith("download@"):
            sources = {f"incoming/{stage.name.split('@')[1]}"}
        elif stage.name == "finetune":
            sources = {"models/start"}
        elif stage.name == "fuse":
            sources = {"models/members"}
        assert set(stage.inputs) - made == sources, stage.name
        made |= set(stage.outputs)

    by_name = {stage.name: stage for stage in stages}
    declared_in_yaml = read_params(REPOSITORY / "dvc.yaml")["stages"]
    assert len(stages) == sum(2 if "foreach" in stage else 1 for stage in declared_in_yaml.values())
    assert {"finetune", "labels.grid", "inference.decode"} <= set(by_name["finetune"].params)
    assert set(by_name["finetune"].inputs) == {
        "code/finetune.json",
        "data/target/faces",
        "models/backbone",
        "models/start",
        RESOLVED,
    }
    assert by_name["align@target"].params == ("align.target",)


def keys(stages: list[Declared], **changes: int) -> dict[str, str]:
    params = read_params(REPOSITORY / "params.yaml")
    for name, value in changes.items():
        params[name]["seed"] = value
    return {name: step.key for name, step in plan(stages, params, "evaluate", Path("runs")).items()}


def test_cells_share_what_they_have_in_common(stages: list[Declared]) -> None:
    before = keys(stages)
    finetuned = keys(stages, finetune=7)
    evaluated = keys(stages, evaluate=7)
    assert {name for name in before if before[name] != evaluated[name]} == {"evaluate"}
    changed = {name for name in before if before[name] != finetuned[name]}
    assert "finetune" in changed
    assert "evaluate" in changed
    assert not changed & {"pretrain", "align@target", "download@identity"}


def test_only_what_leads_to_the_goal_is_planned(stages: list[Declared]) -> None:
    params = read_params(REPOSITORY / "params.yaml")
    assert set(plan(stages, params, "pretrain", Path("runs"))) == {
        "download@identity",
        "validate@identity",
        "align@identity",
        "pretrain",
    }
    with pytest.raises(ValueError, match="no stage 'train'"):
        plan(stages, params, "train", Path("runs"))


def test_code_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.pipeline.step_cache, "REPOSITORY", tmp_path)
    command = ("python", "-m", "a")
    stage = Declared(name="a", command=command, params=("a",), inputs=(), outputs=("o",))
    (tmp_path / "a.py").write_text("print(1)")
    before = plan([stage], {"a": 1}, "a", tmp_path)["a"].key

    (tmp_path / "a.py").write_text("print( 1 )  # one")
    flows.pipeline.step_cache._code.cache_clear()
    assert plan([stage], {"a": 1}, "a", tmp_path)["a"].key == before

    (tmp_path / "a.py").write_text("print(2)")
    flows.pipeline.step_cache._code.cache_clear()
    assert plan([stage], {"a": 1}, "a", tmp_path)["a"].key != before


def test_code_chosen_before_a_step_is_part_of_its_key(
    stages: list[Declared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`evaluate` reads the method from the model; finetune's settings choose the method."""
    shutil.copytree(REPOSITORY / "stages", tmp_path / "stages")
    shutil.copytree(REPOSITORY / "visage", tmp_path / "visage")
    (tmp_path / "incoming/target").mkdir(parents=True)
    (tmp_path / "incoming/identity").mkdir()
    monkeypatch.setattr(flows.pipeline.step_cache, "REPOSITORY", tmp_path)
    params = read_params(REPOSITORY / "params.yaml")
    params["finetune"]["method"] = "mr_l2"
    [evaluate] = [stage for stage in stages if stage.name == "evaluate"]

    def found() -> str:
        flows.pipeline.step_cache._code.cache_clear()
        return plan(stages, params, "evaluate", tmp_path)[evaluate.name].key

    before = found()
    methods = tmp_path / "visage" / "methods.py"
    text = methods.read_text(encoding="utf-8")
    methods.write_text(text.replace("torch.tanh(", "torch.sin("), encoding="utf-8")
    assert found() != before
    methods.write_text(text.replace(".sort(dim=1, descending=True)", ".sort(1)"), encoding="utf-8")
    # The changed line is of ranking, which is not chosen.
    assert found() == before


def test_photos_that_came_are_part_of_the_key_of_who_reads_them(
    stages: list[Declared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(REPOSITORY / "stages", tmp_path / "stages")
    shutil.copytree(REPOSITORY / "visage", tmp_path / "visage")
    (tmp_path / "incoming/target").mkdir(parents=True)
    (tmp_path / "incoming/identity").mkdir()
    monkeypatch.setattr(flows.pipeline.step_cache, "REPOSITORY", tmp_path)
    params = read_params(REPOSITORY / "params.yaml")
    alone = copy.deepcopy(params)
    alone["download"]["target"]["incoming"] = None

    def found(settings: dict[str, Any]) -> dict[str, str]:
        steps = plan(stages, settings, "align@target", tmp_path)
        return {name: step.key for name, step in steps.items()}

    (tmp_path / "incoming/target/labelled").mkdir()
    before = [found(params), found(alone)]
    table = tmp_path / "incoming/target/labelled/labels.csv"
    for text in ("photo,label,person\na.jpg,31,anna\n", "photo,label,person\na.jpg,32,anna\n"):
        table.write_text(text, encoding="utf-8")
        after = [found(params), found(alone)]
        assert after[1] == before[1], "a step that does not read them is not run again"
        assert all(after[0][name] != before[0][name] for name in before[0])
        before = after


def test_what_was_added_to_dvc_is_no_stage(tmp_path: Path) -> None:
    dvc = partial(subprocess.run, check=True, cwd=tmp_path, capture_output=True)
    lay(tmp_path, {"in/labelled/a": b"a", "dvc.yaml": b"stages: {a: {cmd: ls in, deps: [in]}}\n"})
    dvc([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"])
    dvc([sys.executable, "-m", "dvc", "add", "-q", "in/labelled"])
    assert [(stage.name, stage.inputs) for stage in declared(tmp_path)] == [("a", ("in",))]


def test_every_distinct_step_runs_once(tmp_path: Path) -> None:
    steps = toy.steps(tmp_path, toy.params(3), toy.params(3, total=1), toy.params(4))
    assert run(steps, 2, 1) == {}
    totals = [step.output("total.txt").read_text() for step in steps if step.stage.name == "total"]
    assert sorted(totals) == ["6!", "6!", "8!"]
    assert len(steps) == 7
    logs = [(step.folder / "log.txt") for step in steps if step.stage.name == "doubled"]
    assert [log.read_text() for log in logs] == ["doubling\n"] * 2
    assert all((step.done or {})["machine"]["words"] for step in steps)


def test_what_is_done_stays_done(tmp_path: Path) -> None:
    steps = toy.steps(tmp_path, toy.params(3))
    run(steps, 1, 1)
    steps[0].output("numbers.txt").write_text("9")
    assert run(steps, 1, 1) == {}
    assert steps[-1].output("total.txt").read_text() == "6!"


def test_a_failure_stops_what_needs_it_and_nothing_else(tmp_path: Path) -> None:
    steps = toy.steps(tmp_path, toy.params(3, wrong=True), toy.params(5))
    failed = run(steps, 2, 1)
    assert [name.split("-")[0] for name in failed] == ["doubled", "total"]

    reasons = list(failed.values())
    assert "told to fail" in reasons[0]
    assert "exit status 1" in reasons[0]
    assert "not run, because doubled-" in reasons[1]
    assert sorted(step.stage.name for step in steps if step.done) == [
        "doubled",
        "numbers",
        "numbers",
        "total",
    ]


def test_a_failed_step_is_tried_again(tmp_path: Path) -> None:
    steps = toy.steps(tmp_path, toy.params(3))
    (steps[1].folder / "doubled").mkdir(parents=True)
    (steps[1].folder / "doubled").rmdir()
    (steps[1].folder / "doubled").write_text("in the way")
    assert len(run(steps, 1, 1)) == 2
    (steps[1].folder / "doubled").unlink()
    assert run(steps, 1, 1) == {}


def test_two_runs_at_once_do_not_do_a_step_twice(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_run_slowly, args=(tmp_path,)) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join(30)
        assert other.exitcode == 0
    assert (tmp_path / "count.txt").read_text() == "."


def _run_slowly(folder: Path) -> None:
    program = f"import time; time.sleep(1); open({str(folder / 'count.txt')!r}, 'a').write('.')"
    stage = Declared(
        name="a",
        command=("python", "-c", program),
        params=("a",),
        inputs=(),
        outputs=("o",),
    )
    assert run(plan([stage], {"a": 1}, "a", folder).values(), 1, 1) == {}


def test_a_step_sees_its_own_settings_alone(tmp_path: Path) -> None:
    steps = toy.steps(tmp_path, toy.params(3))
    run(steps, 1, 1)
    assert json.loads((steps[1].folder / "params.yaml").read_text()) == {
        "doubled": {"wrong": False}
    }


def test_last_line_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one\ntwo\n\n")
    assert last_line(tmp_path / "log", 0) == "two"
    assert last_line(tmp_path / "log", 8) == "(nothing was printed)"


def test_a_disk_that_refuses_stops_one_step_alone(tmp_path: Path) -> None:
    steps = toy.steps(tmp_path, toy.params(3), toy.params(4))
    (steps[0].folder / "params.yaml").mkdir(parents=True)  # cannot be replaced by a file
    failed = run(steps, 1, 1)
    assert [name.split("-")[0] for name in failed] == ["numbers", "doubled", "total"]
    assert "params.yaml" in failed[steps[0].name]
