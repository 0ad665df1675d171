"""The stage from end to end on small sets made here (locations, checksums, resuming, manifest), and
the real sets."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow.parquet as pq
import pytest

from stages.ingest import archives
from tests.stages.photo_sets import (
    LIMITS,
    SPLIT,
    House,
    Killed,
    lay,
    photo,
    settings,
    tar,
    three_people,
)
from visage.data.schemas import MANIFEST_SCHEMA


@pytest.fixture
def photos() -> dict[str, bytes]:
    return three_people()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "data")


def test_an_archive_becomes_a_manifest(
    house: House, tmp_path: Path, photos: dict[str, bytes]
) -> None:
    rows = house.run(
        settings(
            tar(tmp_path / "set.tar", photos | {"stray.jpg": photo(99), "person0/notes.txt": b"x"})
        )
    )
    assert pq.read_schema(house.manifest).equals(MANIFEST_SCHEMA)
    assert list(rows.photo_id) == sorted(photos)
    for row in rows.itertuples():
        data = (house.raw / row.photo_id).read_bytes()
        assert data == photos[row.photo_id]
        assert (row.sha256, row.num_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
        assert (row.width, row.height, row.person) == (24, 16, row.photo_id.split("/")[0])
    assert rows.unreadable.isna().all()
    assert rows.label.isna().all()
    assert [row["photo_id"] for row in house.skipped_rows()] == ["stray.jpg"]
    assert house.counts["photos"] == 16
    assert house.counts["skipped"] == 1
    assert rows[rows.sha256.duplicated(keep=False)].split.nunique() == 1


def test_the_same_manifest_from_folder_glob_archive_parts_and_memory(
    tmp_path: Path, photos: dict[str, bytes]
) -> None:
    folder = lay(tmp_path / "people", photos)
    archive = tar(tmp_path / "set.tar.gz", photos, "w:gz")
    parts = [tmp_path / "parts" / f"set.tar.gz.00{number}" for number in (1, 2)]
    parts[0].parent.mkdir()
    data = archive.read_bytes()
    parts[0].write_bytes(data[:1000]), parts[1].write_bytes(data[1000:])
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/set.tar.gz", data)
    for name, content in photos.items():
        memory.pipe(f"/bucket/people/{name}", content)
    ways = [
        f"{folder}/*",
        archive,
        f"{tmp_path}/parts/set.*",
        archive.as_uri(),
        "memory://bucket/set.tar.gz",
    ]
    manifests = [
        House(tmp_path / f"way{number}").run(settings(way)) for number, way in enumerate(ways)
    ]
    for manifest in manifests[1:]:
        pd.testing.assert_frame_equal(manifest, manifests[0])
    deep = [folder, "memory://bucket/people"]
    for number, way in enumerate(deep):  # a folder keeps its own name
        rows = House(tmp_path / f"deep{number}").run(settings(way, options={"person_level": 2}))
        assert list(rows.photo_id) == [f"people/{name}" for name in sorted(photos)]
        assert list(rows.sha256) == list(manifests[0].sha256)
    memory.rm("/bucket", recursive=True)


def test_a_folder_costs_no_second_copy_and_stays_complete(
    house: House, tmp_path: Path, photos: dict[str, bytes]
) -> None:
    folder = lay(tmp_path / "people", photos)
    chosen = settings(folder, options={"person_level": 2})
    house.run(chosen)
    assert (house.raw / "people" / "person0" / "0.jpg").samefile(folder / "person0" / "0.jpg")
    (folder / "person0" / "0.jpg").unlink()
    rows = house.run(chosen)
    assert "people/person0/0.jpg" not in set(rows.photo_id)
    assert len(rows) == 15
    house.run(settings(tar(tmp_path / "one.tar", {"a/1.jpg": photo(1), "a/2.jpg": photo(2)})))
    assert not (house.raw / "people").exists(), "nothing stale of another plan"
    assert len(list(folder.rglob("*.jpg"))) == 15


def test_what_download_did_not_make_is_never_removed(
    house: House, tmp_path: Path, photos: dict[str, bytes]
) -> None:
    lay(house.raw, {"mine.jpg": b"x"})
    with pytest.raises(ValueError, match="did not put there"):
        house.run(settings(tar(tmp_path / "set.tar", photos)))
    assert (house.raw / "mine.jpg").read_bytes() == b"x"
    with pytest.raises(ValueError, match="holds the raw folder"):
        House(tmp_path / "people" / "data").run(settings(lay(tmp_path / "people", photos)))


def test_checksums_are_held(house: House, tmp_path: Path, photos: dict[str, bytes]) -> None:
    archive = tar(tmp_path / "set.tar", photos)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    house.run(settings(archive, sha256={"set.tar": digest.upper()}))
    with pytest.raises(ValueError, match=rf"set\.tar: sha256 expected {'0' * 64}, found {digest}"):
        House(tmp_path / "other").run(settings(archive, sha256={"set.tar": "0" * 64}))
    with pytest.raises(ValueError, match=r"sha256 names 'sett\.tar'"):
        House(tmp_path / "other").run(settings(archive, sha256={"sett.tar": digest}))


def test_wrong_settings_say_so() -> None:
    for wrong, message in (
        ({"source": "imagenet"}, "'imagenet' is not one of"),
        ({"source": "lfw", "options": {}, "locations": []}, "give a path or URL"),
        ({"options": {}}, "missing key 'person_level'"),
    ):
        with pytest.raises(ValueError, match=message):
            settings("x.tar", **wrong)  # type: ignore[arg-type]


def test_nothing_there_is_reported(house: House, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="matches no file"):
        house.run(settings(tmp_path / "absent*.tar"))
    with pytest.raises(ValueError, match="no such remote file"):
        house.run(settings("memory://nowhere/set.tar"))
    with pytest.raises(ValueError, match="found no photo"):
        house.run(settings(tar(tmp_path / "empty.tar", {"readme.txt": b"x"})))


def test_a_killed_unpacking_goes_on(
    house: House, tmp_path: Path, photos: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tar(tmp_path / "first.tar", {k: v for k, v in photos.items() if k < "person1"})
    second = tar(tmp_path / "second.tar", {k: v for k, v in photos.items() if k >= "person1"})
    expected = House(tmp_path / "uninterrupted").run(settings(first, second))
    placed: list[str] = []
    place = archives.Placer.place

    def placing(placer: archives.Placer, photo_id: str, content: Any) -> None:
        if len(placed) == 9:
            (placer.raw_dir / ".visage" / "incoming").write_bytes(b"half")
            raise Killed
        placed.append(photo_id)
        place(placer, photo_id, content)

    monkeypatch.setattr(archives.Placer, "place", placing)
    with pytest.raises(Killed):
        house.run(settings(first, second))
    assert not house.manifest.exists()
    before = {name: (house.raw / name).stat().st_mtime_ns for name in placed}
    unpacked: list[str] = []
    monkeypatch.setattr(
        archives.Placer,
        "place",
        lambda p, name, content: (unpacked.append(name), place(p, name, content)),
    )
    pd.testing.assert_frame_equal(house.run(settings(first, second)), expected)
    assert min(unpacked) >= "person1", "the finished archive is not opened again"
    assert {name: (house.raw / name).stat().st_mtime_ns for name in placed} == before


def test_measured_photos_are_not_measured_again(
    house: House, tmp_path: Path, photos: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(tar(tmp_path / "set.tar", photos))
    before = house.run(chosen)
    seen: list[str] = []
    monkeypatch.setattr(
        "stages.ingest.measure.decoded_size", lambda data, _: (seen.append(data), (1, 1))[1]
    )
    other_split = replace(chosen, split=replace(chosen.split, seed=5))
    after = house.run(other_split)
    assert seen == []
    assert not after.equals(before)
    pd.testing.assert_frame_equal(after.drop(columns="split"), before.drop(columns="split"))
    (house.raw / "person0" / "0.jpg").write_bytes(photo(77))
    assert house.run(other_split).sha256[0] == hashlib.sha256(photo(77)).hexdigest()
    assert seen == [photo(77)]
    house.run(replace(chosen, limits=replace(chosen.limits, max_photo_pixels=5000)))
    assert len(seen) == 17, "other bounds, other measures"


def test_a_rerun_writes_the_same_bytes(
    house: House, tmp_path: Path, photos: dict[str, bytes]
) -> None:
    chosen = settings(tar(tmp_path / "set.tar", photos | {"stray.jpg": b"x"}))
    house.run(chosen)
    before = {path: path.read_bytes() for path in (house.manifest, house.skipped)}
    state = {path.name: path.read_bytes() for path in (house.raw / ".visage").iterdir()}
    house.run(chosen)
    other = House(tmp_path / "elsewhere")
    other.run(chosen)
    assert before == {path: path.read_bytes() for path in before}
    assert other.manifest.read_bytes() == before[house.manifest]
    assert state == {path.name: path.read_bytes() for path in (other.raw / ".visage").iterdir()}, (
        "DVC hashes the folder"
    )


def test_a_photo_twice_is_reported(house: House, tmp_path: Path) -> None:
    lay(tmp_path / "photos", {"a.jpg": photo(1)})
    (tmp_path / "labels.csv").write_text("file,age\na.jpg,3\na.jpg,4\n")
    columns = {"photo": "file", "label": "age"} | dict.fromkeys(
        ["sigma", "person", "sex", "ethnicity", "split"]
    )
    options = {
        "table": str(tmp_path / "labels.csv"),
        "delimiter": ",",
        "photos_folder": "photos",
        "columns": columns,
    }
    with pytest.raises(ValueError, match=r"photos/a\.jpg: the source names it twice"):
        house.run(settings(tmp_path / "photos", source="table", options=options))


def test_the_drawn_set_is_made_again_each_time(house: House) -> None:
    options = {"quantity": "age", "num_people": 3, "photos_per_person": 2, "px": 64, "seed": 1}
    options |= {"age_span_years": 90.0, "label_noise": 1.0, "dirt": {}}
    chosen = settings(
        source="synthetic",
        options=options,
        split={**SPLIT, "group_by": "person", "test_fraction": 0.5},
    )
    rows = house.run(chosen)
    assert len(rows) == 6
    assert rows.label.notna().all()
    assert rows.sigma.gt(0).all()
    assert rows.unreadable.isna().all()
    (house.raw / rows.photo_id[0]).write_bytes(b"spoiled")
    pd.testing.assert_frame_equal(house.run(chosen), rows)
    with pytest.raises(ValueError, match="made here; leave them empty"):
        replace(chosen, locations=("x.tar",))


def some_of(archive: Path, target: Path, every: int) -> Path:
    """Every so-many-th photo of a real archive, as a small one."""
    with tarfile.open(archive) as tape:
        photos: dict[str, bytes] = {}
        for member in tape.getmembers()[::every]:
            file = tape.extractfile(member)
            assert file is not None, member.name
            photos[member.name] = file.read()
        return tar(target, photos)


@pytest.mark.real_data
def test_a_few_hundred_real_photos(house: House, tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "utkface"
    part = some_of(folder / "UTKFace-part2.tar", tmp_path / "UTKFace-part2.tar", 40)
    lists = {split: str(folder / f"coral_{split}.csv") for split in ("train", "test")}
    options = {"protocol": "coral", "lists": lists}
    given = {**SPLIT, "assign": "given", "val_fraction": 0.1}
    rows = house.run(settings(part, source="utkface", options=options, split=given))
    assert 100 < len(rows) < 198
    assert set(rows.split) == {"train", "val", "test"}
    assert rows.label.between(21, 60).all()
    assert rows.unreadable.isna().all()
    assert (rows.width == 200).all()


@pytest.mark.real_data
@pytest.mark.slow
def test_the_real_sets_hold_what_their_readme_says(tmp_path: Path, shared_data: Path) -> None:
    """Takes about a minute: all of UTKFace (all ages, and the CORAL lists), LFW, MEBeauty."""
    utkface, house = shared_data / "utkface", House(tmp_path / "utkface")
    limits = {**LIMITS, "max_total_bytes": 10**9, "max_files": 10**6}
    every = {"protocol": "all_ages", "lists": {}}
    rows = house.run(settings(f"{utkface}/*.tar", source="utkface", options=every, limits=limits))
    assert len(rows) == 23_708
    assert house.counts["repaired"] == 8
    assert house.counts["skipped"] == 0
    copies = rows[rows.sha256.duplicated(keep=False)].groupby("sha256")
    assert (copies.ngroups, len(rows[rows.sha256.duplicated(keep=False)])) == (375, 765)
    assert (copies.label.nunique() > 1).sum() == 205
    assert (copies.split.nunique() == 1).all()
    assert (rows.label > 100).sum() == 21
    assert rows.unreadable.isna().all()

    lists = {split: str(utkface / f"coral_{split}.csv") for split in ("train", "test")}
    given = {**SPLIT, "assign": "given", "val_fraction": 0.0}
    coral = {"protocol": "coral", "lists": lists}
    rows = house.run(
        settings(f"{utkface}/*.tar", source="utkface", options=coral, split=given, limits=limits)
    )
    assert dict(rows.split.value_counts()) == {"train": 13_146, "test": 3_287}
    assert (rows.groupby("sha256").split.nunique() > 1).sum() == 83

    lfw = House(tmp_path / "lfw").run(
        settings(f"{shared_data}/lfw/*.tar", source="lfw", options={})
    )
    assert (len(lfw), lfw.person.nunique(), lfw.person.value_counts().min()) == (4_324, 158, 10)
    assert (lfw[lfw.split == "train"].person.nunique()) == 158

    house = House(tmp_path / "mebeauty")
    options = {"ratings": str(shared_data / "mebeauty" / "ratings.csv")}
    rows = house.run(
        settings(f"{shared_data}/mebeauty/*.tar", source="mebeauty", options=options, split=given)
    )
    assert len(rows) == 2_515
    assert [row["reason"] for row in house.skipped_rows()] == ["the set puts it in no split"] * 3
