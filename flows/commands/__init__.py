"""The pipeline's commands, part of `visage` in a clone (visage/cli/group.py finds them).

Each is a thin function: it reads its words, calls one flow, and turns an error that a person can
correct into one line. What it calls is imported inside it, so that `visage --help` stays quick.
Every command works in the clone's folder, wherever it was typed; paths in its words are those of
the folder where it was typed.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import typer

from flows.commands import photos, pipeline, registry, studies
from flows.pipeline.workspace import ROOT

ENVIRONMENT = ROOT / "environment.mk"
EXPORT = re.compile(r"^export (\w+) := (.*)$", re.MULTILINE)

app = typer.Typer(rich_markup_mode=None)
for module in (pipeline, studies, photos, registry):
    for name, function in module.COMMANDS.items():
        app.command(name)(function)


def serve_registered(model: str, host: str, port: int, poll_seconds: float | None) -> None:
    """Serves the champion of the data set in use (`champion`) or `models:/NAME/VERSION`."""
    registry.serve(model, host, port, poll_seconds)


def set_environment() -> None:
    """Sets what the pipeline's libraries read when they are imported, where it is not set; `dvc`
    and the stages that it starts use this interpreter."""
    for name, value in EXPORT.findall(ENVIRONMENT.read_text(encoding="utf-8")):
        os.environ.setdefault(name, value.replace("$(CURDIR)", str(ROOT)))

    programs = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    if programs not in path.split(os.pathsep):
        os.environ["PATH"] = f"{programs}{os.pathsep}{path}"
