"""MORPH II: names and table must agree; the three protocols, each by what it promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stages.ingest.records import ManifestRow
from stages.sources.morph import NAME
from tests.stages.sources.test_age_sources import reasons, write
from tests.stages.sources.test_sources import read, touch

SETS: dict[str, Any] = {"listed": None, "men": 6, "women": 2, "seed": 0, "fold": 0}
HEADER = "id_num,picture_num,dob,doa,race,gender,facial_hair,age,age_diff,glasses,photo"


def lay_morph(tmp_path: Path, photos: Sequence[tuple[str, str]], *more: str) -> dict[str, Any]:
    """Photos (name, race) with their CSV, and further lines of it."""
    touch(tmp_path / "raw", *(f"Album2/{name}" for name, _ in photos))
    table = write(tmp_path / "morph.csv", HEADER, *(line(*photo) for photo in photos), *more)
    return {"protocol": "random", "table": table, "listed": None, "sets": None}


def line(name: str, race: str, **changes: str) -> str:
    found = NAME.fullmatch(name)
    assert found is not None, name
    values = {"id": found["person"], "sex": found["sex"], "age": str(int(found["age"]))} | changes
    person = f"{values['id']},1,01/01/1960,01/01/2004,{race},{values['sex']}"
    return f"{person},0,{values['age']},0,0,Album2/{name}"


def many() -> list[tuple[str, str]]:
    """20 white and 40 black men, 6 white and 10 black women, 5 others; two photos a person."""
    groups = (("W", "M", 20), ("B", "M", 40), ("W", "F", 6), ("B", "F", 10), ("H", "M", 5))
    kinds = [(race, sex) for race, sex, count in groups for _ in range(count)]
    return [
        (f"{100 + place // 2:06}_{place % 2}{sex}30.JPG", race)
        for place, (race, sex) in enumerate(kinds)
    ]


def test_name_and_table_must_agree(tmp_path: Path) -> None:
    good = [("009055_1M54.JPG", "B"), ("009055_2M55.JPG", "W"), ("00013_00F19.JPG", "U")]
    bad = {
        "000014_0M20.JPG": {"age": "21"},
        "000014_1M20.JPG": {"id": "15"},
        "000014_2M20.JPG": {"sex": "F"},
    }
    lines = [line(name, "W", **wrong) for name, wrong in bad.items()]
    twice = ("000016_0M20.JPG", "W")
    absent = ("000017_0M20.JPG", "W")
    lines += [line(*absent), line(*twice), line(twice[0], "B"), line(*good[0])]
    lines.append(line("000000_0M20.JPG", "W", id="0"))
    options = lay_morph(tmp_path, good, *lines)
    touch(
        tmp_path / "raw",
        *(
            f"Album2/{name}"
            for name in (*bad, twice[0], "000000_0M20.JPG", "000099_0M20.JPG", "noname.JPG")
        ),
    )
    touch(tmp_path / "raw", f"copy/{good[0][0]}")
    rows, listed = read("morph", tmp_path / "raw", options)
    assert sorted(rows) == sorted(
        [
            ManifestRow("Album2/009055_1M54.JPG", 54.0, None, "009055", "male", "black", None),
            ManifestRow("Album2/000000_0M20.JPG", 20.0, None, "000000", "male", "white", None),
            ManifestRow("Album2/009055_2M55.JPG", 55.0, None, "009055", "male", "white", None),
            ManifestRow("Album2/00013_00F19.JPG", 19.0, None, "000013", "female", None, None),
        ],
        key=str,
    )
    reason_of = reasons(listed)
    for name in bad:
        assert "which holds is not certain" in reason_of.pop(f"Album2/{name}")
    assert "lines about it differ" in reason_of.pop(f"Album2/{twice[0]}")
    assert "the CSV does not name it" in reason_of.pop("Album2/000099_0M20.JPG")
    assert "is not [id]_[n]" in reason_of.pop("Album2/noname.JPG")
    assert "no such photo" in reason_of.pop(absent[0])
    assert "bears the same name" in reason_of.pop(f"copy/{good[0][0]}")
    assert "1 people are of several races" in reason_of.pop("*")
    assert "ethnicity is left empty" in reason_of.pop("Album2/00013_00F19.JPG")
    assert not reason_of


def test_caucasian_takes_the_white_or_those_of_a_list(tmp_path: Path) -> None:
    options = lay_morph(tmp_path, many()) | {"protocol": "caucasian"}
    rows, listed = read("morph", tmp_path / "raw", options)
    assert (len(rows), {row.ethnicity for row in rows}) == (26, {"white"})
    assert listed["*"][1].startswith("55 photos")
    names = [row.photo_id.split("/")[1] for row in rows[:5]]
    list_file = write(
        tmp_path / "list.csv", "photo", *(f"Album2/{name}" for name in names), "nobody.JPG"
    )
    rows, listed = read("morph", tmp_path / "raw", options | {"listed": list_file})
    assert [row.photo_id.split("/")[1] for row in rows] == names
    assert f"nobody.JPG in {list_file}" in listed


@pytest.mark.parametrize("seed", [0, 1])
def test_s1_and_s2_are_balanced_and_disjoint_and_s3_is_the_rest(tmp_path: Path, seed: int) -> None:
    options = lay_morph(tmp_path, many()) | {"protocol": "s1_s2_s3"}
    folds = [
        {row.photo_id: row for row in read("morph", tmp_path / "raw", options | {"sets": sets})[0]}
        for sets in (SETS | {"seed": seed}, SETS | {"seed": seed, "fold": 1})
    ]
    trains = [{name for name, row in fold.items() if row.split == "train"} for fold in folds]
    assert not trains[0] & trains[1]
    for fold, train in zip(folds, trains, strict=True):
        assert len(fold) == 81
        assert {row.split for name, row in fold.items() if name not in train} == {"test"}
        counts = Counter((fold[name].ethnicity, fold[name].sex) for name in train)
        assert counts == dict.fromkeys([("white", "male"), ("black", "male")], 6) | dict.fromkeys(
            [("white", "female"), ("black", "female")], 2
        )


def test_the_seed_draws_and_a_group_too_small_is_refused(tmp_path: Path) -> None:
    options = lay_morph(tmp_path, many()) | {"protocol": "s1_s2_s3"}
    drawn = [
        {
            row.photo_id
            for row in read("morph", tmp_path / "raw", options | {"sets": SETS | {"seed": seed}})[0]
            if row.split == "train"
        }
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(ValueError, match="8 photos of white females wanted, 6 there"):
        read("morph", tmp_path / "raw", options | {"sets": SETS | {"women": 4}})


def test_a_users_lists_of_the_sets_go_before_the_draw(tmp_path: Path) -> None:
    photos = many()[:4]
    options = lay_morph(tmp_path, photos) | {"protocol": "s1_s2_s3"}
    names = [name for name, _ in photos]
    lines = [
        "photo,set",
        f"Album2\\{names[0]},S1",
        f"{names[1]},S2",
        f"{names[2]},S3",
        "nobody.JPG,S3",
    ]
    sets = SETS | {"listed": write(tmp_path / "sets.csv", *lines), "fold": 1}
    rows, listed = read("morph", tmp_path / "raw", options | {"sets": sets})
    assert {row.photo_id.split("/")[1]: row.split for row in rows} == {
        names[0]: "test",
        names[1]: "train",
        names[2]: "test",
    }
    assert "in none of S1, S2, S3" in listed[f"Album2/{names[3]}"][1]
    assert "no usable photo" in listed[f"nobody.JPG in {sets['listed']}"][1]
    write(tmp_path / "sets.csv", *lines, f"{names[0]},S2")
    with pytest.raises(ValueError, match="always the same"):
        read("morph", tmp_path / "raw", options | {"sets": sets})


def test_options_belong_to_their_protocol(tmp_path: Path) -> None:
    options = lay_morph(tmp_path, many())
    for wrong in ({"protocol": "s1_s2_s3"}, {"sets": SETS}, {"listed": "list.csv"}):
        with pytest.raises(ValueError, match="protocol"):
            read("morph", tmp_path / "raw", options | wrong)
