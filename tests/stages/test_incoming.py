"""Labelled photos that join a set as they come: nothing that was there before moves, and nothing
leaks."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from stages.checks.findings import inspect
from stages.checks.settings import ValidateSettings
from stages.download import DownloadSettings
from stages.ingest.manifest_db import PHOTOS
from stages.ingest.splits import KNOWN, assign_incoming, assign_splits, choose
from stages.settings import load_section
from tests.imports import REPOSITORY
from tests.stages.ingest.test_splits import Photo, splits_of
from tests.stages.ingest.test_splits import settings as split_settings
from tests.stages.photo_sets import SPLIT, House, lay, photo, settings
from tests.stages.test_two_sets import own, own_as_test, table

Lines = dict[str, tuple[str, bytes]]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "data")


@pytest.fixture
def before(tmp_path: Path) -> pd.DataFrame:
    """The set as it is without anything incoming."""
    return House(tmp_path / "alone").run(settings(**own()))


def own_rows(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[~rows.photo_id.str.startswith("~incoming/")]


def new_rows(rows: pd.DataFrame) -> pd.DataFrame:
    found = rows[rows.photo_id.str.startswith("~incoming/")].set_index("photo_id")
    return found.rename(index=lambda name: name.removeprefix("~incoming/photos/"))


def test_as_long_as_nothing_has_come_nothing_differs(house: House, tmp_path: Path) -> None:
    house.run(settings(**own()))
    first = house.manifest.read_bytes()
    coming = settings(**own(incoming=table(tmp_path / "in", {"1.jpg": ("3,,anna,", photo(1))})))
    (tmp_path / "in" / "labels.csv").rename(tmp_path / "later.csv")  # photos, but no table yet
    house.run(coming)
    assert house.manifest.read_bytes() == first
    (tmp_path / "in" / "photos" / "1.jpg").unlink()
    house.run(coming)
    assert house.manifest.read_bytes() == first
    shutil.rmtree(tmp_path / "in")
    house.run(coming)
    assert house.manifest.read_bytes() == first
    assert house.skipped_rows() == []


def test_what_comes_is_added_and_moves_nothing(
    house: House, tmp_path: Path, before: pd.DataFrame
) -> None:
    lines = {f"{n}.jpg": (f"{n},,new{n},", photo(n)) for n in range(60)}
    rows = house.run(settings(**own(incoming=table(tmp_path / "in", lines))))
    pd.testing.assert_frame_equal(
        rows.iloc[: len(before)], before
    )  # the same rows first: align's shards stay
    came = new_rows(rows)
    assert sorted(came.index) == sorted(lines)
    assert set(came.split) == set(KNOWN)
    assert list(came.person) == [f"new{name.removesuffix('.jpg')}" for name in came.index]
    assert all((house.raw / name).is_file() for name in rows.photo_id)
    first = house.manifest.read_bytes()
    assert house.run(settings(**own(incoming=table(tmp_path / "in", lines)))) is not None
    assert house.manifest.read_bytes() == first
    pd.testing.assert_frame_equal(house.run(settings(**own())), before)
    assert not (house.raw / "~incoming").exists()


def test_a_changed_label_or_photo_of_the_same_size_is_seen(house: House, tmp_path: Path) -> None:
    lines = {"1.jpg": ("31,,anna,", photo(1, kind="BMP")), "2.jpg": ("40,,bert,", photo(2))}
    chosen = settings(**own(incoming=table(tmp_path / "in", lines)))
    first = new_rows(house.run(chosen))
    table(tmp_path / "in", {**lines, "1.jpg": ("32,,anna,", lines["1.jpg"][1])})
    second = new_rows(house.run(chosen))
    assert list(second.label) == [32, 40]
    assert list(second.sha256) == list(first.sha256)
    part = tmp_path / "part"  # as intake brings it: another file of the same name
    part.write_bytes(photo(3, kind="BMP"))
    os.utime(part, (1, 1))
    part.rename(tmp_path / "in" / "photos" / "1.jpg")
    third = new_rows(house.run(chosen))
    assert third.num_bytes["1.jpg"] == first.num_bytes["1.jpg"]
    assert third.sha256["1.jpg"] != first.sha256["1.jpg"]


def test_who_has_the_name_of_another_is_the_other(
    house: House, tmp_path: Path, before: pd.DataFrame
) -> None:
    people = before.drop_duplicates("person").set_index("person").split
    assert set(people) >= {"train", "test"}
    lines: Lines = {
        f"{person}.jpg": (f"30,,{person},", photo(n)) for n, person in enumerate(people.index)
    }
    tested = before[before.split == "test"].iloc[0]
    picture = (tmp_path / "alone" / "raw" / "x" / tested.photo_id).read_bytes()
    lines |= {"copy.jpg": (f"{tested.label},,zoe,", picture), "zoe.jpg": ("20,,zoe,", photo(99))}
    came = new_rows(house.run(settings(**own(incoming=table(tmp_path / "in", lines)))))
    assert {person: came.split[f"{person}.jpg"] for person in people.index} == dict(people)
    assert came.split["copy.jpg"] == came.split["zoe.jpg"] == "test", (
        "zoe shares a picture with someone in test"
    )


def test_a_line_may_say_its_split(house: House, tmp_path: Path) -> None:
    lines = {
        f"{n}.jpg": (f"{n},,who{n},{split}", photo(n))
        for n in range(4)
        for split in ["test" if n % 2 else "val"]
    }
    lines |= {"more.jpg": ("5,,who1,", photo(9))}
    came = new_rows(house.run(settings(**own(incoming=table(tmp_path / "in", lines)))))
    assert list(came.split) == ["val", "test", "val", "test", "test"]


def test_a_given_test_split_is_closed(house: House, tmp_path: Path) -> None:
    mine = {f"{n}.jpg": (f"{n},,p{n},{'test' if n < 3 else 'train'}", photo(n)) for n in range(40)}
    lines = {f"{n}.jpg": (f"{n},,new{n},", photo(100 + n)) for n in range(40)}
    lines |= {"tested.jpg": ("3,,p1,", photo(200)), "said.jpg": ("3,,new7,test", photo(201))}
    base = table(tmp_path / "own", mine)
    split = {**SPLIT, "assign": "given", "group_by": "person", "val_fraction": 0.3}
    alone = house.run(settings(**base, split=split))
    chosen = settings(**base, split=split, incoming=table(tmp_path / "in", lines))
    rows = house.run(chosen)
    pd.testing.assert_frame_equal(own_rows(rows), alone)
    pd.testing.assert_frame_equal(house.run(chosen), rows)
    came = new_rows(rows)
    assert set(came.split[came.split != "test"]) == {"train", "val"}
    assert list(came.index[came.split == "test"]) == ["said.jpg"]
    reason = "the same picture or person is in the test split, which is given"
    left_out = ["~incoming/photos/7.jpg", "~incoming/photos/tested.jpg"]
    assert [(row["photo_id"], row["reason"]) for row in house.skipped_rows()] == [
        (name, reason) for name in left_out
    ]


def test_the_same_picture_with_another_label_is_listed_and_not_fatal(
    house: House, tmp_path: Path, before: pd.DataFrame
) -> None:
    lines: Lines = {}
    for split in ("train", "test"):
        mine = before[before.split == split].iloc[0]
        picture = (tmp_path / "alone" / "raw" / "x" / mine.photo_id).read_bytes()
        lines |= {f"{split}.jpg": (f"{mine.label + 5},,{split},", picture)}
        lines |= {f"{split}-again.jpg": (f"{mine.label},,{split},", picture)}
    house.run(settings(**own(incoming=table(tmp_path / "in", lines))))
    checks = load_section(REPOSITORY / "params.yaml", "validate", ValidateSettings, "target")
    checks = replace(checks, max_quarantined_fraction=0.2)  # of 28 photos
    findings = inspect(house.manifest, checks)
    leaving = {(photo_id, check) for photo_id, check, _ in findings.quarantine(checks)}
    trained = before[before.split == "train"].iloc[0].photo_id
    for photo_id in (trained, "~incoming/photos/train.jpg", "~incoming/photos/train-again.jpg"):
        assert (photo_id, "contradicting_labels") in leaving, "which label is right is not known"
    assert not {photo_id for photo_id, _ in leaving} & set(before[before.split == "test"].photo_id)
    fatal = {
        check_result.check
        for check_result in findings.check_results
        if check_result.found and check_result.policy == "fail"
    }
    assert fatal <= {"photo_count"}, "the set is too small here; nothing else may end the run"


def test_together_with_a_test_set(house: House, tmp_path: Path, before: pd.DataFrame) -> None:
    lines = {f"{n}.jpg": (f"{n},,new{n},", photo(n)) for n in range(40)}
    incoming = table(tmp_path / "in", lines)
    joined = new_rows(house.run(settings(**own(incoming=incoming))))
    rows = house.run(settings(**own(incoming=incoming, test_set=own_as_test())))
    kept = before[before.split != "test"]
    mine = rows[rows.photo_id.str.startswith("train_set/")]
    assert [f"train_set/{name}" for name in kept.photo_id] == list(mine.photo_id)
    assert list(kept.split) == list(mine.split)
    assert new_rows(rows).split.to_dict() == joined.split[joined.split != "test"].to_dict()
    assert {name.split("/")[0] for name in rows[rows.split == "test"].photo_id} == {"test_set"}


def test_what_does_not_fit_is_reported(house: House, tmp_path: Path) -> None:
    lines = {"1.jpg": ("3,,anna,", photo(1))}
    coming = table(tmp_path / "in", lines)
    coming["options"]["columns"] = {**coming["options"]["columns"], "person": None}
    with pytest.raises(ValueError, match=r"group_by person: ~incoming/photos/1\.jpg has no person"):
        house.run(settings(**own(incoming=coming)))
    taken = lay(tmp_path / "~incoming", {"anna/1.jpg": photo(1)})
    for _ in range(2):
        with pytest.raises(
            ValueError, match="which is reserved for photos that arrive later; rename it"
        ):
            house.run(settings(taken, options={"person_level": 2}))
    with pytest.raises(ValueError, match=r"incoming: missing key 'scale'"):
        settings(
            "x.tar", incoming={name: value for name, value in coming.items() if name != "scale"}
        )


def test_the_drawn_set_waits_where_the_graph_looks() -> None:
    incoming = load_section(
        REPOSITORY / "params.yaml", "download", DownloadSettings, "target"
    ).incoming
    assert incoming is not None
    assert incoming.locations == ("incoming/target/labelled",)
    assert (REPOSITORY / "incoming/target/.gitkeep").is_file()


some_photos = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 5), st.sampled_from([*KNOWN, None, None, None])),
    max_size=15,
)


def unsaid(rows: list[Any]) -> list[Any]:
    """The same without a split of their own."""
    return [(sha, who, None) for sha, who, _ in rows]


ways: Mapping[str, Any] = {
    "assign": st.sampled_from(["given", "random", "folds"]),
    "seed": st.integers(0, 5),
}
ways |= {
    "group_by": st.sampled_from(["picture", "person"]),
    "val_fraction": st.sampled_from([0.0, 0.4]),
}


def rounds(chosen: Any, mine: Sequence[Photo], *incoming: Sequence[Photo]) -> list[dict[str, str]]:
    """photo_id -> split, after the own photos and after each longer list of incoming ones."""
    found = []
    for coming in ([], *incoming):
        database = sqlite3.connect(":memory:", isolation_level=None)
        database.execute(PHOTOS)
        insert = "INSERT INTO photos (photo_id, sha256, person, given) VALUES (?, ?, ?, ?)"
        database.executemany(insert, mine)
        assign_splits(database, chosen)
        database.executemany(insert, coming)
        assign_incoming(database, chosen, lambda *_, **__: None)
        found.append(dict(database.execute("SELECT photo_id, split FROM photos")))
        database.close()
    return found


@examples(max_examples=300)
@given(
    some_photos,
    some_photos | some_photos.map(unsaid),
    st.integers(0, 15),
    st.fixed_dictionaries(ways),
)
def test_nothing_that_was_there_moves_whatever_comes(
    mine: list[Any], coming: list[Any], num_first: int, way: dict[str, Any]
) -> None:
    is_given = way["assign"] == "given"
    if is_given and any(how == "val" for *_, how in mine):
        way = {**way, "val_fraction": 0.0}
    base = [
        Photo(f"own{i}", f"sha{s}", f"person{w}", how or ("train" if is_given else None))
        for i, (s, w, how) in enumerate(mine)
    ]
    later = [
        Photo(f"~{i}", f"sha{s + 4}", f"person{w + 3}", how) for i, (s, w, how) in enumerate(coming)
    ]
    how = "train" if is_given else None
    trained = next(
        name
        for name in map(str, range(99))
        if choose(name, how, split_settings(**way), None) == "train"
    )
    base.append(Photo("own", trained, trained, how))
    alone, first, second = rounds(split_settings(**way), base, later[:num_first], later)
    column = "sha256" if way["group_by"] == "picture" else "person"
    for found in (first, second):
        assert {name: split for name, split in found.items() if name.startswith("own")} == alone
    shared = {each.sha256 for each in later} & {
        each.sha256 for each in base
    }  # may show two persons to be one
    if all(each.given is None for each in later[num_first:]) and (column == "sha256" or not shared):
        assert all(second.get(name, "test") == "test" for name in first if first[name] == "test"), (
            "test stays test"
        )
    assert set(second.values()) <= set(KNOWN)
    tested = {getattr(photo, column) for photo in base if alone[photo.photo_id] == "test"}
    for each in later:
        if each.given is not None:
            assert second[each.photo_id] == each.given
        elif getattr(each, column) in tested:
            assert second.get(each.photo_id) == (None if is_given else "test"), (
                "no way from test into train"
            )
    if all(each.given is None for each in later):
        groups = ["sha256", column]  # who shares a picture is one
        found = {each.photo_id: second.get(each.photo_id, "left out") for each in later}
        assert all(
            len(splits) == 1 for name in groups for splits in splits_of(later, found, name).values()
        )
