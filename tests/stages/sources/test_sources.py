"""Adapters: native names and lists become rows; what cannot be used is listed with its reason,
never guessed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.ingest.records import ManifestRow
from stages.settings import convert
from stages.sources import SOURCES
from stages.sources.utkface import parse_name
from visage.photo_files import files_under, photos_under


def touch(raw: Path, *names: str) -> None:
    for name in names:
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(b"x")


def read(
    source: str, raw: Path, options: Mapping[str, Any]
) -> tuple[list[ManifestRow], dict[str, tuple[str, str]]]:
    """(rows, photo_id -> (action, reason)) of an adapter."""
    listed: dict[str, tuple[str, str]] = {}

    def report_skip(photo_id: str, reason: str, *, action: str = "skipped") -> None:
        assert photo_id not in listed, photo_id
        listed[photo_id] = (action, reason)

    record = SOURCES[source]
    return list(
        record.rows(raw, convert(dict(options), record.options, "options"), report_skip)
    ), listed


def test_every_record_is_found_by_its_name_and_has_strict_options() -> None:
    for name, source in SOURCES.items():
        assert source.name == name
        assert all(
            field.default is dataclasses.MISSING for field in dataclasses.fields(source.options)
        )
        with pytest.raises(ValueError, match="unknown key"):
            convert({"no_such_option": 1}, source.options, "options")


@given(st.lists(st.text("ab-./", min_size=1, max_size=8), max_size=12))
def test_files_come_in_the_order_of_their_complete_names(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("order")
    for name in names:
        parts = [part for part in name.split("/") if part.strip(".")]
        target = folder.joinpath(*parts)
        if parts and not target.exists() and not any(parent.is_file() for parent in target.parents):
            touch(folder, "/".join(parts))
    found = list(files_under(folder))
    wanted = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert found == sorted(
        p.as_posix() for p in wanted if not any(part.startswith(".") for part in p.parts)
    )


def test_photos_are_recognised_by_their_suffix(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.jpg",
        "b.JPEG",
        "c.png",
        "list.csv",
        "README",
        ".hidden.jpg",
        ".visage/x.jpg",
        "d/e.webp",
    )
    assert list(photos_under(tmp_path)) == ["a.jpg", "b.JPEG", "c.png", "d/e.webp"]


class TestUtkface:
    ALL_AGES: Mapping[str, Any] = {"protocol": "all_ages", "lists": {}}

    def test_a_well_formed_name_says_everything(self) -> None:
        name = parse_name("26_1_4_20170116171048641.jpg.chip.jpg")
        assert (name.age, name.sex, name.ethnicity, name.repair) == (26, "female", "others", None)
        assert name.listed == "26_1_4_20170116171048641.jpg"

    @pytest.mark.parametrize(
        ("name", "age", "sex", "ethnicity", "listed"),
        [
            (
                "24_0_1_20170116220224657 .jpg.chip.jpg",
                24,
                "male",
                "black",
                "24_0_1_20170116220224657.jpg",
            ),
            (
                "55_0_0_20170116232725357jpg.chip.jpg",
                55,
                "male",
                "white",
                "55_0_0_20170116232725357.jpg",
            ),
            (
                "38_0_1_201701162330572788.jpg.chip.jpg",
                38,
                "male",
                "black",
                "38_0_1_201701162330572788.jpg",
            ),
            (
                "28_1_2_201701161846515488.jpg.chip.jpg",
                28,
                "female",
                "asian",
                "28_1_2_201701161846515488.jpg",
            ),
            (
                "14_0_0_2017011022340900.jpg.chip.jpg",
                14,
                "male",
                "white",
                "14_0_0_2017011022340900.jpg",
            ),
            (
                "39_1_20170116174525125.jpg.chip.jpg",
                39,
                "female",
                None,
                "39_1_20170116174525125.jpg",
            ),
            (
                "61_1_20170109142408075.jpg.chip.jpg",
                61,
                "female",
                None,
                "61_1_20170109142408075.jpg",
            ),
            (
                "61_1_20170109150557335.jpg.chip.jpg",
                61,
                "female",
                None,
                "61_1_20170109150557335.jpg",
            ),
            (
                "40__1_3_20170119165539693.jpg.chip.jpg",
                40,
                "female",
                "indian",
                "40_1_3_20170119165539693.jpg",
            ),
        ],
    )
    def test_malformed_names_whose_meaning_is_certain_are_repaired(
        self, name: str, age: int, sex: str, ethnicity: str | None, listed: str
    ) -> None:
        found = parse_name(name)
        assert (found.age, found.sex, found.ethnicity, found.listed) == (
            age,
            sex,
            ethnicity,
            listed,
        )
        assert found.repair

    @pytest.mark.parametrize(
        "name",
        [
            "26_2_0_20170116171048641.jpg.chip.jpg",
            "26_1_7_20170116171048641.jpg.chip.jpg",
            "1_0_20170116171048641234567.jpg.chip.jpg",
            "_1_0_20170116171048641.jpg.chip.jpg",
            "26_20170116171048641.jpg.chip.jpg",
            "2017_1_0_20170116171048641.jpg.chip.jpg",
            "26_1_0_face.jpg",
            "IMG_1234.jpg",
        ],
    )
    def test_uncertain_names_are_listed(self, name: str, tmp_path: Path) -> None:
        touch(tmp_path, f"UTKFace/{name}")
        rows, listed = read("utkface", tmp_path, self.ALL_AGES)
        assert rows == []
        assert "not certain" in listed[f"UTKFace/{name}"][1]

    def test_coral_takes_what_its_lists_name(self, tmp_path: Path) -> None:
        stamp = "20170116171048641"
        names = [f"{age}_0_0_{stamp}.jpg.chip.jpg" for age in (20, 30, 40, 50)]
        touch(tmp_path / "raw", *names, f"25_0_1_{stamp} .jpg.chip.jpg")
        lists = {"train": tmp_path / "train.csv", "test": tmp_path / "test.csv"}
        lists["train"].write_text(
            f",filename,age\n1,30_0_0_{stamp}.jpg,30\n"
            f"2,25_0_1_{stamp}.jpg,25\n3,60_1_1_{stamp}.jpg,60\n"
        )
        lists["test"].write_text(
            f",filename,age\n1,40_0_0_{stamp}.jpg,40\n2,50_0_0_{stamp}.jpg,51\n"
        )
        options = {
            "protocol": "coral",
            "lists": {split: str(path) for split, path in lists.items()},
        }
        rows, listed = read("utkface", tmp_path / "raw", options)
        assert {row.photo_id: (row.label, row.split) for row in rows} == {
            names[1]: (30.0, "train"),
            names[2]: (40.0, "test"),
            f"25_0_1_{stamp} .jpg.chip.jpg": (25.0, "train"),
        }
        assert {photo_id: action for photo_id, (action, _) in listed.items()} == {
            names[3]: "skipped",
            f"60_1_1_{stamp}.jpg": "skipped",
            f"25_0_1_{stamp} .jpg.chip.jpg": "repaired",
            "*": "skipped",
        }
        assert "age 51, the name says 50" in listed[names[3]][1]
        assert listed["*"][1].startswith("1 photos")
        lists["test"].write_text(f",filename,age\n1,30_0_0_{stamp}.jpg,30\n")
        with pytest.raises(ValueError, match="listed twice"):
            read("utkface", tmp_path / "raw", options)
        lists["test"].write_text("name,years\na,b\n")
        with pytest.raises(ValueError, match="columns filename and age"):
            read("utkface", tmp_path / "raw", options)

    def test_lists_belong_to_coral_alone(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="protocol coral wants"):
            read("utkface", tmp_path, {"protocol": "coral", "lists": {}})
        with pytest.raises(ValueError, match="no such list"):
            read(
                "utkface",
                tmp_path,
                {"protocol": "coral", "lists": {"train": "absent.csv", "test": "absent.csv"}},
            )


def test_lfw_checks_that_a_photo_is_with_its_person(tmp_path: Path) -> None:
    good = "lfw/Ann_Lee/Ann_Lee_0001.jpg"
    bad = ["lfw/Ann_Lee/Bob_Ray_0001.jpg", "Ann_Lee_0002.jpg", "lfw/Ann_Lee/Ann_Lee_1.jpg"]
    touch(tmp_path, good, *bad)
    rows, listed = read("lfw", tmp_path, {})
    assert rows == [ManifestRow(good, None, None, "Ann_Lee", None, None, None)]
    assert set(listed) == set(bad)


def test_people_counts_folders_from_the_top(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "cfp/007/frontal/01.jpg",
        "cfp/007/profile/01.jpg",
        "cfp/008/frontal/01.jpg",
        "cfp/stray.jpg",
    )
    rows, listed = read("people", tmp_path, {"person_level": 2})
    assert [row.person for row in rows] == ["007", "007", "008"]
    assert set(listed) == {"cfp/stray.jpg"}
    with pytest.raises(ValueError, match="level 1"):
        read("people", tmp_path, {"person_level": 0})


class TestTable:
    COLUMNS: Mapping[str, Any] = {
        "photo": "file",
        "label": "age",
        "sigma": "sd",
        "sex": "sex",
        "split": "part",
        "person": None,
        "ethnicity": None,
    }

    def options(self, table: Path, **changes: Any) -> dict[str, Any]:
        columns = {**self.COLUMNS, **changes}
        return {
            "table": str(table),
            "delimiter": ";",
            "photos_folder": "photos",
            "columns": columns,
        }

    @pytest.fixture
    def table(self, tmp_path: Path) -> Path:
        touch(tmp_path, *(f"photos/{name}.jpg" for name in "abcdefgh"))
        table = tmp_path / "labels.csv"
        lines = ["file;age;sd;sex;part;junk", "a.jpg;31.5;2.5;female;train;x", "b.jpg; 40 ;;;;"]
        lines += [
            "c.jpg;forty;1;male;train;",
            "d.jpg;;1;male;train;",
            "e.jpg;nan;1;male;train;",
            "f.jpg;30;-1;male;train;",
        ]
        lines += [
            "g.jpg;30;x;male;train;",
            "h.jpg;30;1;male;dev;",
            "z.jpg;30;1;male;train;",
            "../out.jpg;30;1;male;test;",
        ]
        lines += [";30;1;male;test;"]
        table.write_text("\n".join(lines), encoding="utf-8-sig")
        return table

    def test_good_lines_are_rows_and_bad_ones_are_listed(self, table: Path) -> None:
        rows, listed = read("table", table.parent, self.options(table))
        assert rows == [
            ManifestRow("photos/a.jpg", 31.5, 2.5, None, "female", None, "train"),
            ManifestRow("photos/b.jpg", 40.0, None, None, None, None, None),
        ]
        reasons = {photo_id: reason for photo_id, (_, reason) in listed.items()}
        wanted = {
            "c": "'forty' is no number",
            "d": "no label",
            "e": "not finite",
            "f": "below 0",
            "g": "no number",
        }
        wanted |= {"h": "'dev' is none of", "z": "no such photo"}
        for name, reason in wanted.items():
            assert reason in reasons.pop(f"photos/{name}.jpg")
        assert "outside" in reasons.pop("photos/../out.jpg")
        assert len(reasons) == 1, "the line without a photo"

    def test_a_column_that_is_not_there_is_refused(self, table: Path) -> None:
        with pytest.raises(ValueError, match=r"labels\.csv: has no column 'years', only \['file'"):
            read("table", table.parent, self.options(table, label="years"))
        with pytest.raises(ValueError, match="no such table"):
            read("table", table.parent, self.options(table.parent / "absent.csv"))

    def test_a_named_person_must_be_there(self, table: Path) -> None:
        rows, listed = read(
            "table",
            table.parent,
            self.options(table, label=None, sigma=None, split=None, person="sex"),
        )
        assert {row.person for row in rows} == {"female", "male"}
        assert "no person" in listed["photos/b.jpg"][1]


def test_mebeauty_keeps_scale_split_and_spread(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    touch(raw, *(f"original_images/female/asian/{name}.jpg" for name in ("1", "2", "3", "stray")))
    ratings = tmp_path / "ratings.csv"
    ratings.write_text(
        "image,sex,ethnicity,mean,std,raters,split\n"
        "female/asian/1.jpg,female,asian,6.19,1.58,37,train\n"
        "female/asian/2.jpg,female,asian,7.2,2.1,18,\n"
        "female/asian/3.jpg,female,asian,11,2,18,test\n"
        "female/asian/4.jpg,female,asian,5,2,18,test\n"
    )
    rows, listed = read("mebeauty", raw, {"ratings": str(ratings)})
    assert rows == [
        ManifestRow(
            "original_images/female/asian/1.jpg", 6.19, 1.58, None, "female", "asian", "train"
        ),
        ManifestRow("original_images/female/asian/2.jpg", 7.2, 2.1, None, "female", "asian", None),
    ]
    reasons = {photo_id.rsplit("/", 1)[1]: reason for photo_id, (_, reason) in listed.items()}
    assert "scale of 1 to 10" in reasons.pop("3.jpg")
    assert "no such photo" in reasons.pop("4.jpg")
    assert "no line in ratings.csv" in reasons.pop("stray.jpg")
    assert not reasons
