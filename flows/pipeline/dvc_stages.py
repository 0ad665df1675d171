"""What DVC knows of the stages, and DVC itself as a process that runs them one by one, in the order
that it gives.

`python -m flows.pipeline.dvc_stages ROOT FD` keeps a workspace open (a start of DVC costs more than
a second, a stage that is fresh a tenth). Each line on standard input names a stage, each line on
the file descriptor FD says how it ended; what DVC and the stages print goes where this process
prints. flows/pipeline/stage_runner.py is the other end. When standard input ends, however that came
about, the stage that runs is ended with everything that it started: nobody goes on writing into a
workspace that its owner has left.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, TextIO

from stages.code import STAGE as CODE_STAGE
from stages.code import code
from stages.exit_status import MICRO_BATCHES, ExitStatus, exit_status_of, exit_status_of_process

EXITED = re.compile(r", exited with (-?\d+)$")  # DVC keeps a command's status nowhere else
GRACE_SECONDS = 5.0  # between asking a stage to end and ending it


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A stage as dvc.yaml declares it: command, names of its settings, paths that it reads and
    writes."""

    name: str
    command: tuple[str, ...]
    params: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def declared(repository: Path) -> list[Declared]:
    """The stages of dvc.yaml in an order in which they can run."""
    from dvc.repo import Repo

    with Repo(str(repository)) as repo:
        return _in_order(repo)


def stale(repository: Path) -> list[str]:
    """The stages whose own code, inputs, settings or outputs differ from what dvc.lock says; what
    follows them may, too.

    The stage `code` is left out, which is run every time; its digests are written first.
    """
    from dvc.repo import Repo

    with Repo(str(repository)) as repo:
        if any(stage.addressing == CODE_STAGE for stage in repo.index.stages):
            code(repository / "dvc.yaml", repository / "params.yaml", repository / CODE_STAGE)
        # path:stage, where another folder is the current
        names = [name.rpartition(":")[2] for name in repo.status()]
    return [name for name in names if name != CODE_STAGE]


def before(stages: Sequence[Declared], goal: str) -> list[str]:
    """The stages whose outputs `goal` reads, directly or not, in the order of `stages`."""
    writer = {path: stage for stage in stages for path in stage.outputs}
    by_name = {stage.name: stage for stage in stages}
    wanted: set[str] = set()
    waiting = [by_name[goal]] if goal in by_name else []
    while waiting:
        direct = {writer[path].name for path in waiting.pop().inputs if path in writer}
        waiting += [by_name[name] for name in direct - wanted]
        wanted |= direct
    return [stage.name for stage in stages if stage.name in wanted]


def _in_order(repo: Any) -> list[Declared]:
    from dvc.stage import PipelineStage  # the others are data that `dvc add` tracks

    stages = {
        stage.name: _declared(stage)
        for stage in repo.index.stages
        if isinstance(stage, PipelineStage)
    }
    writer = {path: stage.name for stage in stages.values() for path in stage.outputs}
    before = {
        stage.name: [writer[path] for path in stage.inputs if path in writer]
        for stage in stages.values()
    }
    return [stages[name] for name in TopologicalSorter(before).static_order()]


def _declared(stage: Any) -> Declared:
    params = [
        name
        for dependency in stage.deps
        if hasattr(dependency, "params")
        for name in dependency.params
    ]
    paths = [str(dependency.def_path) for dependency in stage.deps]
    return Declared(
        name=stage.name,
        command=tuple(shlex.split(stage.cmd)),
        params=tuple(params),
        inputs=tuple(paths),
        outputs=tuple(str(out.def_path) for out in stage.outs),
    )


# -------------------------------------------------------------------------------
# The process
# -------------------------------------------------------------------------------


def main() -> None:
    """Runs the stages that standard input names until it ends; see the module docstring."""
    signal.signal(
        signal.SIGTERM, lambda *_: None
    )  # meant for the stage: DVC then still writes down how it ended
    root, results = Path(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(results, False)
    requests = _taken_from_the_stages()
    os.chdir(root)
    with suppress(BrokenPipeError), os.fdopen(results, "w", encoding="utf-8") as answers:
        _serve(requests, answers)


def _taken_from_the_stages() -> TextIO:
    """Standard input as a file that no stage inherits; they get an empty one."""
    own = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return os.fdopen(own, encoding="utf-8")


def _serve(requests: TextIO, answers: TextIO) -> None:
    from dvc.repo import Repo

    with Repo(".") as repo:
        _send(answers, {"stages": [asdict(stage) for stage in _in_order(repo)]})
        for request in _watched(requests):
            _send(answers, _reproduce(repo, request["stage"], request["micro_batches"]))


def _send(answers: TextIO, document: dict[str, Any]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    answers.write(json.dumps(document) + "\n")
    answers.flush()


def _watched(requests: TextIO) -> Iterator[dict[str, Any]]:
    """The requests as they come; their end is noticed while a stage runs."""
    waiting: queue.Queue[str] = queue.Queue()

    def watch() -> None:
        for line in requests:
            waiting.put(line)
        waiting.put("")
        os.killpg(0, signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    while line := waiting.get():
        yield json.loads(line)


def _reproduce(repo: Any, stage: str, micro_batches: int) -> dict[str, Any]:
    environment = {MICRO_BATCHES: str(micro_batches)} if micro_batches > 1 else {}
    if (pointer := _not_here(repo, stage)) is not None:
        return {
            "ending": int(ExitStatus.REFUSED),
            "reason": f"its data are not in this working copy; say `dvc pull {pointer}`",
        }
    try:
        ran = repo.reproduce(stage, single_item=True, run_env=environment)
    except Exception as error:  # whatever it is, it is told
        ending, reason = _why(error)
        return {"ending": int(ending), "reason": reason}
    return {"ending": int(ExitStatus.DONE), "reason": "ran" if ran else "fresh"}


def _not_here(repo: Any, stage: str) -> str | None:
    """The .dvc file of data that the stage reads and that nobody has brought here; DVC, asked for
    one stage alone, does not look at it."""
    from dvc.stage import PipelineStage

    [read] = [
        [Path(one.fs_path) for one in each.deps]
        for each in repo.index.stages
        if each.addressing == stage
    ]
    for source in repo.index.stages:
        for out in [] if isinstance(source, PipelineStage) else source.outs:
            path = Path(out.fs_path)
            if not path.exists() and any(
                path.is_relative_to(dep) or dep.is_relative_to(path) for dep in read
            ):
                return str(source.relpath)
    return None


def _why(error: BaseException) -> tuple[ExitStatus, str]:
    """How a stage ended and why, from DVC's exception and those that it was raised from."""
    from dvc.lock import LockError
    from dvc.stage.exceptions import StageCmdFailedError

    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    for one in chain:
        if isinstance(one, LockError):
            return (
                ExitStatus.IO_ERROR,
                f"another DVC is at work in {Path.cwd()}; let it end, or stop it. {one}",
            )
        if isinstance(one, StageCmdFailedError):
            status = int(EXITED.findall(str(one))[0])
            ending = exit_status_of_process(status)
            return ending, f"exit status {status} ({ending.name.lower().replace('_', ' ')})"
    found = next(
        (ending for ending in map(exit_status_of, chain) if ending is not ExitStatus.FAULT),
        ExitStatus.FAULT,
    )
    return found, ": ".join(str(one) for one in chain)


if __name__ == "__main__":
    main()
