"""A section of params.yaml becomes its frozen dataclass, and a command line becomes a call of a
stage.

Values live in params.yaml, types in the dataclasses, defaults nowhere (architecture rule 7): a key
that no field knows, a field that no key fills, or a value of another type is a ValueError that
names file, key, value and remedy. This is the only module that reads yaml.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from stages.exit_status import ExitStatus, exit_status_of

Report = Callable[[int, Mapping[str, float]], None]
Settings = TypeVar("Settings")
POWER_OF_TEN = re.compile(
    r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"
)  # 1e-05, as DVC writes it: text to PyYAML
WORDS = {ExitStatus.OUT_OF_MEMORY: "out of memory; lower batch_size: "}


def print_report(step: int, values: Mapping[str, float]) -> None:
    """One line a call: the step, then every value with six significant digits."""
    print(
        f"[{step}] " + "  ".join(f"{name} {value:.6g}" for name, value in values.items()),
        flush=True,
    )


def read_params(params: Path) -> dict[str, Any]:
    """The whole of a params file as nested dictionaries."""
    if not params.is_file():
        raise ValueError(
            f"{params}: no such settings file; run from the repository root or give --params"
        )
    try:
        document = yaml.safe_load(params.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{params}: not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{params}: expected sections, found {type(document).__name__}")
    return document


def load_section(
    params: Path, section: str, cls: type[Settings], role: str | None = None
) -> Settings:
    """Section `section` (of `role`, where the stage runs once a role) of a params file as the
    dataclass `cls`."""
    document: Any = read_params(params)
    where = str(params)
    for key in [section] + ([role] if role is not None else []):
        if not isinstance(document, dict) or key not in document:
            raise ValueError(f"{where}: no section '{key}'; add it (see the committed params.yaml)")
        document, where = (
            document[key],
            f"{where}: {key}" if where == str(params) else f"{where}.{key}",
        )
    return typing.cast(Settings, convert(document, cls, where))


def read_json(path: Path) -> Any:
    """The document in a JSON file that an earlier stage wrote."""
    if not path.is_file():
        raise ValueError(f"{path}: missing; run the stage that writes it (dvc repro) first")
    return json.loads(path.read_text(encoding="utf-8"))


def convert(value: Any, wanted: Any, where: str) -> Any:
    """A YAML value as the type `wanted`: dataclasses, unions with None, tuples, dicts, enums of
    strings, numbers."""
    if dataclasses.is_dataclass(wanted):
        return _convert_dataclass(value, typing.cast(type, wanted), where)
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return convert(value, next(a for a in arguments if a is not type(None)), where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"{where}: {value!r} is not one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (tuple, list, dict, Mapping) or wanted is dict:
        return _convert_collection(value, origin or dict, arguments or (str, Any), where)
    return _convert_scalar(value, wanted, where)


def _convert_dataclass(value: Any, cls: type, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a section with keys, found {value!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown, missing = sorted(set(value) - set(fields)), sorted(set(fields) - set(value))
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known keys: {', '.join(fields)}")
    if missing:
        raise ValueError(
            f"{where}: missing key {missing[0]!r}; add it (see the committed params.yaml)"
        )
    hints = typing.get_type_hints(cls)
    converted = {name: convert(value[name], hints[name], f"{where}.{name}") for name in fields}
    try:
        return cls(**converted)
    except ValueError as error:  # a dataclass's own __post_init__ check: say where the value stands
        raise ValueError(f"{where}: {error}") from error


def _convert_collection(value: Any, origin: Any, arguments: Sequence[Any], where: str) -> Any:
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected keys with values, found {value!r}")
        return {
            convert(key, arguments[0], f"{where}, key"): convert(
                item, arguments[1], f"{where}.{key}"
            )
            for key, item in value.items()
        }
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list, found {value!r}")
    if origin is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise ValueError(f"{where}: expected {len(arguments)} values, found {len(value)}")
        return tuple(
            convert(item, kind, where) for item, kind in zip(value, arguments, strict=True)
        )
    return origin(
        convert(item, arguments[0], f"{where}[{index}]") for index, item in enumerate(value)
    )


def _convert_scalar(value: Any, wanted: Any, where: str) -> Any:
    if wanted is Any:
        return value
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is float and isinstance(value, str) and POWER_OF_TEN.fullmatch(value):
        return float(value)
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise ValueError(f"{where}: expected {wanted.__name__}, found {value!r}")
    return value


def stage_main(
    section: str,
    cls: type[Settings],
    stage: Callable[..., object],
    paths: Sequence[str],
    has_role: bool = False,
) -> None:
    """Runs a stage from the command line of dvc.yaml; all but faults of this code end it with one
    clear line and the exit status of stages/exit_status.py.

    Every name of `paths` becomes a required `--name PATH`, made absolute, and is handed over as a
    keyword.
    """
    parser = argparse.ArgumentParser(prog=f"python -m stages.{section}")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    if has_role:
        parser.add_argument("--role", required=True, choices=["identity", "target"])
    for name in paths:
        parser.add_argument("--" + name.replace("_", "-"), dest=name, type=Path, required=True)
    arguments = parser.parse_args()
    try:
        settings = load_section(
            arguments.params, section, cls, arguments.role if has_role else None
        )
        stage(
            settings,
            **{name: getattr(arguments, name).absolute() for name in paths},
            report=print_report,
        )
    except Exception as error:
        if (ending := exit_status_of(error)) is ExitStatus.FAULT:
            raise
        print(f"stages.{section}: {WORDS.get(ending, '')}{error}", file=sys.stderr)
        raise SystemExit(int(ending)) from error
