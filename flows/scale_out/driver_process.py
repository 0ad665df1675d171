"""A Ray job's driver as a process of its own, its words passed on as they come.

Ray ends a driver that loses its head node, in the middle of whatever it does and without an
exception. The flow lives on in its own process and says what is kept and how to go on.
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
    """The driver did not end well; the text says how, and what to do."""


def drive(
    module: str,
    words: Sequence[str],
    *,
    root: Path,
    kept: str,
    log: Callable[[str], None],
    lock_file: int | None = None,
) -> None:
    """Runs `python -m module words` in `root`, each line of its output handed to `log`; it ends
    with this process.

    `kept` says, for the error's text, what lies there already and is not done again. `lock_file`:
    of `workspace.only_one`; the driver, which ends some seconds after a killed flow, holds it until
    then. Errors: DriverFailed.
    """
    read_end, write_end = (
        os.pipe()
    )  # the driver watches it: it closes when this process ends, however that comes about
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
    lines, last = Lines(), ""
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
        ending = (
            f"was killed by {signal.Signals(-status).name}"
            if status < 0
            else f"ended with status {status}"
        )
        raise DriverFailed(
            f"{module} {ending}: {last}\n{kept}; when the cause is gone, run the same command again"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asked first, then killed."""
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> None:
    """In the driver's process: the module as `python -m` runs it, ended when its owner is gone."""
    import runpy
    import threading

    passed, module = [int(word) for word in sys.argv[1].split(",")], sys.argv[2]
    for number in passed:
        os.set_inheritable(number, False)  # Ray's own processes outlive a driver

    def watch() -> None:
        os.read(passed[0], 1)
        os.kill(os.getpid(), signal.SIGINT)  # KeyboardInterrupt: Ray is shut down on the way out

    threading.Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [module, *sys.argv[3:]]
    os.environ.setdefault(
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S", "180"
    )  # a machine at work needs more than Ray's 60
    if ADDRESS not in os.environ:
        lock()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except NoCluster as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
