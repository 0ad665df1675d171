"""Digests notice whatever changes trained weights, and nothing else."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.imports import REPOSITORY, code_dependencies
from tests.small_faces import ALIGNMENT, PAPER, finetune_settings, some_faces, write_faces
from visage.data.face_table import FaceTable
from visage.training import provenance
from visage.training.provenance import TRAINING_CODE, code_digest, fingerprint_of, table_digest

STAGE = REPOSITORY / "stages" / "finetune.py"
# Imported by the training stages without a say in what the weights become: the config is written
# after training (its normalisation is among the settings), lineage and schemas only name things.
WITHOUT_A_SAY = {
    "visage/__init__.py",
    "visage/model_config.py",
    "visage/training/provenance.py",
    "visage/data/schemas.py",
    "visage/atomic.py",
    "stages/exit_status.py",
    "stages/settings.py",
    "stages/warm_start.py",
    "stages/__init__.py",
}


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
    before = fingerprint_of(settings, table, STAGE, "backbone")
    deeper = dataclasses.replace(
        settings, augmentations={"paper": dataclasses.replace(PAPER, jitter=0.3)}
    )
    others = [
        fingerprint_of(deeper, table, STAGE, "backbone"),
        fingerprint_of(settings, FaceTable.open(other_alignment, []), STAGE, "backbone"),
        fingerprint_of(settings, table, STAGE.with_name("pretrain.py"), "backbone"),
        fingerprint_of(settings, table, STAGE, "another backbone"),
    ]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 97)
    others.append(fingerprint_of(settings, table, STAGE, "backbone"))
    assert len({before, *others}) == 6
    monkeypatch.undo()
    assert fingerprint_of(settings, table, STAGE, "backbone") == before


def test_code_digest_sees_the_code_and_not_its_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(
        REPOSITORY / "visage", tmp_path / "visage", ignore=shutil.ignore_patterns("__pycache__")
    )
    stage = Path(shutil.copy(STAGE, tmp_path))
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "visage" / "lineage.py"))
    before = code_digest(stage)
    for name in ("methods.py", "networks/vgg.py"):
        source = tmp_path / "visage" / name
        text = source.read_text(encoding="utf-8")
        source.write_text(f"# a comment\n\n{text}", encoding="utf-8")
        assert code_digest(stage) == before
        source.write_text(f"{text}\nANOTHER = 1\n", encoding="utf-8")
        assert code_digest(stage) != before
        source.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_training_code_is_what_the_stages_import(stage: str) -> None:
    """A new module that trains must be named, or its edits would leave old checkpoints standing."""
    room = REPOSITORY / "visage"
    named = {
        path.relative_to(REPOSITORY).as_posix()
        for pattern in TRAINING_CODE
        for path in room.glob(pattern)
    }
    imported = (
        set(code_dependencies(REPOSITORY, f"stages.{stage}"))
        - {f"stages/{stage}.py"}
        - WITHOUT_A_SAY
    )
    assert imported <= named
    assert all(any(room.glob(pattern)) for pattern in TRAINING_CODE)
