"""A section of params.yaml becomes its frozen dataclass, and a command line becomes a call of a
stage.

Values are in params.yaml, types in the dataclasses, defaults nowhere (architecture rule 6). An
unknown key, a field without a key, or a value of another type is a ValueError that names file, key,
value and remedy. A setting that several stages read is written once, in a shared section (SHARED);
a stage's dataclass says which of them it takes:

    grid: LabelGrid = field(metadata={"section": "labels"})
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from stages.exit_status import ExitStatus, exit_status_of
from stages.presets import read_params
from visage.strict import from_plain

Report = Callable[[int, Mapping[str, float]], None]
Settings = TypeVar("Settings")
REMEDY = "see the committed params.yaml"
# Settings that several stages read. labels: what a label is, and how its spread and its bands are
# measured. inference: how a model's output becomes a value.
SHARED = {
    "labels": (
        "quantity",
        "unit",
        "grid",
        "fixed_sigma",
        "epsilon_sigma",
        "cs_thresholds",
        "band_width",
    ),
    "inference": ("decode", "flip"),
}
# Put before an error's own text.
HINTS = {ExitStatus.OUT_OF_MEMORY: "out of memory; lower batch_size: "}


def print_report(step: int, values: Mapping[str, float]) -> None:
    """One line a call: the step, then every value with six significant digits."""
    words = [f"{name} {value:.6g}" for name, value in values.items()]
    print(f"[{step}] " + "  ".join(words), flush=True)


def load_section(
    params: Path, section: str, cls: type[Settings], role: str | None = None
) -> Settings:
    """Section `section` of a params file as the dataclass `cls`, with the fields that `cls` takes
    from the shared sections. `role`: where the stage runs once a role."""
    return section_settings(read_params(params), section, cls, str(params), role)


def section_settings(
    document: Mapping[str, Any],
    section: str,
    cls: type[Settings],
    where: str,
    role: str | None = None,
) -> Settings:
    """The same as `load_section`, from all settings as nested dictionaries; `where` names them in
    errors."""
    own = _part(document, section, where)
    place = f"{where}: {section}"
    if role is not None:
        own = _part(own, role, place)
        place = f"{place}.{role}"

    given: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for name, shared in shared_fields(cls).items():
        if isinstance(own, Mapping) and name in own:
            raise ValueError(
                f"{place}: unknown key {name!r}; it stands once for all stages, in section "
                f"{shared!r}"
            )

        values = _shared_section(document, shared, where)
        value = _part(values, name, f"{where}: {shared}", "key")
        given[name] = convert(value, hints[name], f"{where}: {shared}.{name}")

    return typing.cast(Settings, from_plain(own, cls, place, REMEDY, given))


def convert(value: Any, wanted: Any, where: str) -> Any:
    """A value of params.yaml as the type `wanted`."""
    return from_plain(value, wanted, where, REMEDY)


def shared_fields(cls: type) -> dict[str, str]:
    """The fields of a settings dataclass that come from a shared section, and which section."""
    fields = {field.name: field.metadata.get("section") for field in dataclasses.fields(cls)}
    return {name: section for name, section in fields.items() if section is not None}


def _shared_section(document: Mapping[str, Any], section: str, where: str) -> Any:
    """A shared section; ValueError for a key that no stage reads."""
    values = _part(document, section, where)
    if isinstance(values, Mapping):
        for key in values:
            if key not in SHARED[section]:
                raise ValueError(
                    f"{where}: {section}: unknown key {key!r}; known keys: "
                    f"{', '.join(SHARED[section])}"
                )
    return values


def _part(document: Any, name: str, where: str, kind: str = "section") -> Any:
    if not isinstance(document, Mapping) or name not in document:
        raise ValueError(f"{where}: no {kind} '{name}'; {REMEDY}")
    return document[name]


def read_json(path: Path) -> Any:
    """The document in a JSON file that an earlier stage wrote."""
    if not path.is_file():
        raise ValueError(f"{path}: missing; run the stage that writes it (dvc repro) first")
    return json.loads(path.read_text(encoding="utf-8"))


def given_paths(
    module: str, names: Sequence[str], words: Sequence[str] | None = None
) -> dict[str, Path]:
    """The command line `--name PATH ...` of a module that another program starts, as absolute
    paths. Every name is required; a wrong command line ends the process with status 2."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", allow_abbrev=False)
    for name in names:
        parser.add_argument("--" + name.replace("_", "-"), dest=name, type=Path, required=True)
    return {name: path.absolute() for name, path in vars(parser.parse_args(words)).items()}


def stage_main(
    section: str,
    cls: type[Settings],
    stage: Callable[..., object],
    paths: Sequence[str],
    has_role: bool = False,
) -> None:
    """Runs a stage from the command line of dvc.yaml. An error ends it with one clear line and the
    exit status of stages/exit_status.py; only a fault of this code prints its traceback.

    Every name of `paths` becomes a required `--name PATH`; the absolute path is passed to the stage
    as a keyword argument.
    """
    parser = argparse.ArgumentParser(prog=f"python -m stages.{section}", allow_abbrev=False)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    if has_role:
        parser.add_argument("--role", required=True, choices=["identity", "target"])
    arguments, rest = parser.parse_known_args()
    given = given_paths(f"stages.{section}", paths, rest)
    role = arguments.role if has_role else None

    try:
        settings = load_section(arguments.params, section, cls, role)
        stage(settings, **given, report=print_report)
    except Exception as error:
        status = exit_status_of(error)
        if status is ExitStatus.FAULT:
            raise
        print(f"stages.{section}: {HINTS.get(status, '')}{error}", file=sys.stderr)
        raise SystemExit(int(status)) from error
