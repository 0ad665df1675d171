"""The stages of a DVC workspace, run one by one in a process of their own, their words passed on as
they come."""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.pipeline.dvc_stages import GRACE_SECONDS, Declared
from stages.exit_status import ExitStatus, exit_status_of_process

CODE = Path(__file__).resolve().parents[2]
PROGRESS_SECONDS = 5.0  # a progress bar's state is passed on this often at most
CONTROLS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
FROM_DVC = ("Running stage ", "> ")  # no reason for anything
FROM_THE_SHELL = (
    "Killed",
    "Terminated",
)  # dash's words for a signal, which the ending tells already
CHUNK_BYTES = 1 << 16


class StageFailed(RuntimeError):
    """A stage did not end well; `ending` tells whether another try may help."""

    def __init__(self, stage: str, ending: ExitStatus, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.ending = ending


class Lines:
    """Output as it comes becomes lines. What a carriage return wrote over is left out, and of a
    line that is still being written over, a progress bar's, the newest state is given every few
    seconds."""

    def __init__(self) -> None:
        self._rest = b""
        self._told_at = time.monotonic()

    def feed(self, output: bytes) -> list[str]:
        """The lines that are complete with these bytes, and the bar's state when it is time for
        it."""
        *whole, self._rest = (self._rest + output).split(b"\n")
        lines = [line for line in map(_last_state, whole) if line]
        if b"\r" in self._rest:
            state = _last_state(self._rest)
            self._rest = b"\r" + self._rest.rpartition(b"\r")[2]
            if state and time.monotonic() - self._told_at >= PROGRESS_SECONDS:
                self._told_at = time.monotonic()
                lines.append(state)
        return lines

    def rest(self) -> list[str]:
        """What was begun and will not be completed."""
        line, self._rest = _last_state(self._rest), b""
        return [line] if line else []


def _last_state(line: bytes) -> str:
    """The newest text of a line that was written over."""
    states = CONTROLS.sub("", line.decode("utf-8", "replace")).split("\r")
    return next((state.rstrip() for state in reversed(states) if state.strip()), "")


class StageRunner:
    """A workspace's stages, to be run one after the other until `close`.

    However this process ends, the stage that runs ends with it, and the next run takes up what it
    left.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._parts: dict[str, int] = {}
        self._start()

    def _start(self) -> None:
        """DVC's process, a session of its own: Ctrl-C reaches this process alone, which then ends
        the other."""
        read_end, write_end = os.pipe()
        command = [
            sys.executable,
            "-m",
            "flows.pipeline.dvc_stages",
            str(self._root),
            str(write_end),
        ]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        self._process = subprocess.Popen(
            command,
            cwd=CODE,
            env=os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"},
            pass_fds=[write_end],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(write_end)
        self._answers = os.fdopen(read_end, "rb")
        self._lines, self._last = Lines(), ""
        self._stages: list[Declared] | None = None

    def stages(self, log: Callable[[str], None]) -> list[Declared]:
        """What dvc.yaml declares, in DVC's order."""
        if self._stages is None:
            self._stages = [_as_declared(one) for one in self._answer("dvc.yaml", log)["stages"]]
        return self._stages

    def run(self, stage: str, log: Callable[[str], None]) -> str:
        """Runs one stage unless it is fresh, each line of its output handed to `log`; `ran` or
        `fresh`.

        Errors: StageFailed, with the stage's last line. Where memory was short, the next try halves
        its batches."""
        if self._process.poll() is not None:
            self.close()
            self._start()
        self.stages(log)
        request = {"stage": stage, "micro_batches": self._parts.setdefault(stage, 1)}
        assert self._process.stdin is not None
        self._last = ""
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        try:
            answer = self._answer(stage, log)
            if answer["ending"] != ExitStatus.DONE:
                words = f"{answer['reason']}: {self._last}" if self._last else answer["reason"]
                raise StageFailed(stage, ExitStatus(answer["ending"]), words)
        except StageFailed as failed:
            if failed.ending is ExitStatus.OUT_OF_MEMORY:
                self._parts[stage] *= 2
            raise
        return str(answer["reason"])

    def _answer(self, stage: str, log: Callable[[str], None]) -> dict[str, Any]:
        """The process's next answer; until it comes, what is printed is passed on."""
        output = self._process.stdout
        assert output is not None
        with selectors.DefaultSelector() as waiting:
            for file in (output, self._answers):
                waiting.register(file, selectors.EVENT_READ)
            ready: list[Any] = []
            while self._answers not in ready:
                ready = [key.fileobj for key, _ in waiting.select()]
                if output in ready and not self._pass_on(output, log):
                    waiting.unregister(output)
        answer = self._answers.readline()
        os.set_blocking(output.fileno(), False)
        while self._pass_on(output, log):
            pass
        os.set_blocking(output.fileno(), True)
        self._tell(self._lines.rest(), log)
        if not answer:
            os.killpg(self._process.pid, signal.SIGKILL)  # the stage may have outlived it
            status = self._process.wait()
            raise StageFailed(
                stage,
                exit_status_of_process(status),
                f"DVC ended with status {status}: {self._last}",
            )
        document: dict[str, Any] = json.loads(answer)
        return document

    def _pass_on(self, output: Any, log: Callable[[str], None]) -> bool:
        """One piece of output; False when there is none now."""
        try:
            piece = os.read(output.fileno(), CHUNK_BYTES)
        except BlockingIOError:
            return False
        self._tell(self._lines.feed(piece), log)
        return bool(piece)

    def _tell(self, lines: list[str], log: Callable[[str], None]) -> None:
        for line in lines:
            if not line.startswith(FROM_DVC) and line not in FROM_THE_SHELL:
                self._last = line
            log(line)

    def close(self) -> None:
        """Ends the process and what it started: asked first, then killed."""
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(GRACE_SECONDS + 1)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]
        self._answers.close()


def _as_declared(document: dict[str, Any]) -> Declared:
    fields: dict[str, Any] = {
        name: tuple(one) if isinstance(one, list) else one for name, one in document.items()
    }
    return Declared(**fields)
