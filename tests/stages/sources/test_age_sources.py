"""The adapters of the age sets: small sets in the native format, dirt included, become rows; the
rest has a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from stages.ingest.records import ManifestRow
from stages.sources.imdb_wiki import ages_on_1_july
from tests.stages.photo_sets import SPLIT, House, lay, photo, settings
from tests.stages.sources.test_sources import read, touch

Listed = dict[str, tuple[str, str]]


def reasons(listed: Listed) -> dict[str, str]:
    return {photo_id: reason for photo_id, (_, reason) in listed.items()}


def write(path: Path, *lines: str, encoding: str = "utf-8") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\r\n".join(lines).encode(encoding))
    return str(path)


def cells(values: Sequence[str], column: bool) -> np.ndarray:
    """A MATLAB cell array of text, as a row or a column; an empty text is an empty matrix, as in
    the real files."""
    found = np.empty((len(values), 1) if column else (1, len(values)), object)
    for place, value in enumerate(values):
        found.flat[place] = value or np.zeros((0, 0))
    return found


class TestChalearn:
    LINES = (
        "image_1.jpg;34.5;4.2",
        "",
        " image_2.jpg ; 7 ; 0 ",
        "image_3.jpg;20;3",
        "./image_3.jpg;20;3",
    )
    DIRT = (
        "image_4.jpg;20;3",
        "image_4.jpg;21;3",
        "image_5.jpg;twenty;3",
        "image_6.jpg;20;-1",
        "image_7.jpg;;3",
    )
    MORE = ("image_8.jpg;20", "image_9.jpg;20;3", "../out.jpg;20;3", "bj\xf6rn.jpg;20;3")

    def lists(self, **files: str) -> dict[str, Any]:
        split = {"Train": "train", "Validation": "test"}
        return {
            "lists": [
                {"file": file, "photos_folder": name, "split": split[name]}
                for name, file in files.items()
            ]
        }

    def test_semicolons_and_commas_with_and_without_header_say_the_same(
        self, tmp_path: Path
    ) -> None:
        touch(
            tmp_path, *(f"Train/image_{number}.jpg" for number in range(1, 9)), "Test/image_1.jpg"
        )
        # All in Latin-1 with a letter that is no UTF-8; the second with UTF-8's byte order mark
        lines = [*self.LINES, *self.DIRT, *self.MORE]
        commas = [line.replace(";", ",") for line in lines]
        ways = [
            write(tmp_path / "a" / "Train.csv", *lines, encoding="latin-1"),
            write(
                tmp_path / "b" / "Train.csv",
                "\xef\xbb\xbf" + commas[0],
                *commas[1:],
                encoding="latin-1",
            ),
            write(tmp_path / "c" / "Train.csv", "image,mean,stdv", *commas, encoding="latin-1"),
        ]
        found = [read("chalearn", tmp_path, self.lists(Train=way)) for way in ways]
        rows, listed = found[0]
        assert found[1] == found[0]
        assert found[2][0] == rows
        assert len(found[2][1]) == len(listed), "the header is no photo"
        assert rows == [
            ManifestRow(f"Train/image_{number}.jpg", age, sigma, None, None, None, "train")
            for number, age, sigma in ((1, 34.5, 4.2), (2, 7.0, 0.0), (3, 20.0, 3.0))
        ]
        wanted = {
            "image_4": "which one holds is not certain",
            "image_5": "no number",
            "image_6": "below 0",
        }
        wanted |= {
            "image_7": "has no label",
            "image_8": "no list names it",
            "image_9": "no such photo",
        }
        reason_of = reasons(listed)
        for name, reason in wanted.items():
            assert reason in reason_of.pop(f"Train/{name}.jpg")
        assert listed["Train/image_3.jpg"] == (
            "repaired",
            "Train.csv:4 and Train.csv:5 say the same of it: taken once",
        )
        assert "mean and deviation, found ['image_8.jpg', '20']" in reason_of.pop("Train.csv:11")
        assert "outside" in reason_of.pop("Train/../out.jpg")
        assert "no such photo" in reason_of.pop("Train/bj\ufffdrn.jpg")
        assert set(reason_of) == {"Test/image_1.jpg", "Train/image_3.jpg"}

    def test_validation_may_test_or_train_and_contradictions_across_lists_are_seen(
        self, tmp_path: Path
    ) -> None:
        touch(tmp_path, "Train/image_1.jpg", "Validation/image_1.jpg")
        train = write(tmp_path / "Train.csv", "image_1.jpg;34.5;4.2")
        val = write(tmp_path / "Validation.csv", "image_1.jpg;3;1")
        options = self.lists(Train=train, Validation=val)
        rows, _ = read("chalearn", tmp_path, options)
        assert [(row.label, row.split) for row in rows] == [(34.5, "train"), (3.0, "test")]
        options["lists"][1]["split"] = "train"
        assert [row.split for row in read("chalearn", tmp_path, options)[0]] == ["train", "train"]
        options["lists"][1] |= {"photos_folder": "Train"}
        rows, listed = read("chalearn", tmp_path, options)
        assert rows == []
        assert "Validation.csv:1 says ('3', '1', 'train')" in listed["Train/image_1.jpg"][1]
        with pytest.raises(ValueError, match="no such list"):
            read("chalearn", tmp_path, self.lists(Train="absent.csv"))

    def test_from_folders_to_a_manifest(self, tmp_path: Path) -> None:
        made = {
            f"{folder}/image_{number}.jpg": photo(number)
            for folder in ("Train", "Validation")
            for number in range(9)
        }
        lay(tmp_path / "set", made)
        options = self.lists(
            Train=write(
                tmp_path / "Train.csv",
                *(f"image_{number}.jpg;{number}.5;{number}" for number in range(9)),
            ),
            Validation=write(
                tmp_path / "Validation.csv", *(f"image_{number}.jpg,30,2" for number in range(8))
            ),
        )
        house = House(tmp_path / "data")
        folders = [tmp_path / "set" / name for name in ("Train", "Validation")]
        split = {**SPLIT, "assign": "given", "val_fraction": 0.3}
        rows = house.run(settings(*folders, source="chalearn", options=options, split=split))
        assert Counter(rows.split)["test"] == 8
        assert set(rows.split[rows.photo_id.str.startswith("Train/")]) == {"train", "val"}
        assert rows.set_index("photo_id").sigma["Train/image_0.jpg"] == 0.0
        assert [row["photo_id"] for row in house.skipped_rows()] == ["Validation/image_8.jpg"]


@pytest.mark.parametrize(
    ("photos", "label", "names", "said"),
    [
        (
            "crops",
            "apparent",
            ["000000.jpg_face.jpg", "000001.jpg_face.jpg"],
            [(4.4, 1.2), (80.0, 0.0)],
        ),
        ("whole", "real", ["000000.jpg", "000001.jpg"], [(4.0, None), (81.0, None)]),
    ],
)
def test_appa_real_takes_crops_or_photos_and_either_age(
    tmp_path: Path,
    photos: str,
    label: str,
    names: list[str],
    said: list[tuple[float, float | None]],
) -> None:
    touch(
        tmp_path,
        *(
            f"train/00000{number}.jpg{end}"
            for number in (0, 1, 3)
            for end in ("", "_face.jpg", ".mat")
        ),
    )
    header = "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age"
    lines = ["000000.jpg,36,4.4,1.2,4", "000001.jpg,40,80,0,81", "000002.jpg,40,80,2,81"]
    table = write(tmp_path / "gt_avg_train.csv", header, *lines)
    lists = [{"file": table, "photos_folder": "train", "split": "val"}]
    rows, listed = read("appa_real", tmp_path, {"lists": lists, "label": label, "photos": photos})
    assert [(row.photo_id, row.label, row.sigma) for row in rows] == [
        (f"train/{name}", *numbers) for name, numbers in zip(names, said, strict=True)
    ]
    assert {row.split for row in rows} == {"val"}
    reason_of = reasons(listed)
    assert "no such photo" in reason_of.pop(f"train/{names[0].replace('0000.', '0002.')}")
    assert reason_of.pop(f"train/{names[0].replace('0000.', '0003.')}") == "no list names it"
    assert reason_of.pop("*").startswith("3 pictures")
    assert not reason_of


def test_fg_net_names_are_person_and_age(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "images/001A02.JPG",
        "images/001A43a.JPG",
        "images/082a00b.jpg",
        "points/001a02.pts",
    )
    touch(tmp_path, "images/01A02.JPG", "images/001A2.JPG", "images/001A02ab.JPG")
    rows, listed = read("fg_net", tmp_path, {})
    assert [(row.person, row.label) for row in rows] == [("001", 2.0), ("001", 43.0), ("082", 0.0)]
    assert set(listed) == {"images/01A02.JPG", "images/001A2.JPG", "images/001A02ab.JPG"}


def test_fg_net_leaves_one_person_out_through_the_stage(tmp_path: Path) -> None:
    made = {
        f"{who:03}A{age:02}.JPG": photo(100 * who + age)
        for who in range(1, 5)
        for age in (1, 20, 40)
    }
    lay(tmp_path / "images", made)
    split = {**SPLIT, "assign": "leave_person_out", "group_by": "person", "num_folds": 4, "fold": 2}
    rows = House(tmp_path / "data").run(
        settings(tmp_path / "images", source="fg_net", options={}, split=split)
    )
    assert set(rows.person[rows.split == "test"]) == {"003"}
    assert Counter(rows.split)["test"] == 3


def test_aaf_names_hold_age_and_sex(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *(
            f"AAF/original images/{name}.jpg"
            for name in ("00000A02", "07380A80", "07381A33", "7A33", "x")
        ),
    )
    touch(tmp_path, "AAF/aglined faces/00000A02.jpg", "AAF/z/original images/00000A03.jpg")
    rows, listed = read("aaf", tmp_path, {"photos_folder": "original images"})
    assert [(row.label, row.sex, row.person) for row in rows] == [
        (2.0, "female", None),
        (80.0, "female", None),
        (33.0, "male", None),
    ]
    reason_of = reasons(listed)
    assert reason_of.pop("*").startswith("1 photos")
    assert "is AAF/original images/00000A02.jpg's already" in reason_of.pop(
        "AAF/z/original images/00000A03.jpg"
    )
    assert set(reason_of) == {"AAF/original images/7A33.jpg", "AAF/original images/x.jpg"}


class TestCacd:
    NAMES = (
        "14_Aaron_Johnson_0001.jpg",
        "53_Bj\xf6rk_0002.jpg",
        "20_\xc5sa_Lee_0001.jpg",
        "30_Ed_Ray_0001.jpg",
    )
    DIRT = ("31_Ed_Ray_0002.jpg", "32_Ed_Ray_0003.jpg", "40_J\xe1_0001.jpg", "40_J\xe9_0001.jpg")

    def options(self, tmp_path: Path) -> dict[str, Any]:
        names = [*self.NAMES, *self.DIRT]
        ages = np.array([[14, 53, 20, 30, 30, 32, 40, 40]], np.uint8).T
        ranks = np.array([[1, 3, 5, 6, 6, 6, 7, 8]], np.uint8).T
        identity = np.array([[1, 2, 3, 4, 4, 4, 5, 6]], np.uint16).T
        images = {
            "age": ages,
            "identity": identity,
            "year": ages,
            "rank": ranks,
            "name": cells(names, column=True),
        }
        savemat(
            tmp_path / "celebrity2000_meta.mat",
            {"celebrityImageData": images, "celebrityData": {"rank": ranks}},
        )
        return {
            "meta": str(tmp_path / "celebrity2000_meta.mat"),
            "ranks": {"val": [1, 2], "test": [3, 4, 5]},
        }

    def test_ranks_make_the_split_and_accents_are_matched(self, tmp_path: Path) -> None:
        mojibake = "53_Bj\xc3\xb6rk_0002.jpg"
        decomposed = "20_A\u030asa_Lee_0001.jpg"
        on_disk = [
            self.NAMES[0],
            mojibake,
            decomposed,
            self.NAMES[3],
            self.DIRT[0],
            self.DIRT[2],
            "9_Who_0001.jpg",
        ]
        touch(tmp_path / "raw", *(f"CACD2000/{name}" for name in on_disk), f"copy/{self.NAMES[0]}")
        rows, listed = read("cacd", tmp_path / "raw", self.options(tmp_path))
        assert {row.photo_id.split("/")[1]: (row.label, row.person, row.split) for row in rows} == {
            self.NAMES[0]: (14.0, "0001", "val"),
            mojibake: (53.0, "0002", "test"),
            decomposed: (20.0, "0003", "test"),
            self.NAMES[3]: (30.0, "0004", "train"),
        }
        reason_of = reasons(listed)
        for name in (mojibake, decomposed):
            assert listed[f"CACD2000/{name}"][0] == "repaired"
            assert "by its other letters" in reason_of.pop(f"CACD2000/{name}")
        assert "table's age 30" in reason_of.pop(f"CACD2000/{self.DIRT[0]}")
        assert "2 times" in reason_of.pop(f"CACD2000/{self.DIRT[2]}")
        assert "does not name it" in reason_of.pop("CACD2000/9_Who_0001.jpg")
        assert "already" in reason_of.pop(f"copy/{self.NAMES[0]}")
        assert "no such photo" in reason_of.pop(self.DIRT[1])
        assert not reason_of

    def test_what_the_table_lacks_is_refused(self, tmp_path: Path) -> None:
        options = self.options(tmp_path)
        with pytest.raises(ValueError, match="give val and test each its own ranks"):
            read("cacd", tmp_path, options | {"ranks": {"val": [1], "test": [1, 2]}})
        with pytest.raises(ValueError, match="no such file"):
            read("cacd", tmp_path, options | {"meta": "absent.mat"})
        savemat(
            options["meta"],
            {"celebrityImageData": {"name": cells(["a", "b"], column=True), "age": [1, 2]}},
        )
        with pytest.raises(
            ValueError, match=r"with the fields name, age, identity, rank, found \('name', 'age'\)"
        ):
            read("cacd", tmp_path, options)
        short = {
            "name": cells(["a"], column=True),
            "age": [1, 2],
            "identity": [1, 2],
            "rank": [1, 2],
        }
        savemat(options["meta"], {"celebrityImageData": short})
        with pytest.raises(ValueError, match="differ in length"):
            read("cacd", tmp_path, options)
        for content, message in (
            (b"junk" * 100, "no MATLAB file"),
            (v7_3(), "save it in MATLAB with -v7"),
        ):
            Path(options["meta"]).write_bytes(content)
            with pytest.raises(ValueError, match=message):
                read("cacd", tmp_path, options)


def v7_3() -> bytes:
    """The head of a MATLAB 7.3 (HDF5) file."""
    return b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512)


def serial(day: date) -> int:
    """MATLAB's serial day: 1 is 1 January of the year 0."""
    return day.toordinal() + 366


@given(st.dates(date(1850, 1, 1), date(2015, 12, 31)), st.integers(1900, 2016))
def test_ages_are_those_of_a_calendar(born: date, year: int) -> None:
    found = ages_on_1_july(np.array([serial(born)]), np.array([year], np.uint16))
    assert found[0] == year - born.year - ((born.month, born.day) > (7, 1))


def test_days_that_are_none_give_no_age() -> None:
    days = np.array([np.nan, 0, -5, serial(date(1980, 7, 1))])
    years = np.array([2000, 2000, 2000, np.nan])
    assert np.isnan(ages_on_1_july(days, years)).all()
    assert ages_on_1_july(np.array([serial(date(1980, 7, 1)) + 0.75]), np.array([2000]))[0] == 20


class TestImdbWiki:
    BORN = serial(date(1970, 3, 1))
    PHOTOS = (  # path, name, gender, born, taken, score, second
        ("01/nm01_rm1_1970-3-1_2000.jpg", "Ann Lee", 0, BORN, 2000, 3.0, np.nan),
        ("01/nm01_rm2_1970-3-1_2001.jpg", "", np.nan, BORN, 2001, 1.0, 1.0),
        ("01/no_date.jpg", "Ann Lee", 0, 0, 2001, 3.0, np.nan),
        ("02/too_old.jpg", "Ann Lee", 0, serial(date(1870, 3, 1)), 2001, 3.0, np.nan),
        ("02/unborn.jpg", "Ann Lee", 0, BORN, 1969, 3.0, np.nan),
        ("02/faceless.jpg", "Ann Lee", 0, BORN, 2001, -np.inf, np.nan),
        ("02/blurred.jpg", "Ann Lee", 0, BORN, 2001, 0.5, np.nan),
        ("02/two.jpg", "Ann Lee", 0, BORN, 2001, 3.0, 2.5),
        ("03/twice.jpg", "Ann Lee", 1, BORN, 2001, 3.0, np.nan),
        ("03/twice.jpg", "Ann Lee", 1, BORN, 2005, 3.0, np.nan),
        ("03/absent.jpg", "Ann Lee", 1, BORN, 2005, 3.0, np.nan),
    )

    def read(self, tmp_path: Path, **changes: Any) -> tuple[list[ManifestRow], Listed]:
        columns = list(zip(*self.PHOTOS, strict=True))
        struct: dict[str, Any] = {
            "full_path": cells(columns[0], column=False),
            "name": cells(columns[1], column=False),
        }
        for field, column, kind in (
            ("gender", 2, np.float64),
            ("dob", 3, np.int32),
            ("photo_taken", 4, np.uint16),
            ("face_score", 5, np.float64),
            ("second_face_score", 6, np.float64),
        ):
            struct[field] = np.array([columns[column]], kind)
        savemat(tmp_path / "imdb.mat", {"imdb": struct})
        raw = tmp_path / "raw"
        here = {f"imdb_crop/{name}" for name in columns[0] if "absent" not in name}
        touch(raw, *sorted(here), "imdb_crop/03/stray.jpg", "elsewhere.jpg")
        options = {
            "tables": {"imdb_crop": str(tmp_path / "imdb.mat")},
            "min_face_score": 1.0,
            "min_age": 0,
        }
        options |= {"max_second_face_score": 1.0, "max_age": 100}
        return read("imdb_wiki", raw, options | changes)

    def test_the_rules_of_the_options_decide(self, tmp_path: Path) -> None:
        rows, listed = self.read(tmp_path)
        assert rows == [
            ManifestRow(
                "imdb_crop/01/nm01_rm1_1970-3-1_2000.jpg",
                30.0,
                None,
                "Ann Lee",
                "female",
                None,
                None,
            ),
            ManifestRow(
                "imdb_crop/01/nm01_rm2_1970-3-1_2001.jpg", 31.0, None, "nm01", None, None, None
            ),
        ]
        reason_of = reasons(listed)
        wanted = {
            "01/no_date": "date of birth",
            "02/too_old": "its age is not 0 to 100",
            "02/unborn": "its age is not",
        }
        wanted |= {
            "02/faceless": "no face",
            "02/blurred": "score is below 1",
            "02/two": "second face scores above 1",
        }
        wanted |= {
            "03/twice": "lines 9 and 10",
            "03/absent": "no such photo",
            "03/stray": "does not name it",
        }
        for name, reason in wanted.items():
            assert reason in reason_of.pop(f"imdb_crop/{name}.jpg")
        assert "none of the folders imdb_crop" in reason_of.pop("elsewhere.jpg")
        assert not reason_of

    def test_the_rules_can_be_lifted_and_tightened(self, tmp_path: Path) -> None:
        lifted, _ = self.read(
            tmp_path, min_face_score=-np.inf, max_second_face_score=np.inf, max_age=200
        )
        names = {row.photo_id.rsplit("/", 1)[1] for row in lifted}
        assert {"faceless.jpg", "blurred.jpg", "two.jpg", "too_old.jpg"} < names
        tight, _ = self.read(tmp_path, max_second_face_score=-np.inf)
        assert [row.label for row in tight] == [30.0]


class TestAdience:
    HEAD = "user_id\toriginal_image\tface_id\tage\tgender\tx\ty\tdx\tdy"
    FOLDS = (
        ("7@N1\ta.jpg\t1\t(25, 32)\tf\t0\t0\t9\t9", "7@N1\tb.jpg\t1\t35\tm\t0\t0\t9\t9"),
        (
            "8@N2\tc.jpg\t2\t(0, 2)\tu\t0\t0\t9\t9",
            "8@N2\td.jpg\t2\tNone\tm\t0\t0\t9\t9",
            "8@N2\tabsent.jpg\t2\t(4, 6)\tm\t0\t0\t9\t9",
            "8@N2\te.jpg\t3\t(48 to 53)\tm\t0\t0\t9\t9",
            "8@N2\tf.jpg\t3\t(8, 12)\tm\t0\t0\t9\t9",
            "8@N2\tf.jpg\t3\t(8, 13)\tm\t0\t0\t9\t9",
        ),
    )

    def read(self, tmp_path: Path, **changes: Any) -> tuple[list[ManifestRow], Listed]:
        lists = []
        for number, lines in enumerate(self.FOLDS):
            lists.append(write(tmp_path / f"fold_{number}_data.txt", self.HEAD, *lines))
        raw = tmp_path / "raw"
        names = {"7@N1": ("1.a", "1.b"), "8@N2": ("2.c", "2.d", "3.e", "3.f")}
        for user, own in names.items():
            touch(raw, *(f"aligned/{user}/landmark_aligned_face.{name}.jpg" for name in own))
        options = {"lists": lists, "pictures": "aligned", "test_fold": 1}
        return read("adience", raw, options | changes)

    def test_groups_become_intervals_and_folds_become_splits(self, tmp_path: Path) -> None:
        rows, listed = self.read(tmp_path)
        place = "aligned/7@N1/landmark_aligned_face.1"
        assert rows == [
            ManifestRow(f"{place}.a.jpg", 28.5, None, "7@N1/1", "female", None, "train", 4.0),
            ManifestRow(f"{place}.b.jpg", 35.0, None, "7@N1/1", "male", None, "train", None),
            ManifestRow(
                "aligned/8@N2/landmark_aligned_face.2.c.jpg",
                1.0,
                None,
                "8@N2/2",
                None,
                None,
                "test",
                1.5,
            ),
        ]
        assert reasons(listed) == {
            "fold_1_data.txt:3": "has no age",
            "fold_1_data.txt:4": "no such photo: aligned/8@N2/landmark_aligned_face.2.absent.jpg",
            "fold_1_data.txt:5": "age '(48 to 53)' is neither a year nor a group such as (25, 32)",
            "aligned/8@N2/landmark_aligned_face.3.f.jpg": "two lines say different things of it; "
            "neither is certain",
        }

    def test_without_a_test_fold_no_split_is_given(self, tmp_path: Path) -> None:
        rows, _ = self.read(tmp_path, test_fold=None)
        assert {row.split for row in rows} == {None}

    def test_a_file_of_another_form_and_a_fold_that_is_not_there(self, tmp_path: Path) -> None:
        other = write(tmp_path / "other.txt", "user_id,age", "7@N1,35")
        with pytest.raises(ValueError, match="no column 'age'; give Adience's fold_N_data"):
            self.read(tmp_path, lists=[other], test_fold=None)
        with pytest.raises(ValueError, match="test_fold 2: give 0 to 1"):
            self.read(tmp_path, test_fold=2)
