"""Presets: settings that differ from params.yaml, laid over it key by key.

    python -m stages.presets use NAME ...          (make repro DATA=NAME does it first)
    python -m stages.presets resolve params.yaml params.resolved.yaml      (a stage of dvc.yaml)
    python -m stages.presets value SECTION.KEY

params.yaml holds every setting, with the values of the embedded synthetic set. Its key `presets`
names the files of presets/ that are laid over it. A preset holds what differs, and `extends` names
the presets that it builds on. Order is precedence, as among the parents of a Python class: a preset
wins over those that it extends, and of two names in a list the first wins. A preset that is reached
twice is laid once, below all that extend it.

Two things are not laid over key by key. A `download.<role>` that gives `source` describes a set of
its own: the keys that describe the set below (SET_KEYS) are dropped; `split` and `limits` are laid
over like the rest. A `sweep.space` replaces the one below, because its keys are the settings that
are searched; so do the options of a network.

This is the only module that reads yaml.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from visage.atomic import atomic_write

# The embedded set: params.yaml alone.
SYNTHETIC = "synthetic"
# The key of params.yaml that names the presets in use, and their folder.
LISTED = "presets"
EXTENDS = "extends"
# Of a protocol with several runs: a setting and its values.
FOLDS = "folds"
SETS = ("download.identity", "download.target")
SET_KEYS: dict[str, Any] = {
    "locations": [],
    "sha256": {},
    "options": {},
    "scale": None,
    "sigma": None,
    "joined": {},
    "test_set": None,
    "incoming": None,
}
REPLACED = ("sweep.space", "pretrain.network.options", "finetune.network.options")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of sections as nested dictionaries."""
    if not path.is_file():
        raise ValueError(
            f"{path}: no such settings file; run from the repository root or give --params"
        )

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error

    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected sections, found {type(document).__name__}")
    return document


def read_params(params: Path) -> dict[str, Any]:
    """All settings of a params file: its own, with the presets that it names laid over them. The
    folder presets/ is next to the file."""
    values = read_yaml(params)
    return with_presets(values, values.get(LISTED, []), params.parent / LISTED)


def with_presets(base: Mapping[str, Any], names: Sequence[str], folder: Path) -> dict[str, Any]:
    """`base` with the presets `names` of a folder laid over it, without the list of presets."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{LISTED} is {names!r}: give a list of names, such as [utkface_coral]")

    settings = {name: section for name, section in base.items() if name != LISTED}
    for name, changes in layers(names, folder):
        odd = sorted(set(changes) - set(base) - {FOLDS})
        if odd:
            raise ValueError(
                f"{folder / name}.yaml: params.yaml has no section {odd[0]!r}; it has "
                f"{', '.join(map(str, base))}"
            )
        settings = merged(settings, changes)
    return settings


def layers(names: Sequence[str], folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """The presets that `names` stand for, and their own keys, in the order in which they are laid:
    each after those that it extends, the first of a list after the others."""
    laid: dict[str, dict[str, Any]] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ValueError(
                f"{folder / name}.yaml: extends itself, by {' -> '.join((*path, name))}; leave "
                f"one of these out"
            )
        if name in laid:
            return
        changes = _read_preset(name, folder)
        for parent in reversed(changes.pop(EXTENDS, [])):
            visit(parent, (*path, name))
        laid[name] = changes

    for name in reversed(names):
        visit(name, ())
    return list(laid.items())


def _read_preset(name: str, folder: Path) -> dict[str, Any]:
    """A preset's own keys."""
    if name not in known_presets(folder):
        raise ValueError(
            f"{folder / name}.yaml: no such preset; there are "
            f"{', '.join([SYNTHETIC, *known_presets(folder)])}"
        )

    changes = read_yaml(folder / f"{name}.yaml")
    if not isinstance(changes.get(EXTENDS, []), list):
        raise ValueError(
            f"{folder / name}.yaml: extends is {changes[EXTENDS]!r}: give a list of presets"
        )
    return changes


def known_presets(folder: Path) -> list[str]:
    """The names of a folder's presets."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def merged(base: Any, changes: Any, path: str = "") -> Any:
    """`base` with the keys of `changes` laid over it; the module docstring names the exceptions."""
    if path in REPLACED or not (isinstance(base, Mapping) and isinstance(changes, Mapping)):
        return changes
    if path in SETS and "source" in changes:
        base = {**base, **SET_KEYS}
    laid = {
        key: merged(base.get(key), value, f"{path}.{key}".lstrip("."))
        for key, value in changes.items()
    }
    return {**base, **laid}


# -------------------------------------------------------------------------------
# The command line
# -------------------------------------------------------------------------------


def use(names: Sequence[str], params: Path) -> None:
    """Writes the presets in use into their line of params.yaml; the rest of the file stays as it
    is. `synthetic` alone stands for none."""
    chosen = [] if list(names) == [SYNTHETIC] else list(names)
    layers(chosen, params.parent / LISTED)  # refuses unknown presets

    lines = params.read_text(encoding="utf-8").splitlines(keepends=True)
    places = [place for place, line in enumerate(lines) if line.startswith(f"{LISTED}:")]
    if len(places) != 1:
        raise ValueError(f"{params}: expected one line that begins with '{LISTED}:'; add it")

    # The list may go on with a name a line: `dvc exp run -S 'presets=[...]'` writes it so.
    start = places[0]
    end = start + 1
    while end < len(lines) and lines[end].lstrip().startswith("- "):
        end += 1

    _, hash_sign, comment = lines[start].rstrip("\n").partition("  #")
    line = f"{LISTED}: [{', '.join(chosen)}]{hash_sign}{comment}\n"
    if lines[start:end] != [line]:
        with atomic_write(params) as part:
            part.write_text("".join([*lines[:start], line, *lines[end:]]), encoding="utf-8")


def resolve(params: Path, resolved: Path) -> None:
    """Writes all settings of a run, params.yaml with its presets, as one file for DVC to compare.

    ValueError for a value of params.yaml that was changed since the last commit and that a preset
    in use sets as well: it would change nothing.
    """
    _refuse_hidden_changes(params)
    header = f"# Written by dvc repro from {params.name} and presets/: edit those.\n"
    text = yaml.safe_dump(read_params(params), sort_keys=False, allow_unicode=True)
    with atomic_write(resolved) as part:
        part.write_text(header + text, encoding="utf-8")


def _refuse_hidden_changes(params: Path) -> None:
    """ValueError for a value that was changed since the last commit and that a preset overrides."""
    now = read_yaml(params)
    committed = _committed(params)
    if committed is None:
        return

    changed = dict(leaves(now)).items() - dict(leaves(committed)).items()
    for name, changes in layers(now.get(LISTED, []), params.parent / LISTED):
        of_preset = dict(leaves(changes))
        for path, value in sorted(changed):
            if path in of_preset and of_preset[path] != value:
                raise ValueError(
                    f"{params}: {path} is now {value}, but {LISTED}/{name}.yaml, which is in use, "
                    f"says {of_preset[path]}; change it there "
                    f"(dvc exp run -S {LISTED}/{name}.yaml:{path}={value}), or commit it where it "
                    f"is meant for other sets"
                )


def _committed(params: Path) -> dict[str, Any] | None:
    """params.yaml of git's last commit; None outside a repository, or where it holds none."""
    if shutil.which("git") is None:
        return None

    done = subprocess.run(
        ["git", "show", f"HEAD:./{params.name}"],
        cwd=params.absolute().parent,
        capture_output=True,
        check=False,
    )

    document = yaml.safe_load(done.stdout) if done.returncode == 0 else None
    return document if isinstance(document, dict) else None


def leaves(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested sections -> dotted names with their values as text; lists are values."""
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def main(words: Sequence[str]) -> None:
    """The command line of Makefile and dvc.yaml; see the module docstring."""
    match words:
        case ["use", *names] if names:
            use(names, Path("params.yaml"))

        case ["resolve", params, resolved]:
            resolve(Path(params), Path(resolved))

        case ["value", name]:
            value: Any = read_params(Path("params.yaml"))
            for key in name.split("."):
                value = value[key]
            print(value)

        case _:
            raise ValueError(
                "usage: python -m stages.presets use NAME ... | resolve PARAMS RESOLVED | value "
                "SECTION.KEY"
            )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        raise SystemExit(f"stages.presets: {error}") from error
