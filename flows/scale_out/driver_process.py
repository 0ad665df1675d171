"""A Ray job's driver as a process of its own, with its output passed on as it comes.

Ray ends a driver that loses its head node at any point, without an exception. The flow survives in
its own process, and says what is kept and how to continue.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from flows.pipeline.stage_runner import CODE, Lines
from flows.scale_out.ray_cluster import ADDRESS, NoCluster, lock

GRACE_SECONDS = 30.0  # for Ray to end its processes


class DriverFailed(RuntimeError):
    """The driver failed; the message says how, and what to do."""


def drive(
    module: str,
    words: Sequence[str],
    *,
    root: Path,
    kept: str,
    log: Callable[[str], None],
    lock_file: int | None = None,
) -> None:
    """Runs `python -m module words` in `root` and passes each line of its output to `log`. The
    driver ends when this process ends.

    `kept` says, for the error's message, which results exist already and are not computed again.
    `lock_file` is the one of `workspace.only_one`: the driver ends some seconds after a killed
    flow, and holds it until then. Errors: DriverFailed.
    """
    # The driver watches this pipe: it closes when this process ends, even by a kill.
    read_end, write_end = os.pipe()
    passed = [read_end] if lock_file is None else [read_end, lock_file]
    command = [
        sys.executable,
        "-m",
        "flows.scale_out.driver_process",
        ",".join(map(str, passed)),
        module,
        *words,
    ]
    path = os.pathsep.join([str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])])

    process = subprocess.Popen(
        command,
        cwd=root,
        env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        pass_fds=passed,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    os.close(read_end)
    assert process.stdout is not None

    lines = Lines()
    last = ""
    try:
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            for line in lines.feed(piece):
                last = line
                log(line)
        for line in lines.rest():
            last = line
            log(line)
        status = process.wait()
    finally:
        os.close(write_end)
        _end(process)
        process.stdout.close()

    if status != 0:
        if status < 0:
            ending = f"was killed by {signal.Signals(-status).name}"
        else:
            ending = f"ended with status {status}"
        raise DriverFailed(
            f"{module} {ending}: {last}\n{kept}; when the cause is gone, run the same command again"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Waits for the driver, which sees its pipe closed; kills it after GRACE_SECONDS."""
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> None:
    """In the driver's process: runs the module as `python -m` does, and ends it when its owner
    ends."""
    import runpy
    import threading

    passed = [int(word) for word in sys.argv[1].split(",")]
    module = sys.argv[2]
    for number in passed:
        os.set_inheritable(number, False)  # Ray's own processes outlive a driver

    def watch() -> None:
        os.read(passed[0], 1)
        os.kill(os.getpid(), signal.SIGINT)  # KeyboardInterrupt: Ray is shut down on the way out

    threading.Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [module, *sys.argv[3:]]
    # Ray's default of 60 s is too short on a busy machine.
    os.environ.setdefault("RAY_DASHBOARD_STARTUP_TIMEOUT_S", "180")
    if ADDRESS not in os.environ:
        lock()

    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except NoCluster as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
