"""Small manifests with one planted defect, and the settings that they are checked with."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.checks.settings import POLICIES, LabelSettings, ValidateSettings
from visage.data.schemas import MANIFEST_SCHEMA

Row = dict[str, Any]
REPORT_ALL = {name: "fail" if name == "schema" else "report" for name in POLICIES}
SETTINGS = ValidateSettings(
    labels=LabelSettings(
        minimum=0.0, maximum=100.0, sigma_minimum=0.5, sigma_maximum=20.0, max_gap=0.0, max_kl=0.5
    ),
    min_px=32,
    max_px=5000,
    max_aspect_ratio=3.0,
    min_bytes_per_px=0.02,
    min_images_per_person=2,
    min_photos={"train": 10, "val": 5, "test": 5},
    max_group_kl=0.5,
    keep_test=False,
    max_quarantined_fraction=0.5,
    policy=REPORT_ALL,
)


def with_policy(settings: ValidateSettings, **policy: str) -> ValidateSettings:
    return replace(settings, policy={**settings.policy, **policy})  # type: ignore[dict-item]


def row(name: str, **changes: Any) -> Row:
    clean = {
        "photo_id": name,
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "num_bytes": 9000,
        "width": 200,
        "height": 220,
        "unreadable": None,
        "label": 30.0,
        "sigma": 2.0,
        "half_width": None,
        "person": None,
        "sex": "female",
        "ethnicity": None,
        "split": "train",
    }
    changes = {
        key: hashlib.sha256(value).hexdigest() if key == "sha256" else value
        for key, value in changes.items()
    }
    assert changes.keys() <= clean.keys()
    return clean | changes


SAME = {"sha256": b"same"}  # the bytes of identical pictures


def clean_rows() -> list[Row]:
    return [
        row(f"c{place:02d}.jpg", split=split)
        for place, split in enumerate(["train"] * 12 + ["val"] * 6 + ["test"] * 6)
    ]


def write(folder: Path, rows: list[Row], schema: pa.Schema = MANIFEST_SCHEMA) -> Path:
    path = folder / "manifest.parquet"
    pq.write_table(
        pa.Table.from_pylist(sorted(rows, key=lambda each: each["photo_id"]), schema=schema), path
    )
    return path
