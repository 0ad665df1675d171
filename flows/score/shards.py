"""Makes one parquet file of a slice of the list of photos: one row for each face, and one for each
photo without a face.

    part-00000.parquet: photo, face (0 the largest), value, std, low, high (label units), box (x0 y0
    x1 y1), landmarks (x y of five points, px of the upright photo), probability (that it is a
    face), chosen (as the align stage would), distribution (over the model's grid), reason (null for
    a face; for a reject the other columns are null)

The metadata of its schema name the model under `visage`, and under `score` what the file was made
of. As long as that matches the job, the file is not made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flows.score.inventory import ListedPhoto
from flows.score.reading import Reader, Unanswered, Unreachable
from visage.atomic import atomic_write
from visage.data.schemas import METADATA_KEY
from visage.inference.loading import load
from visage.inference.results import FacePrediction, PhotoPrediction
from visage.model_config import CONFIG_FILE, ModelConfig
from visage.strict import check_positive, check_range
from visage.weights import sha256_of

SCORE_KEY = b"score"
# If processes fail over more photos of one shard, the cause must be something else.
MAX_FATAL = 5
SCHEMA = pa.schema(
    [
        pa.field("photo", pa.string(), nullable=False),
        ("face", pa.int32()),
        *((name, pa.float64()) for name in ("value", "std", "low", "high")),
        ("box", pa.list_(pa.float32())),
        ("landmarks", pa.list_(pa.float32())),
        ("probability", pa.float32()),
        ("chosen", pa.bool_()),
        ("distribution", pa.list_(pa.float32())),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """`shard_photos`: photos for each file. `num_workers`: processes; 0 works in this one.
    `all_faces`: all, or only the chosen one. `flip`: average with the mirror image. `column`: of a
    table, which names the photos.

    Photos over the limits are rejects; so is a photo that ends its process, or that takes longer
    than `max_photo_seconds`.
    """

    shard_photos: int
    num_workers: int
    all_faces: bool
    flip: bool = field(metadata={"section": "inference"})
    column: str
    max_photo_bytes: int
    max_photo_pixels: int
    max_photo_seconds: float

    def __post_init__(self) -> None:
        check_range(
            self,
            shard_photos=(1, None),
            num_workers=(0, None),
            max_photo_bytes=(1, None),
            max_photo_pixels=(1, None),
        )
        check_positive(self, "max_photo_seconds")

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the content of a shard."""
        names = ("all_faces", "flip", "max_photo_bytes", "max_photo_pixels")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model's folder, and its version where it comes from the registry."""

    folder: Path
    version: str | None

    def about(self) -> dict[str, Any]:
        """The model, its quantity and unit, as every shard holds them.

        The config's digest stands for everything that a prediction depends on: weights, alignment,
        decoding, calibration.
        """
        config = ModelConfig.read(self.folder / CONFIG_FILE)

        return {
            "model": {
                "name": config.name,
                "version": self.version,
                "sha256": config.weights.sha256,
            },
            "config_sha256": sha256_of(self.folder / CONFIG_FILE),
            "quantity": config.quantity,
            "unit": config.unit,
            "labels": asdict(config.grid),
        }


@dataclass(frozen=True, kw_only=True)
class Job:
    """A shard to make. After a process has failed over it, its photos are scored `one_by_one`,
    which shows the photo that caused the failure. Such photos are `fatal`: place -> reason."""

    path: Path
    photos: list[ListedPhoto]
    fingerprint: str
    one_by_one: bool = False
    fatal: Mapping[int, str] = field(default_factory=dict)

    def blaming(self, place: int, reason: str) -> Job:
        """The job for the next try; ValueError after too many failures."""
        if not self.one_by_one:
            return replace(self, one_by_one=True)

        fatal = {**self.fatal, place: reason}
        # A fatal photo is not even opened, so that it cannot be the cause a second time.
        if place in self.fatal or len(fatal) > MAX_FATAL:
            names = ", ".join(photo.name for photo in self.photos if photo.place in fatal)
            raise ValueError(
                f"{self.path}: one photo after the other failed ({names}; the last: {reason}). Is "
                "there enough memory? The finished shards stay; the same command resumes with this "
                "one"
            )

        return replace(self, fatal=fatal)


class PhotoFailed(Exception):
    """Scoring photo number `place` raised an error that no photo should cause."""

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(place, reason)
        self.place = place
        self.reason = reason


def fingerprint(
    photos: list[ListedPhoto], about: Mapping[str, Any], settings: ScoreSettings
) -> str:
    """A digest of everything that a shard is made of: photos with size and version, model,
    settings, columns."""
    content = [[photo.name, photo.num_bytes, photo.version, photo.reason] for photo in photos]
    text = json.dumps([content, about, settings.deciding(), str(SCHEMA)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_finished(job: Job) -> bool:
    """Whether the job's file exists, was made of the same, and lacks no photo that another try
    could fetch."""
    try:
        own = read_own(job.path)
        return bool(own["fingerprint"] == job.fingerprint and not own["num_lost"])
    except (OSError, ValueError, KeyError, TypeError):
        # The file is absent, damaged, or not of this flow.
        return False


def read_own(path: Path) -> Any:
    """A shard's own metadata: fingerprint, num_photos, num_lost (photos that were not fetched; the
    next run tries them again)."""
    return json.loads(pq.read_schema(path).metadata[SCORE_KEY])


class Scorer:
    """A model that writes shards."""

    def __init__(self, photos: str, model: ModelFolder, settings: ScoreSettings) -> None:
        self.settings = settings
        self.about = model.about()
        self.predictor = load(
            model.folder, flip=settings.flip, max_photo_pixels=settings.max_photo_pixels
        )
        self.reader = Reader(photos, settings.max_photo_bytes)

    def write(self, job: Job, begin: Callable[[int], None]) -> None:
        """Makes a shard; `begin` gets each photo's number before the photo is scored."""
        rows: list[dict[str, Any]] = []
        num_lost = 0

        for photo, result, reason in self._results(job, begin):
            face_rows = [
                _row_of(photo, number, face)
                for number, face in enumerate(result.faces)
                if self.settings.all_faces or face.chosen
            ]
            rows += face_rows or [{"photo": photo.name, "reason": str(reason)}]
            num_lost += isinstance(reason, Unanswered)

        own = {"fingerprint": job.fingerprint, "num_photos": len(job.photos), "num_lost": num_lost}
        metadata = {METADATA_KEY: json.dumps(self.about), SCORE_KEY: json.dumps(own)}
        table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))
        with atomic_write(job.path) as part:
            pq.write_table(table, part, compression="zstd")

    def _results(
        self, job: Job, begin: Callable[[int], None]
    ) -> Iterator[tuple[ListedPhoto, PhotoPrediction, str | None]]:
        """Each photo with its result, and the reason if it has no face."""
        reasons: dict[int, str] = {}
        begun = job.photos[0].place

        def contents() -> Iterator[bytes]:
            nonlocal begun
            known = (
                photo._replace(reason=job.fatal.get(photo.place, photo.reason))
                for photo in job.photos
            )
            reading = self.reader.read_ahead(known)

            for photo in job.photos:
                begun = photo.place
                begin(begun)
                content = next(reading)
                if isinstance(content, str):
                    reasons[begun] = content
                yield b"" if isinstance(content, str) else content

        stream = self.predictor.predict_many
        results: Iterator[PhotoPrediction]
        if job.one_by_one:
            results = chain.from_iterable(stream([content]) for content in contents())
        else:
            results = stream(contents())

        try:
            for photo, result in zip(job.photos, results, strict=True):
                yield photo, result, reasons.pop(photo.place, result.reason)
        except Unreachable:
            raise
        except Exception as error:
            # One photo becomes a reject with its reason; it must not end a run of a million.
            reason = f"cannot be looked at: {type(error).__name__}: {error}"
            raise PhotoFailed(begun, reason) from error


def _row_of(photo: ListedPhoto, number: int, face: FacePrediction) -> dict[str, Any]:
    landmarks: list[float] = []
    for point in face.landmarks:
        landmarks += point

    return {
        "photo": photo.name,
        "face": number,
        "value": face.value,
        "std": face.std,
        "low": face.low,
        "high": face.high,
        "probability": face.probability,
        "chosen": face.chosen,
        "box": list(face.box),
        "landmarks": landmarks,
        "distribution": face.distribution,
        "reason": None,
    }
