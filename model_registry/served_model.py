"""The model as MLflow loads it: rows of base64 photos or aligned faces -> one JSON document each.

This file is the package's code ("models from code": nothing is pickled). It and `visage`, which
travels beside it, are all that an answer needs. Every number comes from visage.inference.photos;
here is only what a stranger's request needs: what is accepted, how much of it, and one clear
sentence where it is not. A request holds no path and no address: a string is base64 of a picture or
it is refused. An aligned face may bring its five landmarks; some models need them.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel
from PIL import Image

from visage.detection.image_io import PhotoError, read_photo
from visage.evaluation.drift import Summary
from visage.explain.score_map import coarse_score_map
from visage.inference.faces import BATCH_ROWS, Predictions
from visage.inference.photos import AlignedFace, PhotoResult, Predictor, as_document
from visage.networks.protocol import Network
from visage.weights import load_model

Document = dict[str, Any]
PHOTO, FACE = (
    "photo",
    "face",
)  # the columns: a photo whose faces are wanted, a face cut as the model's config says
LANDMARKS = "landmarks"  # a face's: x and y of five points, ten numbers, pixels of the crop
WINDOW_FACES, BLOCK_FACES = (
    2_000,
    200,
)  # newest faces that are summed up for drift, and the step by which the oldest leave
SCAN = b"\xff\xda"  # begins each scan of a JPEG; inside one it cannot occur
MAX_SCANS = (
    64  # a progressive JPEG has about ten; thousands would keep the decoder busy for minutes
)
NO_FACE_OF_ITS_OWN = {
    "box": None,
    "landmarks": None,
    "probability": None,
    "chosen": True,
}  # of an aligned face
NO_LANDMARKS = np.full((5, 2), np.nan, np.float32)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may hold: bytes as sent, pixels, photos and faces together, bytes and pixels
    of each."""

    max_request_bytes: int
    max_request_pixels: int
    max_photos: int
    max_photo_bytes: int
    max_photo_pixels: int

    def text(self) -> str:
        """As the package and its version's tag have it."""
        return json.dumps(dataclasses.asdict(self))


class Refused(ValueError):
    """A row that is not answered; the text tells its sender why."""


class ServedModel(PythonModel):
    """`told`, where set, gets every request's documents (the server counts them); `summary` is of
    the newest faces, for drift; `version` is the registered one."""

    limits: Limits
    predictor: Predictor
    summary: Summary
    network: Network
    version: str | None = None
    told: Callable[[Sequence[Document]], None] | None = None

    def load_context(self, context: Any) -> None:
        """Reads weights, config and limits; refuses with a ValueError what does not belong
        together."""
        folder = Path(context.artifacts["model"])
        self.limits = Limits(
            **json.loads(Path(context.artifacts["limits"]).read_text(encoding="utf-8"))
        )
        self.network, config = load_model(folder)
        self.summary = Summary.of(config, window_faces=WINDOW_FACES, block_faces=BLOCK_FACES)
        self.predictor = Predictor(
            self.network,
            config,
            observe=self.summary.add,
            max_photo_pixels=self.limits.max_photo_pixels,
        )
        self.version = registered_version(folder.parents[1])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[Document]:
        """MLflow's door: rows with `photo` or `face` -> documents; what a row lacks is a 400 with
        one sentence."""
        try:
            documents = self.answer(model_input.to_dict("records"), **(params or {}))
        except Refused as refused:
            raise MlflowException(str(refused), error_code=INVALID_PARAMETER_VALUE) from None
        if self.told:
            self.told(documents)
        return documents

    def answer(
        self,
        rows: Sequence[dict[Any, Any]],
        all_faces: bool = False,
        explain: bool = False,
        flip: bool = True,
    ) -> list[Document]:
        """Rows -> documents, in order; raises Refused for the first that cannot be answered, and
        then answers none."""
        if not 0 < len(rows) <= self.limits.max_photos:
            raise Refused(
                f"{len(rows)} items: send 1 to {self.limits.max_photos} photos or faces in a "
                f"request"
            )
        pictures = [self._picture(number, row) for number, row in enumerate(rows)]
        sizes = [_num_pixels(picture) for _, picture in pictures]
        pixels = sum(
            size for size in sizes if size <= self.limits.max_photo_pixels
        )  # larger ones are not decoded
        if pixels > self.limits.max_request_pixels:  # all of them are decoded while others wait
            raise Refused(
                f"{pixels} pixels: send at most {self.limits.max_request_pixels} in a request"
            )
        documents: dict[int, Document] = {}
        numbers = {
            column: [number for number, (kind, _) in enumerate(pictures) if kind == column]
            for column in (PHOTO, FACE)
        }

        photos = {number: pictures[number][1] for number in numbers[PHOTO]}
        documents |= zip(photos, self._photos(photos, all_faces, explain, flip), strict=True)

        faces = [self._face(place, pictures[place][1], rows[place]) for place in numbers[FACE]]
        documents |= zip(numbers[FACE], self._faces(faces, explain, flip), strict=True)
        return [documents[number] for number in range(len(rows))]

    def _picture(self, number: int, row: dict[Any, Any]) -> tuple[str, bytes]:
        """A row -> its column and its picture's bytes, undecoded."""
        given = [name for name in (PHOTO, FACE) if isinstance(row.get(name), str)]
        if len(given) != 1:
            raise Refused(
                f"item {number}: give either {PHOTO} or {FACE}, a string with a picture in base64"
            )
        [column] = given
        text, limit = row[column], self.limits.max_photo_bytes
        if len(text) > 4 * (limit // 3 + 1):
            raise Refused(f"item {number}: the {column} is larger than the {limit} bytes allowed")
        try:
            picture = base64.b64decode(text, validate=True)
        except ValueError as error:
            raise Refused(
                f"item {number}: the {column} is not base64 of a picture's bytes"
            ) from error
        if not (picture.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or _is_webp(picture)):
            raise Refused(f"item {number}: the {column} is not a JPEG, PNG or WebP picture")
        if picture.startswith(b"\xff\xd8\xff") and picture.count(SCAN) > MAX_SCANS:
            raise Refused(f"item {number}: the {column} is a JPEG of more than {MAX_SCANS} scans")
        return column, picture

    def _photos(
        self, photos: dict[int, bytes], all_faces: bool, explain: bool, flip: bool
    ) -> list[Document]:
        """Photos by their place -> documents as visage.inference.photos prints them, of the chosen
        face or of all."""
        documents = []
        results = self.predictor.stream_photos(photos.values(), flip)
        for (number, photo), result in zip(photos.items(), results, strict=True):
            if not result.readable:
                raise Refused(f"item {number}: the {PHOTO} {result.reason}")
            faces = tuple(face for face in result.faces if all_faces or face.chosen)
            document = self._document(dataclasses.replace(result, faces=faces))
            if explain and faces:
                pixels = read_photo(photo, self.limits.max_photo_pixels)
                aligned = [
                    self.predictor.align(pixels, np.array(face.landmarks, np.float32))
                    for face in faces
                ]
                self._explain(document["faces"], aligned, flip)
            documents.append(document)
        return documents

    def _faces(self, aligned: list[AlignedFace], explain: bool, flip: bool) -> list[Document]:
        """Aligned faces -> documents with one face each, which has no box, landmarks and detector's
        probability."""
        predictions = self.predictor.predict_aligned(aligned, flip)
        faces = [_face(predictions, place) for place in range(len(aligned))]
        if explain:
            self._explain(faces, aligned, flip)
        px = self.predictor.config.alignment.crop_px
        nothing = PhotoResult(width=px, height=px, faces=(), reason=None, readable=True)
        return [self._document(nothing) | {"faces": [face]} for face in faces]

    def _face(self, number: int, picture: bytes, row: dict[Any, Any]) -> AlignedFace:
        """A row's aligned face and its landmarks."""
        crop_HWC = self._crop(number, picture)
        given = row.get(LANDMARKS)
        if given is None or (isinstance(given, float) and np.isnan(given)):  # pandas' "not given"
            if self.predictor.needs_landmarks:
                raise Refused(
                    f"item {number}: this model needs the landmarks of a {FACE}: give {LANDMARKS}, "
                    f"ten numbers in pixels of the crop, or send the picture as {PHOTO}"
                )
            return AlignedFace(crop_HWC, NO_LANDMARKS)
        try:
            landmarks_52 = np.asarray(given, np.float32).reshape(5, 2)
        except (TypeError, ValueError):
            landmarks_52 = NO_LANDMARKS
        if not np.isfinite(landmarks_52).all():
            raise Refused(
                f"item {number}: {LANDMARKS} must be ten numbers, x and y of left eye, right eye, "
                f"nose, left and right corner of the mouth, in pixels of the crop"
            )
        return AlignedFace(crop_HWC, landmarks_52)

    def _crop(self, number: int, picture: bytes) -> Any:
        px = self.predictor.config.alignment.crop_px
        try:
            crop_HWC = read_photo(picture, self.limits.max_photo_pixels)
        except PhotoError as error:
            raise Refused(f"item {number}: the {FACE} {error}") from error
        if crop_HWC.shape != (px, px, 3):
            height, width = crop_HWC.shape[:2]
            raise Refused(
                f"item {number}: the {FACE} is {width} x {height} px, this model takes faces "
                f"aligned to {px} x {px}; "
                f"send the picture as {PHOTO} to have its faces found"
            )
        return crop_HWC

    def _document(self, result: PhotoResult) -> Document:
        document = as_document(result, self.predictor.config)
        document["model"]["version"] = self.version
        return document

    def _explain(
        self, faces: Sequence[Document], aligned: Sequence[AlignedFace], flip: bool
    ) -> None:
        """Adds to each face where the model looked: its score map (h,w), as small as the network's
        last maps."""
        config = self.predictor.config
        for start in range(0, len(faces), BATCH_ROWS):
            rows = slice(start, start + BATCH_ROWS)
            crops_BCHW, landmarks_B52 = self.predictor.stacked(aligned[rows])
            maps_Bhw = coarse_score_map(self.network, config, crops_BCHW, landmarks_B52, flip=flip)
            for face, map_hw in zip(faces[rows], maps_Bhw, strict=True):
                face["score_map"] = map_hw.tolist()


def _face(predictions: Predictions, place: int) -> Document:
    numbers = {
        name: float(getattr(predictions, name)[place]) for name in ("value", "std", "low", "high")
    }
    return (
        numbers | {"probabilities": predictions.probabilities[place].tolist()} | NO_FACE_OF_ITS_OWN
    )


def _num_pixels(picture: bytes) -> int:
    """As the header says, undecoded; 0 where there is none to read: whoever decodes it says what is
    wrong."""
    try:
        with Image.open(io.BytesIO(picture), formats=("JPEG", "PNG", "WEBP")) as image:
            return int(image.width * image.height)
    except Exception:  # decoders that are fed damaged bytes raise nearly anything
        return 0


def _is_webp(picture: bytes) -> bool:
    return picture[:4] == b"RIFF" and picture[8:12] == b"WEBP"


def registered_version(package: Path) -> str | None:
    """The version under which MLflow fetched the package from the registry, None where it did not
    come from there."""
    note = (
        package / "registered_model_meta"
    )  # two lines that MLflow leaves: model_name and model_version
    if not note.is_file():
        return None
    values = dict(line.split(": ", 1) for line in note.read_text(encoding="utf-8").splitlines())
    return values["model_version"].strip("'\"")


set_model(ServedModel())
