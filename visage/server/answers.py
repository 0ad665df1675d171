"""Photos and aligned faces of a request -> JSON documents, inside the limits.

Every number comes from `visage.inference.photos`. Here is only what a client may send: which
pictures, how many, how large. A request holds no path and no address: a string is the base64 of a
picture, or it is refused. Legend: h, w side of the network's last maps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from visage.detection.image_io import PhotoError, read_photo
from visage.inference.faces import Predictions
from visage.inference.photos import Model
from visage.inference.results import AlignedFace, document
from visage.server.limits import Limits
from visage.server.pictures import check_kind, from_base64, num_pixels
from visage.server.refusals import Refusal, seen
from visage.server.score_maps import ScoreMaps
from visage.server.tables import FACE, LANDMARKS, PHOTO, Document, Row

NO_LANDMARKS = np.full((5, 2), np.nan, np.float32)
# An aligned face was never detected, so it has none of the detector's results.
NO_DETECTION = {"box": None, "landmarks": None, "probability": None, "chosen": True}


class Item(NamedTuple):
    """A picture of a request, encoded: its column, its bytes, and the landmarks given with it."""

    column: str
    picture: bytes
    landmarks: Any = None


class Answers:
    """A model behind the limits of a request. `score_maps` draws where the model looked; None where
    this installation cannot, and `why_not` then says why."""

    def __init__(
        self,
        predictor: Model,
        limits: Limits,
        score_maps: ScoreMaps | None = None,
        why_not: str = "",
    ) -> None:
        self.predictor = predictor
        self.limits = limits
        self.score_maps = score_maps
        self.why_not = why_not

    def items_of_rows(self, rows: Sequence[Row]) -> list[Item]:
        """Rows with `photo` or `face` in base64 -> items; a Refusal for the first other row."""
        self.check_count(len(rows))
        return [self._item(number, row) for number, row in enumerate(rows)]

    def check_count(self, count: int) -> None:
        """400 for no item, and for more than allowed."""
        if not 0 < count <= self.limits.max_photos:
            raise Refusal("num_items", count=count, limit=self.limits.max_photos)

    def answer(
        self,
        items: Sequence[Item],
        *,
        all_faces: bool = False,
        explain: bool = False,
        flip: bool = True,
    ) -> list[Document]:
        """Items -> documents, in order. Raises Refusal for the first that is not accepted, and then
        predicts none."""
        self.check_count(len(items))
        if explain and self.score_maps is None:
            raise Refusal("no_explanation", reason=self.why_not)
        self._check_pictures(items)

        photos = {}
        faces = {}
        for number, item in enumerate(items):
            if item.column == PHOTO:
                photos[number] = item.picture
            else:
                faces[number] = self._face(number, item)
        documents = self._photos(photos, all_faces, explain, flip)
        documents |= self._faces(faces, explain, flip)

        return [documents[number] for number in range(len(items))]

    def _item(self, number: int, row: Row) -> Item:
        given = [name for name in (PHOTO, FACE) if isinstance(row.get(name), str)]
        if len(given) != 1:
            raise Refusal("row", item=number, seen=_contents(row))
        [column] = given
        picture = from_base64(row[column], number, column, self.limits.max_photo_bytes)
        return Item(column, picture, row.get(LANDMARKS))

    def _check_pictures(self, items: Sequence[Item]) -> None:
        """Refuses pictures of another kind and too many pixels, before any is decoded."""
        pixels = 0
        for number, item in enumerate(items):
            if len(item.picture) > self.limits.max_photo_bytes:
                limit = self.limits.max_photo_bytes
                raise Refusal("picture_bytes", item=number, column=item.column, limit=limit)
            check_kind(item.picture, number, item.column)
            size = num_pixels(item.picture)
            # A picture above its own limit is never decoded, so it does not count here.
            if size <= self.limits.max_photo_pixels:
                pixels += size
        if pixels > self.limits.max_request_pixels:
            raise Refusal("pixels", pixels=pixels, limit=self.limits.max_request_pixels)

    def _photos(
        self, photos: dict[int, bytes], all_faces: bool, explain: bool, flip: bool
    ) -> dict[int, Document]:
        """Photos by place -> documents by place, with the chosen face or all of them."""
        results = self.predictor.predict_many(photos.values(), flip=flip, keep_crops=explain)

        documents = {}
        for number, result in zip(photos, results, strict=True):
            if not result.readable:
                raise Refusal("unreadable", item=number, column=PHOTO, reason=result.reason)
            faces = tuple(face for face in result.faces if all_faces or face.chosen)
            answered = dataclasses.replace(result, faces=faces).to_dict()
            if explain:
                aligned = [face.aligned for face in faces if face.aligned is not None]
                self._add_score_maps(answered["faces"], aligned, flip)
            documents[number] = answered

        return documents

    def _faces(
        self, aligned: dict[int, AlignedFace], explain: bool, flip: bool
    ) -> dict[int, Document]:
        """Aligned faces by place -> documents by place, each of one face without a box, landmarks
        and the detector's probability."""
        predictions = self.predictor.predict_aligned(list(aligned.values()), flip=flip)
        faces = [_face(predictions, place) for place in range(len(aligned))]
        if explain:
            self._add_score_maps(faces, list(aligned.values()), flip)

        config = self.predictor.config
        px = config.alignment.crop_px
        documents = {}
        for number, face in zip(aligned, faces, strict=True):
            documents[number] = document(config, px, px, [face], None)
        return documents

    def _face(self, number: int, item: Item) -> AlignedFace:
        """An item's aligned face and its landmarks."""
        crop_HW3 = self._crop(number, item.picture)
        given = item.landmarks
        if given is None or (isinstance(given, float) and np.isnan(given)):  # pandas' "not given"
            if self.predictor.needs_landmarks:
                raise Refusal("no_landmarks", item=number)
            return AlignedFace(crop_HW3, NO_LANDMARKS)

        try:
            landmarks_52 = np.asarray(given, np.float32).reshape(5, 2)
        except (TypeError, ValueError, OverflowError):
            landmarks_52 = NO_LANDMARKS
        if not np.isfinite(landmarks_52).all():
            raise Refusal("bad_landmarks", item=number)
        return AlignedFace(crop_HW3, landmarks_52)

    def _crop(self, number: int, picture: bytes) -> npt.NDArray[np.uint8]:
        px = self.predictor.config.alignment.crop_px
        try:
            crop_HW3 = read_photo(picture, self.limits.max_photo_pixels)
        except PhotoError as error:
            raise Refusal("unreadable", item=number, column=FACE, reason=error) from error

        if crop_HW3.shape != (px, px, 3):
            height, width = crop_HW3.shape[:2]
            raise Refusal("face_size", item=number, width=width, height=height, px=px)
        return crop_HW3

    def _add_score_maps(
        self, faces: Sequence[Document], aligned: Sequence[AlignedFace], flip: bool
    ) -> None:
        """Adds to each face its score map (h,w)."""
        if not faces:
            return
        assert self.score_maps is not None  # as `answer` checked
        for face, map_hw in zip(faces, self.score_maps(aligned, flip), strict=True):
            face["score_map"] = map_hw.tolist()


def _contents(row: Row) -> str:
    """What a row has, for a sentence: `photo and face`, or its columns."""
    if all(isinstance(row.get(name), str) for name in (PHOTO, FACE)):
        return "both"
    for name in (PHOTO, FACE):
        if row.get(name) is not None:
            return f"{name} that is no text"
    # Of pandas, NaN is "not given", and it does not equal itself.
    names = [seen(name) for name, value in row.items() if value is not None and value == value]
    return ", ".join(names[:3]) or "neither"


def _face(predictions: Predictions, place: int) -> Document:
    names = ("value", "std", "low", "high")
    numbers = {name: float(getattr(predictions, name)[place]) for name in names}
    return numbers | {"probabilities": predictions.probabilities[place].tolist()} | NO_DETECTION
