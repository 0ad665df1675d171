"""Stages run one by one under DVC: order, words as they come, how each ended, and what is left by
the killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import flows.pipeline.stage_runner
from flows.pipeline.dvc_stages import GRACE_SECONDS, declared, stale
from flows.pipeline.stage_runner import Lines, StageFailed, StageRunner
from stages.exit_status import MICRO_BATCHES, ExitStatus
from tests.flows import toy_workspace
from tests.imports import REPOSITORY

SLEEPS = (
    "pathlib.Path('pid.new').write_text(str(os.getpid())); os.replace('pid.new', 'pid'); "
    "print('asleep'); time.sleep(0 if os.path.exists('go') else 60)"
)
OWNER = """
import sys
from pathlib import Path
from flows.pipeline.stage_runner import StageRunner
runner = StageRunner(Path(sys.argv[1]))
for stage in runner.stages(print):
    print(stage.name, runner.run(stage.name, print), flush=True)
runner.close()
"""


def silent(_line: str) -> None:
    """No log."""


def run_all(root: Path, log: Callable[[str], None] = silent) -> dict[str, str]:
    with closing(StageRunner(root)) as runner:
        return {stage.name: runner.run(stage.name, log) for stage in runner.stages(log)}


def exit_status_of(root: Path, stage: str) -> StageFailed:
    with closing(StageRunner(root)) as runner, pytest.raises(StageFailed) as failed:
        runner.run(stage, silent)
    return failed.value


def wait_for(what: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    # The state follows the command's name, which stands in brackets.
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Path]:
    """A workspace whose middle stage sleeps until there is a file `go`."""
    yield toy_workspace.make(tmp_path / "workspace", {"a": "", "b": SLEEPS, "c": ""})
    if (pid := tmp_path / "workspace" / "pid").exists():
        stage = int(pid.read_text(encoding="utf-8"))
        wait_for(lambda: not is_alive(stage), GRACE_SECONDS + 10)


# -------------------------------------------------------------------------------
# Running
# -------------------------------------------------------------------------------


def test_stages_run_in_dvcs_order_and_once(tmp_path: Path) -> None:
    root = toy_workspace.make(tmp_path, {"c": "", "a": "", "b": ""})
    assert [stage.name for stage in declared(root)] == ["c", "a", "b"]
    assert run_all(root) == {"c": "ran", "a": "ran", "b": "ran"}
    assert (root / "b.txt").read_text(encoding="utf-8") == "c\na\nb\n"
    assert stale(root) == []
    assert run_all(root) == {"c": "fresh", "a": "fresh", "b": "fresh"}

    (root / "a.program").write_text("text += 'x'", encoding="utf-8")
    assert stale(root) == ["a"]
    assert run_all(root) == {"c": "fresh", "a": "ran", "b": "ran"}

    command = [sys.executable, "-m", "dvc", "status"]
    status = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "up to date" in status.stdout


def test_data_that_dvc_only_tracks_are_no_stage(tmp_path: Path) -> None:
    root = toy_workspace.make(tmp_path, {"a": ""})
    (root / "photos.csv").write_text("x", encoding="utf-8")
    subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "photos.csv"], cwd=root, check=True)
    assert [stage.name for stage in declared(root)] == ["a"]


def test_words_come_while_the_stage_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage waits for a file, which is written when its first word has arrived."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    waits = "while not pathlib.Path('heard').exists():\n    time.sleep(0.05)"
    root = toy_workspace.make(
        tmp_path, {"a": f"print('first')\n{waits}\nprint('second', file=sys.stderr)"}
    )
    heard: list[str] = []

    def hear(line: str) -> None:
        heard.append(line)
        if line == "first":
            (root / "heard").touch()

    run_all(root, hear)
    assert heard.index("first") < heard.index("second")


def test_a_stage_cannot_take_the_requests(tmp_path: Path) -> None:
    reads = (
        "import select; text += repr(sys.stdin.read()) "
        "if select.select([0], [], [], 5)[0] else 'waits for requests'"
    )
    root = toy_workspace.make(tmp_path, {"a": reads, "b": ""})
    run_all(root)
    assert (root / "b.txt").read_text(encoding="utf-8") == "''a\nb\n"


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_how_a_stage_ended_is_read_from_dvc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    """Only the text of DVC's exception has the status: this fails when DVC changes that text.

    Shells differ: dash stays alive during the stage and prints a word of its own for each signal,
    bash becomes the stage.
    """
    monkeypatch.setenv("SHELL", shell)
    programs = {
        "sys.exit(2)": ExitStatus.REFUSED,
        "sys.exit(74)": ExitStatus.IO_ERROR,
        "sys.exit(137)": ExitStatus.OUT_OF_MEMORY,
        "os.kill(os.getpid(), 9)": ExitStatus.OUT_OF_MEMORY,
        "sys.exit('a fault')": ExitStatus.FAULT,
        "os.kill(os.getpid(), 15)": ExitStatus.FAULT,
    }
    stages = {
        f"s{number}": f"print('why {number}', flush=True); {end}"
        for number, end in enumerate(programs)
    }
    root = toy_workspace.make(tmp_path, stages, chained=False)

    with closing(StageRunner(root)) as runner:
        for number, ending in enumerate(programs.values()):
            with pytest.raises(
                StageFailed, match=rf"s{number}: exit status .*(why {number}|a fault)"
            ) as failed:
                runner.run(f"s{number}", silent)
            assert failed.value.ending is ending


def test_data_that_nobody_has_pulled_are_missed(tmp_path: Path) -> None:
    """The folder exists, but not the files in it that `dvc add` tracks: the stage would see an
    empty set."""
    root = toy_workspace.make(tmp_path, {"a": "", "b": ""}, chained=False)
    (root / "incoming").mkdir()
    pointer = {
        "md5": "d41d8cd98f00b204e9800998ecf8427e.dir",
        "size": 4,
        "nfiles": 1,
        "hash": "md5",
        "path": "labelled",
    }
    (root / "incoming" / "labelled.dvc").write_text(
        json.dumps({"outs": [pointer]}), encoding="utf-8"
    )
    graph = (root / "dvc.yaml").read_text(encoding="utf-8")
    (root / "dvc.yaml").write_text(
        graph.replace("- a.program", "- a.program\n    - incoming"), encoding="utf-8"
    )

    failed = exit_status_of(root, "a")
    assert failed.ending is ExitStatus.REFUSED
    assert "say `dvc pull incoming/labelled.dvc`" in str(failed)
    with closing(StageRunner(root)) as runner:
        assert runner.run("b", silent) == "ran"  # which does not read it


def test_what_a_stage_lacks_is_named(tmp_path: Path) -> None:
    root = toy_workspace.make(tmp_path, {"a": "", "b": ""})
    failed = exit_status_of(root, "b")
    assert failed.ending is ExitStatus.FAULT
    assert "a.txt" in str(failed)


def test_a_broken_dvc_yaml_is_named(tmp_path: Path) -> None:
    root = toy_workspace.make(tmp_path, {"a": ""})
    (root / "dvc.yaml").write_text("stages: {a: {comand: x}}", encoding="utf-8")
    with closing(StageRunner(root)) as runner, pytest.raises(StageFailed, match=r"dvc\.yaml"):
        runner.stages(silent)


def test_short_of_memory_the_next_try_splits_its_batches(tmp_path: Path) -> None:
    program = f"print('parts', os.environ.get('{MICRO_BATCHES}')); sys.exit(137)"
    root = toy_workspace.make(tmp_path, {"a": program, "b": program})
    heard: list[str] = []

    with closing(StageRunner(root)) as runner:
        for _ in range(3):
            with pytest.raises(StageFailed):
                runner.run("a", heard.append)

    assert [line for line in heard if line.startswith("parts")] == [
        "parts None",
        "parts 2",
        "parts 4",
    ]


# -------------------------------------------------------------------------------
# Killed
# -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_stage_outlives_a_killed_owner_and_the_next_run_finishes(
    sleeper: Path, number: int
) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(sleeper)], cwd=REPOSITORY, stdout=subprocess.DEVNULL
    )
    wait_for((sleeper / "pid").exists)
    stage = int((sleeper / "pid").read_text(encoding="utf-8"))
    assert is_alive(stage)
    # DVC, too, holds its lock until it has ended.
    dvc = os.getpgid(stage)

    owner.send_signal(number)
    owner.wait()
    wait_for(lambda: not is_alive(stage) and not is_alive(dvc), GRACE_SECONDS + 10)

    (sleeper / "go").touch()
    assert run_all(sleeper) == {"a": "fresh", "b": "ran", "c": "ran"}
    assert (sleeper / "c.txt").read_text(encoding="utf-8") == "a\nb\nc\n"


def test_closing_ends_the_stage(sleeper: Path) -> None:
    def stop(line: str) -> None:
        if line == "asleep":
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_all(sleeper, stop)
    assert time.monotonic() - started < 20
    (sleeper / "go").touch()
    assert run_all(sleeper) == {"a": "fresh", "b": "ran", "c": "ran"}


def test_dvc_killed_alone_takes_the_stage_along_and_the_runner_starts_it_again(
    sleeper: Path,
) -> None:
    with closing(StageRunner(sleeper)) as runner:
        runner.run("a", silent)

        def kill(line: str) -> None:
            if line == "asleep":
                os.kill(runner._process.pid, signal.SIGKILL)

        with pytest.raises(StageFailed, match="status -9") as failed:
            runner.run("b", kill)
        assert failed.value.ending is ExitStatus.OUT_OF_MEMORY
        stage = int((sleeper / "pid").read_text(encoding="utf-8"))
        wait_for(lambda: not is_alive(stage), GRACE_SECONDS + 10)
        (sleeper / "go").touch()
        assert runner.run("b", silent) == "ran"


def test_locks_of_the_dead_block_nobody(sleeper: Path) -> None:
    """DVC writes who reads and writes what, and a killed process leaves its entry."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    entry = {"pid": gone.pid, "cmd": "dvc repro"}
    lock = {"write": {str(sleeper / "a.txt"): entry}, "read": {str(sleeper / "a.program"): [entry]}}
    (sleeper / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(lock), encoding="utf-8")
    (sleeper / "go").touch()
    assert set(run_all(sleeper).values()) == {"ran"}


def test_another_dvc_at_work_is_named_and_may_pass(sleeper: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "-q"],
        cwd=sleeper,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )
    try:
        wait_for((sleeper / "pid").exists)
        failed = exit_status_of(sleeper, "b")
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()

    assert failed.ending is ExitStatus.IO_ERROR
    assert f"another DVC is at work in {sleeper}" in str(failed)
    assert f"PID {other.pid}" in str(failed)


# -------------------------------------------------------------------------------
# Output as lines
# -------------------------------------------------------------------------------


def test_lines_are_complete_however_they_are_cut() -> None:
    text = "one\ntwo, größer\n\n  \nthree\n".encode()
    for size in (1, 3, len(text)):
        lines = Lines()
        found: list[str] = []
        for start in range(0, len(text), size):
            found += lines.feed(text[start : start + size])
        assert found == ["one", "two, größer", "three"]

    assert lines.feed(b"no end") == []
    assert lines.rest() == ["no end"]
    assert lines.rest() == []


def test_a_bars_states_are_shown_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(flows.pipeline.stage_runner.time, "monotonic", lambda: now)
    lines = Lines()
    shown: list[str] = []

    for step in range(1000):
        # 20 seconds of tqdm.
        now = step / 50
        shown += lines.feed(f"\repoch: {step}".encode())

    assert len(shown) in (3, 4)
    assert shown == sorted(shown, key=lambda line: int(line.split()[1]))


def test_what_was_written_over_is_left_out() -> None:
    assert Lines().feed(b"  0%|    | 0/9\r 50%|##  | 4/9\r           \r[3] loss 0.1\n") == [
        "[3] loss 0.1"
    ]
    assert Lines().feed(b"\x1b[32m100%\x1b[0m\r\n") == ["100%"]
