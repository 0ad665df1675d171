"""Every photo's measures are true, or there is a reason why it cannot be read."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.ingest.measure import Bounds, decoded_size, measure, measure_all
from tests.stages.photo_sets import lay, photo, three_people

HOSTILE: dict[str, bytes] = {
    "truncated.jpg": photo(1, 200, 200)[:-700],
    "truncated.png": photo(1, kind="PNG")[:-200],
    "empty.jpg": b"",
    "text.jpg": b"this is no picture" * 20,
    "huge.png": photo(2, 1100, 1000, "PNG"),
    "heavy.bmp": photo(3, 600, 600, "BMP"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_unreadable_photos_have_a_reason_and_nothing_else(name: str, tmp_path: Path) -> None:
    lay(tmp_path, {name: HOSTILE[name]})
    found = measure(tmp_path, name, Bounds(10**7 if name == "huge.png" else 10**6, 10**6))
    reason = {
        "truncated": "truncated",
        "empty": "empty",
        "text": "known format",
        "huge": "max_photo_pixels",
    }
    assert found.unreadable is not None
    assert (reason | {"heavy": "max_photo_bytes"})[name.split(".")[0]] in found.unreadable
    assert (found.width, found.height, found.num_bytes) == (0, 0, len(HOSTILE[name]))
    assert found.sha256 == hashlib.sha256(HOSTILE[name]).hexdigest()
    assert found == measure(
        tmp_path, name, Bounds(10**7 if name == "huge.png" else 10**6, 10**6)
    ), "no addresses in it"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_is_measured_whatever_its_suffix(kind: str, tmp_path: Path) -> None:
    lay(tmp_path, {"x.dat": photo(1, 37, 21, kind)})
    assert measure(tmp_path, "x.dat", Bounds(10**6, 10**6))[4:] == (37, 21, None)


def test_a_jpeg_cut_anywhere_is_unreadable() -> None:
    data = photo(1, 90, 70)
    for kept in range(0, len(data) - 1, 97):
        with pytest.raises((OSError, SyntaxError)):
            decoded_size(data[:kept], 10**6)


def test_processes_measure_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = three_people()
    lay(tmp_path, photos)
    names, bounds = sorted(photos), Bounds(10**6, 10**6)
    alone = list(measure_all(tmp_path, names, len(names), bounds))
    monkeypatch.setattr("stages.ingest.measure.FEW_PHOTOS", 0)
    monkeypatch.setattr("stages.ingest.measure.CHUNK_PHOTOS", 3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert list(measure_all(tmp_path, names, len(names), bounds)) == alone
    assert [found.photo_id for found in alone] == names


def test_no_worker_outlives_a_killed_run(tmp_path: Path) -> None:
    lay(tmp_path, three_people())
    program = """if __name__ == "__main__":
    import multiprocessing, os, pathlib, sys
    from stages.ingest import measure
    measure.FEW_PHOTOS, measure.CHUNK_PHOTOS = 0, 1
    os.sched_getaffinity = lambda _: {0, 1}
    names = ["person0/0.jpg"] * 20
    bounds = measure.Bounds(10**6, 10**6)
    found = measure.measure_all(pathlib.Path(sys.argv[1]), names, 20, bounds)
    next(found)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    sys.stdin.read()
"""
    script = tmp_path / "program.py"
    script.write_text(program)
    command = [sys.executable, str(script), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as run:
        assert run.stdout is not None
        workers = [Path(f"/proc/{int(pid)}/cmdline") for pid in run.stdout.readline().split()]
        assert workers
        run.kill()
        patience = time.monotonic() + 20
        while any(_is_alive(worker) for worker in workers) and time.monotonic() < patience:
            time.sleep(0.05)
        assert not any(_is_alive(worker) for worker in workers)


def _is_alive(command_line: Path) -> bool:
    """Whether a process still runs (a zombie has no command line)."""
    return command_line.exists() and command_line.read_bytes() != b""
