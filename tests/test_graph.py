"""dvc.yaml against the code: the dependencies that it declares are the files that each stage really
imports.

A folder as dependency re-runs on a README, and a list of files silently goes stale when an imported
module is missing from it; hence this test. `python tests/imports.py stages.align` prints the right
list.
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.settings import SHARED
from tests.imports import REPOSITORY, ROOMS, code_dependencies, module_file

ORDER = [
    "download",
    "validate",
    "align",
    "pretrain",
    "baseline",
    "finetune",
    "calibrate",
    "evaluate",
    "explain",
    "export",
]
FLOWS = ["retrain", "package", "promote", "score", "drift", "scale_out", "sweep"]
ROLES = ["identity", "target"]
BROUGHT = {
    f"incoming/{role}" for role in ROLES
}  # into these, photos come from outside of the graph


def graph(role: str) -> dict[str, dict[str, Any]]:
    """Stage name -> its declaration, `role` filled in for those that run once a role."""
    text = (REPOSITORY / "dvc.yaml").read_text(encoding="utf-8").replace("${item}", role)
    stages: dict[str, dict[str, Any]] = yaml.safe_load(text)["stages"]
    del stages["settings"]  # it writes what DVC compares the others' settings with
    return {name: stage.get("do", stage) for name, stage in stages.items()}


STAGES = graph("target")


def outputs(stage: dict[str, Any]) -> list[str]:
    """Paths under outs, metrics and plots, with or without options."""
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])]
    return [path for entry in entries for path in (entry if isinstance(entry, dict) else [entry])]


def is_code(path: str) -> bool:
    return path.split("/")[0] in ROOMS


def code_difference(name: str, declared: list[str], root: Path) -> dict[str, list[str]]:
    """What a stage imports and does not declare, and what it declares and does not import."""
    real = code_dependencies(root, f"stages.{name}")
    return {
        "missing": sorted(set(real) - set(declared)),
        "superfluous": sorted(set(declared) - set(real)),
    }


def test_stages_stand_in_running_order() -> None:
    assert list(STAGES) == ORDER
    made: set[str] = set()
    for name, stage in STAGES.items():
        data = {path for path in stage["deps"] if not is_code(path)}
        assert (data - made) & BROUGHT == ({"incoming/target"} if name == "download" else set())
        assert data <= made | BROUGHT, f"{name} needs {sorted(data - made)} before it is made"
        made |= set(outputs(stage)) | set(outputs(graph("identity")[name]))


@pytest.mark.parametrize("name", ORDER)
def test_declared_code_is_the_imported_code(name: str) -> None:
    declared = [path for path in STAGES[name]["deps"] if is_code(path)]
    assert code_difference(name, declared, REPOSITORY) == {"missing": [], "superfluous": []}


def test_a_stale_list_is_noticed(tmp_path: Path) -> None:
    """The same comparison on a stage that imports one module too many and declares one too many."""
    files = {
        "stages/align.py": "from visage.crops import crop\n",
        "visage/crops.py": "import visage.boxes\n",
    }
    for file, text in {
        **files,
        "visage/boxes.py": "",
        "visage/__init__.py": '"""Only words."""',
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    found = code_difference(
        "align", ["stages/align.py", "visage/crops.py", "visage/__init__.py"], tmp_path
    )
    assert found == {"missing": ["visage/boxes.py"], "superfluous": ["visage/__init__.py"]}


@pytest.mark.parametrize("name", ORDER)
def test_every_path_of_the_command_is_declared(name: str) -> None:
    """What a command reads is in deps, what it writes in outs, or DVC cannot know; checkpoints are
    the exception."""
    stage = STAGES[name]
    words = [word for word in shlex.split(stage["cmd"]) if "/" in word]
    undeclared = set(words) - set(stage["deps"]) - set(outputs(stage))
    assert {path for path in undeclared if not path.startswith("models/checkpoints/")} == set()
    assert {path for path in stage["deps"] + outputs(stage) if not is_code(path)} - BROUGHT <= set(
        words
    )


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


def test_only_what_measures_reads_the_metrics() -> None:
    """Editing visage/evaluation/metrics.py trains no network again."""
    users = [name for name in ORDER if "visage/evaluation/metrics.py" in STAGES[name]["deps"]]
    assert users == ["baseline", "evaluate", "explain"]


def test_what_dvc_keeps_git_ignores() -> None:
    """All but metrics.json, which lives in git so that every commit shows what it scores."""
    paths = sorted({path for stage in STAGES.values() for path in outputs(stage)})
    command = ["git", "check-ignore", "--no-index", *paths]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert set(paths) - set(answer.stdout.split()) == {"reports/metrics.json"}
