"""What several stages start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.pretrain import pretrain
from tests.small_faces import pretrain_settings, some_faces, write_faces


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone of four people."""
    folder = tmp_path_factory.mktemp("identity")
    pretrain(
        pretrain_settings(epochs=1),
        faces=write_faces(folder / "faces", some_faces()),
        checkpoints=folder / "checkpoints",
        backbone=folder / "backbone",
        history=folder / "pretrain.csv",
        report=lambda *_: None,
    )
    return folder / "backbone"
