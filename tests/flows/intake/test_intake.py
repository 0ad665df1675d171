"""Labelled photos that come into a watched folder or bucket: what is taken, what is refused, and
what a kill leaves."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import flows.intake
from flows.intake.bring import Intake, look
from flows.intake.storage import LocalStorage
from stages.download import DownloadSettings
from stages.ingest.archives import Budget
from stages.settings import load_section
from stages.sources.dataset_rows import set_rows
from tests.imports import REPOSITORY
from tests.stages.photo_sets import Killed, lay

Photos = Mapping[str, bytes]
HEADER = "photo,label,person"


def rows(*lines: str) -> bytes:
    return "\n".join([HEADER, *lines, ""]).encode()


THREE = {"1.jpg": b"one", "anna/2.jpg": b"two", "anna/3.jpg": b"three"}
TABLE = rows("1.jpg,30,bert", "anna/2.jpg,40,anna", "anna/3.jpg,41,anna")


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A working copy's params.yaml, and the folder into which photos come."""
    shutil.copy(REPOSITORY / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "incoming" / "target").mkdir(parents=True)
    return tmp_path / "incoming" / "target"


@pytest.fixture
def adds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that `dvc add` would have taken; it is replaced."""
    taken: list[Path] = []

    def add(folder: Path) -> None:
        taken.append(folder)
        (folder / "labelled.dvc").touch()

    monkeypatch.setattr(flows.intake.bring, "_dvc_add", add)
    return taken


@pytest.fixture
def watch(tmp_path: Path) -> Path:
    return lay(tmp_path / "watch", {**THREE, "labels.csv": TABLE, "not named.jpg": b"four"})


def counts(found: Intake) -> tuple[int, int, int, int]:
    return found.new, found.changed, found.gone, found.refused


def brought(house: Path) -> dict[str, bytes]:
    folder = house / "labelled"
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refused(found: Intake) -> dict[str, str]:
    with found.refused_list.open(newline="", encoding="utf-8") as file:
        return {row["photo"]: row["reason"] for row in csv.DictReader(file)}


def test_what_is_new_comes_and_nothing_else(house: Path, adds: list[Path], watch: Path) -> None:
    assert counts(look(str(watch), house)) == (3, 0, 0, 0)
    assert brought(house) == {**THREE, "labels.csv": TABLE}
    assert adds == [house]

    times = {path: path.stat().st_mtime_ns for path in house.rglob("*")}
    again = look(watch.as_uri(), house)
    assert (counts(again), again.is_new) == ((0, 0, 0, 0), False)
    assert adds == [house]
    assert {path: path.stat().st_mtime_ns for path in house.rglob("*")} == times

    lay(watch, {"4.jpg": b"four", "labels.csv": TABLE + b"4.jpg,50,carl\n"})
    assert counts(look("watch", house)) == (1, 0, 0, 0), (
        "a relative path starts at the working copy"
    )
    assert brought(house)["4.jpg"] == b"four"


def test_a_changed_label_and_a_changed_photo_are_seen(
    house: Path, adds: list[Path], watch: Path
) -> None:
    look(str(watch), house)
    (watch / "labels.csv").write_bytes(TABLE.replace(b"2.jpg,40", b"2.jpg,42"))
    assert counts(look(str(watch), house)) == (0, 1, 0, 0)

    # Other bytes of the same size.
    (watch / "1.jpg").write_bytes(b"eno")
    assert counts(look(str(watch), house)) == (0, 1, 0, 0)
    assert brought(house)["1.jpg"] == b"eno"

    # Another time with the same bytes.
    inode = (house / "labelled" / "1.jpg").stat().st_ino
    os.utime(watch / "1.jpg", (5, 5))
    found = look(str(watch), house)
    assert (counts(found), found.is_new) == ((0, 0, 0, 0), False)
    assert (house / "labelled" / "1.jpg").stat().st_ino == inode
    assert len(adds) == 3


def test_another_column_or_another_place_is_seen(
    house: Path, adds: list[Path], watch: Path, tmp_path: Path
) -> None:
    look(str(watch), house)
    lines = TABLE.decode().splitlines()
    (watch / "labels.csv").write_text("".join(f"{line},note\n" for line in lines), encoding="utf-8")
    found = look(str(watch), house)
    assert (counts(found), found.is_new, len(adds)) == ((0, 0, 0, 0), True, 2), (
        "DVC's copy is the one that is read"
    )

    shutil.copytree(watch, tmp_path / "moved")
    (tmp_path / "moved/1.jpg").write_bytes(b"eno")
    shutil.copystat(watch / "1.jpg", tmp_path / "moved/1.jpg")
    assert counts(look("moved", house)) == (0, 1, 0, 0)


def test_photos_are_never_deleted_but_lines_go(house: Path, adds: list[Path], watch: Path) -> None:
    look(str(watch), house)
    (watch / "1.jpg").unlink()
    assert counts(look(str(watch), house)) == (0, 0, 0, 0)
    (watch / "labels.csv").write_bytes(rows("1.jpg,30,bert", "anna/2.jpg,40,anna"))
    found = look(str(watch), house)
    assert (counts(found), found.is_new) == ((0, 0, 1, 0), True)
    assert brought(house) == {**THREE, "labels.csv": rows("1.jpg,30,bert", "anna/2.jpg,40,anna")}
    assert len(adds) == 2


def test_what_was_lost_or_checked_out_is_put_right(
    house: Path, adds: list[Path], watch: Path
) -> None:
    look(str(watch), house)
    (house / "labelled" / "1.jpg").unlink()
    # As `dvc checkout` of another version does.
    (house / "labelled" / "anna" / "2.jpg").write_bytes(b"old")
    # As DVC's links do.
    os.utime(house / "labelled" / "anna" / "3.jpg")

    look(str(watch), house)
    assert brought(house) == {**THREE, "labels.csv": TABLE}
    assert len(adds) == 1


@pytest.mark.usefixtures("adds")
def test_a_fresh_clone_without_its_photos_is_refused(house: Path, watch: Path) -> None:
    """Otherwise DVC would forget the photos that have left the watched place."""
    (house / "labelled.dvc").touch()
    with pytest.raises(ValueError, match=r"say `dvc pull .*labelled\.dvc`"):
        look(str(watch), house)
    assert not (house / "labelled").exists()


BAD = {
    "photo,label\n1.jpg,30\n": "has the column 'person' 0 times",
    "photo,label,person,label\n1.jpg,30,a,3\n": "has the column 'label' 2 times",
    "": "has the column 'photo' 0 times",
    "photo,label,person\n1.jpg,30,bert\nanna/2.jpg,4": "line 3 has 2 cells, the first line 3",
    "photo,label,person\n1.jpg,30,bert\nanna/2.jpg,40,an": "half-written",
    'photo,label,person\n1.jpg,30,"bert\n': "cannot be read",
    "photo,label,person\n1.jpg,30,bert\n./1.jpg,31,bert\n": "lines 2 and 3 both name 1.jpg",
    "photo,label,person\n1.jpg,30,\udcff\n": "cannot be read",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_table_brings_nothing_in(
    house: Path, adds: list[Path], watch: Path, text: str
) -> None:
    look(str(watch), house)
    (watch / "1.jpg").write_bytes(b"changed")
    (watch / "labels.csv").write_bytes(text.encode("utf-8", "surrogateescape"))

    with pytest.raises(
        ValueError, match=f"labels.csv: .*{re.escape(BAD[text])}.*Nothing was brought in"
    ):
        look(str(watch), house)
    assert brought(house) == {**THREE, "labels.csv": TABLE}
    assert len(adds) == 1

    (watch / "labels.csv").write_bytes(TABLE)
    assert counts(look(str(watch), house)) == (0, 1, 0, 0)


def test_a_table_that_is_being_written_waits(
    house: Path, adds: list[Path], watch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = LocalStorage.open

    def written_meanwhile(place: LocalStorage, name: str) -> Any:
        with (watch / "labels.csv").open("ab") as file:
            file.write(b"4.jpg,50,carl\n")
        return opened(place, name)

    monkeypatch.setattr(LocalStorage, "open", written_meanwhile)
    with pytest.raises(ValueError, match="changes while it is read"):
        look(str(watch), house)
    assert not (house / "labelled").exists()
    assert adds == []


def test_a_missing_table_place_or_reader_is_named(house: Path, watch: Path) -> None:
    (watch / "labels.csv").unlink()
    for place in (watch, watch / "nowhere"):
        with pytest.raises(ValueError, match=r"there is no labels\.csv"):
            look(str(place), house)

    with pytest.raises(ValueError, match=r"download\.identity\.incoming is null"):
        look(str(watch), house.parent / "identity")

    params = yaml.safe_load((house.parents[1] / "params.yaml").read_text(encoding="utf-8"))
    params["download"]["target"]["incoming"]["options"]["table"] = "elsewhere/labels.csv"
    (house.parents[1] / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    with pytest.raises(
        ValueError, match="must read a table and its photos from incoming/target/labelled"
    ):
        look(str(watch), house)


@pytest.mark.usefixtures("adds")
def test_unsafe_and_absent_photos_are_refused_one_by_one(house: Path, watch: Path) -> None:
    outside = lay(house.parents[1], {"secret.jpg": b"secret"}) / "secret.jpg"
    odd = [
        "../secret.jpg",
        str(outside),
        ".hidden.jpg",
        "anna/../../secret.jpg",
        "labels.csv",
        "a\x07.jpg",
        "gone.jpg",
    ]
    odd += ["1.jpg/x.jpg", "huge.jpg"]
    with (watch / "huge.jpg").open("wb") as file:
        file.truncate(60_000_001)
    odd_lines = rows(*(f"{name},3,x" for name in odd))[len(HEADER) + 1 :]
    lay(
        watch,
        {
            ".hidden.jpg": b"hidden",
            "a\x07.jpg": b"bell",
            "labels.csv": TABLE + odd_lines,
        },
    )

    found = look(str(watch), house)
    assert counts(found) == (3, 0, 0, len(odd))
    assert brought(house) == {**THREE, "labels.csv": TABLE + odd_lines}

    listed = refused(found)
    assert set(listed) == {name.replace("\x07", "\\u0007") for name in odd}
    assert "leads out" in listed["../secret.jpg"]
    assert "leads out" in listed[str(outside)]
    assert "begins with a dot" in listed[".hidden.jpg"]
    assert "control characters" in listed["a\\u0007.jpg"]
    assert "no such photo" in listed["gone.jpg"]
    assert "max_photo_bytes" in listed["huge.jpg"]

    lay(watch, {"gone.jpg": b"here"})
    assert counts(look(str(watch), house)) == (1, 0, 0, len(odd) - 1)


@pytest.mark.usefixtures("adds")
def test_a_killed_run_goes_on(house: Path, watch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = LocalStorage.open
    names: list[str] = []

    def dies_at(number: int) -> Callable[[LocalStorage, str], Any]:
        def open_or_die(place: LocalStorage, name: str) -> Any:
            names.append(name)
            if len(names) == number:
                (house.parent / ".state" / "target.part").write_bytes(b"half a ph")
                raise Killed
            return opened(place, name)

        return open_or_die

    monkeypatch.setattr(LocalStorage, "open", dies_at(3))
    with pytest.raises(Killed):
        look(str(watch), house)
    assert brought(house) == {"1.jpg": b"one"}, "no table, no half photo"

    names.clear()
    monkeypatch.setattr(LocalStorage, "open", dies_at(99))
    assert counts(look(str(watch), house)) == (3, 0, 0, 0), "all that DVC has not taken yet"
    assert names == ["labels.csv", "anna/2.jpg", "anna/3.jpg"], "what came is not copied again"
    assert brought(house) == {**THREE, "labels.csv": TABLE}


def test_a_kill_before_dvc_took_it_is_made_good(
    house: Path, watch: Path, adds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(flows.intake.bring, "_dvc_add", die)
        with pytest.raises(Killed):
            look(str(watch), house)
    found = look(str(watch), house)
    assert (counts(found), found.is_new, adds) == ((3, 0, 0, 0), True, [house])


def test_two_at_once_are_refused(
    house: Path, adds: list[Path], watch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another(folder: Path) -> None:
        with pytest.raises(
            ValueError, match=rf"in use by process {os.getpid()} since .*; let that intake end"
        ):
            look(str(watch), folder)
        adds.append(folder)

    monkeypatch.setattr(flows.intake.bring, "_dvc_add", another)
    look(str(watch), house)
    assert adds == [house]


@pytest.mark.usefixtures("adds")
def test_what_was_brought_is_what_download_reads(
    house: Path, watch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(str(watch), house)
    for module in ("fetch", "records"):
        monkeypatch.setattr(f"stages.ingest.{module}.REPOSITORY", tmp_path)
    settings = load_section(tmp_path / "params.yaml", "download", DownloadSettings, "target")
    assert settings.incoming is not None

    left_out: list[str] = []
    budget = Budget(limits=settings.limits)
    found = set_rows(
        settings.incoming,
        tmp_path / "raw",
        tmp_path / "f",
        budget,
        lambda name, *_, **__: left_out.append(name),
    )
    assert [(row.photo_id, row.label, row.person) for row in found] == [
        ("labelled/1.jpg", 30, "bert"),
        ("labelled/anna/2.jpg", 40, "anna"),
        ("labelled/anna/3.jpg", 41, "anna"),
    ]
    assert left_out == []


@pytest.mark.usefixtures("adds")
def test_ten_thousand_unchanged_photos_take_less_than_two_seconds(
    house: Path, tmp_path: Path
) -> None:
    names = [f"{number % 100:02}/{number}.jpg" for number in range(10_000)]
    files = {name: name.encode() for name in names}
    files["labels.csv"] = rows(*(f"{name},30,x" for name in names))
    lay(tmp_path / "watch", files)
    assert look("watch", house).new == 10_000

    began = time.process_time()
    assert look("watch", house).is_new is False
    assert time.process_time() - began < 2


@pytest.mark.usefixtures("adds")
def test_nothing_new_does_not_import_dvc(house: Path, watch: Path) -> None:
    look(str(watch), house)
    program = (
        "import sys; from pathlib import Path; from flows.intake.bring import look; "
        f"found = look({str(watch)!r}, Path({str(house)!r})); assert not found.is_new; "
        "sys.exit(any(name.split('.')[0] in ('dvc', 'prefect', 'mlflow') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


GRAPH = """
vars: [{pause: 0}]
stages:
  download:
    cmd: touch began && sleep ${pause} && ls incoming/target > list
    deps: [incoming/target]
    outs: [list]
  other: {cmd: echo 1 > other, outs: [other]}
"""


@pytest.fixture
def repository(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`dvc` in a working copy with a graph of two stages, the first of which reads what comes."""
    root = house.parents[1]
    (root / "dvc.yaml").write_text(GRAPH, encoding="utf-8")
    (root / ".gitignore").write_text("/incoming/*/labelled/\n", encoding="utf-8")
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")

    def dvc(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dvc", *words],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )

    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    dvc("init", "-q")
    return dvc


@pytest.mark.slow
def test_dvc_takes_it_and_only_who_reads_it_is_stale(
    house: Path, watch: Path, repository: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    repository("repro", "-q")
    assert look(str(watch), house).is_new
    pointer = yaml.safe_load((house / "labelled.dvc").read_text(encoding="utf-8"))
    assert pointer["outs"][0]["nfiles"] == 4
    assert "download" in repository("status").stdout
    assert "other" not in repository("status").stdout

    repository("repro", "-q")
    assert not look(str(watch), house).is_new
    assert repository("status", "-q").returncode == 0
    ignored = subprocess.run(
        ["git", "status", "--short"], cwd=house, capture_output=True, text=True, check=True
    ).stdout
    assert "labelled/" not in ignored

    repository("config", "cache.type", "hardlink")
    (watch / "1.jpg").write_bytes(b"another")
    assert counts(look(str(watch), house)) == (0, 1, 0, 0)
    (watch / "1.jpg").write_bytes(b"a third one")
    assert counts(look(str(watch), house)) == (0, 1, 0, 0)

    # Nothing was written through a link: every file in the cache has the digest in its name.
    for cached in (house.parents[1] / ".dvc/cache/files/md5").glob("??/*"):
        if cached.suffix != ".dir":
            digest = hashlib.md5(cached.read_bytes(), usedforsecurity=False).hexdigest()
            assert digest == cached.parent.name + cached.name


@pytest.mark.usefixtures("repository")
def test_a_dvc_at_work_is_named(house: Path, watch: Path) -> None:
    root = house.parents[1]
    text = (root / "dvc.yaml").read_text(encoding="utf-8").replace("pause: 0", "pause: 60")
    (root / "dvc.yaml").write_text(text, encoding="utf-8")
    busy = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "-q", "download"], cwd=root, start_new_session=True
    )

    try:
        while not (root / "began").exists():
            assert busy.poll() is None
            time.sleep(0.1)
        with pytest.raises(ValueError, match=r"(?s)dvc add .*(busy|lock).*look again"):
            look(str(watch), house)
    finally:
        os.killpg(busy.pid, 9)
        busy.wait()

    assert brought(house) == {**THREE, "labels.csv": TABLE}
    found = look(str(watch), house)
    assert (counts(found), found.is_new) == ((3, 0, 0, 0), True)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3-compatible store on this machine, and the environment that leads to it."""
    boto3 = pytest.importorskip("boto3")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    named = {
        "ENDPOINT_URL": f"http://{host}:{port}",
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
    }
    for name, value in {**named, "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)

    store = boto3.resource("s3").Bucket("watched")
    store.create()
    yield store
    server.stop()


@pytest.mark.usefixtures("adds")
def test_a_bucket_is_watched_as_a_folder_is(house: Path, bucket: Any) -> None:
    def put(files: Photos) -> None:
        for name, content in files.items():
            bucket.put_object(Key=f"new/{name}", Body=content)

    put({**THREE, "labels.csv": TABLE, "not named.jpg": b"four"})
    assert counts(look("s3://watched/new", house)) == (3, 0, 0, 0)
    assert brought(house) == {**THREE, "labels.csv": TABLE}
    assert not look("s3://watched/new", house).is_new
    put(
        {
            "1.jpg": b"eno",
            "gone/4.jpg": b"4",
            "labels.csv": TABLE + b"gone/4.jpg,3,x\ngone/5.jpg,3,x\nnone/6.jpg,3,x\n",
        }
    )
    found = look("s3://watched/new/", house)
    assert counts(found) == (1, 1, 0, 2)
    assert set(refused(found)) == {"gone/5.jpg", "none/6.jpg"}
    assert brought(house)["1.jpg"] == b"eno"
    for wrong in ("s3://watched/nowhere", "s3://no-such-bucket/new"):
        with pytest.raises(ValueError, match=r"there is no labels\.csv"):
            look(wrong, house)
