"""Presets: what differs from params.yaml, laid over it key by key."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from stages.settings import read_params
from visage.atomic import atomic_write

# What a preset gives, it gives whole
REPLACED = (
    "download.identity",
    "download.target",
    "sweep.space",
    "pretrain.network.options",
    "finetune.network.options",
)


def merged(base: Any, changes: Any, path: str = "") -> Any:
    """`base` with the keys of `changes` laid over it, section by section; `REPLACED` sections are
    taken whole."""
    if path in REPLACED or not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    laid = {
        key: merged(base.get(key), value, f"{path}.{key}".lstrip("."))
        for key, value in changes.items()
    }
    return {**base, **laid}


def read_preset(preset: Path) -> dict[str, Any]:
    """A preset's keys, laid over those of the preset beside it that its `extends` names."""
    changes = read_params(preset)
    if "extends" not in changes:
        return changes
    whole: dict[str, Any] = merged(read_preset(preset.parent / changes.pop("extends")), changes)
    return whole


def use_preset(base: Path, preset: Path, params: Path) -> None:
    """Lays a preset's keys over the embedded set's settings (`base`) and writes the result as
    `params`."""
    header = f"# Written by `make repro` from {base.name} and {preset.name}; edit those.\n"
    document = merged(read_params(base), read_preset(preset))
    with atomic_write(params) as part:
        part.write_text(
            header + yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )


def main(words: Sequence[str]) -> None:
    """What the Makefile asks for: a preset laid over the settings, or one value of them."""
    match words:
        case ["use", base, preset, params]:
            use_preset(Path(base), Path(preset), Path(params))
        case ["value", name]:
            value = read_params(Path("params.yaml"))
            for key in name.split("."):
                value = value[key]
            print(value)
        case _:
            raise SystemExit(
                "usage: python -m stages.presets use BASE.yaml PRESET.yaml PARAMS.yaml | value "
                "SECTION.KEY"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
