"""dvc.yaml in itself and beside params.yaml: order, names, paths, settings. What of the code each
stage depends on, `stages/code.py` finds; tests/stages/test_code.py runs it."""

from __future__ import annotations

import shlex
import subprocess
from typing import Any

import pytest
import yaml

from stages.settings import SHARED
from tests.imports import REPOSITORY, module_file

ORDER = [
    "download",
    "validate",
    "align",
    "pretrain",
    "baseline",
    "finetune",
    "fuse",
    "calibrate",
    "evaluate",
    "explain",
    "export",
]
FLOWS = ["retrain", "package", "promote", "score", "drift", "scale_out", "sweep"]
ROLES = ["identity", "target"]
# Into these, photos and a model to start from come from outside of the graph.
BROUGHT = {"incoming/identity", "incoming/target", "models/start", "models/members"}


def graph(role: str) -> dict[str, dict[str, Any]]:
    """Stage name -> its declaration, `role` filled in for those that run once a role."""
    text = (REPOSITORY / "dvc.yaml").read_text(encoding="utf-8").replace("${item}", role)
    stages: dict[str, dict[str, Any]] = yaml.safe_load(text)["stages"]
    del stages["settings"]  # it writes what DVC compares the others' settings with
    return {name: stage.get("do", stage) for name, stage in stages.items()}


CODE = graph("target")["code"]
STAGES = {name: stage for name, stage in graph("target").items() if name != "code"}


def outputs(stage: dict[str, Any]) -> list[str]:
    """Paths under outs, metrics and plots, with or without options."""
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])]
    return [path for entry in entries for path in (entry if isinstance(entry, dict) else [entry])]


def code_files(role: str) -> list[str]:
    """Where the digests of the stages' code stand, one a stage."""
    own = {name: "--role" in stage["cmd"] for name, stage in STAGES.items()}
    return [f"code/{name}@{role}.json" if own[name] else f"code/{name}.json" for name in ORDER]


def test_stages_stand_in_running_order() -> None:
    assert list(graph("target")) == ["code", *ORDER]
    made = set(outputs(CODE))
    for name, stage in STAGES.items():
        reads = set(stage["deps"])
        brought = {
            "download": {"incoming/target"},
            "finetune": {"models/start"},
            "fuse": {"models/members"},
        }
        assert (reads - made) & BROUGHT == brought.get(name, set())
        assert reads <= made | BROUGHT, f"{name} needs {sorted(reads - made)} before it is made"
        made |= set(outputs(stage)) | set(outputs(graph("identity")[name]))


@pytest.mark.parametrize("role", ROLES)
def test_every_stage_depends_on_its_own_code_alone(role: str) -> None:
    stages = graph(role)
    read = [[path for path in stages[name]["deps"] if path.startswith("code/")] for name in ORDER]
    assert read == [[path] for path in code_files(role)]
    assert not [path for name in ORDER for path in stages[name]["deps"] if path.endswith(".py")]


def test_the_digests_are_written_every_time_and_stay_where_they_are() -> None:
    """DVC removes none before: a file that is not written again keeps its time."""
    assert CODE["always_changed"] is True
    assert "deps" not in CODE
    assert set(outputs(CODE)) == {path for role in ROLES for path in code_files(role)}
    for out in CODE["outs"]:
        assert list(out.values()) == [{"cache": False, "persist": True}]


@pytest.mark.parametrize("name", ORDER)
def test_every_path_of_the_command_is_declared(name: str) -> None:
    """What a command reads is in deps, what it writes in outs, or DVC cannot know; checkpoints are
    the exception."""
    stage = STAGES[name]
    words = [word for word in shlex.split(stage["cmd"]) if "/" in word]
    declared = {path for path in stage["deps"] + outputs(stage) if not path.startswith("code/")}
    undeclared = set(words) - declared
    assert {path for path in undeclared if not path.startswith("models/checkpoints/")} == set()
    assert declared - {f"incoming/{role}" for role in ROLES} <= set(words)


@pytest.mark.parametrize("role", ROLES)
def test_where_photos_come_in_is_in_git_and_the_photos_are_not(role: str) -> None:
    """The folder is there in every clone, for DVC refuses a dependency that is not; the settings
    read below it."""
    assert f"incoming/{role}" in graph(role)["download"]["deps"]
    assert (REPOSITORY / "incoming" / role / ".gitkeep").is_file()
    photos = [f"incoming/{role}/labelled/a.jpg", "incoming/.state/x.sqlite"]
    for path, status in ((photos[0], 0), (photos[1], 0), (f"incoming/{role}/labelled.dvc", 1)):
        assert (
            subprocess.run(
                ["git", "check-ignore", "-q", "--no-index", path], cwd=REPOSITORY
            ).returncode
            == status
        )
    section = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))["download"][
        role
    ]
    incoming = section["incoming"] or {
        "locations": [],
        "options": {"table": f"incoming/{role}/labelled/labels.csv"},
    }
    assert all(
        path.startswith(f"incoming/{role}/")
        for path in [*incoming["locations"], incoming["options"]["table"]]
    )


@pytest.mark.parametrize("name", ORDER)
def test_stage_file_section_and_command_share_one_name(name: str) -> None:
    stage = STAGES[name]
    assert stage["cmd"].split()[:3] == ["python", "-m", f"stages.{name}"]
    assert module_file(REPOSITORY, f"stages.{name}") is not None
    [(file, names)] = stage["params"][0].items()
    assert file == "params.resolved.yaml"
    assert names[0] == (f"{name}.target" if "--role" in stage["cmd"] else name)


def test_params_has_one_section_a_stage_in_the_same_order() -> None:
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    assert [section for section in params if section in ORDER] == ORDER
    assert [section for section in params if section not in ORDER] == ["presets", *SHARED, *FLOWS]
    for name in ("download", "validate", "align"):
        assert list(params[name]) == ROLES


def test_what_dvc_keeps_git_ignores() -> None:
    """All but metrics.json, which lives in git so that every commit shows what it scores."""
    paths = sorted({path for stage in graph("target").values() for path in outputs(stage)})
    command = ["git", "check-ignore", "--no-index", *paths]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert set(paths) - set(answer.stdout.split()) == {"reports/metrics.json"}
