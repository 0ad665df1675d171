"""The stages that DVC declares, and DVC itself as a process that runs them one by one, in the order
that it gives.

`python -m flows.pipeline.dvc_stages ROOT FD` keeps a workspace open: starting DVC costs more than a
second, a fresh stage a tenth. Each line on standard input names a stage. Each line on the file
descriptor FD says how that stage ended. What DVC and the stages print goes to this process's
output. flows/pipeline/stage_runner.py is the other end. When standard input ends, for any reason,
the running stage is ended with everything that it started: no process continues to write into a
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

# The text of its exception is the only place where DVC keeps a command's status.
EXITED = re.compile(r", exited with (-?\d+)$")
# From asking a stage to end until ending it by force.
GRACE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A stage as dvc.yaml declares it: its command, the names of its settings, the paths that it
    reads and writes."""

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
    """The stages whose own code, inputs, settings or outputs differ from dvc.lock; the stages after
    them may become stale, too.

    The stage `code` is left out, because it runs every time; its digests are written first.
    """
    from dvc.repo import Repo

    with Repo(str(repository)) as repo:
        addresses = [stage.addressing for stage in repo.index.stages]
        if CODE_STAGE in [address.rpartition(":")[2] for address in addresses]:
            code(repository / "dvc.yaml", repository / "params.yaml", repository / CODE_STAGE)
        # A name is path:stage if the current folder is another one.
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
    from dvc.stage import PipelineStage

    # Every other kind of stage is data that `dvc add` tracks.
    stages = {
        stage.name: _declared(stage)
        for stage in repo.index.stages
        if isinstance(stage, PipelineStage)
    }

    writer: dict[str, str] = {}
    for stage in stages.values():
        writer |= dict.fromkeys(stage.outputs, stage.name)
    before: dict[str, list[str]] = {}
    for stage in stages.values():
        before[stage.name] = [writer[path] for path in stage.inputs if path in writer]

    return [stages[name] for name in TopologicalSorter(before).static_order()]


def _declared(stage: Any) -> Declared:
    params: list[str] = []
    for dependency in stage.deps:
        params += getattr(dependency, "params", [])
    inputs = [str(dependency.def_path) for dependency in stage.deps]
    outputs = [str(out.def_path) for out in stage.outs]

    return Declared(
        name=stage.name,
        command=tuple(shlex.split(stage.cmd)),
        params=tuple(params),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
    )


# -------------------------------------------------------------------------------
# The process
# -------------------------------------------------------------------------------


def main() -> None:
    """Runs the stages that standard input names until it ends; see the module docstring."""
    # SIGTERM is meant for the stage: DVC must live on to write down how the stage ended.
    signal.signal(signal.SIGTERM, lambda *_: None)
    root = Path(sys.argv[1])
    results = int(sys.argv[2])

    os.set_inheritable(results, False)
    requests = _private_standard_input()
    os.chdir(root)

    with suppress(BrokenPipeError), os.fdopen(results, "w", encoding="utf-8") as responses:
        _serve(requests, responses)


def _private_standard_input() -> TextIO:
    """Standard input as a file that no stage inherits; the stages get an empty one."""
    own = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return os.fdopen(own, encoding="utf-8")


def _serve(requests: TextIO, responses: TextIO) -> None:
    from dvc.repo import Repo

    with Repo(".") as repo:
        _send(responses, {"stages": [asdict(stage) for stage in _in_order(repo)]})
        for request in _watched(requests):
            response = _reproduce(repo, request["stage"], request["micro_batches"])
            _send(responses, response)


def _send(responses: TextIO, document: dict[str, Any]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    responses.write(json.dumps(document) + "\n")
    responses.flush()


def _watched(requests: TextIO) -> Iterator[dict[str, Any]]:
    """The requests as they come; their end is noticed even while a stage runs."""
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
    pointer = _missing_data(repo, stage)
    if pointer is not None:
        return {
            "ending": int(ExitStatus.REFUSED),
            "reason": f"its data are not in this working copy; say `dvc pull {pointer}`",
        }

    try:
        ran = repo.reproduce(stage, single_item=True, run_env=environment)
    except Exception as error:
        # The other end must get a response, whatever the error is.
        ending, reason = _why(error)
        return {"ending": int(ending), "reason": reason}

    return {"ending": int(ExitStatus.DONE), "reason": "ran" if ran else "fresh"}


def _missing_data(repo: Any, stage: str) -> str | None:
    """The .dvc file of data that the stage reads and that is not in this working copy; None if all
    are there. DVC itself does not check it when it runs one stage alone."""
    from dvc.stage import PipelineStage

    [declared_stage] = [one for one in repo.index.stages if one.addressing == stage]
    inputs = [Path(dependency.fs_path) for dependency in declared_stage.deps]

    for source in repo.index.stages:
        if isinstance(source, PipelineStage):
            continue
        for out in source.outs:
            path = Path(out.fs_path)
            is_read = any(path.is_relative_to(one) or one.is_relative_to(path) for one in inputs)
            if is_read and not path.exists():
                return str(source.relpath)

    return None


def _why(error: BaseException) -> tuple[ExitStatus, str]:
    """How a stage ended and why, from DVC's exception and its chain of causes."""
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

    endings = [exit_status_of(one) for one in chain]
    known = [ending for ending in endings if ending is not ExitStatus.FAULT]
    reason = ": ".join(str(one) for one in chain)
    return (known[0] if known else ExitStatus.FAULT), reason


if __name__ == "__main__":
    main()
