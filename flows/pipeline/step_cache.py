"""Runs dvc.yaml's stages for many settings at once: every distinct step once, in a folder of its
own.

DVC keeps one workspace with its newest result; a table of a paper needs hundreds of settings at
once. DVC gives the stages and their order (flows/pipeline/dvc_stages.py). Each step runs in
`<runs>/<stage>-<key>/`, where the key is a digest of everything that it depends on according to
dvc.yaml: command, settings, code, and the steps before it. Cells share what they have in common
(data, backbone), a finished step never runs again, and a killed training resumes from its
checkpoint.
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
from typing import Any, NamedTuple

from tqdm import tqdm

from flows.pipeline.dvc_stages import Declared
from flows.pipeline.file_lock import file_lock
from stages.code import STAGE as CODE_STAGE
from stages.code import code_digest, names_in
from visage.atomic import atomic_write
from visage.photo_files import files_under
from visage.training.provenance import git_commit, machine_of

REPOSITORY = Path(__file__).resolve().parents[2]
DONE = ".done.json"
LOG = "log.txt"
PARAMS = "params.yaml"
RESOLVED = "params.resolved.yaml"
KEY_LENGTH = 16


class Brought(NamedTuple):
    """An output of another plan's step: the path under which that step wrote it."""

    step: Step
    path: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stage with settings: `inputs` maps each path that it reads to the step that writes it,
    `written_as` those paths that the step wrote under another name to that name."""

    stage: Declared
    params: dict[str, Any]
    inputs: dict[str, Step]
    written_as: dict[str, str]
    key: str
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def names(self) -> frozenset[str]:
        """The texts in its settings and in those of the steps before it; they select code."""
        return names_in(self.params).union(*(before.names for before in self.inputs.values()))

    @property
    def done(self) -> dict[str, Any] | None:
        """The note that a successful step leaves; None until then."""
        note = self.folder / DONE
        return json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None

    def output(self, path: str) -> Path:
        """The path of one of the stage's outputs."""
        assert path in self.stage.outputs, path
        return self.folder / path


NOTHING: Mapping[str, Brought] = {}


def plan(
    stages: Sequence[Declared],
    params: Mapping[str, Any],
    goal: str,
    runs: Path,
    brought: Mapping[str, Brought] = NOTHING,
) -> dict[str, Step]:
    """The steps that lead to the stage `goal` under these settings (all of params.yaml with its
    presets laid over it), by stage name.

    `brought`: what no stage writes, such as `models/start`, or something in a folder that a stage
    reads, such as `models/members/one`, and the step of another plan that gives it. That step is
    not among those returned.

    The stage that resolves the settings for DVC is not a step: each step finds its own settings in
    its folder.
    """
    steps: dict[str, Step] = {}
    writer: dict[str, Step] = {}
    for stage in stages:
        # The digests of the code are in the key of every step, so that `code` is not a step.
        if RESOLVED in stage.outputs or stage.name == CODE_STAGE:
            continue

        inputs = {path: writer[path] for path in stage.inputs if path in writer}
        own_brought = {path: one for path, one in brought.items() if _reads(stage, path)}
        inputs |= {path: one.step for path, one in own_brought.items()}
        own = _sections(params, stage)
        key = _key(stage, own, inputs)
        step = Step(
            stage=stage,
            params=own,
            inputs=inputs,
            written_as={path: one.path for path, one in own_brought.items()},
            key=key,
            folder=runs / f"{stage.name}-{key}",
        )
        steps[stage.name] = step
        writer |= dict.fromkeys(stage.outputs, step)

    if goal not in steps:
        raise ValueError(f"dvc.yaml has no stage {goal!r}, only {', '.join(steps)}")

    wanted = {goal}
    for name in reversed(list(steps)):
        if name in wanted:
            read = steps[name].inputs.items()
            wanted |= {step.stage.name for path, step in read if path not in brought}
    return {name: step for name, step in steps.items() if name in wanted}


def _reads(stage: Declared, path: str) -> bool:
    """Whether a stage reads a path, or something of the folder that it is in."""
    return path in stage.inputs or str(Path(path).parent) in stage.inputs


def _sections(params: Mapping[str, Any], stage: Declared) -> dict[str, Any]:
    """The parts of params.yaml that a stage reads, nested as they are there."""
    kept: dict[str, Any] = {}
    for name in stage.params:
        source: Any = params
        target = kept
        *parents, last = name.split(".")
        for parent in parents:
            source = source[parent]
            target = target.setdefault(parent, {})
        target[last] = source[last]

    return kept


def _key(stage: Declared, params: Mapping[str, Any], inputs: Mapping[str, Step]) -> str:
    names = names_in(params).union(*(step.names for step in inputs.values()))
    runs_module = stage.command[:2] == ("python", "-m")
    code = _code(stage.command[2], REPOSITORY, names) if runs_module else None

    upstream = {path: step.key for path, step in inputs.items()}
    filled = {str(Path(path).parent) for path in inputs}
    sources = [path for path in stage.inputs if path not in inputs and path not in filled]
    upstream |= _source_digests(sources, params)

    text = json.dumps([stage.command, params, code, upstream], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


@cache
def _code(module: str, root: Path, names: frozenset[str]) -> str:
    """The digest of a stage's code, computed once a process: hundreds of cells share it."""
    return code_digest(module, root, names)


def _source_digests(folders: Sequence[str], params: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the repository's folders that a stage reads and no stage writes.

    A folder that the stage's settings do not name is left out: new photos of one set are no reason
    to repeat the cells of other sets.
    """
    text = json.dumps(params)
    digests = {}
    for path in folders:
        if f'"{path}/' in text:
            folder = REPOSITORY / path
            digests[path] = _digest(folder, _listing(folder))
    return digests


def _listing(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """(name, bytes, time) of the files below a folder."""
    files = []
    for name in files_under(folder):
        status = (folder / name).stat()
        files.append((name, status.st_size, status.st_mtime_ns))
    return tuple(files)


@cache
def _digest(folder: Path, listing: tuple[tuple[str, int, int], ...]) -> str:
    """The digest of names and contents; the files are read again only if the listing changes."""
    files = []
    for name, *_ in listing:
        content = (folder / name).read_bytes()
        files.append((name, hashlib.sha256(content).hexdigest()))
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def run(steps: Iterable[Step], num_workers: int, num_threads: int) -> dict[str, str]:
    """Runs the steps that are not done, `num_workers` at a time with `num_threads` each, none
    before its inputs.

    Returns the name and the reason of every step that failed, or that could not run because one
    before it failed. All others have run. The next call tries a failed step again.
    """
    waiting = {step.key: step for step in steps if step.done is None}
    failed: dict[str, str] = {}
    running: dict[Future[str | None], Step] = {}

    with (
        ThreadPoolExecutor(num_workers) as pool,
        tqdm(total=len(waiting), unit="step", desc="steps") as bar,
    ):
        while waiting or running:
            num_free = num_workers - len(running)
            for step in _ready(waiting, running.values())[:num_free]:
                del waiting[step.key]
                running[pool.submit(_attempt, step, num_threads, failed)] = step

            for future in wait(running, return_when=FIRST_COMPLETED).done:
                step = running.pop(future)
                reason = future.result()
                if reason is not None:
                    failed[step.name] = reason
                    tqdm.write(f"{step.name}: {reason}")
                bar.update()

    return failed


def _ready(waiting: Mapping[str, Step], running: Iterable[Step]) -> list[Step]:
    """The waiting steps whose inputs are done, in their order: a cell is finished before the next
    begins."""
    unfinished = {step.key for step in running} | set(waiting)
    return [
        step
        for step in waiting.values()
        if not unfinished & {before.key for before in step.inputs.values()}
    ]


def _attempt(step: Step, num_threads: int, failed: Mapping[str, str]) -> str | None:
    """Runs one step; returns the reason if it failed."""
    for before in step.inputs.values():
        if before.name in failed:
            return f"not run, because {before.name} failed"

    try:
        step.folder.mkdir(parents=True, exist_ok=True)
        with file_lock(step.folder / ".lock", wait=True) as lock:
            # Another process may have finished the step while this one waited.
            return None if step.done is not None else _execute(step, num_threads, lock)
    except OSError as error:
        # Such as a full disk: the other steps may still find room.
        return str(error)


def _execute(step: Step, num_threads: int, lock: int) -> str | None:
    """Links the inputs, runs the command and notes its end; returns the reason if it failed.

    The command holds `lock`, too: if only this process dies, the folder stays locked for as long as
    the command writes into it.
    """
    for path, before in step.inputs.items():
        written = step.written_as.get(path, path)
        _link(before.folder / written, step.folder / path)
    with atomic_write(step.folder / PARAMS) as part:
        part.write_text(json.dumps(step.params, indent=1), encoding="utf-8")

    program, *arguments = step.stage.command
    command = [sys.executable if program == "python" else program, *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(num_threads)}
    log_file = step.folder / LOG
    with log_file.open("a", encoding="utf-8") as log:
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
            # The process writes into the folder until it has ended, and the lock is released after
            # this.
            process.kill()
            process.wait()
    if status != 0:
        return f"exit status {status}; see {log_file}: {last_line(log_file, start)}"

    note = {"machine": machine_of(), "git_commit": git_commit()}
    with atomic_write(step.folder / DONE) as part:
        part.write_text(json.dumps(note) + "\n", encoding="utf-8")
    return None


def _link(target: Path, place: Path) -> None:
    """Makes `place` a relative link to `target`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(os.path.relpath(target, place.parent))


def last_line(path: Path, start: int) -> str:
    """The last line of a log that is not empty, from byte `start` on."""
    text = path.read_bytes()[start:].decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "(nothing was printed)"
