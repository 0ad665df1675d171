"""Faces with names become a backbone: who is cut, what is learnt, what is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file

from stages.exit_status import MICRO_BATCHES
from stages.pretrain import PretrainSettings, pretrain
from tests.small_faces import ALIGNMENT, RECIPE, pretrain_settings, some_faces, write_faces
from visage.weights import sha256_of


def run(folder: Path, faces: Path, settings: PretrainSettings) -> dict[str, Any]:
    """The backbone's JSON after a run in `folder`."""
    pretrain(
        settings,
        faces=faces,
        checkpoints=folder / "checkpoints",
        backbone=folder / "backbone",
        history=folder / "pretrain.csv",
        report=lambda *_: None,
    )
    document: dict[str, Any] = json.loads(
        (folder / "backbone" / "backbone.json").read_text(encoding="utf-8")
    )
    return document


def people_of(rows: list[dict[str, Any]]) -> dict[str, int]:
    train = [row["person"] for row in rows if row["split"] == "train" and row["person"] is not None]
    return {name: train.count(name) for name in train}


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return write_faces(tmp_path / "faces", some_faces())


def test_backbone_says_what_it_is(tmp_path: Path, faces: Path) -> None:
    document = run(tmp_path, faces, pretrain_settings())
    assert document["network"] == {"name": "tiny", "options": {"pooling": "hybrid"}}
    assert (document["num_people"], document["start"]) == (4, None)
    assert document["alignment"] == ALIGNMENT
    assert document["data"]["num_faces"] == 20
    assert document["weights"]["sha256"] == sha256_of(
        tmp_path / "backbone" / "backbone.safetensors"
    )
    assert load_file(tmp_path / "backbone" / "backbone.safetensors")["head.weight"].shape == (
        4,
        128,
    )
    history = pd.read_csv(tmp_path / "pretrain.csv")
    assert history["epoch"].tolist() == [1, 2]
    figures = {"epoch", "train_loss", "learning_rate", "val_top1"}
    assert set(history) == figures | {"seconds", "processor_seconds"}
    assert history["val_top1"].between(0, 1).all()
    assert document["last_epoch"] == history.iloc[-1].to_dict()


def test_a_run_in_small_parts_is_noted(
    tmp_path: Path, faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MICRO_BATCHES, "2")
    assert run(tmp_path, faces, pretrain_settings(epochs=1))["micro_batches"] == 2


def test_people_with_too_few_training_photos_are_cut(tmp_path: Path) -> None:
    rows = some_faces()
    train = [row for row in rows if row["split"] == "train"]
    for row, name in zip(train, ["rare"] + ["twice"] * 2 + ["thrice"] * 3, strict=False):
        row["person"] = name
    train[6]["person"] = train[7]["person"] = train[8]["person"] = train[9]["person"] = None
    faces = write_faces(tmp_path / "faces", rows)
    for minimum in (1, 2, 3):
        kept = [name for name, count in people_of(rows).items() if count >= minimum]
        document = run(
            tmp_path / str(minimum),
            faces,
            pretrain_settings(min_images_per_person=minimum, epochs=1),
        )
        assert document["num_people"] == len(kept)


def test_only_those_who_are_kept_are_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kept face once an epoch, each with its own person's index."""
    rows = some_faces()
    next(row for row in rows if row["split"] == "train")["person"] = "rare"
    seen: list[int] = []
    plain = pretrain.__globals__["functional"].cross_entropy

    def watched(logits: Any, target: Any) -> Any:
        seen.extend(target.tolist())
        return plain(logits, target)

    monkeypatch.setattr("stages.pretrain.functional.cross_entropy", watched)
    run(tmp_path, write_faces(tmp_path / "faces", rows), pretrain_settings(epochs=1))
    counts = people_of(rows)
    expected = [counts[f"person {number}"] for number in range(4)]
    assert [seen.count(index) for index in range(4)] == expected
    assert len(seen) == sum(expected) == 19


@pytest.mark.parametrize("minimum", [50, 7])
def test_fewer_than_two_people_are_refused(tmp_path: Path, minimum: int) -> None:
    rows = some_faces(8, 0, 0)
    for row in rows:
        row["person"] = "the same"
    faces = write_faces(tmp_path / "faces", rows)
    with pytest.raises(
        ValueError, match=rf"[01] people have {minimum} or more .*min_images_per_person"
    ):
        run(tmp_path, faces, pretrain_settings(min_images_per_person=minimum))


@pytest.mark.parametrize("without", ["faces", "people"])
def test_validation_that_knows_nobody_gives_no_figure(tmp_path: Path, without: str) -> None:
    rows = some_faces(20, 0 if without == "faces" else 3, 0)
    for row in rows:
        if row["split"] == "val":
            row["person"] = "a stranger"
    run(tmp_path, write_faces(tmp_path / "faces", rows), pretrain_settings(epochs=1))
    assert "val_top1" not in pd.read_csv(tmp_path / "pretrain.csv")


def test_people_are_learnt(tmp_path: Path) -> None:
    """Stripes distinguish the four people, in validation too; chance is a quarter."""
    recipe = dataclasses.replace(RECIPE, learning_rate=5e-3)
    settings = pretrain_settings(epochs=8, recipes={"small": recipe}, augmentation="none")
    run(tmp_path, write_faces(tmp_path / "faces", some_faces(64, 24, 0)), settings)
    history = pd.read_csv(tmp_path / "pretrain.csv")
    assert history["train_loss"].iloc[-1] < 0.5 * history["train_loss"].iloc[0]
    assert history["val_top1"].iloc[-1] > 0.7
