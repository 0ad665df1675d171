"""Every check finds its planted defect and passes its clean twin; what each policy takes out; the
real dirt."""

from __future__ import annotations

import csv
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from stages.checks.findings import CheckResult, inspect
from stages.checks.measures import SPLITS, divergence, measure
from stages.checks.rules import ROW_RULES
from stages.checks.settings import ABOUT_LABELS, POLICIES, ValidateSettings
from tests.stages.manifests import (
    REPORT_ALL,
    SAME,
    SETTINGS,
    Row,
    clean_rows,
    row,
    with_policy,
    write,
)
from visage.data.schemas import MANIFEST_SCHEMA


def check_result(
    check: str, folder: Path, rows: list[Row], settings: ValidateSettings = SETTINGS
) -> CheckResult:
    check_results = {
        each.check: each for each in inspect(write(folder, rows), settings).check_results
    }
    return check_results[check]


def quarantined(folder: Path, rows: list[Row], settings: ValidateSettings) -> list[str]:
    return [
        photo_id for photo_id, _, _ in inspect(write(folder, rows), settings).quarantine(settings)
    ]


# check: planted rows, the ones found, a part of the first reason; then a clean twin that must pass
DEFECTS: dict[str, tuple[list[Row], int, str, list[Row]]] = {
    "unreadable": (
        [row("x", unreadable="truncated", width=0, height=0)],
        1,
        "truncated",
        [row("x")],
    ),
    "tiny": ([row("x", width=31)], 1, "31 px, under 32", [row("x", width=32, num_bytes=200)]),
    "photo_size": (
        [
            row("w", width=5001, height=4000, num_bytes=10**7),
            row("x", width=661),
            row("y", num_bytes=800),
        ],
        3,
        "5001 px",
        [row("x", width=5000, height=4000, num_bytes=10**7), row("y", num_bytes=900)],
    ),
    "label_range": (
        [
            row("v", label=100.5),
            row("w", label=-1.0),
            row("x", label=None),
            row("y", label=float("inf")),
        ],
        4,
        "label 100.5 lies outside 0 to 100",
        [row("x", label=0.0), row("y", label=100.0)],
    ),
    "sigma_range": (
        [row("x", sigma=0.0), row("y", sigma=21.0)],
        2,
        "sigma 0 lies",
        [row("x", sigma=None)],
    ),
    "duplicates": (
        [row("x", **SAME), row("y", **SAME)],
        2,
        "same bytes as x",
        [row("x", **SAME), row("y")],
    ),
    "contradicting_labels": (
        [row("x", label=20.0, **SAME), row("y", label=23.0, **SAME)],
        2,
        "labels 3 apart",
        [row("x", **SAME), row("y", **SAME), row("z", label=23.0)],
    ),
    "duplicates_across_splits": (
        [row("x", **SAME), row("y", split="test", **SAME)],
        2,
        "same bytes as y",
        [row("x", **SAME), row("y", **SAME)],
    ),
    "people_across_splits": (
        [row("x", person="Ann"), row("y", person="Ann", split="val")],
        2,
        "2 splits",
        [row("x", person="Ann"), row("y", person="Bob", split="val")],
    ),
    "images_per_person": (
        [row("x", person="Ann")],
        1,
        "1 photos, under 2",
        [row("x", person="Ann"), row("y", person="Ann")],
    ),
}


@pytest.mark.parametrize("check", DEFECTS)
def test_every_check_finds_its_planted_defect_and_no_other(check: str, tmp_path: Path) -> None:
    planted, num_found, reason, twin = DEFECTS[check]
    found = check_result(check, tmp_path, clean_rows() + planted)
    assert (found.found, found.result) == (num_found, "reported")
    assert reason in found.examples[0]["reason"]
    assert {each["photo_id"] for each in found.examples} <= {each["photo_id"] for each in planted}
    assert check_result(check, tmp_path, clean_rows() + twin).result == "passed"


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        ("photo_count", {"split": ["train"] * 24}),
        ("label_balance", {"label": [30.0] * 12 + [90.0] * 12}),
        ("group_balance", {"sex": ["female"] * 12 + ["male"] * 12}),
    ],
)
def test_every_check_of_the_whole_set_finds_its_defect(
    check: str, changes: dict[str, list[Any]], tmp_path: Path
) -> None:
    rows = [
        each | {name: values[place] for name, values in changes.items()}
        for place, each in enumerate(clean_rows())
    ]
    found = check_result(check, tmp_path, rows)
    assert found.result == "reported"
    assert found.examples
    assert check_result(check, tmp_path, clean_rows()).result == "passed"


def broken_schemas() -> dict[str, tuple[list[Row], pa.Schema, str]]:
    rows, names = clean_rows(), MANIFEST_SCHEMA.names
    real_width = MANIFEST_SCHEMA.set(names.index("width"), pa.field("width", pa.float32()))
    return {
        "missing": (
            rows,
            MANIFEST_SCHEMA.remove(names.index("person")),
            "column person is missing",
        ),
        "extra": (
            rows,
            MANIFEST_SCHEMA.append(pa.field("age", pa.int32())),
            "column age is unknown",
        ),
        "type": (rows, real_width, "column width is float, not int32"),
        "null": ([*rows, row("x", split=None)], MANIFEST_SCHEMA, "column split has 1 nulls"),
        "split": ([*rows, row("x", split="dev")], MANIFEST_SCHEMA, "split 'dev' is none of"),
        "twice": ([*rows, rows[3]], MANIFEST_SCHEMA, "not unique and ascending at 1 rows"),
        "digest": (
            [*rows, row("x") | {"sha256": "ABC"}],
            MANIFEST_SCHEMA,
            "hexadecimal digits at 1 rows",
        ),
    }


@pytest.mark.parametrize("fault", broken_schemas())
def test_a_wrong_schema_stops_every_other_check(fault: str, tmp_path: Path) -> None:
    rows, schema, message = broken_schemas()[fault]
    findings = inspect(write(tmp_path, rows, schema), SETTINGS)
    assert [(each.check, each.result) for each in findings.check_results] == [("schema", "failed")]
    assert message in findings.check_results[0].examples[0]["reason"]
    assert findings.not_run == [name for name in POLICIES if name != "schema"]


def test_duplicates_leave_all_but_the_first_of_their_split(tmp_path: Path) -> None:
    rows = [
        *clean_rows(),
        row("x", **SAME),
        row("y", **SAME),
        row("z", **SAME),
        row("v", split="val", **SAME),
    ]
    assert quarantined(tmp_path, rows, with_policy(SETTINGS, duplicates="quarantine")) == ["y", "z"]


def test_across_splits_the_most_firmly_held_out_copies_stay(tmp_path: Path) -> None:
    rows = [*clean_rows()]
    rows += [row("a1", **SAME), row("a2", split="val", **SAME), row("a3", split="test", **SAME)]
    rows += [row("b1", sha256=b"b"), row("b2", split="val", sha256=b"b")]
    assert quarantined(
        tmp_path, rows, with_policy(SETTINGS, duplicates_across_splits="quarantine")
    ) == [
        "a1",
        "a2",
        "b1",
    ]
    people = [
        *clean_rows(),
        row("a1", person="Ann"),
        row("a2", person="Ann", split="test"),
        row("b", person="Bob"),
    ]
    assert quarantined(
        tmp_path, people, with_policy(SETTINGS, people_across_splits="quarantine")
    ) == ["a1"]


def test_all_contradicting_photos_leave_unless_the_test_list_is_kept(tmp_path: Path) -> None:
    same = [
        row("x", label=20.0, **SAME),
        row("y", label=50.0, split="test", **SAME),
        row("z", split="test", **SAME),
    ]
    settings = with_policy(SETTINGS, contradicting_labels="quarantine", duplicates="quarantine")
    assert quarantined(tmp_path, clean_rows() + same, settings) == ["x", "y", "z", "z"]
    assert quarantined(tmp_path, clean_rows() + same, replace(settings, keep_test=True)) == ["x"]
    assert SETTINGS.labels is not None
    tolerant = replace(settings, labels=replace(SETTINGS.labels, max_gap=30.0))
    assert (
        check_result("contradicting_labels", tmp_path, clean_rows() + same, tolerant).result
        == "passed"
    )


def test_photos_without_labels_need_a_person(tmp_path: Path) -> None:
    policy = {name: policy for name, policy in REPORT_ALL.items() if name not in ABOUT_LABELS}
    settings = replace(SETTINGS, labels=None, policy=policy)
    rows = [each | {"person": "Ann", "label": None, "sigma": None} for each in clean_rows()]
    found = check_result(
        "images_per_person", tmp_path, [*rows, row("x"), row("y", person="Bob")], settings
    )
    assert [each["reason"] for each in found.examples] == [
        "no person",
        "person has 1 photos, under 2",
    ]
    assert found.num_groups == 2
    assert check_result("images_per_person", tmp_path, rows, settings).result == "passed"


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(SPLITS), st.integers(0, 2)),
        min_size=1,
        max_size=12,
    )
)
def test_measures_of_identical_pictures_against_loops(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, str, int]]
) -> None:
    rows = [
        row(
            f"{place:02d}",
            sha256=b"%d" % picture,
            split=split,
            label=float(label),
            person=f"p{picture}",
        )
        for place, (picture, split, label) in enumerate(drawn)
    ]
    photos = measure(write(tmp_path_factory.mktemp("measures"), rows))
    for place, each in enumerate(rows):
        group = [(at, other) for at, other in enumerate(rows) if other["sha256"] == each["sha256"]]
        beside = [at for at, other in group if other["split"] == each["split"]]
        splits = {SPLITS.index(other["split"]) for _, other in group}
        measures = photos.iloc[place]
        assert (measures["copies_in_split"], measures["first_in_split"]) == (len(beside), beside[0])
        assert (measures["splits_of_picture"], measures["splits_of_person"]) == (
            len(splits),
            len(splits),
        )
        assert measures["firmest_split"] == measures["firmest_split_of_person"] == max(splits)
        assert rows[measures["firmest_copy"]]["split"] == SPLITS[max(splits)]
        labels = [other["label"] for _, other in group]
        assert (measures["label_gap"], measures["photos_of_person"]) == (
            max(labels) - min(labels),
            len(group),
        )


def test_measures_have_the_width_that_great_expectations_needs(tmp_path: Path) -> None:
    """Any other number is compared one by one in Python: minutes at a million photos."""
    photos = measure(write(tmp_path, clean_rows()))
    bounded = {bound.measure for rule in ROW_RULES.values() for bound in rule.bounds(SETTINGS)}
    assert {str(photos[name].dtype) for name in bounded} == {"int64", "float64"}


def test_divergence_is_the_smoothed_kullback_leibler_divergence() -> None:
    train = {"a": 70, "b": 30, "c": 0}
    split = {"a": 1, "b": 4, "c": 2}
    assert divergence(split, train) == pytest.approx(entropy([2, 5, 3], [71, 31, 1]))
    assert divergence(train, train) == 0
    assert divergence({"a": 0, "b": 0, "c": 0}, train) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"policy": {k: v for k, v in REPORT_ALL.items() if k != "tiny"}},
            "check 'tiny' is missing",
        ),
        ({"policy": {**REPORT_ALL, "blurred": "fail"}}, "unknown check 'blurred'"),
        (
            {"policy": {**REPORT_ALL, "schema": "report"}},
            "policy.schema: 'report' is not possible; say fail",
        ),
        (
            {"policy": {**REPORT_ALL, "photo_count": "quarantine"}},
            "policy.photo_count: 'quarantine' is not possible",
        ),
        ({"labels": None}, r"unknown check 'label_range'.*labels: null"),
        ({"min_photos": {"dev": 3}}, "unknown split 'dev'"),
        ({"max_quarantined_fraction": 1.5}, "1.5 is not between 0 and 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)


NAME = re.compile(r"UTKFace/(\d+)_[01]_[0-4]_\d+\.jpg\.chip\.jpg")


@pytest.mark.real_data
def test_the_dirt_of_utkface_is_found(shared_data: Path, tmp_path: Path) -> None:
    """Counts as known from outside (the data set's own notes), found from the bytes and names
    alone."""
    listed = {}
    for split in ("train", "test"):
        with (shared_data / "utkface" / f"coral_{split}.csv").open(
            encoding="utf-8", newline=""
        ) as lines:
            listed |= {each["filename"]: split for each in csv.DictReader(lines)}
    rows, malformed = [], []
    for part in (1, 2, 3):
        with tarfile.open(shared_data / "utkface" / f"UTKFace-part{part}.tar") as tar:
            for member in filter(tarfile.TarInfo.isfile, tar):
                name, data = NAME.fullmatch(member.name), tar.extractfile(member)
                if not name or data is None:
                    malformed.append(member.name)
                    continue
                changes = {"num_bytes": member.size, "label": float(name[1]), "sha256": data.read()}
                rows.append(row(member.name, sigma=None, **changes))
    assert len(malformed) == 5  # three more have a date of odd length, and are read all the same
    check_results = {
        each.check: each for each in inspect(write(tmp_path, rows), SETTINGS).check_results
    }
    assert check_results["label_range"].found == 21
    assert (check_results["duplicates"].num_groups, check_results["duplicates"].found) == (375, 765)
    assert check_results["contradicting_labels"].num_groups == 205
    names = {
        each["photo_id"]: each["photo_id"].removeprefix("UTKFace/").removesuffix(".chip.jpg")
        for each in rows
    }
    coral = [
        each | {"split": listed[names[each["photo_id"]]]}
        for each in rows
        if names[each["photo_id"]] in listed
    ]
    assert check_result("duplicates_across_splits", tmp_path, coral).num_groups == 83
