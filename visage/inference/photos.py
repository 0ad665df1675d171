"""The only inference path, with two doors: crops -> predictions, and photos -> faces ->
predictions.

Evaluation knocks at the first door, serving, scoring and the command line at the second, and the
second goes through the first: read the photo, find its faces, cut them out, keep each as a JPEG of
the config's quality and read it back, as the align stage does, so that a photo gets exactly the
numbers that evaluation gave it.

    python -m visage.inference.photos PHOTO [--model FOLDER] [--flip | --no-flip]     (or: make predict PHOTO=...)

prints one JSON document. Flip averaging: the value is the mean of the face's and its mirror image's
values, the distribution the mean of the two distributions. For the expectation the two agree; the
mean of two medians or of two most probable labels is in general not that of the mean distribution.
Then the config's calibration is applied (visage.inference.calibration): it changes distribution,
deviation and interval, and never the value, which is therefore not the expectation of the
distribution beside it where the config has a temperature. Legend: B faces of a call, K labels of
the grid, H and W crop side in pixels.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from visage.inference.engine import Engine
from visage.inference.faces import CropPredictor, Predictions
from visage.model_config import ModelConfig

Pixels = npt.NDArray[np.uint8]
PhotoSource = bytes | Path | Image.Image
NO_FACE = "no face found"
TIFF_MODES = ("CMYK", "F", "LAB", "YCbCr")  # of Pillow's, those that PNG does not hold
MAX_PHOTO_PIXELS = 100_000_000  # photos beyond are refused before they are decoded
GROUP_PHOTOS, GROUP_PIXELS = (
    32,
    50_000_000,
)  # photos held in memory together: as many as stay below both


@dataclass(frozen=True, kw_only=True)
class FacePrediction:
    """One face: its numbers in label units, its box x0 y0 x1 y1, its five landmarks x y in pixels
    of the upright photo, the detector's probability that it is a face. `chosen` marks the one that
    the align stage would take. `crop_HW3`: the face as the model got it, where it was asked for
    (`keep_crops`)."""

    value: float
    std: float
    low: float
    high: float
    probabilities: npt.NDArray[np.float32]
    box: tuple[float, ...]
    landmarks: tuple[tuple[float, ...], ...]
    probability: float
    chosen: bool
    crop_HW3: Pixels | None = None


@dataclass(frozen=True, kw_only=True)
class PhotoResult:
    """One photo: its upright size in pixels and its faces, largest first; `reason` says why there
    are none, be it that none was found or (`readable` False, size 0 x 0) that the photo could not
    be read."""

    width: int
    height: int
    faces: tuple[FacePrediction, ...]
    reason: str | None
    readable: bool


class Predictor(CropPredictor):
    """A model that answers. `network` is a torch network or any other `Engine` that computes the
    same (see export). Photos of more than `max_photo_pixels` are refused."""

    def __init__(
        self,
        network: nn.Module | Engine,
        config: ModelConfig,
        max_photo_pixels: int = MAX_PHOTO_PIXELS,
    ) -> None:
        super().__init__(network, config)
        self.max_photo_pixels = max_photo_pixels
        self._detector: Any = None

    def predict_photos(
        self, photos: Iterable[PhotoSource], flip: bool = True, keep_crops: bool = False
    ) -> list[PhotoResult]:
        """Photos (encoded bytes, paths or Pillow images) -> one result each, in order.

        A photo that cannot be read gives a result that says why and leaves the others alone.
        """
        return list(self.stream_photos(photos, flip, keep_crops))

    def stream_photos(
        self, photos: Iterable[PhotoSource], flip: bool = True, keep_crops: bool = False
    ) -> Iterator[PhotoResult]:
        """`predict_photos` for any number of photos: results come as soon as a group is done,
        memory stays flat.

        The faces of a group of photos (see GROUP_PHOTOS) go through the network together.
        """
        for group in _groups(_read(source, self.max_photo_pixels) for source in photos):
            yield from self._predict_group(group, flip, keep_crops)

    def _predict_group(
        self, group: list[Pixels | str], flip: bool, keep_crops: bool
    ) -> Iterator[PhotoResult]:
        """Decoded photos, or the reasons why there are none -> their results."""
        photos = [photo for photo in group if not isinstance(photo, str)]
        found = self._find_faces(photos)
        seen = list(zip(photos, found, strict=True))
        crops = [
            self.crop(photo, points_52)
            for photo, faces in seen
            for points_52 in faces.landmarks_N52
        ]
        px = self.config.alignment.crop_px
        crops_BHWC = (
            torch.from_numpy(np.stack(crops))
            if crops
            else torch.zeros(0, px, px, 3, dtype=torch.uint8)
        )
        predictions = self.predict_crops(crops_BHWC.permute(0, 3, 1, 2), flip)
        starts = np.cumsum([0, *(len(faces) for faces in found)])
        results = (
            _result(photo, faces, predictions, start, crops if keep_crops else None)
            for (photo, faces), start in zip(seen, starts[:-1], strict=True)
        )
        for photo_or_reason in group:
            yield _unread(photo_or_reason) if isinstance(photo_or_reason, str) else next(results)

    def _find_faces(self, photos: list[Pixels]) -> list[Any]:
        """The photos' faces, by the config's detector (made at the first photo)."""
        from visage.detection.align import TEMPLATES
        from visage.detection.mtcnn import Detector, DetectorSettings

        if self._detector is None:
            if self.config.alignment.template not in TEMPLATES:
                raise ValueError(
                    f"model {self.config.name!r} was trained on crops of template "
                    f"{self.config.alignment.template!r}, this "
                    f"code knows {', '.join(TEMPLATES)}: use the version of visage that the "
                    f"model's config names"
                )
            self._detector = Detector(DetectorSettings(**dataclasses.asdict(self.config.detector)))
        found: list[Any] = self._detector.detect(photos) if photos else []
        return found

    def crop(self, photo_HWC: Pixels, landmarks_52: npt.NDArray[np.float32]) -> Pixels:
        """One face as the align stage would have stored it, uint8 (crop_px, crop_px, 3)."""
        from visage.detection import align

        how = self.config.alignment
        matrix_23 = align.similarity(
            landmarks_52, align.template(how.template, how.crop_px, how.face_scale)
        )
        return align.decode(
            align.encode(align.crop(photo_HWC, matrix_23, how.crop_px), how.jpeg_quality)
        )


def _read(source: PhotoSource, max_pixels: int) -> Pixels | str:
    """A photo as upright RGB pixels, or the reason why not. Pillow images pass as PNG or TIFF,
    which lose nothing."""
    from visage.detection.image_io import PhotoError, read_photo

    try:
        return read_photo(
            _losslessly(source) if isinstance(source, Image.Image) else source, max_pixels
        )
    except PhotoError as error:
        return str(error)


def _losslessly(image: Image.Image) -> bytes:
    """A Pillow image, its current frame and orientation, as an encoded file; empty bytes where it
    cannot be decoded."""
    stream = io.BytesIO()
    try:
        image.save(stream, "TIFF" if image.mode in TIFF_MODES else "PNG", exif=image.getexif())
    except (
        Exception
    ):  # Pillow decodes an opened file only now, and damaged bytes raise nearly anything
        return b""
    return stream.getvalue()


def _groups(photos: Iterator[Pixels | str]) -> Iterator[list[Pixels | str]]:
    """Neighbours in groups of at most GROUP_PHOTOS; a group also ends with the photo that fills
    GROUP_PIXELS."""
    group: list[Pixels | str] = []
    num_pixels = 0
    for photo in photos:
        group.append(photo)
        num_pixels += 0 if isinstance(photo, str) else photo.shape[0] * photo.shape[1]
        if len(group) == GROUP_PHOTOS or num_pixels >= GROUP_PIXELS:
            yield group
            group, num_pixels = [], 0
    if group:
        yield group


def _unread(reason: str) -> PhotoResult:
    return PhotoResult(width=0, height=0, faces=(), reason=reason, readable=False)


def _result(
    photo_HWC: Pixels,
    faces: Any,
    predictions: Predictions,
    start: int,
    crops: list[Pixels] | None,
) -> PhotoResult:
    """A photo whose faces' predictions (and crops) begin at row `start` -> its result."""
    from visage.detection.align import choose_face

    height, width = photo_HWC.shape[:2]
    chosen = choose_face(faces, width, height) if len(faces) else -1
    rows = tuple(
        FacePrediction(
            **{
                name: float(getattr(predictions, name)[start + index])
                for name in ("value", "std", "low", "high")
            },
            probabilities=predictions.probabilities[start + index],
            box=tuple(faces.boxes_N4[index].tolist()),
            landmarks=tuple(tuple(point) for point in faces.landmarks_N52[index].tolist()),
            probability=float(faces.probabilities_N[index]),
            chosen=index == chosen,
            crop_HW3=crops[start + index] if crops else None,
        )
        for index in range(len(faces))
    )
    return PhotoResult(
        width=width, height=height, faces=rows, reason=None if rows else NO_FACE, readable=True
    )


def as_document(result: PhotoResult, config: ModelConfig) -> dict[str, Any]:
    """A photo's result as plain JSON values: which model predicted what in which unit, and each
    face's numbers, without its crop."""
    faces = [
        {name: value for name, value in vars(face).items() if name != "crop_HW3"}
        | {"probabilities": face.probabilities.tolist()}
        for face in result.faces
    ]
    return {
        "model": {
            "name": config.name,
            "sha256": config.weights.sha256,
            "method": config.method,
            "decode": config.decode,
        }
        | {
            "code": config.code,
            "calibration": config.calibration and dataclasses.asdict(config.calibration),
        },
        "quantity": config.quantity,
        "unit": config.unit,
        "labels": dataclasses.asdict(config.grid),
        "photo": {"width": result.width, "height": result.height},
        "faces": faces,
        "reason": result.reason,
    }
