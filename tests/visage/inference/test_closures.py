"""Predicting for aligned faces imports no detector."""

from __future__ import annotations

import pytest

from tests.conftest import REPOSITORY
from tests.imports import closure


@pytest.mark.parametrize(
    "module",
    [
        "visage.inference.faces",
        "visage.inference.predict_table",
        "visage.inference.onnx_engine",
        "visage.export.int8",
        "stages.calibrate",
        "stages.evaluate",
        "stages.explain",
        "stages.export",
    ],
)
def test_crops_need_no_detector(module: str) -> None:
    project, foreign = closure(REPOSITORY, module)
    assert not {"visage.inference.photos", "visage.detection.mtcnn"} & project
    assert "facenet_pytorch" not in foreign


def test_photos_do() -> None:
    assert "facenet_pytorch" in closure(REPOSITORY, "visage.inference.photos")[1]
