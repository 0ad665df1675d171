"""Alignment on Ray: the local stage's bytes, whatever process dies, and no finished shard twice."""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from flows.scale_out.align_ray import AlignOut, AlignStopped, runner, survive
from flows.scale_out.driver_process import DriverFailed, drive
from stages import align as stage
from stages.face_shards import AlignedPhotos, RowDict
from tests.conftest import REPOSITORY
from tests.flows import align_on_ray
from tests.flows.align_on_ray import FATAL, OUT, SHARDED, big, failing, fatal, noted, through
from tests.stages.test_align import Bench, manifest_row
from visage.synthetic import encode_face, sample_person, sample_photo

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of open sockets and of its next version
]
NUM_PHOTOS = 48
QUIET = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(REPOSITORY),
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # a lost head node is noticed in seconds
}


@pytest.fixture(scope="module")
def quiet() -> Iterator[None]:
    """The environment of Ray's processes: they import this repository's modules."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def two_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "CHUNK_ROWS", align_on_ray.CHUNK_ROWS)


@pytest.fixture(scope="module")
def faces() -> list[bytes]:
    rng = np.random.default_rng(11)
    return [encode_face(sample_photo(sample_person(rng), rng, clean=True), 96) for _ in range(6)]


@pytest.fixture
def bench(tmp_path: Path, faces: list[bytes]) -> Bench:
    """48 photos in 6 shards: one missing, one unreadable, one not of the manifest's bytes, one
    quarantined."""
    (tmp_path / "raw" / "set").mkdir(parents=True)
    (tmp_path / "gate.json").write_text("{}")

    rows = []
    for number in range(NUM_PHOTOS):
        data = faces[number % len(faces)]
        (tmp_path / "raw" / "set" / f"{number}.jpg").write_bytes(data)
        rows.append(manifest_row(f"set/{number}.jpg", data, number))
    (tmp_path / "raw" / "set" / "3.jpg").unlink()
    rows[11] |= {"unreadable": "truncated"}
    rows[20] |= {"sha256": "0" * 64}

    result = Bench(tmp_path)
    result.write(rows, ["set/30.jpg"])
    return result


def results(bench: Bench) -> dict[str, bytes]:
    """Every file that the stage writes."""
    files = bench.shards()
    for name in ("rejects.csv", "align.json"):
        files[name] = (bench.folder / name).read_bytes()
    return files


def local(bench: Bench) -> dict[str, bytes]:
    """The files that the local stage writes for the same photos; they are removed again."""
    bench.align(SHARDED)
    made = results(bench)
    for path in (bench.folder / "faces").iterdir():
        path.unlink()
    return made


def work_done(bench: Bench) -> list[tuple[int, list[str]]]:
    """Process and photos of each chunk that was begun."""
    log = bench.folder / "log"
    lines = log.read_text().splitlines() if log.is_file() else []
    return [(int(line.split()[0]), line.split()[1:]) for line in lines]


def wait_until(happens: Any, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


# Without Ray: the record of a chunk's earlier deaths, the folder, the settings.


class Death(BaseException):
    """A process that ends."""


def deadly(rows: list[RowDict], *photos: str) -> AlignedPhotos:
    if any(row["photo_id"] in photos for row in rows):
        raise Death
    return AlignedPhotos(
        faces=[{"photo_id": row["photo_id"]} for row in rows if row["photo_id"] != "3"],
        rejects=[("3", "no face")] * any(row["photo_id"] == "3" for row in rows),
    )


def lives(work: Any, mark: Path) -> tuple[AlignedPhotos, int]:
    """The result, and how many processes died for it."""
    rows = [{"photo_id": str(number)} for number in range(6)]
    for deaths in range(50):
        try:
            return survive(work, rows, mark), deaths
        except Death:
            pass
    raise AssertionError("for ever")


def test_photos_that_end_their_process_become_rejects_in_their_places(tmp_path: Path) -> None:
    aligned, deaths = lives(lambda rows: deadly(rows, "1", "4"), tmp_path / "0.json")
    assert [face["photo_id"] for face in aligned.faces] == ["0", "2", "5"]
    assert aligned.rejects == [
        ("1", "ends the process that works on it"),
        ("3", "no face"),
        ("4", "ends the process that works on it"),
    ]
    assert deaths == 6  # all photos twice, each of the two fatal ones twice
    assert not list(tmp_path.iterdir())


def test_a_chunk_whose_workers_died_of_something_else_is_done_as_before(tmp_path: Path) -> None:
    (tmp_path / "0.json").write_text(json.dumps(["", "", "2"]))
    taken: list[int] = []

    def work(rows: list[RowDict]) -> AlignedPhotos:
        taken.append(len(rows))
        return deadly(rows)

    aligned, _ = lives(work, tmp_path / "0.json")
    assert taken == [1] * 6 + [6]
    assert len(aligned.faces) == 5
    assert aligned.rejects == [("3", "no face")]


def test_a_chunk_that_no_worker_survives_ends_the_run_and_is_named(tmp_path: Path) -> None:
    def work(rows: list[RowDict]) -> AlignedPhotos:
        return deadly(rows, "2") if len(rows) > 1 else AlignedPhotos()

    with pytest.raises(
        AlignStopped, match=r"4 workers died at the photos from 0 to 5.*more memory"
    ):
        lives(work, tmp_path / "0.json")


def test_what_killed_runs_left_goes_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "align-chunks-old" / "tasks").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    # Without chunks no Ray is needed.
    assert list(runner(OUT, tmp_path)(lambda _: AlignedPhotos(), [])) == []
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_full_scratch_folder_says_so_and_leaves_the_shards_unchanged(bench: Bench) -> None:
    """Full: the system takes no file of more than a megabyte, and a person's name has three."""
    bench.align(SHARDED)
    first = bench.shards()
    rows = bench.rows()
    rows[40] |= {"person": np.random.default_rng(0).bytes(3 << 19).hex()}
    bench.write(rows)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(
            AlignStopped,
            match=r"scratch: the scratch folder takes no more than 1 files of rows.*free",
        ):
            bench.align(SHARDED, runner=runner(OUT, bench.folder / "scratch"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert bench.shards() == first
    assert not list((bench.folder / "scratch").iterdir())


@pytest.mark.parametrize(("low", "high", "cpus"), [(0, 1, 1), (3, 2, 1), (1, 1, 0)])
def test_settings_that_cannot_be_are_refused(low: int, high: int, cpus: float) -> None:
    with pytest.raises(ValueError, match="give"):
        AlignOut(actors_min=low, actors_max=high, cpus_per_actor=cpus)


# On one node.


@pytest.fixture(scope="module")
def one_node(quiet: None) -> Iterator[None]:  # noqa: ARG001
    options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    ray.init(address="local", logging_level="ERROR", **options)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("one_node")
def test_the_bytes_are_those_of_the_local_stage(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = local(bench)
    monkeypatch.chdir(bench.folder.parent)  # a path that is relative is so in the actors too
    relative = Bench(Path(bench.folder.name))
    relative.align(SHARDED, runner=runner(OUT, Path("scratch")))
    assert results(bench) == wanted
    assert len(bench.rejects()) == 3
    assert not list(Path("scratch").iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("one_node")
def test_a_photo_that_ends_every_worker_is_a_reject(bench: Bench) -> None:
    wanted = local(bench)
    on_ray = runner(OUT, bench.folder / "scratch")
    bench.align(SHARDED, runner=through(functools.partial(fatal), on_ray))

    assert bench.rejects()[FATAL] == "ends the process that works on it"
    assert len(bench.rejects()) == 4
    changed = {name for name, data in results(bench).items() if data != wanted[name]}
    assert changed == {"part-00000.parquet", "rejects.csv", "align.json"}


@pytest.mark.slow
@pytest.mark.usefixtures("one_node")
def test_an_error_of_the_work_is_reported_in_a_line(bench: Bench) -> None:
    on_ray = runner(OUT, bench.folder / "scratch")
    with pytest.raises(AlignStopped, match=r"^OSError: no such disk for 2 photos$"):
        bench.align(SHARDED, runner=through(functools.partial(failing), on_ray))
    assert not (bench.folder / "align.json").exists()


@pytest.mark.usefixtures("one_node")
def test_an_actor_that_fits_no_node_is_refused(bench: Bench) -> None:
    too_large = AlignOut(actors_min=1, actors_max=1, cpus_per_actor=3)
    with pytest.raises(ValueError, match="cpus_per_actor is 3, and the largest node has 2"):
        bench.align(SHARDED, runner=runner(too_large, bench.folder / "s"))


@pytest.mark.slow
@pytest.mark.usefixtures("one_node")
def test_a_slow_consumer_holds_the_actors_back(tmp_path: Path) -> None:
    """400 chunks of a megabyte, an object store of a hundred: those that wait must fit in it."""
    chunks = ([{"photo_id": str(number)}] for number in range(400))
    work = functools.partial(big, tmp_path / "log", len)
    aligned = runner(OUT, tmp_path / "scratch")(work, chunks)
    assert next(aligned).rejects[0][0] == "0"
    num_begun = -1

    def stands_still() -> bool:
        nonlocal num_begun
        time.sleep(3)
        before = num_begun
        num_begun = len((tmp_path / "log").read_text().splitlines())
        return before == num_begun

    wait_until(stands_still)
    assert 4 <= num_begun <= 120
    places = [one.rejects[0][0] for one in aligned]
    assert places == [str(number) for number in range(1, 400)]


# On two nodes.


@pytest.fixture
def two_nodes(quiet: None) -> Iterator[Cluster]:  # noqa: ARG001
    if ray.is_initialized():
        ray.shutdown()
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.faults
@pytest.mark.slow
def test_a_worker_and_a_node_may_die(bench: Bench, two_nodes: Cluster) -> None:
    """First a worker's process, then the second node: the bytes are the same, and little is done
    twice."""
    wanted = local(bench)
    ray.init(address=two_nodes.address, logging_level="ERROR")

    hold = bench.folder / "hold"
    hold.touch()

    def processes() -> set[int]:
        return {process for process, _ in work_done(bench)}

    def kill() -> None:
        wait_until(lambda: len(processes()) == 2)
        os.kill(work_done(bench)[-1][0], signal.SIGKILL)
        wait_until(lambda: len(processes()) == 3)
        [second] = two_nodes.worker_nodes
        two_nodes.remove_node(second, allow_graceful=False)
        hold.unlink()

    killer = threading.Thread(target=kill)
    killer.start()
    note = functools.partial(noted, bench.folder / "log")
    bench.align(SHARDED, runner=through(note, runner(OUT, bench.folder / "scratch")))
    killer.join()

    assert results(bench) == wanted
    times = Counter(photo for _, photos in work_done(bench) for photo in photos)
    assert set(times) == {f"set/{number}.jpg" for number in range(NUM_PHOTOS)} - {"set/30.jpg"}
    assert 1 <= sum(times.values()) - len(times) <= NUM_PHOTOS


def finished(bench: Bench) -> dict[str, int]:
    """The shards and when they were written, in nanoseconds."""
    return {path.name: path.stat().st_mtime_ns for path in (bench.folder / "faces").glob("part-*")}


def goes_on(bench: Bench, wanted: dict[str, bytes], kept: dict[str, int]) -> None:
    """Another run leaves the finished shards alone and ends with the local stage's bytes."""
    (bench.folder / "log").unlink()
    drive(
        "tests.flows.align_on_ray",
        [str(bench.folder)],
        root=REPOSITORY,
        kept="the shards",
        log=print,
    )

    assert results(bench) == wanted
    assert {name: when for name, when in finished(bench).items() if name in kept} == kept
    redone = {int(photo[4:-4]) // 8 for _, photos in work_done(bench) for photo in photos}
    assert redone == set(range(6)) - {int(name[5:10]) for name in kept}
    assert not list((bench.folder / "scratch").iterdir())


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_a_killed_driver_loses_no_finished_shard(bench: Bench) -> None:
    wanted = local(bench)
    command = [sys.executable, "-m", "tests.flows.align_on_ray", str(bench.folder)]
    hold = bench.folder / "hold_last"
    hold.touch()

    driver = subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | QUIET)
    wait_until(lambda: finished(bench))
    driver.kill()
    driver.wait()
    hold.unlink()

    kept = finished(bench)
    assert 0 < len(kept) < 6
    assert list((bench.folder / "scratch").iterdir())
    goes_on(bench, wanted, kept)


@pytest.mark.faults
@pytest.mark.slow
def test_a_lost_head_node_ends_the_driver_with_what_to_do(
    bench: Bench, two_nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = local(bench)
    monkeypatch.setenv("RAY_ADDRESS", two_nodes.address)
    hold = bench.folder / "hold_last"
    hold.touch()

    def kill() -> None:
        wait_until(lambda: finished(bench))
        for name in ("gcs_server", "raylet"):
            [process] = two_nodes.head_node.all_processes[name]
            psutil.Process(process.process.pid).kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(
        DriverFailed, match=r"(?s)align_on_ray.*6 shards.*run the same command again"
    ):
        drive(
            "tests.flows.align_on_ray",
            [str(bench.folder)],
            root=REPOSITORY,
            kept="of 6 shards",
            log=print,
        )
    killer.join()
    hold.unlink()

    kept = finished(bench)
    assert 0 < len(kept) < 6
    monkeypatch.delenv("RAY_ADDRESS")
    goes_on(bench, wanted, kept)
