"""A DVC workspace of small stages in a temporary folder: each reads its predecessor's file and
writes its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

STAGE = """
import os, pathlib, sys, time
name, inputs, program = sys.argv[1], sys.argv[2].split(), sys.argv[3]
text = "".join(pathlib.Path(path).read_text() for path in inputs)
exec(program)
pathlib.Path(name + ".txt").write_text(text + name + "\\n")
"""


def make(root: Path, programs: Mapping[str, str], *, chained: bool = True) -> Path:
    """A workspace whose stages, each after the one before where `chained`, run these lines of
    Python before they write `<stage>.txt`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "stage.py").write_text(STAGE, encoding="utf-8")

    stages: dict[str, Any] = {}
    before: list[str] = []
    for name, program in programs.items():
        (root / f"{name}.program").write_text(program, encoding="utf-8")
        stages[name] = {
            "cmd": f'python stage.py {name} "{" ".join(before)}" "$(cat {name}.program)"',
            "deps": [*before, f"{name}.program"],
            "outs": [f"{name}.txt"],
        }
        before = [f"{name}.txt"] if chained else []

    (root / "dvc.yaml").write_text(
        yaml.safe_dump({"stages": stages}, sort_keys=False), encoding="utf-8"
    )
    (root / "params.yaml").write_text("{}", encoding="utf-8")
    (root / ".dvc" / "tmp").mkdir(parents=True, exist_ok=True)
    (root / ".dvc" / "config").write_text(
        "[core]\n    no_scm = True\n    analytics = false\n", encoding="utf-8"
    )
    return root
