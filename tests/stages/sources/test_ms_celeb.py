"""MS-Celeb-1M's containers: TSV rows and RecordIO become photo files by person; damage is listed, a
kill goes on."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.ingest import containers
from stages.ingest.recordio import MAGIC, read_chunks
from tests.stages.photo_sets import House, Killed, photo, settings, tar

MAX_BYTES = 1 << 16


def ms_celeb(*locations: Path, **changes: Any) -> Any:
    return settings(*locations, source="ms_celeb", options={}, **changes)


def tsv_row(person: str, rank: int, picture: bytes) -> bytes:
    cells = [person.encode(), b"%d" % rank, b"http://x/i.jpg", b"http://x/", b"FaceId-0", b"AAAA"]
    return b"\t".join([*cells, base64.b64encode(picture)]) + b"\r\n"


def tsv(path: Path, rows: Iterable[bytes]) -> Path:
    path.write_bytes(b"".join(rows))
    return path


def recordio(data: bytes) -> bytes:
    """One record as MXNet writes it: split where the data hold the magic at a multiple of four."""
    parts = []
    begin = 0
    for position in range(0, len(data) - 3, 4):
        if data[position : position + 4] == MAGIC:
            parts.append(data[begin:position])
            begin = position + 4
    parts.append(data[begin:])
    kinds = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    return b"".join(
        MAGIC + struct.pack("<I", kind << 29 | len(part)) + part + bytes(-len(part) % 4)
        for kind, part in zip(kinds, parts, strict=True)
    )


def face(number: int, picture: bytes, *labels: float) -> bytes:
    flag, first = (0, labels[0]) if len(labels) == 1 else (len(labels), 0.0)
    return (
        struct.pack("<IfQQ", flag, first, number, 0)
        + struct.pack(f"<{flag}f", *labels[: flag or 0])
        + picture
    )


def insightface(
    folder: Path, faces: list[tuple[int, bytes]], spoil: Callable[[list[bytes]], None] | None
) -> Path:
    """train.rec, train.idx and property of (person, picture): pictures from 1 on, record 0, then
    the list of people."""
    folder.mkdir(parents=True, exist_ok=True)
    people_from = len(faces) + 1
    people = sorted({person for person, _ in faces})
    records = [
        face(n, picture, float(person)) for n, (person, picture) in enumerate(faces, start=1)
    ]
    records += [face(0, b"", float(people_from), float(people_from + len(people)))]
    records += [face(people_from + i, b"", 1.0, 3.0) for i in range(len(people))]
    packed = [recordio(record) for record in records]
    positions = [sum(map(len, packed[:i])) for i in range(len(packed))]
    if spoil is not None:
        spoil(packed)
    numbers = [*range(1, people_from), 0, *range(people_from, people_from + len(people))]
    (folder / "train.rec").write_bytes(b"".join(packed))
    (folder / "train.idx").write_text(
        "".join(f"{n}\t{p}\n" for n, p in zip(numbers, positions, strict=True))
    )
    (folder / "property").write_text(f"{len(people)},112,112\n")
    (folder / "lfw.bin").write_bytes(b"x")
    return folder


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "data")


def test_a_tsv_becomes_photos_by_person(house: House, tmp_path: Path) -> None:
    people = {"m.01": 3, "m.0b_2": 2}
    pictures = {
        (person, rank): photo(10 * rank + len(person))
        for person, n in people.items()
        for rank in range(n)
    }
    good = [tsv_row(*key, picture) for key, picture in pictures.items()]
    dirt = [b"m.01\t9\tonly three\n", tsv_row("../m.01", 1, photo(1)), tsv_row("m.01", 7, b"")]
    dirt += [
        good[0].replace(b"\tAAAA\t", b"\tAAAA\t?"),
        tsv_row("m.01", 0, photo(99)),
        tsv_row("m.01", 8, bytes(70_000)),
    ]
    dirt += [b"x" * 300_000 + b"\n"]
    rows = house.run(
        ms_celeb(tsv(tmp_path / "faces.tsv", [*good[:2], *dirt, *good[2:]]), limits=LIMITS)
    )
    assert {person: len(group) for person, group in rows.groupby("person")} == people
    for row in rows.itertuples():
        container, group, person, name = row.photo_id.split("/")
        assert (container, len(group), person) == ("faces", 2, row.person)
        assert (house.raw / row.photo_id).read_bytes() == pictures[person, int(name.split("-")[0])]
    reasons = sorted(row["reason"] for row in house.skipped_rows())
    assert len(reasons) == len(dirt)
    for found in (
        "3 columns",
        "is no identifier",
        "has no photo",
        "no base64",
        "there twice",
        "photo_bytes 50000",
        "a row of",
    ):
        assert sum(found in reason for reason in reasons) == 1, (found, reasons)


LIMITS = {
    "max_photo_bytes": 50_000,
    "max_photo_pixels": 10**6,
    "max_total_bytes": 10**8,
    "max_files": 10**4,
}
LIMITS |= {"max_ratio": 100.0}


def test_insightface_records_become_photos_by_person(house: House, tmp_path: Path) -> None:
    faces = [(person, photo(10 * person + n)) for person in (0, 7, 12_345) for n in range(3)]

    def spoil(packed: list[bytes]) -> None:
        packed[1] = b"\0" * 8 + packed[1][8:]  # its head is gone
        packed[4] = packed[4][:40]  # cut short: its length swallows what follows
        packed[6] = recordio(face(7, b"", 12_345.0))
        packed[7] = recordio(face(8, faces[7][1], -1.0))

    rows = house.run(ms_celeb(insightface(tmp_path / "ms1m", faces, spoil)))
    numbers = {int(name.split("/")[-1].removesuffix(".jpg")): name for name in rows.photo_id}
    assert set(numbers) == {1, 3, 4, 6, 9}, "what follows a cut record is found again"
    for number, name in numbers.items():
        person, picture = faces[number - 1]
        assert name == f"train/{person // 1000:04d}/train-{person:07d}/{number:09d}.jpg"
        assert (house.raw / name).read_bytes() == picture
    reasons = [row["reason"] for row in house.skipped_rows()]
    wanted = ["not the beginning", "cut short", "record 7 has no photo", "label -1.0 is no person"]
    assert len(reasons) == len(wanted)
    for text in wanted:
        assert sum(text in reason for reason in reasons) == 1, (text, reasons)
    assert not (house.raw / "lfw.bin").exists()


def test_records_without_an_index_and_with_two_labels(house: House, tmp_path: Path) -> None:
    insightface(tmp_path, [(1, photo(1)), (1, photo(2))], None)
    (tmp_path / "train.idx").unlink()
    with (tmp_path / "train.rec").open("ab") as file:
        file.write(recordio(face(9, photo(3), 4.0, 1.0)))
    rows = house.run(ms_celeb(tmp_path / "train.rec"))
    assert list(rows.person) == ["train-0000001", "train-0000001", "train-0000004"]
    assert house.skipped_rows() == []


@given(
    st.lists(
        st.lists(st.sampled_from([MAGIC, MAGIC[:3], b"abcd", b"\0"]), max_size=6).map(b"".join),
        max_size=6,
    ),
    st.integers(0, 40),
)
def test_records_come_back_and_one_damage_costs_one(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], where: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.rec"
    packed = [recordio(content) for content in contents]
    path.write_bytes(b"".join(packed))
    chunks = list(read_chunks(path, 0, MAX_BYTES))
    assert [chunk.data for chunk in chunks] == contents
    assert all(chunk.damage is None for chunk in chunks)
    for chunk, rest in zip(chunks, range(1, len(chunks) + 1), strict=True):
        assert [later.data for later in read_chunks(path, chunk.end, MAX_BYTES)] == contents[rest:]
    if packed:
        hit = where % len(packed)
        spoilt = [*packed[:hit], b"\xff" + packed[hit][1:], *packed[hit + 1 :]]
        path.write_bytes(b"".join(spoilt))
        intact = [chunk.data for chunk in read_chunks(path, 0, MAX_BYTES) if chunk.damage is None]
        assert intact == contents[:hit] + contents[hit + 1 :]


def test_a_killed_unpacking_goes_on_at_its_mark(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [tsv_row("m.1", rank, photo(rank)) for rank in range(10)]
    chosen = ms_celeb(tsv(tmp_path / "faces.tsv", [b"dirt\n", *rows]))
    uninterrupted = House(tmp_path / "uninterrupted").run(chosen)
    monkeypatch.setattr(containers, "MARK_RECORDS", 4)
    placed: list[str] = []
    place = containers.Placer.place

    def placing(placer: containers.Placer, photo_id: str, content: Any) -> None:
        if len(placed) == 6:
            raise Killed
        placed.append(photo_id)
        place(placer, photo_id, content)

    monkeypatch.setattr(containers.Placer, "place", placing)
    with pytest.raises(Killed):
        house.run(chosen)
    unpacked: list[str] = []
    monkeypatch.setattr(
        containers.Placer,
        "place",
        lambda p, name, content: (unpacked.append(name), place(p, name, content)),
    )
    assert house.run(chosen).equals(uninterrupted)
    assert len(unpacked) == 7, "from the fourth record on: dirt and three photos are done"
    assert [row["reason"] for row in house.skipped_rows()] == ["1 columns, not 7"]
    state = {
        path.name: path.read_bytes()
        for path in (house.raw / ".visage").iterdir()
        if path.suffix == ".json"
    }
    assert not any(name.endswith(".part.json") for name in state)
    other = tmp_path / "uninterrupted" / "raw" / "x" / ".visage"
    assert state == {
        path.name: path.read_bytes() for path in other.iterdir() if path.suffix == ".json"
    }


def test_what_is_no_such_container_is_refused(house: House, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"faces\.tsv: holds no photo.*1 columns"):
        house.run(ms_celeb(tsv(tmp_path / "faces.tsv", [b"not a row\n"])))
    (tmp_path / "train.rec").write_bytes(b"PK\3\4 something else")
    with pytest.raises(ValueError, match="not the beginning of a record"):
        house.run(ms_celeb(tmp_path / "train.rec"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tsv(tmp_path / name / "faces.tsv", [tsv_row("m.1", 1, photo(1))])
    with pytest.raises(ValueError, match=r"two containers are named faces\.tsv"):
        house.run(ms_celeb(tmp_path / "a", tmp_path / "b"))
    many = tsv(tmp_path / "many.tsv", [tsv_row("m.1", rank, photo(rank)) for rank in range(3)])
    with pytest.raises(ValueError, match="max_files"):
        house.run(ms_celeb(many, limits={**LIMITS, "max_files": 2}))
    stray = tar(tmp_path / "set.tar", {"loose.jpg": photo(1)})
    with pytest.raises(ValueError, match="found no photo"):
        house.run(ms_celeb(stray))
