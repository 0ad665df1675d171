"""The only inference path, with two doors: crops -> predictions, and photos -> faces -> predictions.

Evaluation knocks at the first door, serving, scoring and the command line at the second, and the second goes through
the first: read the photo, find its faces, cut them out, keep each as a JPEG of the card's quality and read it back, as
the align stage does, so that a photo gets exactly the numbers that evaluation gave it.

    python -m visage.predictor PHOTO [--model FOLDER] [--flip | --no-flip]     (or: make predict PHOTO=...)

prints one JSON document. Flip averaging: the value is the mean of the face's and its mirror image's values, the
distribution the mean of the two distributions. For the expectation the two agree; the mean of two medians or of two
most probable labels is in general not that of the mean distribution.
Then the card's calibration is applied (visage.calibration): it changes distribution, deviation and interval, and never
the value, which is therefore not the expectation of the distribution beside it where the card has a temperature.
Legend: B faces of a call, K labels of the grid, H and W crop side in pixels.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from visage.calibration import calibrated
from visage.card import CalibrationCard, ModelCard, load_model
from visage.engine import Engine, TorchEngine
from visage.labels import DECODERS, LabelGrid, deviation

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
PhotoSource = bytes | Path | Image.Image
Observer = Callable[[Floats, npt.NDArray[np.float32]], None]  # values (N,) and pooled features (N,C) of N faces

BATCH_ROWS = 32  # crops and mirrored crops that go through the network together; more gains nothing on a CPU
NO_FACE = "no face found"
TIFF_MODES = ("CMYK", "F", "LAB", "YCbCr")  # of Pillow's, those that PNG does not hold
MAX_PHOTO_PIXELS = 100_000_000  # photos beyond are refused before they are decoded
GROUP_PHOTOS, GROUP_PIXELS = 32, 50_000_000  # photos held in memory together: as many as stay below both


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Of N faces: value, standard deviation, ends of the 80 % interval (N,), low <= value <= high, all in label units,
    float64; and the distribution over the grid (N,K), float32."""

    value: Floats
    std: Floats
    low: Floats
    high: Floats
    probabilities: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.value)


def predictions_of(p_BK: Tensor, value_B: Tensor, grid: LabelGrid, calibration: CalibrationCard | None) -> Predictions:
    """Distributions and the values decoded from them, both float64, as calibrated predictions."""
    p_BK, low_B, high_B = calibrated(p_BK, value_B, grid, calibration)
    numbers = {"value": value_B, "std": deviation(p_BK, grid), "low": low_B, "high": high_B}
    return Predictions(**{k: v.numpy() for k, v in numbers.items()}, probabilities=p_BK.float().numpy())


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of several batches, of one at least, as those of all their faces."""
    names = [field.name for field in dataclasses.fields(Predictions)]
    return Predictions(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True, kw_only=True)
class FacePrediction:
    """One face: its numbers in label units, its box x0 y0 x1 y1, its five landmarks x y in pixels of the upright
    photo, the detector's probability that it is a face. `chosen` marks the one that the align stage would take."""

    value: float
    std: float
    low: float
    high: float
    probabilities: npt.NDArray[np.float32]
    box: tuple[float, ...]
    landmarks: tuple[tuple[float, ...], ...]
    probability: float
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class PhotoResult:
    """One photo: its upright size in pixels and its faces, largest first; `reason` says why there are none, be it
    that none was found or (`readable` False, size 0 x 0) that the photo could not be read."""

    width: int
    height: int
    faces: tuple[FacePrediction, ...]
    reason: str | None
    readable: bool


class Predictor:
    """A model that answers. `network` is a torch network or any other `Engine` that computes the same (see export).
    Photos of more than `max_photo_pixels` are refused."""

    def __init__(self, network: nn.Module | Engine, card: ModelCard) -> None:
        self.card = card
        self._engine: Engine = TorchEngine(network, card) if isinstance(network, nn.Module) else network
        self._detector: Any = None
        self.max_photo_pixels = MAX_PHOTO_PIXELS
        self._observe: Observer | None = None

    @property
    def observe(self) -> Observer | None:
        """Hears each batch's values and pooled features, those of the faces and never of their mirror images; None:
        nobody does. Setting it raises ValueError where the engine gives no features (ONNX)."""
        return self._observe

    @observe.setter
    def observe(self, observer: Observer | None) -> None:
        if observer is not None and not isinstance(self._engine, TorchEngine):
            raise ValueError(
                f"model {self.card.name!r}: this engine gives no pooled features to observe; load the model's "
                "safetensors (Predictor.load), not its ONNX file"
            )
        self._observe = observer

    @classmethod
    def load(cls, folder: Path) -> Predictor:
        """The model in a folder with safetensors and card.json; ValueError where they do not belong together."""
        return cls(*load_model(folder))

    def predict_crops(self, crops_BCHW: Tensor, flip: bool = True) -> Predictions:
        """Crops, uint8 RGB (B,3,crop_px,crop_px), cut as the card says -> their predictions, in batches.

        On a CPU a face's numbers are the same in any company. Raises ValueError for crops of another type or size.
        """
        px = self.card.alignment.crop_px
        if crops_BCHW.dtype != torch.uint8 or crops_BCHW.shape[1:] != (3, px, px):
            raise ValueError(
                f"crops of type {crops_BCHW.dtype} and shape {tuple(crops_BCHW.shape)}: model {self.card.name!r} takes "
                f"uint8 (B, 3, {px}, {px}); align the photos with the alignment of its card"
            )
        size = BATCH_ROWS // 2 if flip else BATCH_ROWS
        starts = range(0, max(1, len(crops_BCHW)), size)
        return joined([self._predict_batch(crops_BCHW[start : start + size], flip) for start in starts])

    def _predict_batch(self, crops_BCHW: Tensor, flip: bool) -> Predictions:
        grid, decode = self.card.grid, DECODERS[self.card.decode]
        if not len(crops_BCHW):
            nothing_BK, nothing_B = (torch.zeros(0, *shape, dtype=torch.float64) for shape in ((grid.num_labels,), ()))
            return predictions_of(nothing_BK, nothing_B, grid, self.card.calibration)
        p_BK, features_BC = self._answer(torch.cat([crops_BCHW, crops_BCHW.flip(3)]) if flip else crops_BCHW)
        if flip:
            face_BK, mirror_BK = p_BK.chunk(2)
            p_BK, value_B = (face_BK + mirror_BK) / 2, (decode(face_BK, grid) + decode(mirror_BK, grid)) / 2
        else:
            value_B = decode(p_BK, grid)
        if self._observe is not None and features_BC is not None:
            self._observe(value_B.numpy(), features_BC[: len(crops_BCHW)].numpy())
        return predictions_of(p_BK, value_B, grid, self.card.calibration)

    def _answer(self, crops_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Crops -> probabilities, and the pooled features where somebody observes them."""
        if self._observe is None:
            return self._engine(crops_BCHW), None
        assert isinstance(self._engine, TorchEngine)  # the setter lets no other through
        return self._engine.with_features(crops_BCHW)

    def predict_photos(self, photos: Iterable[PhotoSource], flip: bool = True) -> list[PhotoResult]:
        """Photos (encoded bytes, paths or Pillow images) -> one result each, in order.

        A photo that cannot be read gives a result that says why and leaves the others alone.
        """
        return list(self.stream_photos(photos, flip))

    def stream_photos(self, photos: Iterable[PhotoSource], flip: bool = True) -> Iterator[PhotoResult]:
        """`predict_photos` for any number of photos: results come as soon as a group is done, memory stays flat.

        The faces of a group of photos (see GROUP_PHOTOS) go through the network together.
        """
        for group in _groups(_read(source, self.max_photo_pixels) for source in photos):
            yield from self._predict_group(group, flip)

    def _predict_group(self, group: list[Pixels | str], flip: bool) -> Iterator[PhotoResult]:
        """Decoded photos, or the reasons why there are none -> their results."""
        photos = [photo for photo in group if not isinstance(photo, str)]
        found = self._find_faces(photos)
        seen = list(zip(photos, found, strict=True))
        crops = [self.crop(photo, points_52) for photo, faces in seen for points_52 in faces.landmarks_N52]
        px = self.card.alignment.crop_px
        crops_BHWC = torch.from_numpy(np.stack(crops)) if crops else torch.zeros(0, px, px, 3, dtype=torch.uint8)
        predictions = self.predict_crops(crops_BHWC.permute(0, 3, 1, 2), flip)
        starts = np.cumsum([0, *(len(faces) for faces in found)])
        results = (
            _result(photo, faces, predictions, start) for (photo, faces), start in zip(seen, starts[:-1], strict=True)
        )
        for photo_or_reason in group:
            yield _unread(photo_or_reason) if isinstance(photo_or_reason, str) else next(results)

    def _find_faces(self, photos: list[Pixels]) -> list[Any]:
        """The photos' faces, by the card's detector (made at the first photo)."""
        from visage.align import TEMPLATES
        from visage.detect import Detector, DetectorSettings

        if self._detector is None:
            if self.card.alignment.template not in TEMPLATES:
                raise ValueError(
                    f"model {self.card.name!r} was trained on crops of template {self.card.alignment.template!r}, this "
                    f"code knows {', '.join(TEMPLATES)}: use the version of visage that the model's card names"
                )
            self._detector = Detector(DetectorSettings(**dataclasses.asdict(self.card.detector)))
        found: list[Any] = self._detector.detect(photos) if photos else []
        return found

    def crop(self, photo_HWC: Pixels, landmarks_52: npt.NDArray[np.float32]) -> Pixels:
        """One face as the align stage would have stored it, uint8 (crop_px, crop_px, 3)."""
        from visage import align

        how = self.card.alignment
        matrix_23 = align.similarity(landmarks_52, align.template(how.template, how.crop_px, how.face_scale))
        return align.decode(align.encode(align.crop(photo_HWC, matrix_23, how.crop_px), how.jpeg_quality))


def _read(source: PhotoSource, max_pixels: int) -> Pixels | str:
    """A photo as upright RGB pixels, or the reason why not. Pillow images pass as PNG or TIFF, which lose nothing."""
    from visage.photos import PhotoError, read_photo

    try:
        return read_photo(_losslessly(source) if isinstance(source, Image.Image) else source, max_pixels)
    except PhotoError as error:
        return str(error)


def _losslessly(image: Image.Image) -> bytes:
    """A Pillow image, its current frame and orientation, as an encoded file; empty bytes where it cannot be decoded."""
    stream = io.BytesIO()
    try:
        image.save(stream, "TIFF" if image.mode in TIFF_MODES else "PNG", exif=image.getexif())
    except Exception:  # Pillow decodes an opened file only now, and damaged bytes raise nearly anything
        return b""
    return stream.getvalue()


def _groups(photos: Iterator[Pixels | str]) -> Iterator[list[Pixels | str]]:
    """Neighbours in groups of at most GROUP_PHOTOS; a group also ends with the photo that fills GROUP_PIXELS."""
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


def _result(photo_HWC: Pixels, faces: Any, predictions: Predictions, start: int) -> PhotoResult:
    """A photo whose faces' predictions begin at row `start` -> its result."""
    from visage.align import choose_face

    height, width = photo_HWC.shape[:2]
    chosen = choose_face(faces, width, height) if len(faces) else -1
    rows = tuple(
        FacePrediction(
            **{name: float(getattr(predictions, name)[start + index]) for name in ("value", "std", "low", "high")},
            probabilities=predictions.probabilities[start + index],
            box=tuple(faces.boxes_N4[index].tolist()),
            landmarks=tuple(tuple(point) for point in faces.landmarks_N52[index].tolist()),
            probability=float(faces.probabilities_N[index]),
            chosen=index == chosen,
        )
        for index in range(len(faces))
    )
    return PhotoResult(width=width, height=height, faces=rows, reason=None if rows else NO_FACE, readable=True)


def as_document(result: PhotoResult, card: ModelCard) -> dict[str, Any]:
    """A photo's result as plain JSON values: which model spoke, about what in which unit, and each face's numbers."""
    faces = [dataclasses.asdict(face) | {"probabilities": face.probabilities.tolist()} for face in result.faces]
    return {
        "model": {"name": card.name, "sha256": card.weights.sha256, "method": card.method, "decode": card.decode}
        | {"code": card.code, "calibration": card.calibration and dataclasses.asdict(card.calibration)},
        "quantity": card.quantity,
        "unit": card.unit,
        "labels": dataclasses.asdict(card.grid),
        "photo": {"width": result.width, "height": result.height},
        "faces": faces,
        "reason": result.reason,
    }


def default_model_folder(root: Path) -> Path:
    """The model that answers when none is named: models/export, else the released model that default.txt names."""
    exported, released = root / "models" / "export", root / "model_registry" / "released"
    if (exported / "card.json").is_file():
        return exported
    named = released / "default.txt"
    if not named.is_file():
        raise ValueError(
            f"no model in {exported} and no {named}: train one (make repro) or name one with --model FOLDER"
        )
    return released / named.read_text(encoding="utf-8").strip()


def main() -> None:
    """The command line; an unreadable photo or an unfit model ends it with one line and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m visage.predictor", description=__doc__.split("\n", 1)[0])
    parser.add_argument("photo", type=Path)
    parser.add_argument("--model", type=Path, help="a model's folder; default: models/export, else the released model")
    parser.add_argument(
        "--flip", action=argparse.BooleanOptionalAction, default=True, help="average with the mirror image"
    )
    arguments = parser.parse_args()
    try:
        folder = arguments.model or default_model_folder(Path(__file__).resolve().parents[1])
        predictor = Predictor.load(folder)
        [result] = predictor.predict_photos([arguments.photo], arguments.flip)
        if not result.readable:
            raise ValueError(f"{arguments.photo}: {result.reason}")
    except ValueError as error:
        print(f"visage.predictor: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    print(json.dumps(as_document(result, predictor.card), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
