"""What counts as a change of the code: DVC runs this repository's graph on a copy of its source.

The copy's `python` runs the stage `code` as it is. Every other stage writes, in place of its
results, a digest of its code and of what it read: so an edit goes on through the graph as far as
the results would.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import stages.code
from flows.pipeline.dvc_stages import stale
from stages.code import code_digest, names_in
from stages.finetune import finetune
from tests.imports import REPOSITORY
from tests.small_faces import finetune_settings, some_faces, write_faces

RUNNING = re.compile(r"Running stage '(.+)'")
STUB = """
import hashlib, os, pathlib, sys
words = sys.argv[1:]
if words[:2] in (["-m", "stages.code"], ["-m", "stages.presets"]):
    os.execv(sys.executable, [sys.executable, *words])
import yaml
name = words[1].removeprefix("stages.")
role = words[words.index("--role") + 1] if "--role" in words else ""
stage = yaml.safe_load(open("dvc.yaml").read().replace("${item}", role))["stages"][name]
stage = stage.get("do", stage)
content = hashlib.sha256()
for path in map(pathlib.Path, stage["deps"]):
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        content.update(file.read_bytes())
for out in stage["outs"] + stage.get("metrics", []):
    for path in map(pathlib.Path, [out] if isinstance(out, str) else out):
        file = path if path.suffix else path / "file"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content.hexdigest())
"""
AFTER_FINETUNE = {"finetune", "fuse", "calibrate", "evaluate", "explain", "export"}


def copy_of_the_source(root: Path) -> Path:
    for name in ("stages", "visage"):
        shutil.copytree(
            REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    return root


def ran(root: Path) -> set[str]:
    """The stages that `dvc repro` runs, but `code`, which it always runs, and `settings`, which an
    edit of its one file runs in less than a second."""
    path = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=root,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = set(RUNNING.findall(done.stdout))
    assert "code" in names
    return names - {"code", "settings"}


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which every stage has run."""
    root = copy_of_the_source(tmp_path_factory.mktemp("settled"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(REPOSITORY / name, root)
    shutil.copytree(REPOSITORY / "presets", root / "presets")
    for folder in (
        ".dvc/tmp",
        "bin",
        "incoming/identity",
        "incoming/target",
        "models/start",
        "models/members",
    ):
        (root / folder).mkdir(parents=True)
    (root / ".dvc/config").write_text("[core]\n    no_scm = True\n    analytics = false\n")
    (root / "bin/stub.py").write_text(STUB)
    python = root / "bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$(dirname "$0")/stub.py" "$@"\n')
    python.chmod(0o755)
    assert len(ran(root)) == 14
    assert ran(root) == set()
    return root


@pytest.fixture
def workspace(settled: Path, tmp_path: Path) -> Path:
    return shutil.copytree(settled, tmp_path / "workspace", symlinks=True)


def edit(root: Path, file: str, old: str, new: str) -> None:
    text = (root / file).read_text(encoding="utf-8")
    assert old in text, f"{file} holds no {old!r}"
    (root / file).write_text(text.replace(old, new), encoding="utf-8")


def reformatted(root: Path) -> None:
    """Every file as ast.unparse lays it out: no comments, other line breaks and quotes; then with
    another docstring and a comment."""
    for file in [*root.glob("visage/**/*.py"), *root.glob("stages/**/*.py")]:
        source = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(source):
            body = getattr(node, "body", None)
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and isinstance(body, list):
                body.insert(0, ast.Expr(ast.Constant("Another docstring.")))
                del body[1 : 1 + (ast.get_docstring(ast.Module(body[1:], [])) is not None)]
        file.write_text(f"# A comment\n{ast.unparse(source)}\n", encoding="utf-8")


def test_docstrings_comments_and_layout_run_nothing(workspace: Path) -> None:
    reformatted(workspace)
    assert "Another docstring." in (workspace / "visage/methods.py").read_text(encoding="utf-8")
    assert ran(workspace) == set()


def new_method(root: Path) -> None:
    edit(
        root,
        "visage/methods.py",
        "METHODS: dict[str, Method] = {",
        "def toy_loss(logits_BK, label_B, sigma_B, grid, settings):\n"
        "    return logits_BK.square().mean()\n\n\n"
        "METHODS: dict[str, Method] = {\n"
        '    "toy": replace(_SOFTMAX, loss=toy_loss),',
    )


def new_network(root: Path) -> None:
    (root / "visage/networks/toy.py").write_text("class Toy:\n    width = 3\n", encoding="utf-8")
    networks = root / "visage/networks/__init__.py"
    text = networks.read_text(encoding="utf-8")
    assert "NETWORKS: dict[str, Family] = {" in text
    entry = 'NETWORKS: dict[str, Family] = {\n    "toy": Family(build=Toy, options={}),'
    text = text.replace("NETWORKS: dict[str, Family] = {", entry)
    text = text.replace(
        "from visage.networks.vgg import",
        "from visage.networks.toy import Toy\nfrom visage.networks.vgg import",
    )
    networks.write_text(text, encoding="utf-8")


def new_data_set(root: Path) -> None:
    adapter = (root / "stages/sources/fg_net.py").read_text(encoding="utf-8")
    (root / "stages/sources/toy.py").write_text(
        adapter.replace("FG_NET", "TOY").replace("fg_net", "toy"), encoding="utf-8"
    )
    edit(
        root,
        "stages/sources/__init__.py",
        "from stages.sources.utkface import UTKFACE\n",
        "from stages.sources.toy import TOY\nfrom stages.sources.utkface import UTKFACE\n",
    )
    edit(root, "stages/sources/__init__.py", '    "utkface"', '    "toy": TOY,\n    "utkface"')


@pytest.mark.parametrize("change", [new_method, new_network, new_data_set])
def test_what_nobody_chose_runs_nothing(workspace: Path, change: Callable[[Path], None]) -> None:
    change(workspace)
    assert ran(workspace) == set()


def test_a_loss_runs_what_it_trained_and_what_follows(workspace: Path) -> None:
    edit(workspace, "visage/methods.py", "return (value_B - label_B).abs().mean()", "return 1.0")
    assert ran(workspace) == AFTER_FINETUNE


def test_a_loss_of_another_method_runs_nothing(workspace: Path) -> None:
    edit(workspace, "visage/methods.py", "return (regression_value(", "return 2 * (1 + regress(")
    assert ran(workspace) == set()


def test_a_metric_runs_what_measures(workspace: Path) -> None:
    edit(workspace, "visage/evaluation/metrics.py", "def squared(", "@print\ndef squared(")
    assert ran(workspace) == {"baseline", "evaluate", "explain"}


def test_an_image_reader_aligns_again(workspace: Path) -> None:
    edit(workspace, "visage/detection/image_io.py", "MAX_PIXELS = ", "MAX_PIXELS = 1 + ")
    assert {"align@identity", "align@target"} <= ran(workspace)


def test_stale_is_asked_of_the_code_as_it_is_now(workspace: Path) -> None:
    """And never names `code`, which runs every time."""
    assert stale(workspace) == []
    edit(workspace, "visage/methods.py", "return (value_B - label_B).abs().mean()", "return 1.0")
    assert set(stale(workspace)) == AFTER_FINETUNE


def test_the_digests_say_which_module_changed(workspace: Path) -> None:
    def digests(stage: str) -> dict[str, str]:
        document = json.loads((workspace / f"code/{stage}.json").read_text(encoding="utf-8"))
        modules: dict[str, str] = document["modules"]
        return modules

    before, pretrain = digests("finetune"), workspace / "code/pretrain.json"
    written = pretrain.stat().st_mtime_ns
    edit(workspace, "visage/methods.py", "return (value_B - label_B).abs().mean()", "return 1.0")
    command = ["--graph", "dvc.yaml", "--params", "params.yaml", "--code", "code"]
    subprocess.run(
        [sys.executable, "-m", "stages.code", *command], cwd=workspace, check=True, timeout=60
    )
    after = digests("finetune")
    assert {name for name in after if after[name] != before[name]} == {"visage.methods"}
    assert pretrain.stat().st_mtime_ns == written, "an unchanged file is left untouched"


# -------------------------------------------------------------------------------
# The closure, on small trees
# -------------------------------------------------------------------------------


def tree(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / "visage" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("imported", "counts"),
    [
        ("def used(): return 2", True),
        ("def used(): return 1\ndef other(): return 2", False),
        ("def used(): return 1\nused = wrapped(used)", True),
        ("def used(): return 1\nimport os\nos.environ['A'] = 'b'", True),
        ("def used(): return 1\nprint('imported')", True),
        ("def used(): return 1\nfor _ in range(2):\n    pass", True),
        ("def keep(f): return f\ndef used(): return 1\n@keep\ndef other(): return 2", True),
        ("def used(): return 1\n@property\ndef other(): return 2", False),
        ("def used() -> int: return 1", False),
        ("def used(x: int = 2): return 1", True),
        ("def used(*, x=2): return 1", True),
        ("def used(): return 1\nif TYPE_CHECKING:\n    import b", False),
        ("if __name__ == '__main__':\n    print(3)\ndef used(): return 1", False),
        ("class Other: ...\ndef used():\n    '''Words.'''\n    return 1  # more", False),
        ("def used(): return 1\nif len('a') == 1:\n    def used(): return 2", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "start",
    [
        "from visage.b import used\nprint(used())",
        "import visage.b\nprint(visage.b.used())",
        "import visage.b as c\nprint(c.used())",
        "from visage import b\ndef f():\n    return b.used()\n",
        "def f():\n    from visage.b import used as g\n    return g()\n",
        "from .b import used\nprint(used())",
    ],
)
def test_what_is_reached_counts(tmp_path: Path, start: str, imported: str, counts: bool) -> None:
    tree(tmp_path, a=start, b="def used(): return 1")
    before = code_digest("visage.a", tmp_path, [])
    tree(tmp_path, b=imported)
    assert (code_digest("visage.a", tmp_path, []) != before) == counts


def test_a_module_that_is_handed_on_counts_completely(tmp_path: Path) -> None:
    tree(tmp_path, a="from visage import b\nprint(getattr(b, 'x'))", b="x = 1")
    before = code_digest("visage.a", tmp_path, [])
    tree(tmp_path, b="x = 1\ny = 2")
    assert code_digest("visage.a", tmp_path, []) != before


def test_what_a_package_does_when_imported_counts(tmp_path: Path) -> None:
    tree(tmp_path, __init__='"""Words."""', a="x = 1")
    before = code_digest("visage.a", tmp_path, [])
    tree(tmp_path, __init__='"""Other words."""')
    assert code_digest("visage.a", tmp_path, []) == before
    tree(tmp_path, __init__="import os\nos.umask(0)")
    assert code_digest("visage.a", tmp_path, []) != before


def test_a_package_that_imports_its_own_module_is_followed(tmp_path: Path) -> None:
    tree(tmp_path, __init__="from visage import b", a="from visage import b\nprint(b.x)", b="x = 1")
    before = code_digest("visage.a", tmp_path, [])
    tree(tmp_path, b="x = 2")
    assert code_digest("visage.a", tmp_path, []) != before


def test_another_library_under_the_same_name_counts(tmp_path: Path) -> None:
    before = code_digest("visage.a", tree(tmp_path, a="import numpy as np\nprint(np.ones(1))"), [])
    after = code_digest("visage.a", tree(tmp_path, a="import cupy as np\nprint(np.ones(1))"), [])
    assert before != after


def test_only_chosen_entries_count(tmp_path: Path) -> None:
    start = "from visage.networks import NETWORKS\nprint(NETWORKS)"
    table = "from visage.b import f, g\nNETWORKS = {'vgg': f, 'resnet18': g}"
    tree(tmp_path, a=start, networks=table, b="def f(): return 1\ndef g(): return 2")
    names = {one: code_digest("visage.a", tmp_path, [one]) for one in ("vgg-0.125", "resnet18")}
    tree(tmp_path, b="def f(): return 3\ndef g(): return 2")
    assert code_digest("visage.a", tmp_path, ["vgg-0.125"]) != names["vgg-0.125"]
    assert code_digest("visage.a", tmp_path, ["resnet18"]) == names["resnet18"]
    assert code_digest("visage.a", tmp_path, ["vgg16"]) != names["vgg-0.125"]


def test_templates_count_where_they_are_used(tmp_path: Path) -> None:
    page = "from pathlib import Path\nTEMPLATES = Path('templates')\ndef page(): return TEMPLATES\n"
    tree(tmp_path, a="from visage.html import page\nprint(page())", html=page, b="print(1)")
    template = tmp_path / "visage/templates/page.html.j2"
    template.parent.mkdir()
    template.write_text("<p>", encoding="utf-8")
    before = {name: code_digest(f"visage.{name}", tmp_path, []) for name in "ab"}
    template.write_text("<b>", encoding="utf-8")
    after = {name: code_digest(f"visage.{name}", tmp_path, []) for name in "ab"}
    assert after["a"] != before["a"]
    assert after["b"] == before["b"]


def test_one_function_counts_with_the_classes_of_its_arguments(tmp_path: Path) -> None:
    tree(tmp_path, a="class S: x = 1\ndef f(s: S): return s.x\ndef g(): return 1")
    before = code_digest("visage.a:f", tmp_path, [])
    tree(tmp_path, a="class S: x = 1\ndef f(s: S): return s.x\ndef g(): return 2")
    assert code_digest("visage.a:f", tmp_path, []) == before
    tree(tmp_path, a="class S: x = 2\ndef f(s: S): return s.x\ndef g(): return 1")
    assert code_digest("visage.a:f", tmp_path, []) != before


@pytest.mark.parametrize("module", ["visage.c", "visage.a:c"])
def test_what_is_not_there_is_refused(tmp_path: Path, module: str) -> None:
    tree(tmp_path, a="x = 1")
    with pytest.raises(ValueError, match=re.escape(module)):
        code_digest(module, tmp_path, [])


def test_names_are_the_texts_among_the_values() -> None:
    assert names_in({"a": "b", "c": [1, "d", {"e": ("f",)}], "g": None}) == {"b", "d", "f"}


@pytest.mark.parametrize("name", stages.code.CHOSEN_BY_NAME)
def test_dicts_that_are_chosen_from_are_written_out(name: str) -> None:
    """All entries of a dict made by a comprehension would count."""
    module, _, table = name.partition(":")
    path = REPOSITORY.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == table:
            assert isinstance(node.value, ast.Dict)
            assert all(isinstance(key, ast.Constant) for key in node.value.keys)
            return
    pytest.fail(f"{file} has no {table}")


# -------------------------------------------------------------------------------
# Checkpoints
# -------------------------------------------------------------------------------


class Killed(RuntimeError):
    """In the place of a kill: the training ends between two epochs."""


@pytest.mark.parametrize("changed", [False, True], ids=["layout", "loss"])
def test_a_killed_training_goes_on_across_a_cosmetic_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    root = copy_of_the_source(tmp_path / "source")
    monkeypatch.setattr(stages.code, "REPOSITORY", root)
    faces = write_faces(tmp_path / "faces", some_faces())
    settings = finetune_settings(init="scratch", epochs=2)
    epochs: list[int] = []

    def train(kill_after: int) -> None:
        def report(epoch: int, _: object) -> None:
            epochs.append(epoch)
            if epoch == kill_after:
                raise Killed

        finetune(
            settings,
            faces=faces,
            backbone=tmp_path / "none",
            start=tmp_path / "none",
            checkpoints=tmp_path / "checkpoints",
            model=tmp_path / "model",
            history=tmp_path / "history.csv",
            report=report,
        )

    with pytest.raises(Killed):
        train(kill_after=1)
    reformatted(root)
    if changed:
        edit(root, "visage/methods.py", "(value_B - label_B).abs().mean()", "0.0")
    train(kill_after=0)
    assert epochs == ([1, 1, 2] if changed else [1, 2])
