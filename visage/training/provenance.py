"""Where a model comes from: digests of settings, face tables and runs, and the machine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from visage.data.face_table import FaceRow


class Faces(Protocol):
    """Faces one after the other, in memory (visage.data.face_table.FaceTable) or not
    (visage.data.face_stream.FaceSplit)."""

    @property
    def alignment(self) -> Mapping[str, Any]: ...

    def rows(self) -> Iterator[FaceRow]: ...


def table_digest(table: Faces) -> dict[str, Any]:
    """Number of faces and sha256 over every face's photo, crop, label, sigma and person, in the
    table's order; and over its label's half width where that is an interval.

    The crops count byte for byte: a changed detector or template gives other crops of the same
    photos. Labels and then sigmas come after all crops; until then they are on disk, so that memory
    does not grow with the number of faces.
    """
    digest = hashlib.sha256()
    num_faces = 0
    with tempfile.TemporaryFile() as labels, tempfile.TemporaryFile() as sigmas:
        for sha256, person, jpeg, label, sigma, half_width in table.rows():
            digest.update(f"{sha256} {person}\n".encode())
            digest.update(jpeg)
            if not np.isnan(half_width):
                digest.update(np.float64(half_width).tobytes())
            labels.write(np.float64(label).tobytes())
            sigmas.write(np.float64(sigma).tobytes())
            num_faces += 1

        for file in (labels, sigmas):
            file.seek(0)
            while piece := file.read(1 << 20):
                digest.update(piece)

    return {"num_faces": num_faces, "sha256": digest.hexdigest()}


def fingerprint_of(settings: Any, table: Faces, code: str, *extra: str) -> str:
    """One digest of a run: settings dataclass, face table with its alignment, the digest `code` of
    the code that trains, torch version and thread count.

    A checkpoint outlives its run; without the code in its fingerprint, an edited loss would be
    given the old weights.
    """
    threads = str(torch.get_num_threads())
    return fingerprint_by(settings, table.alignment, table_digest(table), code, threads, *extra)


def fingerprint_by(
    settings: Any, alignment: Mapping[str, Any], digest: Mapping[str, Any], code: str, *extra: str
) -> str:
    """`fingerprint_of` faces whose digest is known, without the thread count: where several
    machines train, no two runs end in the same bits, and the next one may have other machines."""
    parts = [
        json.dumps(dataclasses.asdict(settings), sort_keys=True),
        json.dumps(dict(alignment), sort_keys=True),
    ]
    parts += [digest["sha256"], code, torch.__version__, *extra]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def git_commit() -> str:
    """The commit of the code that runs, `unknown` outside of a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def machine_of() -> dict[str, Any]:
    """This machine in words: processor, cores, GPU, torch."""
    found = None
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = re.search(r"model name\s*: (.+)", cpuinfo.read_text(encoding="utf-8"))
    processor = found[1] if found else platform.processor() or platform.machine()

    on_gpu = torch.cuda.is_available()
    gpu = f", {torch.cuda.get_device_name()}" if on_gpu else ""
    return {
        "words": f"{processor}, {os.cpu_count()} cores{gpu}, torch {torch.__version__}",
        "on_gpu": on_gpu,
    }
