"""Who imports whom, read from the source without running it."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("visage", "stages", "flows", "model_registry")


@dataclass(frozen=True, kw_only=True)
class Import:
    """`module` (dotted, as far as it can be a module) is imported by line `line`."""

    module: str
    line: int


def package_files(root: Path, package: str) -> list[Path]:
    """Every Python file of a package, in order."""
    return sorted((root / package).rglob("*.py"))


def module_name(root: Path, file: Path) -> str:
    """stages/sources/__init__.py -> stages.sources"""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_file(root: Path, module: str) -> Path | None:
    """The file of a project module, None where the name is no module (a function, a foreign
    package)."""
    stem = root.joinpath(*module.split("."))
    candidates = (stem.with_suffix(".py"), stem / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


@functools.cache
def parsed(file: Path) -> ast.Module:
    """A file's syntax tree; every rule reads every file."""
    return ast.parse(file.read_text(encoding="utf-8"))


def is_typing_block(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:` is never run."""
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def imports(root: Path, file: Path) -> Iterator[Import]:
    """Every import that can run; `from a import b` counts as a.b where that is a module of ours,
    else as a."""
    yield from _walk(root, parsed(file))


def _walk(root: Path, node: ast.AST) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if is_typing_block(child):
            continue
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(module=alias.name, line=child.lineno)
        elif isinstance(child, ast.ImportFrom):
            source = child.module or ""
            for alias in child.names:
                inner = f"{source}.{alias.name}"
                module = inner if module_file(root, inner) else source
                yield Import(module=module, line=child.lineno)
        else:
            yield from _walk(root, child)


def with_parents(root: Path, module: str) -> list[str]:
    """Importing a.b.c runs a and a.b first; a package that holds no more than a docstring changes
    nothing: left out."""
    parts = module.split(".")
    parents = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    return [parent for parent in parents if _says_something(module_file(root, parent))] + [module]


def _says_something(file: Path | None) -> bool:
    if file is None:
        return False
    body = parsed(file).body
    return any(
        not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body
    )


def closure(root: Path, module: str) -> tuple[set[str], set[str]]:
    """(project modules, foreign top-level names) that `module` imports directly or through others,
    itself included. Imports inside functions count."""
    project: set[str] = set()
    foreign: set[str] = set()
    waiting = with_parents(root, module)
    while waiting:
        current = waiting.pop()
        if current in project:
            continue
        project.add(current)
        file = module_file(root, current)
        assert file is not None, current
        for found in imports(root, file):
            if found.module.split(".")[0] in PACKAGES:
                waiting.extend(with_parents(root, found.module))
            else:
                foreign.add(found.module.split(".")[0])
    return project, foreign - set(sys.stdlib_module_names)
