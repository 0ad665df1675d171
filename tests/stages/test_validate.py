"""The gate before alignment: what it writes on pass and on failure, and that it writes the same
bytes twice."""

from __future__ import annotations

import csv
import json
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from stages.checks.findings import inspect
from stages.checks.page import page
from stages.checks.settings import ValidateSettings
from stages.validate import validate
from tests.stages.manifests import SAME, SETTINGS, Row, clean_rows, row, with_policy, write


@pytest.fixture
def imported_quietly() -> None:
    """Great Expectations warns on import (of its own libraries); after that it must not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_module("great_expectations")


class Folder:
    """The stage's paths under one folder, and a call of the stage on some rows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.skipped, self.quarantine = root / "skipped.csv", root / "quarantine.csv"
        self.result, self.failed, self.docs = (
            root / "target.json",
            root / "target.failed.json",
            root / "target",
        )
        self.skipped.write_text(
            "photo_id,reason,action\n1_.jpg,name has no date,skipped\n", encoding="utf-8"
        )
        self.reported: dict[str, float] = {}

    def run(self, rows: list[Row], settings: ValidateSettings) -> None:
        validate(
            settings,
            manifest=write(self.root, rows),
            skipped=self.skipped,
            quarantine=self.quarantine,
            result=self.result,
            docs=self.docs,
            report=lambda _, values: self.reported.update(values),
        )


@pytest.mark.usefixtures("imported_quietly")
def test_the_gate(tmp_path: Path) -> None:
    """Pass, pass again to the same bytes, then fail: the old report is gone, and the error says
    what to do."""
    folder = Folder(tmp_path)
    rows = [
        *clean_rows(),
        row("x", label=116.0),
        row("y", num_bytes=100),
        row("z", **SAME),
        row("zz", **SAME),
    ]
    settings = with_policy(SETTINGS, label_range="quarantine", duplicates="quarantine")
    folder.run(rows, settings)
    first = folder.result.read_bytes()
    document = json.loads(first)
    results = {each["check"]: each["result"] for each in document["checks"]}
    assert document["success"]
    assert {check for check, result in results.items() if result == "quarantined"} == {
        "label_range",
        "duplicates",
    }
    assert {check for check, result in results.items() if result == "reported"} == {"photo_size"}
    assert document["facts"]["splits"]["train"] == {"photos": 16, "kept": 14}
    assert document["facts"]["identical_pictures"]["groups"] == 1
    assert document["skipped"]["photos"] == {"skipped": 1}
    with folder.quarantine.open(encoding="utf-8", newline="") as lines:
        assert list(csv.reader(lines)) == [
            ["photo_id", "check", "reason"],
            ["x", "label_range", "label 116 lies outside 0 to 100"],
            ["zz", "duplicates", "same bytes as z"],
        ]
    assert folder.reported["quarantined"] == 2
    [verdicts] = (folder.docs / "validations" / "photos").rglob("*.html")
    claims = (folder.docs / "expectations" / "photos.html").read_text(encoding="utf-8")
    assert "every photo has a label inside the range" in verdicts.read_text(encoding="utf-8")
    assert "label 116 lies outside 0 to 100" in claims
    assert (folder.docs / "index.html").is_file()

    table = page({"Planted": document})
    assert "| train / val / test | 16 / 6 / 6 |\n| left after quarantine | 14 / 6 / 6 |" in table
    assert "| `duplicates` | 2 in 1 pictures, 1 quarantined |" in table
    assert "| `people_across_splits` | nothing known |" in table

    folder.run(rows, settings)
    assert folder.result.read_bytes() == first

    with pytest.raises(
        ValueError,
        match=r"(?s)1 of 15 checks failed.*label_range: 1 photos.*first: x: label 116.*params.yaml",
    ):
        folder.run(rows, with_policy(settings, label_range="fail"))
    assert not folder.result.exists()
    assert not folder.quarantine.exists()
    assert not json.loads(folder.failed.read_text(encoding="utf-8"))["success"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "manifest.parquet",
        "skipped.csv",
        "target",
        "target.failed.json",
    ]

    with pytest.raises(
        ValueError,
        match=r"quarantined_fraction: .*0\.0714 of all photos in quarantine, above 0\.05",
    ):
        folder.run(rows, replace(settings, max_quarantined_fraction=0.05))
    with pytest.raises(ValueError, match="column split has 1 nulls"):
        folder.run([*rows, row("n", split=None)], settings)


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such manifest; run the download stage"):
        inspect(tmp_path / "manifest.parquet", SETTINGS)
    folder = Folder(tmp_path)
    folder.skipped.unlink()
    with pytest.raises(ValueError, match="no such list; the download stage writes it"):
        folder.run(clean_rows(), SETTINGS)
