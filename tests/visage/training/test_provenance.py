"""Digests notice whatever changes trained weights, and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.small_faces import ALIGNMENT, PAPER, finetune_settings, some_faces, write_faces
from visage.data.face_table import FaceTable
from visage.training.provenance import fingerprint_of, table_digest

CODE = "a digest of the code"


def digest(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return table_digest(FaceTable.open(write_faces(folder, rows), []))


@pytest.mark.parametrize("column", ["sha256", "jpeg", "label", "sigma", "person"])
def test_table_digest_notices_any_face_that_changed(tmp_path: Path, column: str) -> None:
    rows = some_faces(5, 0, 0)
    before = digest(tmp_path / "before", rows)
    assert before["num_faces"] == 5
    rows[3] |= {column: {"sigma": 3.0, "person": "another"}.get(column, rows[2][column])}
    assert digest(tmp_path / "after", rows)["sha256"] != before["sha256"]


def test_table_digest_is_of_the_rows_not_of_their_shards(tmp_path: Path) -> None:
    rows = some_faces()
    write_faces(tmp_path / "three", rows, num_shards=3)
    assert table_digest(FaceTable.open(tmp_path / "three", [])) == digest(tmp_path / "two", rows)
    assert digest(tmp_path / "turned", rows[::-1]) != digest(tmp_path / "two", rows)


def test_fingerprint_notices_settings_data_code_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, settings = some_faces(4, 0, 0), finetune_settings()
    table = FaceTable.open(write_faces(tmp_path / "faces", rows), [])
    other_alignment = write_faces(
        tmp_path / "other", rows, alignment=ALIGNMENT | {"face_scale": 1.0}
    )
    before = fingerprint_of(settings, table, CODE, "backbone")
    deeper = dataclasses.replace(
        settings, augmentations={"paper": dataclasses.replace(PAPER, jitter=0.3)}
    )
    others = [
        fingerprint_of(deeper, table, CODE, "backbone"),
        fingerprint_of(settings, FaceTable.open(other_alignment, []), CODE, "backbone"),
        fingerprint_of(settings, table, "another digest", "backbone"),
        fingerprint_of(settings, table, CODE, "another backbone"),
    ]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 97)
    others.append(fingerprint_of(settings, table, CODE, "backbone"))
    assert len({before, *others}) == 6
    monkeypatch.undo()
    assert fingerprint_of(settings, table, CODE, "backbone") == before
