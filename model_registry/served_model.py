"""The model as MLflow loads it: rows of base64 photos or aligned faces -> one JSON document each.

This file is the package's code ("models from code": nothing is pickled). It and the part of
`visage` that it imports are all that a prediction needs. Every number comes from
visage.inference.photos. This file only checks what a client sends: which pictures are accepted, how
many, how large, and one clear sentence for each refusal. A request holds no path and no address: a
string is the base64 of a picture, or it is refused. An aligned face may bring its five landmarks;
some models need them.
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
Picture = tuple[str, bytes]  # column and encoded bytes

# The columns: a photo whose faces are to be found, or a face cropped as the model's config says
PHOTO = "photo"
FACE = "face"

# A face's landmarks: x and y of five points, ten numbers, in pixels of the crop
LANDMARKS = "landmarks"
NO_LANDMARKS = np.full((5, 2), np.nan, np.float32)

# Begins each scan of a JPEG; it cannot occur inside one.
SCAN = b"\xff\xda"

# A progressive JPEG has about ten scans; thousands would keep the decoder busy for minutes.
MAX_SCANS = 64

# An aligned face was never detected, so it has none of the detector's results.
NO_DETECTION = {"box": None, "landmarks": None, "probability": None, "chosen": True}


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
        """The JSON that the package and the tag of its version hold."""
        return json.dumps(dataclasses.asdict(self))


class Refused(ValueError):
    """A row without a prediction; the text gives the client the reason."""


class ServedModel(PythonModel):
    """The predictor behind a request's limits. `on_documents`, where set, receives every request's
    documents (the server counts them); `version` is the registered one."""

    limits: Limits
    predictor: Predictor
    network: Network
    version: str | None = None
    on_documents: Callable[[Sequence[Document]], None] | None = None

    def load_context(self, context: Any) -> None:
        """Reads weights, config and limits; ValueError where weights and config do not match."""
        folder = Path(context.artifacts["model"])
        limits = json.loads(Path(context.artifacts["limits"]).read_text(encoding="utf-8"))

        self.limits = Limits(**limits)
        self.network, config = load_model(folder)
        self.predictor = Predictor(
            self.network, config, max_photo_pixels=self.limits.max_photo_pixels
        )
        self.version = registered_version(folder.parents[1])

    def predict(
        self,
        context: Any,  # noqa: ARG002  # MLflow passes it
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> list[Document]:
        """MLflow's entry point: rows with `photo` or `face` -> documents. A bad row is a 400 with
        one sentence."""
        try:
            documents = self.predict_rows(model_input.to_dict("records"), **(params or {}))
        except Refused as refused:
            raise MlflowException(str(refused), error_code=INVALID_PARAMETER_VALUE) from None

        if self.on_documents:
            self.on_documents(documents)
        return documents

    def predict_rows(
        self,
        rows: Sequence[dict[Any, Any]],
        all_faces: bool = False,
        explain: bool = False,
        flip: bool = True,
    ) -> list[Document]:
        """Rows -> documents, in order. Raises Refused for the first row that is not accepted, and
        then predicts none."""
        if not 0 < len(rows) <= self.limits.max_photos:
            raise Refused(
                f"{len(rows)} items: send 1 to {self.limits.max_photos} photos or faces in a "
                f"request"
            )
        pictures = dict(enumerate(self._picture(number, row) for number, row in enumerate(rows)))
        self._check_pixels([picture for _, picture in pictures.values()])

        photos = {number: data for number, (column, data) in pictures.items() if column == PHOTO}
        faces = {
            number: self._face(number, data, rows[number])
            for number, (column, data) in pictures.items()
            if column == FACE
        }
        documents = self._photos(photos, all_faces, explain, flip)
        documents |= self._faces(faces, explain, flip)

        return [documents[number] for number in range(len(rows))]

    def summarise(self, window_faces: int, block_faces: int) -> Summary:
        """A running summary of the newest `window_faces` faces that are predicted from now on; the
        oldest leave it in steps of `block_faces`."""
        config = self.predictor.config
        summary = Summary.of(config, window_faces=window_faces, block_faces=block_faces)
        self.predictor = Predictor(
            self.network,
            config,
            observe=summary.add,
            max_photo_pixels=self.limits.max_photo_pixels,
        )
        return summary

    def _picture(self, number: int, row: dict[Any, Any]) -> Picture:
        """A row -> its column and its picture's bytes, not decoded."""
        given = [name for name in (PHOTO, FACE) if isinstance(row.get(name), str)]
        if len(given) != 1:
            raise Refused(
                f"item {number}: give either {PHOTO} or {FACE}, a string with a picture in base64"
            )

        [column] = given
        text = row[column]
        limit = self.limits.max_photo_bytes
        # base64 writes 3 bytes as 4 characters.
        if len(text) > 4 * (limit // 3 + 1):
            raise Refused(f"item {number}: the {column} is larger than the {limit} bytes allowed")
        try:
            picture = base64.b64decode(text, validate=True)
        except ValueError as error:
            raise Refused(
                f"item {number}: the {column} is not base64 of a picture's bytes"
            ) from error

        if not (_is_jpeg(picture) or _is_png(picture) or _is_webp(picture)):
            raise Refused(f"item {number}: the {column} is not a JPEG, PNG or WebP picture")
        if _is_jpeg(picture) and picture.count(SCAN) > MAX_SCANS:
            raise Refused(f"item {number}: the {column} is a JPEG of more than {MAX_SCANS} scans")
        return column, picture

    def _check_pixels(self, pictures: Sequence[bytes]) -> None:
        """Refuses a request that would decode to too many pixels, before any is decoded."""
        sizes = [_num_pixels(picture) for picture in pictures]

        # A picture above its own limit is never decoded, so it does not count here.
        pixels = sum(size for size in sizes if size <= self.limits.max_photo_pixels)
        if pixels > self.limits.max_request_pixels:
            raise Refused(
                f"{pixels} pixels: send at most {self.limits.max_request_pixels} in a request"
            )

    def _photos(
        self, photos: dict[int, bytes], all_faces: bool, explain: bool, flip: bool
    ) -> dict[int, Document]:
        """Photos by row -> documents by row, with the chosen face or all of them."""
        results = self.predictor.stream_photos(photos.values(), flip, keep_crops=explain)

        documents = {}
        for number, result in zip(photos, results, strict=True):
            if not result.readable:
                raise Refused(f"item {number}: the {PHOTO} {result.reason}")
            faces = tuple(face for face in result.faces if all_faces or face.chosen)
            document = self._document(dataclasses.replace(result, faces=faces))
            if explain and faces:
                aligned = [face.aligned for face in faces if face.aligned is not None]
                self._add_score_maps(document["faces"], aligned, flip)
            documents[number] = document

        return documents

    def _faces(
        self, aligned: dict[int, AlignedFace], explain: bool, flip: bool
    ) -> dict[int, Document]:
        """Aligned faces by row -> documents by row, each of one face without a box, landmarks and
        the detector's probability."""
        predictions = self.predictor.predict_aligned(list(aligned.values()), flip)
        faces = [_face(predictions, place) for place in range(len(aligned))]
        if explain:
            self._add_score_maps(faces, list(aligned.values()), flip)

        px = self.predictor.config.alignment.crop_px
        empty = PhotoResult(width=px, height=px, faces=(), reason=None, readable=True)
        return {
            number: self._document(empty) | {"faces": [face]}
            for number, face in zip(aligned, faces, strict=True)
        }

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
            crop_HW3 = read_photo(picture, self.limits.max_photo_pixels)
        except PhotoError as error:
            raise Refused(f"item {number}: the {FACE} {error}") from error

        if crop_HW3.shape != (px, px, 3):
            height, width = crop_HW3.shape[:2]
            raise Refused(
                f"item {number}: the {FACE} is {width} x {height} px, this model takes faces "
                f"aligned to {px} x {px}; send the picture as {PHOTO} to have its faces found"
            )
        return crop_HW3

    def _document(self, result: PhotoResult) -> Document:
        document = as_document(result, self.predictor.config)
        document["model"]["version"] = self.version
        return document

    def _add_score_maps(
        self, faces: Sequence[Document], aligned: Sequence[AlignedFace], flip: bool
    ) -> None:
        """Adds to each face its score map (h,w), at the resolution of the network's last maps."""
        config = self.predictor.config
        for start in range(0, len(faces), BATCH_ROWS):
            rows = slice(start, start + BATCH_ROWS)
            crops_BCHW, landmarks_B52 = self.predictor.stacked(aligned[rows])
            maps_Bhw = coarse_score_map(self.network, config, crops_BCHW, landmarks_B52, flip=flip)
            for face, map_hw in zip(faces[rows], maps_Bhw, strict=True):
                face["score_map"] = map_hw.tolist()


def registered_version(package: Path) -> str | None:
    """The version under which MLflow fetched the package from the registry; None for a package from
    elsewhere."""
    # MLflow writes two lines into this file: model_name and model_version.
    note = package / "registered_model_meta"
    if not note.is_file():
        return None
    values = dict(line.split(": ", 1) for line in note.read_text(encoding="utf-8").splitlines())
    return values["model_version"].strip("'\"")


def _face(predictions: Predictions, place: int) -> Document:
    names = ("value", "std", "low", "high")
    numbers = {name: float(getattr(predictions, name)[place]) for name in names}
    return numbers | {"probabilities": predictions.probabilities[place].tolist()} | NO_DETECTION


def _num_pixels(picture: bytes) -> int:
    """Width times height as the header says, nothing decoded. 0 where the header cannot be read:
    the decoder says later what is wrong."""
    try:
        with Image.open(io.BytesIO(picture), formats=("JPEG", "PNG", "WEBP")) as image:
            return int(image.width * image.height)
    except Exception:  # Pillow raises nearly any type for damaged bytes
        return 0


def _is_jpeg(picture: bytes) -> bool:
    return picture.startswith(b"\xff\xd8\xff")


def _is_png(picture: bytes) -> bool:
    return picture.startswith(b"\x89PNG\r\n\x1a\n")


def _is_webp(picture: bytes) -> bool:
    return picture[:4] == b"RIFF" and picture[8:12] == b"WEBP"


set_model(ServedModel())
