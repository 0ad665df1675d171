"""The Makefile: its list of verbs, and how `make repro DATA=...` switches the settings and comes
back."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.presets import known_presets, read_params
from tests.imports import REPOSITORY

PRESETS = known_presets(REPOSITORY / "presets")


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """Makefile, params.yaml and presets, set up already, with a dvc that only says it was asked."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copy(REPOSITORY / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "presets").mkdir()
    for preset in PRESETS:
        shutil.copy(REPOSITORY / "presets" / f"{preset}.yaml", tmp_path / "presets")
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, line in {
        "python": f'PYTHONPATH={REPOSITORY} exec {sys.executable} "$@"',
        "dvc": 'echo dvc "$@"',
        "uv": "exit 1",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()
    return tmp_path


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """As a person types it, though these tests may themselves run under `make test`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


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
    files = set(workplace.rglob("*"))
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
    assert set(workplace.rglob("*")) == files, "no settings are kept elsewhere"

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


def test_an_old_python_is_refused_with_the_remedy(workplace: Path) -> None:
    shutil.rmtree(workplace / ".venv")
    old = workplace / "python2"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    answer = make(workplace, "setup", f"PYTHON={old}")
    assert answer.returncode != 0
    assert "3.11" in answer.stderr
    assert not (workplace / ".venv").exists()
