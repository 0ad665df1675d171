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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from visage.data.jpeg import decode_jpeg, encode_jpeg
from visage.detection import align
from visage.detection.image_io import MAX_PIXELS, PhotoError, read_photo
from visage.detection.mtcnn import Detector, DetectorSettings, Faces
from visage.inference.engine import Engine
from visage.inference.faces import CropPredictor, Observer, Predictions, as_engine
from visage.inference.onnx_engine import OnnxEngine
from visage.inference.results import AlignedFace, FacePrediction, PhotoPrediction, Pixels
from visage.model_config import DetectorConfig, ModelConfig

if TYPE_CHECKING:
    from visage.networks.protocol import Network

PhotoSource = str | Path | bytes | Image.Image | Pixels
Runtime = Literal["onnx", "torch"]
NO_FACE = "no face found"
# Pillow's image modes that PNG does not hold
TIFF_MODES = ("CMYK", "F", "LAB", "YCbCr")
# Photos held in memory together: as many as stay below both
GROUP_PHOTOS = 32
GROUP_PIXELS = 50_000_000


class FaceDetector(Protocol):
    """Whatever finds faces: RGB uint8 photos of any sizes (H,W,3) -> the faces of each."""

    def detect(self, photos: Sequence[Pixels]) -> list[Faces]: ...


class Model(CropPredictor):
    """A model that predicts for photos; `visage.load` makes it.

    `network`: an engine, or a torch network. `flip`: whether a face is averaged with its mirror
    image, where a call does not say. `detector`: finds the faces; by default the config's, on the
    engine's own runtime, made at the first photo. `num_threads`: those that a torch network and the
    config's detector compute on. `observe`: see `CropPredictor`. Photos of more than
    `max_photo_pixels` are refused.
    """

    def __init__(
        self,
        network: Engine | Network,
        config: ModelConfig,
        *,
        flip: bool = True,
        detector: FaceDetector | None = None,
        num_threads: int = 1,
        observe: Observer | None = None,
        max_photo_pixels: int = MAX_PIXELS,
    ) -> None:
        engine = as_engine(network, config, num_threads=num_threads)
        super().__init__(engine, config, observe=observe)
        self.flip = flip
        self.max_photo_pixels = max_photo_pixels
        self._aligner = FaceAligner(config, detector or self._own_detector(num_threads))

    def __repr__(self) -> str:
        return f"<model {self.config.name}: {self.config.quantity} in {self.config.unit}>"

    def predict(
        self, photo: PhotoSource, *, flip: bool | None = None, keep_crops: bool = False
    ) -> PhotoPrediction:
        """A photo's faces and what the model says of them.

        `photo` is a path, the bytes of a picture file, a Pillow image or an RGB uint8 array
        (H,W,3). `flip` overrides the model's own. `keep_crops` keeps each face as the model got it.
        Raises PhotoError for a photo that cannot be read.
        """
        [result] = self.predict_many([photo], flip=flip, keep_crops=keep_crops)
        if not result.readable:
            name = f"{photo}: " if isinstance(photo, str | Path) else ""
            raise PhotoError(f"{name}{result.reason}")
        return result

    def predict_many(
        self,
        photos: Iterable[PhotoSource],
        *,
        flip: bool | None = None,
        keep_crops: bool = False,
    ) -> Iterator[PhotoPrediction]:
        """`predict` for any number of photos, in order: results come as soon as a group of photos
        is done, memory stays flat.

        A photo that cannot be read gives a result that is not `readable` and leaves the others
        alone. The faces of a group of photos (see GROUP_PHOTOS) go through the network together.
        """
        averaged = self.flip if flip is None else flip
        pairs = ((source, _read(source, self.max_photo_pixels)) for source in photos)
        for group in _groups(pairs):
            yield from self._predict_group(group, averaged, keep_crops)

    def predict_aligned(
        self, faces: Sequence[AlignedFace], *, flip: bool | None = None
    ) -> Predictions:
        """The predictions of aligned faces, of none too."""
        averaged = self.flip if flip is None else flip
        return self.predict_crops(*self.stacked(faces), flip=averaged)

    def stacked(
        self, faces: Sequence[AlignedFace]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Aligned faces as crops (B,3,crop_px,crop_px) and landmarks (B,5,2)."""
        px = self.config.alignment.crop_px
        crops_BHWC = np.zeros((len(faces), px, px, 3), np.uint8)
        landmarks_B52 = np.zeros((len(faces), 5, 2), np.float32)
        for place, face in enumerate(faces):
            crops_BHWC[place], landmarks_B52[place] = face
        return crops_BHWC.transpose(0, 3, 1, 2), landmarks_B52

    def _own_detector(self, num_threads: int) -> FaceDetector:
        runtime: Runtime = "onnx" if isinstance(self._engine, OnnxEngine) else "torch"
        return Mtcnn(self.config.detector, runtime, num_threads)

    def _predict_group(
        self, group: list[ReadPhoto], flip: bool, keep_crops: bool
    ) -> Iterator[PhotoPrediction]:
        """Sources, each decoded or with the reason why not -> their results."""
        photos = [photo for _, photo in group if not isinstance(photo, str)]
        found = self._aligner.find(photos)

        aligned: list[AlignedFace] = []
        for photo, faces in zip(photos, found, strict=True):
            aligned += [self._aligner.cut(photo, points) for points in faces.landmarks_N52]
        predictions = self.predict_aligned(aligned, flip=flip)

        start = 0
        remaining = iter(found)
        for source, photo_or_reason in group:
            pixels = partial(read_source, source, self.max_photo_pixels)
            if isinstance(photo_or_reason, str):
                yield self._unread(photo_or_reason, pixels)
                continue

            faces = next(remaining)
            rows = range(start, start + len(faces))
            start += len(faces)
            kept = [aligned[row] for row in rows] if keep_crops else None
            height, width = photo_or_reason.shape[:2]
            yield PhotoPrediction(
                width=width,
                height=height,
                faces=self._faces(faces, predictions, rows, kept, width, height),
                reason=None if len(faces) else NO_FACE,
                readable=True,
                config=self.config,
                pixels=pixels,
            )

    def _unread(self, reason: str, pixels: partial[Pixels]) -> PhotoPrediction:
        return PhotoPrediction(
            width=0,
            height=0,
            faces=(),
            reason=reason,
            readable=False,
            config=self.config,
            pixels=pixels,
        )

    def _faces(
        self,
        faces: Faces,
        predictions: Predictions,
        rows: range,
        aligned: list[AlignedFace] | None,
        width: int,
        height: int,
    ) -> tuple[FacePrediction, ...]:
        """A photo's faces, whose predictions are `rows` of those of a group."""
        chosen = align.choose_face(faces, width, height) if len(faces) else -1

        results = []
        for index, row in enumerate(rows):
            points = faces.landmarks_N52[index].tolist()
            result = FacePrediction(
                value=float(predictions.value[row]),
                std=float(predictions.std[row]),
                low=float(predictions.low[row]),
                high=float(predictions.high[row]),
                distribution=predictions.probabilities[row],
                box=tuple(faces.boxes_N4[index].tolist()),
                landmarks=tuple(tuple(point) for point in points),
                probability=float(faces.probabilities_N[index]),
                chosen=index == chosen,
                quantity=self.config.quantity,
                unit=self.config.unit,
                grid=self.config.grid,
                aligned=aligned[index] if aligned else None,
            )
            results.append(result)

        return tuple(results)


class FaceAligner:
    """Finds the faces of photos and cuts them as a model's config says."""

    def __init__(self, config: ModelConfig, detector: FaceDetector) -> None:
        how = config.alignment
        if how.template not in align.TEMPLATES:
            raise ValueError(
                f"model {config.name!r} was trained on crops of template {how.template!r}, this "
                f"code knows {', '.join(align.TEMPLATES)}: use the version of visage that the "
                f"model's config names"
            )
        self._how = how
        self._detector = detector
        self._template_52 = align.template(how.template, how.crop_px, how.face_scale)

    def find(self, photos: Sequence[Pixels]) -> list[Faces]:
        """The faces of RGB uint8 photos (H,W,3), largest first."""
        return self._detector.detect(photos) if photos else []

    def cut(self, photo_HWC: Pixels, landmarks_52: npt.NDArray[np.float32]) -> AlignedFace:
        """One face as the align stage would have stored it."""
        matrix_23 = align.similarity(landmarks_52, self._template_52)
        crop_HWC = align.crop(photo_HWC, matrix_23, self._how.crop_px)
        stored_HWC = decode_jpeg(encode_jpeg(crop_HWC, self._how.jpeg_quality))
        return AlignedFace(stored_HWC, align.landmarks_in_crop(landmarks_52, matrix_23))


class Mtcnn:
    """The detector of a config, made at the first photo: a model that only gets crops needs
    none."""

    def __init__(self, config: DetectorConfig, runtime: Runtime, num_threads: int) -> None:
        self._config = config
        self._runtime = runtime
        self._num_threads = num_threads
        self._made: FaceDetector | None = None

    def detect(self, photos: Sequence[Pixels]) -> list[Faces]:
        """The faces of RGB uint8 photos (H,W,3), largest first."""
        if self._made is None:
            settings = DetectorSettings(**dataclasses.asdict(self._config))
            self._made = Detector(settings, self._runtime, self._num_threads)
        return self._made.detect(photos)


def read_source(source: PhotoSource, max_pixels: int) -> Pixels:
    """A photo, given in any of the ways that `Model.predict` takes, as upright RGB uint8 (H,W,3).
    Raises PhotoError for one that cannot be read."""
    if isinstance(source, np.ndarray):
        return _checked(source, max_pixels)
    if isinstance(source, Image.Image):
        source = _losslessly(source)
    return read_photo(Path(source) if isinstance(source, str) else source, max_pixels)


ReadPhoto = tuple[PhotoSource, Pixels | str]


def _read(source: PhotoSource, max_pixels: int) -> Pixels | str:
    """A photo as upright RGB pixels, or the reason why not."""
    try:
        return read_source(source, max_pixels)
    except PhotoError as error:
        return str(error)


def _checked(photo_HWC: Pixels, max_pixels: int) -> Pixels:
    """An array as a photo, contiguous."""
    shape = photo_HWC.shape
    if photo_HWC.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or not photo_HWC.size:
        raise PhotoError(
            f"an array of type {photo_HWC.dtype} and shape {shape}: give RGB uint8 (H, W, 3)"
        )
    if shape[0] * shape[1] > max_pixels:
        raise PhotoError(f"{shape[1]} x {shape[0]} px is more than the {max_pixels} pixels allowed")
    return np.ascontiguousarray(photo_HWC)


def _losslessly(image: Image.Image) -> bytes:
    """A Pillow image, its current frame and orientation, as an encoded file, PNG or TIFF, which
    lose nothing; empty bytes where it cannot be decoded."""
    stream = io.BytesIO()
    encoding = "TIFF" if image.mode in TIFF_MODES else "PNG"
    try:
        image.save(stream, encoding, exif=image.getexif())
    # Pillow decodes an opened file only now, and damaged bytes raise nearly anything
    except Exception:
        return b""
    return stream.getvalue()


def _groups(photos: Iterable[ReadPhoto]) -> Iterator[list[ReadPhoto]]:
    """Neighbours in groups of at most GROUP_PHOTOS; a group also ends with the photo that fills
    GROUP_PIXELS."""
    group: list[ReadPhoto] = []
    num_pixels = 0
    for source, photo in photos:
        group.append((source, photo))
        if not isinstance(photo, str):
            num_pixels += photo.shape[0] * photo.shape[1]
        if len(group) == GROUP_PHOTOS or num_pixels >= GROUP_PIXELS:
            yield group
            group = []
            num_pixels = 0

    if group:
        yield group
