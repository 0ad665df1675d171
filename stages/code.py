"""The code of every stage becomes one digest: `code/<stage>.json` answers "did the code change?".

A digest covers what a module can run, and no more. Every file is cut into its top-level
definitions; from the stage's module on, each name that a definition uses leads to the definition
that binds it, through imports at the top of a file or inside a function, and all that is reached
counts. Statements that act when a file is imported (calls, loops, `os.environ |= ...`, decorators
of this repository) count for every file that is imported. Docstrings, comments, layout, the order
of definitions, annotations of functions and `if TYPE_CHECKING` do not count.

The dicts of `CHOSEN_BY_NAME` hold what settings choose by name. Of them, only the entries count
that the stage's settings name, or those of a stage before it: a value that is the entry's key, or
begins with the key and a hyphen (`vgg-0.125`). Their other entries may be added, edited and
removed, and nothing runs again.

Where the name `TEMPLATES` of a module is reached, the files in templates/ beside it count too.

A digest cannot see names that are put together as text (`importlib`), nor attributes that one file
sets on another's objects inside a function. This file itself never counts: it decides no result.

    python -m stages.code --graph dvc.yaml --params params.yaml --code code

takes a second or two. A file whose content stays the same is not written again.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.presets import read_params, read_yaml
from stages.settings import given_paths
from visage.atomic import atomic_write

REPOSITORY = Path(__file__).resolve().parents[1]
STAGE = "code"  # its name in dvc.yaml
TEMPLATES = "TEMPLATES"  # a module that binds this name renders the files in templates/ beside it
THIS = "stages.code"
CHOSEN_BY_NAME = ("stages.sources:SOURCES", "visage.methods:METHODS", "visage.networks:NETWORKS")

# Fields of a syntax tree that are left out: load or store (follows from the place), u"" and type
# comments. Python's minor versions differ in what they write there.
NOT_CODE = {"ctx", "kind", "type_comment"}


# -------------------------------------------------------------------------------
# Files
# -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Target:
    """What an import binds a name to: `name` of a module, or the module where `name` is None."""

    module: str
    name: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Definition:
    """A top-level statement: the names it binds, and whether importing its file makes it act."""

    node: ast.AST
    package: str
    position: int
    binds: tuple[str, ...]
    acts: bool
    decorators: tuple[str, ...]

    @cached_property
    def text(self) -> str:
        """Its syntax tree, the same in every version of Python and in every layout."""
        return _text(self.node)

    @cached_property
    def uses(self) -> frozenset[tuple[str, ...]]:
        """The names that it reads, with the attributes behind them: `a.b.c` is (a, b, c)."""
        return frozenset(_uses(self.node))

    @cached_property
    def imports(self) -> dict[str, list[Target]]:
        """What the imports inside of it bind."""
        return _imports(ast.walk(self.node), self.package)


@dataclass(frozen=True, kw_only=True)
class File:
    """A parsed file."""

    definitions: tuple[Definition, ...]
    imports: dict[str, list[Target]]
    main: tuple[Definition, ...]  # under `if __name__ == "__main__"`

    @cached_property
    def by_name(self) -> dict[str, list[Definition]]:
        found: dict[str, list[Definition]] = {}
        for definition in self.definitions:
            for name in definition.binds:
                found.setdefault(name, []).append(definition)
        return found


@functools.cache
def _parsed(source: bytes, package: str) -> File:
    """A file's definitions; `package` is where its relative imports start."""
    tree = ast.parse(source)
    _strip(tree)
    definitions: list[Definition] = []
    main: list[Definition] = []
    imports: list[ast.AST] = []

    for position, node in enumerate(tree.body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
            continue

        is_main = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        if not is_main and isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            imports += ast.walk(node)

        definition = Definition(
            node=node,
            package=package,
            position=position,
            binds=tuple(_binds(node)),
            acts=_acts(node),
            decorators=tuple(_decorators(node)),
        )
        (main if is_main else definitions).append(definition)

    return File(
        definitions=tuple(definitions),
        imports=_imports(imports, package),
        main=tuple(main),
    )


def _decorators(node: ast.stmt) -> Iterator[str]:
    """The names that a definition's decorators begin with, and those in their arguments."""
    for decorator in getattr(node, "decorator_list", []):
        for chain in _uses(decorator):
            yield chain[0]


def _strip(tree: ast.Module) -> None:
    """Takes out docstrings, annotations of functions and `if TYPE_CHECKING` blocks."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue

        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            del body[0]

        body[:] = [each for each in body if not _is_for_type_checkers(each)]


def _is_for_type_checkers(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _annotations(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.AST]:
    """The annotations of a function's arguments and of what it returns."""
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    found = [one.annotation for one in every] + [node.returns]
    return [one for one in found if one is not None]


def _acts(node: ast.stmt) -> bool:
    """Whether it does more than bind names when its file is imported."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return False
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return any(isinstance(one, ast.Attribute | ast.Subscript) for one in targets)
    return True


def _binds(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    for child in _bound_in(node):
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child.name


def _bound_in(node: ast.stmt) -> Iterator[ast.AST]:
    """The nodes that may bind a name. What a comprehension on the right binds stays inside it."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from ast.walk(target)
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        yield from ast.walk(node.target)
    else:
        yield from ast.walk(node)


def _imports(nodes: Any, package: str) -> dict[str, list[Target]]:
    """Local name -> what imports bind it to."""
    found: dict[str, list[Target]] = {}

    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                # `import a.b` binds a, `import a.b as c` binds c to a.b.
                module = alias.name if alias.asname else alias.name.partition(".")[0]
                bound = Target(module=module, name=None)
                found.setdefault(alias.asname or module, []).append(bound)
                # The module is imported in both cases.
                found.setdefault("", []).append(Target(module=alias.name, name=None))
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (above, node.module) if part)
            for alias in node.names:
                name = None if alias.name == "*" else alias.name
                target = Target(module=module, name=name)
                found.setdefault(alias.asname or alias.name, []).append(target)

    return found


def _uses(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """Every name that is read, with its attributes. Annotations of functions are skipped: they
    are not run."""
    waiting = [node]
    while waiting:
        each = waiting.pop()

        chain: list[str] = []
        inner = each
        while isinstance(inner, ast.Attribute):
            chain.append(inner.attr)
            inner = inner.value

        if isinstance(inner, ast.Name):
            yield (inner.id, *reversed(chain))
        elif isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [*each.decorator_list, *each.body, *each.args.defaults]
            waiting += [one for one in each.args.kw_defaults if one is not None]
        else:
            waiting += ast.iter_child_nodes(inner)


def _text(value: Any) -> str:
    """A syntax tree as text. Empty fields are left out: versions differ in which there are."""
    if isinstance(value, ast.FunctionDef | ast.AsyncFunctionDef):
        return _fields(value, {*NOT_CODE, "returns"})
    if isinstance(value, ast.arg):
        return value.arg
    if isinstance(value, ast.AST):
        return _fields(value, NOT_CODE)
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return ascii(value)


def _fields(node: ast.AST, left_out: set[str]) -> str:
    fields = [
        f"{name}={_text(value)}"
        for name, value in ast.iter_fields(node)
        if name not in left_out and value is not None and value != []
    ]
    return f"{type(node).__name__}({','.join(fields)})"


# -------------------------------------------------------------------------------
# What is reached
# -------------------------------------------------------------------------------


class Closure:
    """All that one module can run, read from the source below `root`. `texts` grows with what is
    reached."""

    def __init__(self, root: Path, names: Collection[str]) -> None:
        self._root = root
        self._names = names
        self._files: dict[str, File | None] = {}
        self._imported: set[str] = set()
        self._reached: set[Definition] = set()
        self._resolved: dict[tuple[str, tuple[str, ...]], bool] = {}
        self._waiting: list[tuple[str, Definition]] = []
        self.texts: dict[str, list[tuple[str, int, str]]] = {}

    def start(self, module: str) -> None:
        """All of `package.module`, as `python -m` runs it."""
        file = self._reach_all(module)
        for definition in file.main:
            self._reach(module, definition)
        self._follow()

    def start_at(self, module: str, name: str) -> None:
        """One function of a module, with the classes of its arguments: those are built outside."""
        file = self._file(module)
        found = [] if file is None else file.by_name.get(name, [])
        if not found:
            raise ValueError(f"{module}:{name}: no such definition below {self._root}")

        self._import(module)
        for definition in found:
            self._reach(module, definition)
            if isinstance(definition.node, ast.FunctionDef):
                for annotation in _annotations(definition.node):
                    for chain in _uses(annotation):
                        self._use(module, definition, chain)

        self._follow()

    def _file(self, module: str) -> File | None:
        """None where the module is not one of this repository, or is this one."""
        if module not in self._files:
            self._files[module] = self._read(module)
        return self._files[module]

    def _read(self, module: str) -> File | None:
        if module in ("", THIS):
            return None

        stem = self._root.joinpath(*module.split("."))
        package = stem / "__init__.py"
        plain = stem.with_suffix(".py")
        if package.is_file():
            return _parsed(package.read_bytes(), module)
        if plain.is_file():
            return _parsed(plain.read_bytes(), module.rpartition(".")[0])
        # A folder without __init__.py is a package that does nothing.
        return _parsed(b"", module) if stem.is_dir() else None

    def _import(self, module: str) -> None:
        """Importing a.b runs a, then b: their acting statements count, and their own imports."""
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            name = ".".join(parts[:depth])
            file = self._file(name)
            if file is None or name in self._imported:
                continue
            self._imported.add(name)
            self._import_targets(file.imports)
            for definition in file.definitions:
                if definition.acts or self._is_registered(file, definition):
                    self._reach(name, definition)

    def _import_targets(self, imports: Mapping[str, list[Target]]) -> None:
        for targets in imports.values():
            for target in targets:
                self._import(target.module)
                if target.name is not None:
                    self._import(f"{target.module}.{target.name}")

    def _is_registered(self, file: File, definition: Definition) -> bool:
        """Whether a decorator of this repository sees the definition: it may keep it somewhere."""
        for name in definition.decorators:
            if name in file.by_name:
                return True
            targets = file.imports.get(name, [])
            if any(self._file(target.module) is not None for target in targets):
                return True
        return False

    def _reach_all(self, module: str) -> File:
        file = self._file(module)
        if file is None:
            raise ValueError(f"{module}: no such module below {self._root}")
        self._import(module)
        for definition in file.definitions:
            self._reach(module, definition)
        return file

    def _reach(self, module: str, definition: Definition) -> None:
        if definition not in self._reached:
            self._reached.add(definition)
            self._waiting.append((module, definition))

    def _follow(self) -> None:
        while self._waiting:
            module, definition = self._waiting.pop()
            texts = self.texts.setdefault(module, [])

            for part in self._chosen(module, definition):
                self._import_targets(part.imports)
                for chain in part.uses:
                    self._use(module, part, chain)

                bound = sorted(self._outside(module, part))
                name = next(iter(definition.binds), "")
                texts.append((name, definition.position, "\n".join([part.text, *bound])))

    def _chosen(self, module: str, definition: Definition) -> list[Definition]:
        """The definition; of a dict that settings choose from, the entries that they name."""
        is_chosen_from = any(f"{module}:{name}" in CHOSEN_BY_NAME for name in definition.binds)
        node = definition.node
        table = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if not (is_chosen_from and isinstance(table, ast.Dict)):
            return [definition]

        entries: list[Definition] = []
        for key, value in zip(table.keys, table.values, strict=True):
            name = key.value if isinstance(key, ast.Constant) else None
            if not isinstance(name, str) or self._is_named(name):
                entry = ast.Dict(keys=[key], values=[value])
                entries.append(dataclasses.replace(definition, node=entry))

        return entries

    def _is_named(self, key: str) -> bool:
        return any(name == key or name.startswith(f"{key}-") for name in self._names)

    def _use(self, module: str, definition: Definition, chain: tuple[str, ...]) -> None:
        """Reaches what a name stands for, as bound in the definition itself or in its file."""
        for target in definition.imports.get(chain[0], []):
            self._use_target(target, chain[1:])
        self._use_of(module, chain)

    def _use_of(self, module: str, chain: tuple[str, ...]) -> bool:
        """A name of a module; False where the module does not bind it."""
        file = self._file(module)
        assert file is not None, module

        definitions = file.by_name.get(chain[0], [])
        for definition in definitions:
            self._reach(module, definition)
        targets = file.imports.get(chain[0], [])
        for target in targets:
            self._use_target(target, chain[1:])
        for target in file.imports.get("*", []):
            self._use_target(target, chain)

        return bool(definitions or targets)

    def _use_target(self, target: Target, rest: tuple[str, ...]) -> None:
        chain = rest if target.name is None else (target.name, *rest)
        key = (target.module, chain)
        if self._file(target.module) is None or self._resolved.get(key) is True:
            return

        # It is met again while it is resolved: a package that imports its module of the same name.
        is_again = key in self._resolved
        self._resolved[key] = False
        self._import(target.module)

        inner = f"{target.module}.{chain[0]}" if chain else ""
        if not chain:  # the module is handed on as a value: anything of it may be used
            self._reach_all(target.module)
        elif not is_again and self._use_of(target.module, chain):
            pass
        elif self._file(inner) is not None:
            self._use_target(Target(module=inner, name=None), chain[1:])
        elif not (chain[0].startswith("__") and chain[0] != "__dict__") and inner != THIS:
            self._reach_all(target.module)  # a module's __getattr__, say

        self._resolved[key] = True

    def _outside(self, module: str, definition: Definition) -> set[str]:
        """What the names from the file's imports stand for: `np` may be numpy today."""
        file = self._file(module)
        assert file is not None, module

        bound: set[str] = set()
        for chain in definition.uses:
            for target in file.imports.get(chain[0], []):
                bound.add(f"{chain[0]} = {target.module}:{target.name}")
        return bound


# -------------------------------------------------------------------------------
# Digests
# -------------------------------------------------------------------------------


def module_digests(module: str, root: Path, names: Collection[str]) -> dict[str, str]:
    """Every module that `module` reaches, with a digest of what it reaches there; in order."""
    closure = Closure(root, names)
    name, _, function = module.partition(":")
    if function:
        closure.start_at(name, function)
    else:
        closure.start(name)

    digests: dict[str, str] = {}
    for each, reached in sorted(closure.texts.items()):
        digest = hashlib.sha256("\n".join(text for _, _, text in sorted(reached)).encode())
        if any(name == TEMPLATES for name, _, _ in reached):
            folder = root.joinpath(*each.split(".")[:-1], "templates")
            for template in sorted(path for path in folder.rglob("*") if path.is_file()):
                digest.update(template.read_bytes())
        digests[each] = digest.hexdigest()
    return digests


def digest_of(modules: Mapping[str, str]) -> str:
    """One digest of many modules'."""
    lines = [f"{name} {digest}\n" for name, digest in sorted(modules.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def code_digest(module: str, root: Path, names: Collection[str]) -> str:
    """sha256 of all that a module below `root` can run; of one function, as `module:function`.

    `names` are the values by which settings choose (see `names_in`). Errors: ValueError for what
    does not exist.
    """
    return digest_of(module_digests(module, root, names))


def running_code(module: str, settings: Any) -> str:
    """`code_digest` of the code that runs now, under a dataclass of settings."""
    return code_digest(module, REPOSITORY, names_in(dataclasses.asdict(settings)))


def names_in(value: Any) -> frozenset[str]:
    """Every text among the values of settings, however deep."""
    if isinstance(value, str):
        return frozenset([value])
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return frozenset[str]().union(*map(names_in, value))
    return frozenset()


# -------------------------------------------------------------------------------
# The stage
# -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A stage of dvc.yaml: the module that it runs, names of its settings, paths in and out."""

    module: str
    params: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def code(graph: Path, params: Path, folder: Path) -> None:
    """Writes `<stage>.json` into `folder` for every stage of the graph that depends on it."""
    root = graph.absolute().parent

    for stage, (module, names) in _chosen_names(graph, params).items():
        modules = module_digests(module, root, names)
        document = {"digest": digest_of(modules), "modules": modules}
        text = json.dumps(document, indent=1, sort_keys=True) + "\n"

        path = folder / f"{stage}.json"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            with atomic_write(path) as part:
                part.write_text(text, encoding="utf-8")


def _chosen_names(graph: Path, params: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """Stage -> its module, and the names in its settings and in those of all stages before it."""
    settings = read_params(params)
    stages = dict(_declared(read_yaml(graph)))
    writer: dict[str, str] = {}
    for name, stage in stages.items():
        writer |= dict.fromkeys(stage.outputs, name)

    found: dict[str, frozenset[str]] = {}

    def names_of(name: str) -> frozenset[str]:
        if name not in found:
            stage = stages[name]
            own = names_in([_value(settings, key) for key in stage.params])
            before = {writer[path] for path in stage.inputs if path in writer}
            found[name] = own.union(*map(names_of, sorted(before)))
        return found[name]

    # `settings` stands before this stage in the graph, and needs no digest.
    return {
        name: (stage.module, names_of(name))
        for name, stage in stages.items()
        if f"{STAGE}/{name}.json" in stage.inputs
    }


def _value(settings: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(settings, dict) or part not in settings:
            raise ValueError(f"params.yaml: no {key!r}, which dvc.yaml names; add it")
        settings = settings[part]
    return settings


def _declared(document: Mapping[str, Any]) -> Iterator[tuple[str, Declared]]:
    """The stages as DVC names them, `foreach` written out; this one is left out."""
    for name, entry in document["stages"].items():
        if name == STAGE:
            continue
        if "foreach" not in entry:
            yield name, _stage(name, entry)
            continue
        for item in entry["foreach"]:
            text = json.dumps(entry["do"]).replace("${item}", item)
            yield f"{name}@{item}", _stage(name, json.loads(text))


def _stage(name: str, entry: Mapping[str, Any]) -> Declared:
    words = shlex.split(entry["cmd"])
    if words[:2] != ["python", "-m"]:
        raise ValueError(f"dvc.yaml: {name}: the command must begin with python -m MODULE")

    outputs: list[str] = []
    for one in [*entry.get("outs", []), *entry.get("metrics", [])]:
        # An output with options is a mapping with the path as its key.
        outputs += [one] if isinstance(one, str) else one

    return Declared(
        module=words[2],
        params=tuple(_keys(entry.get("params", []))),
        inputs=tuple(entry.get("deps", ())),
        outputs=tuple(outputs),
    )


def _keys(params: Iterable[Any]) -> Iterator[str]:
    """The settings' names of a `params` entry: plain, or below the file that holds them."""
    for one in params:
        if isinstance(one, str):
            yield one
        else:
            for keys in one.values():
                yield from keys


def main() -> None:
    """The command line of dvc.yaml."""
    paths = given_paths("stages.code", ["graph", "params", "code"])
    code(paths["graph"], paths["params"], paths["code"])


if __name__ == "__main__":
    main()
