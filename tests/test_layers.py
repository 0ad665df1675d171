"""The rules of the layers: who may import whom, each heavy tool's one address, settings without
defaults, names that mean something.

Every rule is a function from a tree to its violations. It is run on this repository, and on a small
broken tree to show that it would be seen failing.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.imports import (
    PACKAGES,
    REPOSITORY,
    closure,
    imports,
    module_file,
    module_name,
    package_files,
    parsed,
)

MAY_IMPORT = {
    "visage": {"visage"},
    "stages": {"stages", "visage"},
    "model_registry": {"model_registry", "visage"},
    "flows": {"flows", "stages", "model_registry", "visage"},
}
ADDRESS = {
    "prefect": "flows/",
    "prefect_ray": "flows/",
    "ray": "flows/",
    "dvc": "flows/",
    "mlflow": "model_registry/",
    "great_expectations": "stages/validate.py",
    "yaml": "stages/",
    "openpyxl": "stages/ingest/spreadsheet.py",
    "imagehash": "visage/dedup/perceptual_hash.py",
    "facenet_pytorch": "visage/detection/torch_networks.py",
    "onnxruntime.quantization": "visage/export/int8.py",
}
STAGES = (
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
)
BARE_GPU_STAGES = ("pretrain", "baseline", "finetune", "fuse", "calibrate", "evaluate")
BARE_GPU_LIBRARIES = {
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "sklearn",
    "pandas",
    "pyarrow",
    "PIL",
    "yaml",
    "matplotlib",
    "safetensors",
    "tqdm",
    "jinja2",  # a requirement of torch itself
}
SAYS_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager"}
SETTINGS_NAMES = {"settings", "params", "options", "section", "document", "config"}

Rule = Callable[[Path], Iterator[str]]


def all_files(root: Path) -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for file in package_files(root, package):
            yield file.relative_to(root).as_posix(), file


def imports_against_the_direction(root: Path) -> Iterator[str]:
    """Rule 3: flows -> stages -> visage, flows -> model_registry -> visage, never back."""
    for name, file in all_files(root):
        package = name.split("/")[0]
        for found in imports(root, file):
            other = found.module.split(".")[0]
            if other in PACKAGES and other not in MAY_IMPORT[package]:
                yield f"{name}:{found.line} imports {found.module}"


def circles(root: Path) -> Iterator[str]:
    """No module imports itself through others, at the top or inside a function."""
    graph: dict[str, set[str]] = {}
    for _, file in all_files(root):
        modules = {found.module for found in imports(root, file)}
        graph[module_name(root, file)] = {name for name in modules if module_file(root, name)}

    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield " <- ".join(error.args[1])


def heavy_tools_away_from_home(root: Path) -> Iterator[str]:
    """Rule 4: each heavy tool has one address."""
    for name, file in all_files(root):
        for found in imports(root, file):
            for tool, address in ADDRESS.items():
                if f"{found.module}.".startswith(f"{tool}.") and not name.startswith(address):
                    yield f"{name}:{found.line} imports {found.module}, whose address is {address}"


def more_than_a_bare_gpu_machine_has(root: Path) -> Iterator[str]:
    """Rule 9: what these stages import, directly or not, at the top or inside a function."""
    for stage in BARE_GPU_STAGES:
        if module_file(root, f"stages.{stage}") is None:
            yield f"stages/{stage}.py is missing"
            continue
        for library in sorted(closure(root, f"stages.{stage}")[1] - BARE_GPU_LIBRARIES):
            yield f"stages/{stage}.py reaches {library}"


def environment_read_by_the_maths(root: Path) -> Iterator[str]:
    """visage takes tensors and arguments, never the environment."""
    for file in package_files(root, "visage"):
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
                yield f"{file.relative_to(root).as_posix()}:{node.lineno} reads the environment"


def names_that_say_nothing(root: Path) -> Iterator[str]:
    for name, file in all_files(root):
        if SAYS_NOTHING & {file.stem, file.parent.name}:
            yield name


def settings_with_a_fallback(root: Path) -> Iterator[str]:
    """Rule 7: no `.get(key, default)` on settings."""
    for name, file in all_files(root):
        for node in ast.walk(parsed(file)):
            match node:
                case ast.Call(func=ast.Attribute(attr="get", value=owner), args=[_, _]):
                    words = set(ast.unparse(owner).replace("[", ".").split("."))
                    if words & SETTINGS_NAMES:
                        yield f"{name}:{node.lineno} {ast.unparse(node)}"
                case _:
                    pass


def settings_classes_with_defaults(root: Path) -> Iterator[str]:
    """Rule 7: types in frozen, keyword-only dataclasses; defaults nowhere."""
    for name, file in all_files(root):
        for node in ast.walk(parsed(file)):
            if not (isinstance(node, ast.ClassDef) and node.name.endswith("Settings")):
                continue
            decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
            if "frozen=True" not in decorators or "kw_only=True" not in decorators:
                yield f"{name}:{node.lineno} {node.name} is not a frozen, keyword-only dataclass"
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and _is_default(field.value):
                    target = ast.unparse(field.target)
                    yield f"{name}:{field.lineno} {node.name}.{target} has a default"


def _is_default(value: ast.expr | None) -> bool:
    """Whether a field has a default; `field(metadata=...)` names the section that it stands in."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        return any(str(keyword.arg).startswith("default") for keyword in value.keywords)
    return value is not None


def stages_out_of_form(root: Path) -> Iterator[str]:
    """Rule 5: a docstring, a function named like the file that takes `report`, a `__main__`;
    nothing else runs."""
    for stage in STAGES:
        file = module_file(root, f"stages.{stage}")
        if file is None:
            yield f"stages/{stage}.py is missing"
            continue
        tree = parsed(file)
        functions = {
            node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)
        }
        if not ast.get_docstring(tree):
            yield f"stages/{stage}.py has no docstring"
        if stage not in functions:
            yield f"stages/{stage}.py has no function {stage}"
        elif "report" not in [
            argument.arg for argument in functions[stage].args + functions[stage].kwonlyargs
        ]:
            yield f"stages/{stage}.py: {stage} takes no report"
    runnable = {
        file.stem
        for file in (root / "stages").glob("*.py")
        if "__main__" in file.read_text(encoding="utf-8")
    }
    yield from (f"stages/{name}.py cannot be run" for name in sorted(set(STAGES) - runnable))
    yield from (
        f"stages: {name}.py runs and is no stage"
        for name in sorted(runnable - set(STAGES) - {"presets", "code"})
    )


RULES: list[Rule] = [
    imports_against_the_direction,
    circles,
    heavy_tools_away_from_home,
    more_than_a_bare_gpu_machine_has,
    environment_read_by_the_maths,
    names_that_say_nothing,
    settings_with_a_fallback,
    settings_classes_with_defaults,
    stages_out_of_form,
]
BROKEN = {
    "visage/__init__.py": "",
    "visage/utils.py": "import os\nthreads = os.environ['THREADS']\n",
    "visage/detection/mtcnn.py": "import facenet_pytorch\n",
    "visage/labels.py": "from stages import finetune\n",
    "visage/methods.py": "from visage.inference import photos\n",
    "visage/inference/photos.py": (
        "from visage import methods\ndef photo():\n    from visage.detection import mtcnn\n"
    ),
    "stages/__init__.py": "",
    "stages/pretrain.py": "def run():\n    from visage.detection import mtcnn\n",
    "stages/baseline.py": "",
    "stages/finetune.py": "import mlflow\nepochs = settings.get('epochs', 60)\n",
    "stages/fuse.py": "",
    "stages/calibrate.py": "",
    "stages/evaluate.py": (
        "from visage.inference import photos\n@dataclass(frozen=True, kw_only=True)\nclass "
        "EvaluateSettings:\n    k: int = 3\n"
    ),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_this_tree_keeps(rule: Rule) -> None:
    assert list(rule(REPOSITORY)) == []


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    for name, text in BROKEN.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_broken_tree_fails(rule: Rule, broken: Path) -> None:
    assert list(rule(broken))


def test_a_lazy_import_is_followed(broken: Path) -> None:
    """Through any number of modules, and inside functions."""
    assert list(more_than_a_bare_gpu_machine_has(broken)) == [
        "stages/pretrain.py reaches facenet_pytorch",
        "stages/finetune.py reaches mlflow",
        "stages/evaluate.py reaches facenet_pytorch",
    ]
