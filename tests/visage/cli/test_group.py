"""The command as a whole: what it lists, what it imports, how errors end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import refused, visage
from tests.imports import REPOSITORY

HEAVY = ("torch", "onnxruntime", "pandas", "numpy", "PIL", "prefect", "ray", "mlflow", "rich")


def test_the_help_lists_the_pipeline_of_a_clone() -> None:
    done = visage("--help")
    assert done.exit_code == 0
    for name in ("predict", "models", "serve", "explain", "run", "retrain", "scale-out", "promote"):
        assert f"\n  {name} " in done.stdout
    assert visage().stdout == done.stdout


@pytest.mark.parametrize("name", ["run", "retrain", "sweep", "score", "label", "history", "drift"])
def test_a_command_of_the_pipeline_has_a_help_of_its_own(name: str) -> None:
    done = visage(name, "--help")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"Usage: visage {name}")


def test_the_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom visage.cli import main\nsys.argv = ['visage', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"


def test_the_version_is_the_package_s() -> None:
    from visage import __version__

    assert visage("--version").stdout == f"visage {__version__}\n"


def test_an_unknown_command_is_one_line() -> None:
    assert "nonsense" in refused("nonsense")


def test_the_released_models_are_listed() -> None:
    lines = visage("models").stdout.splitlines()
    assert "(default)" in lines[1]
    listed = json.loads(visage("models", "--json").stdout)
    assert listed[0]["is_default"]
    assert all(model["name"] in "\n".join(lines) for model in listed)
    assert Path(listed[0]["folder"]).is_dir()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The package as a wheel installs it: without the pipeline beside it."""
    site = tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "visage", site / "visage", ignore=ignored)
    return site


def run(site: Path, *words: str, program: str = "") -> subprocess.CompletedProcess[str]:
    start = ["-c", f"{program}\nfrom visage.cli import main; main()"]
    return subprocess.run(
        [sys.executable, "-P", *start, *words],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_outside_a_clone_the_pipeline_is_refused_in_one_line(installed: Path) -> None:
    """Although the working directory is a clone: its files may be anybody's."""
    assert "retrain" not in run(installed, "--help").stdout
    for words in (["retrain"], ["serve", "--model", "champion"]):
        done = run(installed, *words)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "clone" in done.stderr


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        (["serve"], "fastapi", "visage[serve]"),
        (["explain", "x.jpg", "out.png"], "torch", "visage[torch,plots]"),
    ],
)
def test_an_absent_extra_is_named(
    words: list[str], package: str, extra: str, installed: Path
) -> None:
    blocked = f"import sys; sys.modules['{package}'] = None"
    done = run(installed, *words, program=blocked)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert package in done.stderr
    assert extra in done.stderr


def test_the_shell_completes_commands_and_options() -> None:
    def completed(words: str) -> str:
        environment = {"_VISAGE_COMPLETE": "complete_bash", "COMP_WORDS": words}
        environment["COMP_CWORD"] = str(len(words.split(" ")) - 1)
        return subprocess.run(
            [sys.executable, "-c", "from visage.cli import main; main()"],
            cwd=REPOSITORY,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        ).stdout

    assert completed("visage re").split() == ["reproduce", "retrain", "release"]
    assert "--precision" in completed("visage predict --p").split()
