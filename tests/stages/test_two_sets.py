"""Labels on another scale, and training on one set with testing on another, from end to end through
download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.checks.findings import inspect
from stages.ingest.records import ManifestRow
from stages.ingest.scale import Scale
from tests.stages.manifests import SETTINGS, with_policy
from tests.stages.photo_sets import LIMITS, SPLIT, House, lay, photo, settings

HEAD = "file,score,sd,who,part"
COLUMNS = {
    "photo": "file",
    "label": "score",
    "sigma": "sd",
    "person": "who",
    "split": "part",
    "sex": None,
}
DRAWN = {
    "quantity": "age",
    "num_people": 12,
    "photos_per_person": 2,
    "px": 64,
    "seed": 1,
    "label_noise": 1.0,
}
DRAWN |= {"age_span_years": 90.0, "dirt": {}}


def table(folder: Path, lines: Mapping[str, tuple[str, bytes]]) -> dict[str, Any]:
    """A set of source `table`: photo name -> (the rest of its line, its bytes); as settings."""
    lay(folder / "photos", {name: content for name, (_, content) in lines.items()})
    text = [HEAD, *(f"{name},{rest}" for name, (rest, _) in lines.items())]
    (folder / "labels.csv").write_text("\n".join(text))
    options = {"table": str(folder / "labels.csv"), "delimiter": ",", "photos_folder": "photos"}
    options["columns"] = {**COLUMNS, "ethnicity": None}
    return {
        "source": "table",
        "locations": [str(folder / "photos")],
        "sha256": {},
        "options": options,
        "scale": None,
    }


def own(**changes: Any) -> dict[str, Any]:
    drawn = {
        "source": "synthetic",
        "locations": [],
        "options": DRAWN,
        "limits": {**LIMITS, "max_total_bytes": 10**7},
    }
    return drawn | {"split": {**SPLIT, "group_by": "person", "test_fraction": 0.3}} | changes


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "data")


@given(st.floats(1, 10), st.floats(0, 5), st.sampled_from([(1.0, 5.0), (0.0, 100.0), (-1.0, 1.0)]))
def test_a_scale_there_and_back_changes_nothing(
    label: float, sigma: float, target: tuple[float, float]
) -> None:
    def listed(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is off the scale")

    row = ManifestRow("a.jpg", label, sigma, None, None, None, None)
    [there] = Scale(source=(1.0, 10.0), target=target).rows(iter([row]), listed)
    assert there.label is not None
    assert target[0] <= there.label <= target[1]
    [back] = Scale(source=target, target=(1.0, 10.0)).rows(iter([there]), listed)
    assert (back.label, back.sigma) == (pytest.approx(label), pytest.approx(sigma))


def test_download_puts_labels_on_the_wanted_scale(house: House, tmp_path: Path) -> None:
    lines = {"1,2.25": "a", "10,": "b", "5.5,0.9": "c", "0.5,1": "d", "10.1,1": "e"}
    rated = {f"{name}.jpg": (f"{text},w{name},", photo(ord(name))) for text, name in lines.items()}
    scale = {"source": [1, 10], "target": [1, 5]}
    rows = house.run(settings(**{**table(tmp_path, rated), "scale": scale}))
    assert list(rows.label) == pytest.approx([1, 5, 3])
    assert list(rows.sigma.dropna()) == pytest.approx([1, 0.4])
    reasons = {row["photo_id"]: row["reason"] for row in house.skipped_rows()}
    assert set(reasons) == {"photos/d.jpg", "photos/e.jpg"}
    assert "label 0.5 is off the scale of 1 to 10" in reasons["photos/d.jpg"]
    for wrong in ({"source": [5, 1], "target": [1, 5]}, {"source": [1, 5], "target": [2, 2]}):
        with pytest.raises(ValueError, match="the lowest label comes first"):
            settings("x.tar", scale=wrong)
    with pytest.raises(ValueError, match="expected 2 values"):
        settings("x.tar", scale={"source": [1], "target": [1, 5]})


def test_one_set_trains_and_another_tests(house: House, tmp_path: Path) -> None:
    alone = House(tmp_path / "alone")
    before = alone.run(settings(**own()))
    drawn_photo = next(iter(before[before.split == "train"].photo_id))
    copied = (alone.raw / drawn_photo).read_bytes()
    others = {
        "1.jpg": ("0.25,0.05,p000001,test", photo(1)),
        "2.jpg": ("0.5,,p000002,test", copied),
        "3.jpg": ("0.5,,p000003,train", photo(3)),
        "4.jpg": ("0.5,,p000004,", photo(4)),
        "5.jpg": ("1.5,,p000005,test", photo(5)),
    }
    other = table(tmp_path / "other", others) | {
        "scale": {"source": [0, 1], "target": [0, 100]},
        "splits": ["test"],
    }
    rows = house.run(settings(**own(test_set=other))).set_index("photo_id")

    kept = before[before.split != "test"].set_index("photo_id")
    mine = rows[rows.index.str.startswith("train_set/")].rename(
        index=lambda name: name.removeprefix("train_set/")
    )
    pd.testing.assert_frame_equal(mine, kept)
    tested = rows[rows.split == "test"]
    assert list(tested.index) == ["test_set/photos/1.jpg", "test_set/photos/2.jpg"]
    assert list(tested.label) == [25.0, 50.0]
    assert tested.sigma.iloc[0] == 5.0
    assert not set(tested.person) & set(mine.person), (
        "p000001 of one set is not p000001 of the other"
    )
    assert len(rows) == len(mine) + len(tested)
    for name in rows.index:
        assert (house.raw / name).is_file()

    listed = {row["reason"]: row["photo_id"] for row in house.skipped_rows()}
    num_own_test = int((before.split == "test").sum())
    assert (
        listed.pop(
            f"{num_own_test} photos are the set's own test split; download.test_set takes its place"
        )
        == "*"
    )
    assert listed.pop("2 photos of the test set are in none of its splits test") == "*"
    assert list(listed.values()) == ["test_set/photos/5.jpg"]

    across = with_policy(SETTINGS, duplicates_across_splits="quarantine")
    leaving = [
        photo_id
        for photo_id, check, _ in inspect(house.manifest, across).quarantine(across)
        if check == "duplicates_across_splits"
    ]
    assert set(leaving) & {f"train_set/{drawn_photo}", "test_set/photos/2.jpg"}


def test_all_of_the_other_set_and_back_to_one(house: House, tmp_path: Path) -> None:
    others = {f"{n}.jpg": (f"{n},,p{n},{'train' if n % 2 else ''}", photo(n)) for n in range(4)}
    chosen = settings(**own(test_set=table(tmp_path / "other", others) | {"splits": []}))
    two = house.run(chosen)
    assert (two.split == "test").sum() == 4
    assert house.counts["test"] == 4
    first = house.manifest.read_bytes()
    assert house.run(chosen) is not None
    assert house.manifest.read_bytes() == first
    one = house.run(settings(**own()))
    assert not (house.raw / "test_set").exists(), "nothing stale of two sets"
    assert not (house.raw / "train_set").exists()
    pd.testing.assert_frame_equal(house.run(chosen), two)
    assert not one.equals(two)
    mixed = table(tmp_path / "third", {f"{n}.jpg": ("3,,p,test", photo(n)) for n in range(3)})
    house.run(settings(**mixed))
    assert house.run(settings(**{**mixed, "test_set": own_as_test()})).split.eq("test").sum() == 24


def own_as_test() -> dict[str, Any]:
    return {
        "source": "synthetic",
        "locations": [],
        "sha256": {},
        "options": DRAWN,
        "scale": None,
        "splits": [],
    }


def test_a_wrong_test_set_is_reported(house: House, tmp_path: Path) -> None:
    other = table(tmp_path / "other", {"1.jpg": ("3,,p,train", photo(1))})
    with pytest.raises(ValueError, match=r"check test_set\.splits"):
        house.run(settings(**own(test_set=other | {"splits": ["val"]})))
    for wrong, message in (
        ({"splits": ["dev"]}, "'dev' is not one of"),
        ({"source": "imagenet", "splits": []}, "'imagenet' is not one of"),
        ({}, "missing key 'splits'"),
    ):
        with pytest.raises(ValueError, match=message):
            settings(**own(test_set=other | wrong))
    chosen = settings(**own(test_set=other | {"splits": []}))
    with pytest.raises(ValueError, match="max_files"):
        house.run(replace(chosen, limits=replace(chosen.limits, max_files=0)))


CONSTANT = {"polynomial": [0.5], "minimum": 0.5, "maximum": 0.5}


def union(tmp_path: Path, copied: bytes) -> dict[str, Any]:
    """The drawn set, joined by two tables: ages of the web by person, and a scale of 1 to 10 with
    given splits."""
    web = {f"{number}.jpg": (f"{number},,p{number % 4},", photo(number)) for number in range(12)}
    rated = {
        "a.jpg": ("1,2.25,p0,train", photo(101)),
        "b.jpg": ("10,,p1,val", photo(102)),
        "c.jpg": ("5.5,0.9,p2,test", copied),
        "d.jpg": ("5.5,0.9,p2,", photo(104)),
    }
    by_person = {**SPLIT, "group_by": "person", "val_fraction": 0.3, "test_fraction": 0.0}
    given = {**SPLIT, "assign": "given", "val_fraction": 0.0}
    scale = {"source": [1, 10], "target": [1, 5]}
    return {
        "web": table(tmp_path / "web", web) | {"sigma": CONSTANT, "split": by_person},
        "rated": table(tmp_path / "rated", rated) | {"scale": scale, "sigma": None, "split": given},
    }


def test_a_role_trains_on_a_union_of_sets(house: House, tmp_path: Path) -> None:
    """Each set keeps its own scale, sigma rule and split, and the first set's photos the splits
    that they have alone."""
    alone = House(tmp_path / "alone")
    before = alone.run(settings(**own())).set_index("photo_id")
    copied = (alone.raw / next(iter(before.index))).read_bytes()

    rows = house.run(settings(**own(joined=union(tmp_path, copied)))).set_index("photo_id")
    folders = [name.split("/")[0] for name in rows.index]
    assert {name: folders.count(name) for name in set(folders)} == {
        "train_set": len(before),
        "web": 12,
        "rated": 3,
    }

    drawn = rows[[name == "train_set" for name in folders]]
    drawn.index = drawn.index.str.removeprefix("train_set/")
    pd.testing.assert_series_equal(drawn.split, before.split)

    web = rows[[name == "web" for name in folders]]
    assert (web.sigma == 0.5).all()
    assert set(web.split) <= {"train", "val"}
    assert set(web.person) == {f"web/p{number}" for number in range(4)}
    assert (web.groupby("person").split.nunique() == 1).all()

    rated = rows.loc[[f"rated/photos/{name}.jpg" for name in "abc"]]
    assert list(rated.label) == pytest.approx([1, 5, 3])
    assert list(rated.split) == ["train", "val", "test"]
    assert rated.sigma.isna().tolist() == [False, True, False]
    reasons = {row["photo_id"]: row["reason"] for row in house.skipped_rows()}
    assert "no split" in reasons["rated/photos/d.jpg"]

    again = house.run(settings(**own()))
    assert set(again.photo_id) == set(before.index), "nothing stale of the union"


def test_the_first_set_has_a_sigma_rule_too(house: House, tmp_path: Path) -> None:
    lines = {"1.jpg": ("30,,a,", photo(1)), "2.jpg": ("40,7,b,", photo(2))}
    rows = house.run(settings(**table(tmp_path, lines) | {"sigma": CONSTANT}))
    assert list(rows.sigma) == [0.5, 7.0]


def test_a_union_is_tested_on_another_set(house: House, tmp_path: Path) -> None:
    """Where there is a test set, the joined sets' own test photos are left out too."""
    joined = union(tmp_path, photo(7))
    other = table(tmp_path / "other", {"9.jpg": ("3,,p9,test", photo(9))}) | {"splits": []}
    rows = house.run(settings(**own(joined=joined, test_set=other)))
    assert list(rows[rows.split == "test"].photo_id) == ["test_set/photos/9.jpg"]
    assert "rated/photos/c.jpg" not in set(rows.photo_id)


def test_a_joined_set_needs_a_name_for_a_folder_and_photos(house: House, tmp_path: Path) -> None:
    joined = union(tmp_path, photo(7))
    for name in ("train_set", "../web", "Web"):
        with pytest.raises(ValueError, match="becomes a folder"):
            settings(**own(joined={name: joined["web"]}))

    empty = joined["web"] | {"options": joined["web"]["options"]}
    (tmp_path / "web" / "labels.csv").write_text(HEAD + "\n")
    with pytest.raises(ValueError, match=r"check joined\.web's locations"):
        house.run(settings(**own(joined={"web": empty})))
