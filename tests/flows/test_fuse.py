"""`visage fuse`: two models become one folder that predicts; wrong ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.command import refused, visage
from tests.small_model import small_model, some_crops
from visage.inference.faces import CropPredictor
from visage.inference.onnx_engine import ONNX_FILE, load_onnx
from visage.weights import load_model


@pytest.mark.parametrize("rule", ["mean", "gate"])
def test_two_models_become_one_that_both_runtimes_answer_with(tmp_path: Path, rule: str) -> None:
    models = [small_model(tmp_path / name, name=name) for name in ("one", "two")]
    output = tmp_path / "fused"
    second = ["--second-stream", "two"]
    done = visage("fuse", *models, "--output", output, "--rule", rule, *second)
    assert done.exit_code == 0

    crops_BCHW = some_crops(5)
    expected = CropPredictor(*load_model(models[0])).predict_crops(crops_BCHW).value
    found = CropPredictor(*load_model(output)).predict_crops(crops_BCHW).value
    in_onnx = CropPredictor(*load_onnx(output / ONNX_FILE)).predict_crops(crops_BCHW).value
    np.testing.assert_allclose(found, expected, atol=0.05)  # both are one model, in float16 here
    np.testing.assert_allclose(in_onnx, found, atol=1e-3)


def test_models_that_are_not_there_are_refused_with_those_released(tmp_path: Path) -> None:
    one = small_model(tmp_path / "one", name="one")
    output = ["--output", tmp_path / "fused"]
    told = refused("fuse", one, "nowhere", *output)
    assert "no released model; the released ones: tiny-utkface-all-ages" in told
    assert "the second model called one" in refused("fuse", one, one, *output)
    assert "one model alone is not fused" in refused("fuse", one, *output)
    assert not (tmp_path / "fused").exists()
