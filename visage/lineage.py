"""Where a model comes from: digests of settings, face tables and code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visage.faces import FaceTable


def table_digest(table: FaceTable) -> dict[str, Any]:
    """Number of faces and sha256 over every face's picture, label, sigma and person, in the table's order."""
    digest = hashlib.sha256()
    for sha256, person in zip(table.sha256, table.person, strict=True):
        digest.update(f"{sha256} {person}\n".encode())
    digest.update(np.ascontiguousarray(table.label).tobytes() + np.ascontiguousarray(table.sigma).tobytes())
    return {"num_faces": len(table), "sha256": digest.hexdigest()}


def fingerprint_of(settings: Any, table: FaceTable, *extra: str) -> str:
    """One digest of a run: settings dataclass, face table with its alignment, torch version and thread count."""
    parts = [json.dumps(dataclasses.asdict(settings), sort_keys=True), json.dumps(table.alignment, sort_keys=True)]
    parts += [table_digest(table)["sha256"], torch.__version__, str(torch.get_num_threads()), *extra]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def git_commit() -> str:
    """The commit of the code that runs, `unknown` outside of a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
