"""Photos to faces to predictions.

Evaluation predicts for crops (`visage.inference.faces`). Serving, scoring and the command line
predict for photos, and that path ends in the same one: read the photo, find its faces, cut them
out, encode each as a JPEG of the config's quality and decode it again. The align stage does the
same, so a photo gets exactly the numbers that evaluation gave it. The detector's landmarks are
moved into the crop.

Flip averaging: the value is the mean of the face's and its mirror image's values, the distribution
the mean of the two distributions. For the expectation the two agree; the mean of two medians or of
two most probable labels is in general not that of the mean distribution. Then the config's
calibration is applied (visage.inference.calibration): it changes distribution, deviation and
interval, and never the value. Where the config has a temperature, the value is therefore not the
expectation of the distribution in the same result. Legend: B faces of a call, K labels of the grid,
H and W crop side in pixels.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from visage.data.jpeg import decode_jpeg, encode_jpeg
from visage.detection import align
from visage.detection.image_io import PhotoError, read_photo
from visage.detection.mtcnn import Detector, DetectorSettings, Faces
from visage.inference.engine import Engine
from visage.inference.faces import CropPredictor, Observer, Predictions
from visage.model_config import ModelConfig
from visage.networks.protocol import Network

Pixels = npt.NDArray[np.uint8]
PhotoSource = bytes | Path | Image.Image
NO_FACE = "no face found"
# Pillow's image modes that PNG does not hold
TIFF_MODES = ("CMYK", "F", "LAB", "YCbCr")
# Photos beyond are refused before they are decoded
MAX_PHOTO_PIXELS = 100_000_000
# Photos held in memory together: as many as stay below both
GROUP_PHOTOS = 32
GROUP_PIXELS = 50_000_000


@dataclass(frozen=True, kw_only=True)
class FacePrediction:
    """One face: its numbers in label units, its box x0 y0 x1 y1, its five landmarks x y in pixels
    of the upright photo, the detector's probability that it is a face. `chosen` marks the one that
    the align stage would take. `aligned`: the face as the model got it, where it was asked for
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
    aligned: AlignedFace | None = None


@dataclass(frozen=True, kw_only=True)
class PhotoResult:
    """One photo: its upright size in pixels and its faces, largest first; `reason` says why there
    are none: none was found, or (`readable` False, size 0 x 0) the photo could not be read."""

    width: int
    height: int
    faces: tuple[FacePrediction, ...]
    reason: str | None
    readable: bool


class AlignedFace(NamedTuple):
    """A crop, uint8 (crop_px,crop_px,3), and the five landmarks in it, float32 (5,2), pixels of the
    crop."""

    crop_HWC: Pixels
    landmarks_52: npt.NDArray[np.float32]


class Predictor(CropPredictor):
    """A model that predicts for photos; see `CropPredictor`. Photos of more than `max_photo_pixels`
    are refused."""

    def __init__(
        self,
        network: Network | Engine,
        config: ModelConfig,
        *,
        observe: Observer | None = None,
        max_photo_pixels: int = MAX_PHOTO_PIXELS,
    ) -> None:
        super().__init__(network, config, observe=observe)
        self.max_photo_pixels = max_photo_pixels
        self._detector: Detector | None = None

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

    def align(self, photo_HWC: Pixels, landmarks_52: npt.NDArray[np.float32]) -> AlignedFace:
        """One face as the align stage would have stored it."""
        how = self.config.alignment
        template_52 = align.template(how.template, how.crop_px, how.face_scale)
        matrix_23 = align.similarity(landmarks_52, template_52)

        crop_HWC = align.crop(photo_HWC, matrix_23, how.crop_px)
        stored_HWC = decode_jpeg(encode_jpeg(crop_HWC, how.jpeg_quality))
        return AlignedFace(stored_HWC, align.landmarks_in_crop(landmarks_52, matrix_23))

    def predict_aligned(self, faces: Sequence[AlignedFace], flip: bool = True) -> Predictions:
        """The predictions of aligned faces, of none too."""
        return self.predict_crops(*self.stacked(faces), flip=flip)

    def stacked(self, faces: Sequence[AlignedFace]) -> tuple[Tensor, Tensor]:
        """Aligned faces as crops (B,3,crop_px,crop_px) and landmarks (B,5,2)."""
        px = self.config.alignment.crop_px
        crops_BHWC = np.zeros((len(faces), px, px, 3), np.uint8)
        landmarks_B52 = np.zeros((len(faces), 5, 2), np.float32)
        for place, face in enumerate(faces):
            crops_BHWC[place], landmarks_B52[place] = face
        crops_BCHW = torch.from_numpy(crops_BHWC).permute(0, 3, 1, 2)
        return crops_BCHW, torch.from_numpy(landmarks_B52)

    def _predict_group(
        self, group: list[Pixels | str], flip: bool, keep_crops: bool
    ) -> Iterator[PhotoResult]:
        """Decoded photos, or the reasons why there are none -> their results."""
        photos = [photo for photo in group if not isinstance(photo, str)]
        found = self._find_faces(photos)
        seen = list(zip(photos, found, strict=True))

        aligned = []
        for photo, faces in seen:
            aligned += [self.align(photo, points_52) for points_52 in faces.landmarks_N52]
        predictions = self.predict_aligned(aligned, flip)

        counts = [len(faces) for faces in found]
        starts = np.cumsum([0, *counts])
        results = (
            _result(photo, faces, predictions, start, aligned if keep_crops else None)
            for (photo, faces), start in zip(seen, starts[:-1], strict=True)
        )
        for photo_or_reason in group:
            yield _unread(photo_or_reason) if isinstance(photo_or_reason, str) else next(results)

    def _find_faces(self, photos: list[Pixels]) -> list[Faces]:
        """The photos' faces, by the config's detector (made at the first photo)."""
        if self._detector is None:
            template = self.config.alignment.template
            if template not in align.TEMPLATES:
                raise ValueError(
                    f"model {self.config.name!r} was trained on crops of template {template!r}, "
                    f"this code knows {', '.join(align.TEMPLATES)}: use the version of visage that "
                    f"the model's config names"
                )
            settings = dataclasses.asdict(self.config.detector)
            self._detector = Detector(DetectorSettings(**settings))

        return self._detector.detect(photos) if photos else []


def _read(source: PhotoSource, max_pixels: int) -> Pixels | str:
    """A photo as upright RGB pixels, or the reason why not. Pillow images pass as PNG or TIFF,
    which lose nothing."""
    if isinstance(source, Image.Image):
        source = _losslessly(source)
    try:
        return read_photo(source, max_pixels)
    except PhotoError as error:
        return str(error)


def _losslessly(image: Image.Image) -> bytes:
    """A Pillow image, its current frame and orientation, as an encoded file; empty bytes where it
    cannot be decoded."""
    stream = io.BytesIO()
    encoding = "TIFF" if image.mode in TIFF_MODES else "PNG"
    try:
        image.save(stream, encoding, exif=image.getexif())
    # Pillow decodes an opened file only now, and damaged bytes raise nearly anything
    except Exception:
        return b""
    return stream.getvalue()


def _groups(photos: Iterator[Pixels | str]) -> Iterator[list[Pixels | str]]:
    """Neighbours in groups of at most GROUP_PHOTOS; a group also ends with the photo that fills
    GROUP_PIXELS."""
    group: list[Pixels | str] = []
    num_pixels = 0
    for photo in photos:
        group.append(photo)
        if not isinstance(photo, str):
            num_pixels += photo.shape[0] * photo.shape[1]
        if len(group) == GROUP_PHOTOS or num_pixels >= GROUP_PIXELS:
            yield group
            group = []
            num_pixels = 0

    if group:
        yield group


def _unread(reason: str) -> PhotoResult:
    return PhotoResult(width=0, height=0, faces=(), reason=reason, readable=False)


def _result(
    photo_HWC: Pixels,
    faces: Faces,
    predictions: Predictions,
    start: int,
    aligned: list[AlignedFace] | None,
) -> PhotoResult:
    """A photo whose faces' predictions (and aligned faces) begin at row `start` -> its result."""
    height, width = photo_HWC.shape[:2]
    chosen = align.choose_face(faces, width, height) if len(faces) else -1

    results = []
    for index in range(len(faces)):
        row = start + index
        points = faces.landmarks_N52[index].tolist()
        result = FacePrediction(
            value=float(predictions.value[row]),
            std=float(predictions.std[row]),
            low=float(predictions.low[row]),
            high=float(predictions.high[row]),
            probabilities=predictions.probabilities[row],
            box=tuple(faces.boxes_N4[index].tolist()),
            landmarks=tuple(tuple(point) for point in points),
            probability=float(faces.probabilities_N[index]),
            chosen=index == chosen,
            aligned=aligned[row] if aligned else None,
        )
        results.append(result)

    return PhotoResult(
        width=width,
        height=height,
        faces=tuple(results),
        reason=None if results else NO_FACE,
        readable=True,
    )


def as_document(result: PhotoResult, config: ModelConfig) -> dict[str, Any]:
    """A photo's result as plain JSON values: which model predicted what in which unit, and each
    face's numbers, without its crop."""
    faces = []
    for face in result.faces:
        row = vars(face) | {"probabilities": face.probabilities.tolist()}
        del row["aligned"]
        faces.append(row)

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
        "photo": {"width": result.width, "height": result.height},
        "faces": faces,
        "reason": result.reason,
    }
