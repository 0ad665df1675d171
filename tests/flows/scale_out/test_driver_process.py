"""A Ray job's driver as a process of its own: its words, its end, and what is said when it breaks
off."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.pipeline.workspace import Busy, only_one
from flows.scale_out.driver_process import DriverFailed, drive
from tests.imports import REPOSITORY
from tests.services import free_port

SLEEPS = """
import os, pathlib, time
pathlib.Path("pid.new").write_text(str(os.getpid()))
os.replace("pid.new", "pid")
try:
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path("shut down").touch()
"""


def driven(root: Path, program: str, *words: str) -> list[str]:
    """The lines of a driver that is this program."""
    (root / "program_of_test.py").write_text(program, encoding="utf-8")
    lines: list[str] = []
    drive("program_of_test", words, root=root, kept="two shards are kept", log=lines.append)
    return lines


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


def test_it_is_the_module_with_its_words_in_the_folder(tmp_path: Path) -> None:
    program = "import os, sys; print(__name__, sys.argv[1:], os.getcwd()); print('last', end='')"
    assert driven(tmp_path, program, "a", "b c") == [f"__main__ ['a', 'b c'] {tmp_path}", "last"]


@pytest.mark.parametrize(
    ("end", "complaint"),
    [
        ("sys.exit(74)", "ended with status 74: why"),
        ("os.kill(os.getpid(), 9)", "was killed by SIGKILL: why"),
    ],
)
def test_what_is_kept_and_what_to_do_is_said(tmp_path: Path, end: str, complaint: str) -> None:
    with pytest.raises(
        DriverFailed, match=rf"{complaint}\ntwo shards are kept.* run the same command again"
    ):
        driven(tmp_path, f"import os, sys; print('why', flush=True); {end}")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_it_is_shut_down_when_its_owner_ends(tmp_path: Path, number: int) -> None:
    (tmp_path / "program_of_test.py").write_text(SLEEPS, encoding="utf-8")
    owner = (
        "import signal, sys; from pathlib import Path\n"
        "from flows.scale_out.driver_process import drive\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "drive('program_of_test', [], root=Path(sys.argv[1]), kept='', log=print)"
    )

    process = subprocess.Popen(
        [sys.executable, "-c", owner, str(tmp_path)], cwd=REPOSITORY, stderr=subprocess.PIPE
    )
    wait_for(tmp_path / "pid")
    process.send_signal(number)
    process.communicate()
    wait_for(tmp_path / "shut down")


def test_the_working_copy_is_held_until_the_driver_has_ended(tmp_path: Path) -> None:
    """After a killed flow its driver still shuts down; until then the same command is
    refused."""
    (tmp_path / "program_of_test.py").write_text(SLEEPS + "    time.sleep(2)\n", encoding="utf-8")
    owner = (
        "import sys; from pathlib import Path\n"
        "from flows.scale_out.driver_process import drive\n"
        "from flows.pipeline.workspace import only_one\n"
        "root = Path(sys.argv[1])\n"
        "with only_one(root) as lock:\n"
        "    drive('program_of_test', [], root=root, kept='', log=print, lock_file=lock)"
    )

    process = subprocess.Popen([sys.executable, "-c", owner, str(tmp_path)], cwd=REPOSITORY)
    wait_for(tmp_path / "pid")
    process.kill()
    process.wait()
    wait_for(tmp_path / "shut down")
    with pytest.raises(Busy), only_one(tmp_path):
        pass

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(Busy), only_one(tmp_path):
            return
        time.sleep(0.1)
    pytest.fail("the lock outlives the driver")


def test_an_address_without_ray_is_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    program = "from flows.scale_out.ray_cluster import connected\nwith connected(): print('never')"
    with pytest.raises(
        DriverFailed,
        match=r"RAY_ADDRESS=127.0.0.1:\d+: no Ray answers there .* or unset RAY_ADDRESS",
    ):
        driven(tmp_path, program)
