"""What a model says of a photo: its faces, each with its numbers, and the JSON document of them.

Legend: K labels of the grid, H and W of the photo in pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from visage.inference.drawing import Marked, drawn
from visage.labels import LabelGrid
from visage.model_config import ModelConfig

Pixels = npt.NDArray[np.uint8]


class AlignedFace(NamedTuple):
    """A crop, uint8 (crop_px,crop_px,3), and the five landmarks in it, float32 (5,2), pixels of the
    crop."""

    crop_HWC: Pixels
    landmarks_52: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class FacePrediction:
    """One face of a photo.

    `value`, `std`, and the ends `low` and `high` of the 80 % interval are in `unit`, that of the
    `quantity`. `distribution` holds the probability (K,) of each of the `labels` (K,). `box` is x0
    y0 x1 y1 and `landmarks` five points x y (left eye, right eye, nose tip, left and right corner
    of the mouth, as seen in the picture), in pixels of the upright photo; they may be outside it.
    `probability` is the detector's, that this is a face. `chosen` marks the one face of the photo
    that training would have taken. `aligned`: the face as the model got it, where asked for.
    """

    value: float
    std: float
    low: float
    high: float
    distribution: npt.NDArray[np.float32]
    box: tuple[float, ...]
    landmarks: tuple[tuple[float, ...], ...]
    probability: float
    chosen: bool
    quantity: str
    unit: str
    grid: LabelGrid
    aligned: AlignedFace | None = None

    @property
    def labels(self) -> npt.NDArray[np.float64]:
        """The labels (K,) of the distribution, in `unit`."""
        return self.grid.labels()

    def __repr__(self) -> str:
        """Value and interval as a person reads them: `31.2 years (26 to 37)`."""
        return f"{self.value_text()} ({self.interval_text()})"

    def value_text(self) -> str:
        """The value as a person reads it, one digit finer than the labels: `31.2 years`."""
        return f"{self.value:.{self._decimals() + 1}f} {self.unit}"

    def interval_text(self) -> str:
        """The 80 % interval as a person reads it: `26 to 37`."""
        decimals = self._decimals()
        return f"{self.low:.{decimals}f} to {self.high:.{decimals}f}"

    def _decimals(self) -> int:
        """Those of the labels."""
        return max(0, math.ceil(-math.log10(self.grid.step) - 1e-9))

    def to_dict(self, distribution: bool = True) -> dict[str, Any]:
        """The face's entry in the photo's JSON document, with its `probabilities` or without."""
        document: dict[str, Any] = {
            "value": self.value,
            "std": self.std,
            "low": self.low,
            "high": self.high,
        }
        if distribution:
            document["probabilities"] = self.distribution.tolist()
        return document | {
            "box": self.box,
            "landmarks": self.landmarks,
            "probability": self.probability,
            "chosen": self.chosen,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class PhotoPrediction:
    """A photo: its upright size in pixels and its `faces`, largest first.

    A sequence of its faces: `len(result)`, `result[0]`, `for face in result`. `reason` says why
    there are none: none was found, or (`readable` False, size 0 x 0) the photo could not be read.
    `pixels` reads the photo again, upright RGB uint8 (H,W,3), for `draw`.
    """

    width: int
    height: int
    faces: tuple[FacePrediction, ...]
    reason: str | None
    readable: bool
    config: ModelConfig
    pixels: Callable[[], Pixels] = field(repr=False)

    def __len__(self) -> int:
        return len(self.faces)

    def __bool__(self) -> bool:
        return bool(self.faces)

    def __iter__(self) -> Iterator[FacePrediction]:
        return iter(self.faces)

    @overload
    def __getitem__(self, index: int) -> FacePrediction: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[FacePrediction, ...]: ...
    def __getitem__(self, index: int | slice) -> FacePrediction | tuple[FacePrediction, ...]:
        return self.faces[index]

    def __repr__(self) -> str:
        if not self.readable:
            return f"<unreadable photo: {self.reason}>"
        faces = ", ".join(map(repr, self.faces))
        return f"<photo of {self.width} x {self.height} px: {faces or self.reason}>"

    def to_dict(self, distribution: bool = True) -> dict[str, Any]:
        """The photo's JSON document: which model predicted what in which unit, and each face's
        numbers, with its `probabilities` or without."""
        faces = [face.to_dict(distribution) for face in self.faces]
        return document(self.config, self.width, self.height, faces, self.reason)

    def draw(self) -> Image.Image:
        """The upright photo with each face's box and value, a new Pillow image in RGB.

        The photo is read again. Raises PhotoError where it cannot be read (any more).
        """
        marks = [Marked(face.box, repr(face)) for face in self.faces]
        return drawn(self.pixels(), marks)


def document(
    config: ModelConfig, width: int, height: int, faces: list[dict[str, Any]], reason: str | None
) -> dict[str, Any]:
    """The JSON document of a picture, `faces` as `FacePrediction.to_dict` gives them."""
    return {
        "model": {
            "name": config.name,
            "sha256": config.weights.sha256,
            "method": config.method,
            "decode": config.decode,
            "code": config.code,
            "calibration": config.calibration and dataclasses.asdict(config.calibration),
        },
        "quantity": config.quantity,
        "unit": config.unit,
        "labels": dataclasses.asdict(config.grid),
        "photo": {"width": width, "height": height},
        "faces": faces,
        "reason": reason,
    }
