"""Runs the stages of a DVC workspace one by one, in a process of their own, and passes their output
on as it comes."""

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
# The state of a progress bar is passed on at most this often.
PROGRESS_SECONDS = 5.0
CONTROLS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# Lines of DVC's own, which give no reason for a failure.
FROM_DVC = ("Running stage ", "> ")
# The words of dash for a signal, which the exit status already shows.
FROM_THE_SHELL = ("Killed", "Terminated")
CHUNK_BYTES = 1 << 16


class StageFailed(RuntimeError):
    """A stage failed; `ending` shows whether another try may help."""

    def __init__(self, stage: str, ending: ExitStatus, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.ending = ending


class Lines:
    """Output becomes lines as it comes.

    Text that a carriage return wrote over is left out. A line that is still being written over
    (a progress bar) gives its newest state every few seconds.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._shown_at = time.monotonic()

    def feed(self, output: bytes) -> list[str]:
        """The lines that are complete with these bytes, and the bar's state when it is due."""
        *complete, self._rest = (self._rest + output).split(b"\n")
        lines = [line for line in map(_last_state, complete) if line]

        if b"\r" in self._rest:
            state = _last_state(self._rest)
            self._rest = b"\r" + self._rest.rpartition(b"\r")[2]
            if state and time.monotonic() - self._shown_at >= PROGRESS_SECONDS:
                self._shown_at = time.monotonic()
                lines.append(state)

        return lines

    def rest(self) -> list[str]:
        """The line that was begun and will not be completed, if there is one."""
        line = _last_state(self._rest)
        self._rest = b""
        return [line] if line else []


def _last_state(line: bytes) -> str:
    """The newest text of a line that was written over."""
    states = CONTROLS.sub("", line.decode("utf-8", "replace")).split("\r")
    return next((state.rstrip() for state in reversed(states) if state.strip()), "")


class StageRunner:
    """Runs a workspace's stages one after the other until `close`.

    However this process ends, the running stage ends with it, and the next run resumes it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._parts: dict[str, int] = {}
        self._start()

    def _start(self) -> None:
        """Starts DVC's process in a session of its own: Ctrl-C reaches only this process, which
        then ends the other."""
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
        self._responses = os.fdopen(read_end, "rb")
        self._lines = Lines()
        self._last = ""
        self._stages: list[Declared] | None = None

    def stages(self, log: Callable[[str], None]) -> list[Declared]:
        """The stages that dvc.yaml declares, in DVC's order."""
        if self._stages is None:
            response = self._response("dvc.yaml", log)
            self._stages = [_as_declared(document) for document in response["stages"]]
        return self._stages

    def run(self, stage: str, log: Callable[[str], None]) -> str:
        """Runs one stage unless it is fresh; returns `ran` or `fresh`. Each line of its output is
        passed to `log`.

        Errors: StageFailed, with the stage's last line. If memory was short, the next try halves
        its batches.
        """
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
            response = self._response(stage, log)
            reason = str(response["reason"])
            if response["ending"] != ExitStatus.DONE:
                text = f"{reason}: {self._last}" if self._last else reason
                raise StageFailed(stage, ExitStatus(response["ending"]), text)
        except StageFailed as failed:
            if failed.ending is ExitStatus.OUT_OF_MEMORY:
                self._parts[stage] *= 2
            raise

        return reason

    def _response(self, stage: str, log: Callable[[str], None]) -> dict[str, Any]:
        """The process's next response; until it comes, printed output is passed on."""
        output = self._process.stdout
        assert output is not None

        with selectors.DefaultSelector() as waiting:
            for file in (output, self._responses):
                waiting.register(file, selectors.EVENT_READ)
            ready: list[Any] = []
            while self._responses not in ready:
                ready = [key.fileobj for key, _ in waiting.select()]
                if output in ready and not self._pass_on(output, log):
                    waiting.unregister(output)

        response = self._responses.readline()
        os.set_blocking(output.fileno(), False)
        while self._pass_on(output, log):
            pass
        os.set_blocking(output.fileno(), True)
        self._log_lines(self._lines.rest(), log)

        if not response:
            # The stage may have outlived DVC's process.
            os.killpg(self._process.pid, signal.SIGKILL)
            status = self._process.wait()
            raise StageFailed(
                stage,
                exit_status_of_process(status),
                f"DVC ended with status {status}: {self._last}",
            )

        document: dict[str, Any] = json.loads(response)
        return document

    def _pass_on(self, output: Any, log: Callable[[str], None]) -> bool:
        """Passes one piece of output on; False when there is none now."""
        try:
            piece = os.read(output.fileno(), CHUNK_BYTES)
        except BlockingIOError:
            return False
        self._log_lines(self._lines.feed(piece), log)
        return bool(piece)

    def _log_lines(self, lines: list[str], log: Callable[[str], None]) -> None:
        for line in lines:
            if not line.startswith(FROM_DVC) and line not in FROM_THE_SHELL:
                self._last = line
            log(line)

    def close(self) -> None:
        """Ends the process and what it started: asks first, then kills."""
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(GRACE_SECONDS + 1)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

        self._process.stdout.close()  # type: ignore[union-attr]
        self._responses.close()


def _as_declared(document: dict[str, Any]) -> Declared:
    """A stage from its JSON, which has lists for tuples."""
    fields: dict[str, Any] = {}
    for name, value in document.items():
        fields[name] = tuple(value) if isinstance(value, list) else value
    return Declared(**fields)
