"""The Makefile: its list of verbs, and how `make repro DATA=...` switches the settings and comes
back."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.presets import known_presets, read_params
from tests.command import visage
from tests.imports import REPOSITORY

PRESETS = known_presets(REPOSITORY / "presets")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages, without the released weights."""
    folder = tmp_path_factory.mktemp("clone")
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.onnx")
    for package in ("visage", "stages", "flows", "model_registry"):
        shutil.copytree(REPOSITORY / package, folder / package, ignore=ignored)
    return folder


@pytest.fixture
def workplace(tmp_path: Path, clone: Path) -> Path:
    """A clone, set up already, with a dvc that only says what it was asked."""
    shutil.copytree(clone, tmp_path, dirs_exist_ok=True)
    for name in (
        "Makefile",
        "environment.mk",
        "requirements.lock",
        "pyproject.toml",
        "params.yaml",
        "dvc.yaml",
    ):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "presets").mkdir()
    for preset in PRESETS:
        shutil.copy(REPOSITORY / "presets" / f"{preset}.yaml", tmp_path / "presets")

    (tmp_path / "dvc.py").write_text("import sys\nprint('dvc', *sys.argv[1:])\n")
    put_program(tmp_path, "python", f'PYTHONPATH={tmp_path} exec {sys.executable} "$@"')
    put_program(tmp_path, "uv", "exit 1")
    (tmp_path / ".venv" / ".installed").touch()
    return tmp_path


def put_program(folder: Path, name: str, line: str) -> None:
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    (programs / name).write_text(f"#!/bin/bash\n{line}\n", encoding="utf-8")
    (programs / name).chmod(0o755)


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """As a person types it, though these tests may themselves run under `make test`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_help_lists_every_verb_that_the_documents_name(workplace: Path) -> None:
    listed = set(re.findall(r"^  ([a-z-]+) ", make(workplace).stdout, re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md", "docs/real-data.md", ".ci/run"):
        text = (REPOSITORY / document).read_text(encoding="utf-8")
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
        assert named <= listed, document
    assert {"demo", "test", "check", "predict", "repro", "bench", "results", "clean"} <= listed


def test_a_preset_is_named_in_one_line_of_the_settings_and_taken_off_again(
    workplace: Path,
) -> None:
    """All else of params.yaml stays as it is: comments, remarks, values."""
    params = workplace / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8") + "\n# my own remark\n", encoding="utf-8")
    before = params.read_bytes()
    files = files_of(workplace)
    first = make(workplace, "repro", "DATA=ms_celeb chalearn15")
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip().endswith("dvc repro")

    once = params.read_bytes()
    changed = [
        (old, new)
        for old, new in zip(before.splitlines(), once.splitlines(), strict=True)
        if old != new
    ]
    [(old, new)] = changed
    assert old.startswith(b"presets: []  # ")
    assert new == old.replace(b"[]", b"[ms_celeb, chalearn15]")
    assert read_params(params)["download"]["identity"]["source"] == "ms_celeb"
    assert files_of(workplace) == files, "no settings are kept elsewhere"

    assert make(workplace, "repro").returncode == 0
    assert params.read_bytes() == once
    for _ in range(2):
        assert make(workplace, "repro", "DATA=synthetic").returncode == 0
        assert params.read_bytes() == before


def test_an_unknown_preset_changes_nothing_and_names_the_known(workplace: Path) -> None:
    before = (workplace / "params.yaml").read_bytes()
    answer = make(workplace, "repro", "DATA=nonsense")
    assert answer.returncode != 0
    assert "presets/nonsense.yaml" in answer.stderr
    assert all(preset in answer.stderr for preset in PRESETS)
    assert "dvc" not in answer.stdout
    assert (workplace / "params.yaml").read_bytes() == before


def test_predict_without_a_photo_says_how(workplace: Path) -> None:
    answer = make(workplace, "predict")
    assert answer.returncode != 0
    assert "PHOTO=" in answer.stderr


UGLY = [
    "two words.jpg",
    'it\'s "quoted".jpg',
    "$HOME $(touch pwned) `touch pwned`.jpg",
    "$$(shell touch pwned) $(PATH).jpg",
    "-rf",
    "--model=x",
    "new\nline.jpg",
    "star *[a]?.jpg",
    "#;&|<>!~\\.jpg",
    "a=b:c,d%e.jpg",
    "é ü 漢.jpg",
]


@pytest.mark.parametrize("name", UGLY)
def test_a_name_reaches_its_command_letter_by_letter(name: str, workplace: Path) -> None:
    """Neither make nor the shell looks inside."""
    put_program(workplace, "python", 'printf "%s\\0" "$@" > words')

    def words(*given: str) -> list[str]:
        done = make(workplace, *given)
        assert done.returncode == 0, done.stderr
        text = (workplace / "words").read_text(encoding="utf-8")
        return text.removesuffix("\0").split("\0")[2:]

    assert words("predict", f"PHOTO={name}") == ["predict", "--", name]
    assert words("predict", f"PHOTO={name}", f"MODEL={name}", "JSON=1") == [
        "predict",
        "--json",
        f"--model={name}",
        "--",
        name,
    ]
    assert words("score", f"PHOTOS={name}", f"OUTPUT={name}") == [
        "score",
        f"--output={name}",
        "--",
        name,
    ]
    assert words("scale-out", f"STAGE={name}")[-1] == name
    data = [f"--data={word}" for word in name.split()]
    assert words("repro", f"DATA={name}") == ["run", *data]
    assert not (workplace / "pwned").exists()


def test_the_libraries_environment_is_that_of_the_makefile(workplace: Path) -> None:
    """Typed with make or without, the commands run with the same variables."""
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    put_program(workplace, "python", f"exec {sys.executable} -c '{show}'")
    of_make = json.loads(make(workplace, "history").stdout)
    program = f"from visage.cli.group import pipeline; pipeline(); {show}"
    bare = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=workplace,
        env=bare | {"PYTHONPATH": str(workplace)},
        capture_output=True,
        text=True,
        check=True,
    )
    names = re.findall(r"^export (\w+)", (workplace / "environment.mk").read_text(), re.MULTILINE)
    assert "PREFECT_HOME" in names
    own = json.loads(done.stdout)
    assert {name: own[name] for name in names} == {name: of_make[name] for name in names}


def test_the_commands_that_the_documents_name_exist() -> None:
    listed = set(re.findall(r"^  ([a-z-]+)  ", visage("--help").stdout, re.MULTILINE))
    for document in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")]:
        text = document.read_text(encoding="utf-8")
        blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
        typed = re.findall(r"^(?:\$ |\S*bin/)?visage ([a-z][a-z-]*)", blocks, re.MULTILINE)
        named = {*typed, *re.findall(r"`visage ([a-z][a-z-]*)", text)}
        assert named <= listed, document


def test_an_old_python_is_refused_with_the_remedy(workplace: Path) -> None:
    shutil.rmtree(workplace / ".venv")
    old = workplace / "python2"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    answer = make(workplace, "setup", f"PYTHON={old}")
    assert answer.returncode != 0
    assert "3.11" in answer.stderr
    assert not (workplace / ".venv").exists()
