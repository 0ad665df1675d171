"""The shipped networks are the installed facenet-pytorch's, byte for byte and number by number."""

from __future__ import annotations

import numpy as np
import pytest

from visage.detection.cascade_networks import cascade_networks
from visage.detection.onnx_networks import FOLDER
from visage.export.detector_onnx import detector_models


def test_the_shipped_files_are_what_the_weights_give() -> None:
    models = detector_models()
    assert set(models) == {path.name for path in FOLDER.glob("*.onnx")}
    for name, data in models.items():
        assert (FOLDER / name).read_bytes() == data, (
            f"{name}: run `python -m visage.export.detector_onnx`"
        )
    assert "Timothy Esler" in (FOLDER / "LICENSE.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        ("propose", (1, 3, 12, 12)),
        ("propose", (2, 3, 37, 58)),
        ("propose", (1, 3, 64, 45)),
        ("refine", (1, 3, 24, 24)),
        ("refine", (37, 3, 24, 24)),
        ("output", (1, 3, 48, 48)),
        ("output", (21, 3, 48, 48)),
    ],
)
def test_outputs_equal_torchs(part: str, shape: tuple[int, ...]) -> None:
    """Noise and flat pictures: every sign of every slope is reached."""
    rng = np.random.default_rng(len(shape))
    for spread in (0.1, 1.0):
        pixels = rng.uniform(-spread, spread, shape).astype(np.float32)
        pixels += rng.uniform(-1, 1, (*shape[:2], 1, 1)).astype(np.float32)
        found, expected = (
            getattr(cascade_networks(backend, 1), part)(pixels) for backend in ("onnx", "torch")
        )
        for mine, theirs in zip(found, expected, strict=True):
            assert mine.dtype == np.float32
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=5e-6)
