"""SCUT-FBP, SCUT-FBP5500 and CFD: rating sheets and lists in their native form, dirt included,
become rows."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import openpyxl
import pytest

from stages.ingest.records import ManifestRow
from stages.ingest.spreadsheet import named_rows
from tests.stages.sources.test_sources import read, touch

Lines = Sequence[Sequence[Any]]


def sheet(path: Path, **sheets: Lines) -> Path:
    """An xlsx file with the lines of each sheet."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, lines in sheets.items():
        page = book.create_sheet(title)
        for line in lines:
            page.append(list(line))
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    return path


def without_dimension(path: Path) -> Path:
    """An xlsx file that does not say how large its sheets are, as some programs write them."""
    with ZipFile(path) as source:
        files = {name: source.read(name) for name in source.namelist()}
    with ZipFile(path, "w") as target:
        for name, content in files.items():
            target.writestr(name, re.sub(rb"<dimension [^>]*/>", b"", content))
    return path


def test_short_and_blank_lines_have_every_column(tmp_path: Path) -> None:
    lines: Lines = [("Target", "Race", "Gender"), ("a", "W"), (), ("b", "B", "F", "beyond")]
    path = without_dimension(sheet(tmp_path / "s.xlsx", Sheet1=lines))
    found = [line.cells for line in named_rows(path, ("Race", "Target"))]
    assert found == [
        {"Target": "a", "Race": "W", "Gender": None},
        {"Target": None, "Race": None, "Gender": None},
        {"Target": "b", "Race": "B", "Gender": "F"},
    ]


class TestScutFbp:
    SHEET = "Rating_Collection/Attractiveness label.xlsx"
    OPTIONS: Mapping[str, Any] = {"ratings": "Attractiveness label.xlsx"}
    HEAD = ("#Image", "Attractiveness label", "standard deviation")

    def test_sheet_and_photos_become_rows(self, tmp_path: Path) -> None:
        touch(
            tmp_path,
            *(f"Data_Collection/SCUT-FBP-{n}.jpg" for n in (1, 2, 3, 4, 5, 6)),
            "Data_Collection/face.jpg",
        )
        lines = [
            self.HEAD,
            (1, 2.5, 0.75),
            (2.0, "3.25", None),
            (3, 5.5, 1),
            (4, 3, "wide"),
            (None, None, None),
        ]
        sheet(
            tmp_path / self.SHEET,
            Sheet1=[*lines, ("SCUT-FBP-5.jpg", 4, 0), (5, 1, 0), (9, 2, 1), ("mean", 3, 1)],
        )
        rows, listed = read("scut_fbp", tmp_path, self.OPTIONS)
        assert rows == [
            ManifestRow("Data_Collection/SCUT-FBP-1.jpg", 2.5, 0.75, None, "female", "asian", None),
            ManifestRow(
                "Data_Collection/SCUT-FBP-2.jpg", 3.25, None, None, "female", "asian", None
            ),
            ManifestRow("Data_Collection/SCUT-FBP-5.jpg", 4.0, 0.0, None, "female", "asian", None),
        ]
        where = "Attractiveness label.xlsx: Sheet1 line"
        reasons = {photo_id: reason for photo_id, (_, reason) in listed.items()}
        for place, reason in {
            f"{where} 4": "scale of 1 to 5",
            f"{where} 5": "'wide' is none",
        }.items():
            assert reason in reasons.pop(place)
        assert "a line above" in reasons.pop(f"{where} 8")
        assert "'mean' is no photo" in reasons.pop(f"{where} 10")
        assert "no such photo" in reasons.pop("SCUT-FBP-9.jpg")
        assert "not in the form" in reasons.pop("Data_Collection/face.jpg")
        assert set(reasons) == {f"Data_Collection/SCUT-FBP-{n}.jpg" for n in (3, 4, 6)}

    def test_a_missing_or_broken_sheet_is_refused(self, tmp_path: Path) -> None:
        touch(tmp_path, "Data_Collection/SCUT-FBP-1.jpg")
        with pytest.raises(ValueError, match="not there"):
            read("scut_fbp", tmp_path, self.OPTIONS)
        touch(tmp_path, self.SHEET)
        with pytest.raises(ValueError, match="not a readable xlsx"):
            read("scut_fbp", tmp_path, self.OPTIONS)
        sheet(tmp_path / self.SHEET, Sheet1=[self.HEAD, ("a", "b", "c")])
        with pytest.raises(ValueError, match="no line holds a photo's number"):
            read("scut_fbp", tmp_path, self.OPTIONS)
        sheet(tmp_path / "copy" / "Attractiveness label.xlsx", Sheet1=[self.HEAD, (1, 2, 1)])
        with pytest.raises(ValueError, match="2 times there"):
            read("scut_fbp", tmp_path, self.OPTIONS)


class TestScutFbp5500:
    NAMES = ("AF1.jpg", "AM2.jpg", "CF3.jpg", "CM4.jpg", "AF5.jpg", "AF6.jpg")
    FOLD_2: Mapping[str, Any] = {"protocol": "folds", "fold": 2}
    RATINGS: Mapping[str, Sequence[float]] = {
        "AF1.jpg": (3, 3, 4),
        "AM2.jpg": (2, 2, 2),
        "CF3.jpg": (1, 5, 3),
    }

    @pytest.fixture
    def raw(self, tmp_path: Path) -> Path:
        touch(
            tmp_path,
            *(f"Images/{name}" for name in self.NAMES),
            "Images/XX1.jpg",
            "facial landmark/AF1.pts",
        )
        lists = tmp_path / "train_test_files"
        fold = lists / "5_folders_cross_validations_files" / "cross_validation_2"
        half = lists / "split_of_60%training and 40%testing"
        for folder in (fold, half):
            folder.mkdir(parents=True)
        (lists / "All_labels.txt").write_text(
            "AF1.jpg 3.333333\r\nAM2.jpg 2\n\nCF3.jpg 3\nCM4.jpg 4.1 \nAF5.jpg six\nAF6.jpg "
            "2.5\nAF9.jpg 2\nAF1.jpg 3\n"
        )
        (fold / "train_2.txt").write_text("AF1.jpg 3.333333\nCF3.jpg 3.5\nAF6.jpg 2.5\n")
        (fold / "test_2.txt").write_text("AM2.jpg 2.000000\nAF8.jpg 1.5\n")
        (half / "train.txt").write_text("AM2.jpg 2\nCF3.jpg 3\n")
        (half / "test.txt").write_text("AF1.jpg 3.333333\n")
        lines = [
            (rater, name, r)
            for name, ratings in self.RATINGS.items()
            for rater, r in enumerate(ratings)
        ]
        head = ("Rater", "Filename", "Rating", "original Rating")
        dirt = [(7, "AF1.jpg", "good"), (8, "AF1.jpg", 9), (9, None, 3)]
        again = [head, (1, "AF1.jpg", 1)]
        sheet(
            tmp_path / "All_Ratings.xlsx",
            ALL=[("ratings of 60 people",), head, *lines, *dirt],
            Asian_Female=again,
        )
        return tmp_path

    def test_folds_give_label_spread_and_split(self, raw: Path) -> None:
        rows, listed = read("scut_fbp5500", raw, self.FOLD_2)
        spread = pytest.approx(statistics.pstdev(self.RATINGS["AF1.jpg"]))
        assert rows == [
            ManifestRow("Images/AF1.jpg", 3.333333, spread, None, "female", "asian", "train"),
            ManifestRow("Images/AF6.jpg", 2.5, None, None, "female", "asian", "train"),
            ManifestRow("Images/AM2.jpg", 2.0, 0.0, None, "male", "asian", "test"),
            ManifestRow("Images/CM4.jpg", 4.1, None, None, "male", "white", None),
        ]
        reasons = {photo_id: reason for photo_id, (_, reason) in listed.items()}
        assert "train list says 3.5" in reasons.pop("Images/CF3.jpg")
        assert "no usable line" in reasons.pop("Images/AF5.jpg")
        assert "not in the form" in reasons.pop("Images/XX1.jpg")
        assert "not a name and a label" in reasons.pop("All_labels.txt line 6")
        assert "again" in reasons.pop("All_labels.txt line 9")
        assert reasons.pop("All_Ratings.xlsx").startswith("2 ratings")
        assert set(reasons) == {"AF8.jpg", "AF9.jpg"}, "named, but not there"

    def test_the_60_40_split_is_another_one(self, raw: Path) -> None:
        rows, _ = read("scut_fbp5500", raw, {"protocol": "split_60_40", "fold": None})
        splits = {
            row.photo_id.removeprefix("Images/"): row.split for row in rows if row.split is not None
        }
        assert splits == {"AF1.jpg": "test", "AM2.jpg": "train", "CF3.jpg": "train"}

    def test_wrong_folds_and_lists_are_refused(self, raw: Path) -> None:
        for wrong in ({"protocol": "folds", "fold": 6}, {"protocol": "folds", "fold": None}):
            with pytest.raises(ValueError, match="folds 1 to 5"):
                read("scut_fbp5500", raw, wrong)
        with pytest.raises(ValueError, match="has none"):
            read("scut_fbp5500", raw, {"protocol": "split_60_40", "fold": 1})
        with pytest.raises(ValueError, match=r"cross_validation_3/train_3\.txt' is not there"):
            read("scut_fbp5500", raw, {"protocol": "folds", "fold": 3})
        test = next(raw.rglob("test_2.txt"))
        test.write_text(test.read_text() + "AF1.jpg 3.333333\n")
        with pytest.raises(ValueError, match=r"AF1\.jpg is in the list of train too"):
            read("scut_fbp5500", raw, self.FOLD_2)


class TestCfd:
    OPTIONS: Mapping[str, Any] = {"norms": "norms.xlsx", "sigma_column": None}
    HEAD = ("Target", "Race", "Gender", "Age", "NumberofRaters", "Attractive", "AttractiveSD")

    @pytest.fixture
    def raw(self, tmp_path: Path) -> Path:
        names = (
            "AF-200-228-N",
            "AF-200-228-A",
            "BM-001-014-N",
            "LF-203-054-N",
            "WM-004-010-N",
            "WF-999-001-N",
        )
        touch(
            tmp_path,
            *(f"CFD/{name[:6]}/CFD-{name}.jpg" for name in names),
            "CFD/AF-200/portrait.jpg",
        )
        lines = [
            ("AF-200", "A", "F", 32.5, 28, 4.25, 1.5),
            ("BM-001", "B", "M", 28, 28, 2.5, "-"),
            ("LF-203", "W", "F", 28, 28, 3, 1),
            ("WM-004", "W", "M", 28, 28, 7.5, 1),
            (None, None, None),
            ("WM-009", "W", "M", 28, 28, 3, 1),
        ]
        intro = [("Chicago Face Database",), (), ("Target: which face", "Attractive: 1 to 7")]
        second = [self.HEAD, ("AF-200", "A", "F", 30, 28, 6, 1)]
        sheet(
            tmp_path / "norms.xlsx",
            Codes=[("Target", "identifier")],
            Norms=[*intro, self.HEAD, *lines],
            Old=second,
        )
        return tmp_path

    def test_neutral_photos_of_normed_targets_become_rows(self, raw: Path) -> None:
        rows, listed = read("cfd", raw, self.OPTIONS)
        assert rows == [
            ManifestRow(
                "CFD/AF-200/CFD-AF-200-228-N.jpg", 4.25, None, "AF-200", "female", "asian", None
            ),
            ManifestRow(
                "CFD/BM-001/CFD-BM-001-014-N.jpg", 2.5, None, "BM-001", "male", "black", None
            ),
        ]
        reasons = {photo_id: reason for photo_id, (_, reason) in listed.items()}
        assert reasons.pop("*").startswith("1 photos are not neutral")
        assert "says race W" in reasons.pop("CFD/LF-203/CFD-LF-203-054-N.jpg")
        assert "no usable line" in reasons.pop("CFD/WF-999/CFD-WF-999-001-N.jpg")
        assert "no usable line" in reasons.pop("CFD/WM-004/CFD-WM-004-010-N.jpg")
        assert "scale of 1 to 7" in reasons.pop("norms.xlsx: Norms line 8")
        assert "not in the form" in reasons.pop("CFD/AF-200/portrait.jpg")
        assert set(reasons) == {"LF-203", "WM-009"}, "normed, but without a usable photo"

    def test_a_named_column_gives_sigma(self, raw: Path) -> None:
        rows, listed = read("cfd", raw, {**self.OPTIONS, "sigma_column": "AttractiveSD"})
        assert [(row.person, row.sigma) for row in rows] == [("AF-200", 1.5)]
        assert "no standard deviation" in listed["norms.xlsx: Norms line 6"][1]
        with pytest.raises(ValueError, match="no line of any sheet names the columns Target"):
            read("cfd", raw, {**self.OPTIONS, "sigma_column": "Spread"})
