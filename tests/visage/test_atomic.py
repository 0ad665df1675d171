"""Files and folders appear complete, or the old ones stay."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import REPOSITORY
from visage.atomic import atomic_folder, atomic_write, recover_folder


def test_atomic_write_replaces_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.csv"
    for text in ("old", "new"):
        with atomic_write(path) as part:
            assert part.parent == path.parent
            part.write_text(text, encoding="utf-8")
            assert not path.exists() or path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existed", [True, False])
def test_atomic_write_leaves_the_old_file_on_an_error(
    tmp_path: Path, error: type[BaseException], existed: bool
) -> None:
    path = tmp_path / "x.csv"
    if existed:
        path.write_text("old", encoding="utf-8")

    def fail_midway() -> None:
        with atomic_write(path) as part:
            part.write_text("half", encoding="utf-8")
            raise error

    with pytest.raises(error):
        fail_midway()
    assert [file.read_text(encoding="utf-8") for file in tmp_path.iterdir()] == ["old"] * existed


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, with its text."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in files}


def write_folder(folder: Path, text: str) -> None:
    with atomic_folder(folder) as part:
        (part / "deep").mkdir()
        (part / "deep" / f"{text}.txt").write_text(text, encoding="utf-8")


def test_a_folder_is_replaced_and_no_other_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "export"
    for text in ("old", "new"):
        write_folder(folder, text)
        assert contents(tmp_path) == {f"models/export/deep/{text}.txt": text}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existed", [True, False])
def test_an_error_leaves_the_old_folder(
    tmp_path: Path, error: type[BaseException], existed: bool
) -> None:
    folder = tmp_path / "export"
    if existed:
        write_folder(folder, "old")

    def fail_midway() -> None:
        with atomic_folder(folder) as part:
            (part / "half.txt").write_text("half", encoding="utf-8")
            raise error

    with pytest.raises(error):
        fail_midway()
    assert contents(tmp_path) == ({"export/deep/old.txt": "old"} if existed else {})
    assert list(tmp_path.iterdir()) == [folder] * existed


def test_a_rename_that_fails_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = tmp_path / "export", Path.rename
    write_folder(folder, "old")

    def refuse_the_new_one(path: Path, target: Path) -> Path:
        if path.name.endswith(".part"):
            raise OSError("the disk is gone")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    with pytest.raises(OSError, match="the disk is gone"):
        write_folder(folder, "new")
    assert contents(tmp_path) == {"export/deep/old.txt": "old"}


KILLED = """
import os, signal, sys
from pathlib import Path
import visage.atomic
folder, last = Path(sys.argv[1]), int(sys.argv[2])
calls = 0

def kill_at(name, owner):
    real = getattr(owner, name)
    def killing(*arguments, **named):
        global calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)
    setattr(owner, name, killing)

for name in ("rename", "mkdir"):
    kill_at(name, Path)
kill_at("rmtree", visage.atomic.shutil)
with visage.atomic.atomic_folder(folder) as part:
    (part / "new.txt").write_text("new", encoding="utf-8")
"""


@pytest.mark.parametrize("last", range(1, 8))
def test_a_kill_before_any_step_leaves_the_old_folder_or_the_new_one(
    tmp_path: Path, last: int
) -> None:
    """Steps: remove a part, make it, rename, rename, remove the old one, remove a part."""
    folder = tmp_path / "export"
    write_folder(folder, "old")
    command = [sys.executable, "-c", KILLED, str(folder), str(last)]
    status = subprocess.run(command, cwd=REPOSITORY, check=False).returncode
    assert status == (-signal.SIGKILL if last < 7 else 0)

    recover_folder(folder)
    renamed = last > 4
    wanted = {"export/new.txt": "new"} if renamed else {"export/deep/old.txt": "old"}
    assert contents(tmp_path) == wanted
    write_folder(folder, "newest")
    assert contents(tmp_path) == {"export/deep/newest.txt": "newest"}
