"""dvc.yaml's stages for many settings side by side: every distinct step once, in a folder of its
own.

DVC keeps one workspace with its newest result; a table of a paper needs hundreds of settings at
once. DVC is asked for the stages and their order (flows/pipeline/dvc_stages.py), and each step is
run in `<runs>/<stage>-<key>/`, where the key is a digest of all that it depends on, as dvc.yaml
says: command, settings, code, and the steps before it. Cells share what they have in common (data,
backbone), a finished step is never done again, and a killed training goes on from its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flows.pipeline.dvc_stages import Declared
from flows.pipeline.file_lock import file_lock
from stages.code import STAGE as CODE_STAGE
from stages.code import code_digest, names_in
from stages.ingest.records import files_under
from visage.atomic import atomic_write
from visage.training.provenance import git_commit, machine_of

REPOSITORY = Path(__file__).resolve().parents[2]
DONE, LOG, PARAMS = ".done.json", "log.txt", "params.yaml"
RESOLVED = "params.resolved.yaml"
KEY_LENGTH = 16


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stage with settings: `inputs` maps each path that it reads to the step that writes it."""

    stage: Declared
    params: dict[str, Any]
    inputs: dict[str, Step]
    key: str
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def names(self) -> frozenset[str]:
        """The texts in its settings and in those of the steps before it, which choose code."""
        return names_in(self.params).union(*(before.names for before in self.inputs.values()))

    @property
    def done(self) -> dict[str, Any] | None:
        """What was noted when the step ended well; None before."""
        note = self.folder / DONE
        return json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None

    def output(self, path: str) -> Path:
        """Where one of the stage's outputs lies."""
        assert path in self.stage.outputs, path
        return self.folder / path


def plan(
    stages: Sequence[Declared], params: Mapping[str, Any], goal: str, runs: Path
) -> dict[str, Step]:
    """The steps that lead to the stage `goal` under these settings (all of params.yaml, its presets
    laid over it), by stage name. The stage that resolves them for DVC is none of the steps: each
    finds its own in its folder."""
    stages = [stage for stage in stages if RESOLVED not in stage.outputs]
    steps: dict[str, Step] = {}
    writer: dict[str, Step] = {}
    for stage in stages:
        if stage.name == CODE_STAGE:  # of the key of every step, and no step
            continue
        inputs = {path: writer[path] for path in stage.inputs if path in writer}
        own = _sections(params, stage)
        key = _key(stage, own, inputs)
        step = Step(
            stage=stage, params=own, inputs=inputs, key=key, folder=runs / f"{stage.name}-{key}"
        )
        steps[stage.name] = step
        writer |= dict.fromkeys(stage.outputs, step)
    if goal not in steps:
        raise ValueError(f"dvc.yaml has no stage {goal!r}, only {', '.join(steps)}")
    wanted = {goal}
    for name in reversed(list(steps)):
        if name in wanted:
            wanted |= {step.stage.name for step in steps[name].inputs.values()}
    return {name: step for name, step in steps.items() if name in wanted}


def _sections(params: Mapping[str, Any], stage: Declared) -> dict[str, Any]:
    """The parts of params.yaml that a stage reads, nested as they are there."""
    kept: dict[str, Any] = {}
    for name in stage.params:
        source: Any = params
        target = kept
        *parents, last = name.split(".")
        for parent in parents:
            source, target = source[parent], target.setdefault(parent, {})
        target[last] = source[last]
    return kept


def _key(stage: Declared, params: Mapping[str, Any], inputs: Mapping[str, Step]) -> str:
    names = names_in(params).union(*(step.names for step in inputs.values()))
    runs_module = stage.command[:2] == ("python", "-m")
    code = _code(stage.command[2], REPOSITORY, names) if runs_module else None
    upstream = {path: step.key for path, step in inputs.items()}
    upstream |= _brought([path for path in stage.inputs if path not in inputs], params)
    text = json.dumps([stage.command, params, code, upstream], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


@cache
def _code(module: str, root: Path, names: frozenset[str]) -> str:
    """Once a process: hundreds of cells ask for the same."""
    return code_digest(module, root, names)


def _brought(folders: Sequence[str], params: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the folders of the repository that a stage reads and no stage writes.

    One that its settings do not name counts for nothing: photos that come are no reason to repeat
    other sets' cells.
    """
    named = [path for path in folders if f'"{path}/' in json.dumps(params)]
    return {path: _digest(REPOSITORY / path, _listing(REPOSITORY / path)) for path in named}


def _listing(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """(name, bytes, time) of the files below a folder."""
    stats = ((name, (folder / name).stat()) for name in files_under(folder))
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in stats)


@cache
def _digest(folder: Path, listing: tuple[tuple[str, int, int], ...]) -> str:
    """Of names and contents; read once for as long as the listing is the same."""
    files = [
        (name, hashlib.sha256((folder / name).read_bytes()).hexdigest()) for name, *_ in listing
    ]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def run(steps: Iterable[Step], num_workers: int, num_threads: int) -> dict[str, str]:
    """Runs the steps that are not done, `num_workers` at a time with `num_threads` each, none
    before its inputs.

    Returns the name of every step that failed, or that could not run because one before it did,
    with the reason: the others have run. A failed step is tried again by the next call.
    """
    waiting = {step.key: step for step in steps if step.done is None}
    failed: dict[str, str] = {}
    running: dict[Future[str | None], Step] = {}
    with (
        ThreadPoolExecutor(num_workers) as pool,
        tqdm(total=len(waiting), unit="step", desc="steps") as bar,
    ):
        while waiting or running:
            for step in _ready(waiting, running.values())[: num_workers - len(running)]:
                del waiting[step.key]
                running[pool.submit(_attempt, step, num_threads, failed)] = step
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                step = running.pop(future)
                if (reason := future.result()) is not None:
                    failed[step.name] = reason
                    tqdm.write(f"{step.name}: {reason}")
                bar.update()
    return failed


def _ready(waiting: Mapping[str, Step], running: Iterable[Step]) -> list[Step]:
    """The waiting steps with nothing before them to do, in their order: a cell is finished before
    the next begins."""
    busy = {step.key for step in running} | set(waiting)
    return [
        step
        for step in waiting.values()
        if not busy & {before.key for before in step.inputs.values()}
    ]


def _attempt(step: Step, num_threads: int, failed: Mapping[str, str]) -> str | None:
    """Runs one step; the reason where it did not end well."""
    for before in step.inputs.values():
        if before.name in failed:
            return f"not run, for {before.name} failed"
    try:
        step.folder.mkdir(parents=True, exist_ok=True)
        with file_lock(step.folder / ".lock", wait=True) as lock:
            return (
                None if step.done is not None else _execute(step, num_threads, lock)
            )  # another process was faster
    except OSError as error:  # a full disk, say: the other steps may still find room
        return str(error)


def _execute(step: Step, num_threads: int, lock: int) -> str | None:
    """Links the inputs, runs the command, notes its end. The command holds `lock` too: should this
    process die alone, the folder stays locked for as long as somebody writes into it."""
    for path, before in step.inputs.items():
        _link(before.folder / path, step.folder / path)
    with atomic_write(step.folder / PARAMS) as part:
        part.write_text(json.dumps(step.params, indent=1), encoding="utf-8")
    program, *arguments = step.stage.command
    command = [sys.executable if program == "python" else program, *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(num_threads)}
    with (step.folder / LOG).open("a", encoding="utf-8") as log:
        start = log.tell()
        process = subprocess.Popen(
            command,
            cwd=step.folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
        )
        try:
            status = process.wait()
        finally:
            # It writes into the folder until it has ended, and the lock is given back after this.
            process.kill()
            process.wait()
    if status != 0:
        return (
            f"exit status {status}; see {step.folder / LOG}: {last_line(step.folder / LOG, start)}"
        )
    with atomic_write(step.folder / DONE) as part:
        part.write_text(
            json.dumps({"machine": machine_of(), "git_commit": git_commit()}) + "\n",
            encoding="utf-8",
        )
    return None


def _link(target: Path, place: Path) -> None:
    """`place` becomes a relative link to `target`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(os.path.relpath(target, place.parent))


def last_line(path: Path, start: int) -> str:
    """The last line of a log that is not empty, from byte `start` on."""
    text = path.read_bytes()[start:].decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "(nothing was printed)"
