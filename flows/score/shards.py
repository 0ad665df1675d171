"""A slice of the list of photos becomes one parquet file: one row a face, one a photo without any.

    part-00000.parquet: photo, face (0 the largest), value, std, low, high (label units), box (x0 y0
    x1 y1), landmarks (x y of five points, px of the upright photo), probability (that it is a
    face), chosen (as the align stage would), distribution (over the model's grid), reason (null for
    a face; for a reject the other columns are null)

Its schema's metadata say under `visage` which model spoke, and under `score` what the file was made
of; while that is what is wanted, the file is not made again.
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
from stages.align import one_thread
from visage.atomic import atomic_write
from visage.data.schemas import METADATA_KEY
from visage.inference.photos import FacePrediction, PhotoResult, Predictor
from visage.model_config import CONFIG_FILE, ModelConfig
from visage.strict import check_positive, check_range
from visage.weights import load_model, sha256_of

SCORE_KEY = b"score"
MAX_FATAL = 5  # photos of a shard that a process may fail over before something else must be wrong
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
    """`shard_photos` a file; `num_workers` processes, 0 works in this one; `all_faces`, or only the
    chosen one; `flip` averages with the mirror image; `column` of a table names the photos. Larger
    photos are rejects; so is one that a process ends over, or looks at for longer than
    `max_photo_seconds`."""

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
        """The settings that decide what stands in a shard."""
        names = ("all_faces", "flip", "max_photo_bytes", "max_photo_pixels")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model's folder, and its version where it comes from the registry."""

    folder: Path
    version: str | None

    def about(self) -> dict[str, Any]:
        """Who speaks, of what and in which unit, as every shard says it. The config's digest stands
        for all that an answer depends on: weights, alignment, decoding, calibration."""
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
    """A shard to be made. After a process has failed over it, the photos go `one_by_one`, which
    tells the one to blame; such photos are `fatal`: place -> reason."""

    path: Path
    photos: list[ListedPhoto]
    fingerprint: str
    one_by_one: bool = False
    fatal: Mapping[int, str] = field(default_factory=dict)

    def blaming(self, place: int, reason: str) -> Job:
        """The job as it is tried again; ValueError where that has gone on for too long."""
        if not self.one_by_one:
            return replace(self, one_by_one=True)
        fatal = {**self.fatal, place: reason}
        if place in self.fatal or len(fatal) > MAX_FATAL:  # a fatal one is not even opened
            names = ", ".join(photo.name for photo in self.photos if photo.place in fatal)
            raise ValueError(
                f"{self.path}: one photo after the other failed ({names}; the last: {reason}). Is "
                f"there enough memory? "
                "The finished shards stay; the same command goes on with this one"
            )
        return replace(self, fatal=fatal)


class PhotoFailed(Exception):
    """Looking at photo number `place` raised what no photo should."""

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(place, reason)
        self.place, self.reason = place, reason


def fingerprint(
    photos: list[ListedPhoto], about: Mapping[str, Any], settings: ScoreSettings
) -> str:
    """A digest of all that a shard is made of: photos with size and version, model, settings,
    columns."""
    content = [[photo.name, photo.num_bytes, photo.version, photo.reason] for photo in photos]
    text = json.dumps([content, about, settings.deciding(), str(SCHEMA)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_finished(job: Job) -> bool:
    """Whether the job's file is there, made of the same, with every photo that could be fetched by
    another try."""
    try:
        own = read_own(job.path)
        return bool(own["fingerprint"] == job.fingerprint and not own["num_lost"])
    except (OSError, ValueError, KeyError, TypeError):  # absent, damaged, or not of this flow
        return False


def read_own(path: Path) -> Any:
    """What a shard says of itself: fingerprint, num_photos, num_lost (not fetched, tried again by
    the next run)."""
    return json.loads(pq.read_schema(path).metadata[SCORE_KEY])


class Scorer:
    """A model that writes shards."""

    def __init__(self, photos: str, model: Model, settings: ScoreSettings) -> None:
        self.settings, self.about = settings, model.about()
        network, config = load_model(model.folder)
        self.predictor = Predictor(network, config, max_photo_pixels=settings.max_photo_pixels)
        self.reader = Reader(photos, settings.max_photo_bytes)

    @one_thread()
    def write(self, job: Job, begin: Callable[[int], None]) -> None:
        """Makes a shard; `begin` is told each photo's number before it is looked at."""
        rows: list[dict[str, Any]] = []
        num_lost = 0
        for photo, result, reason in self._results(job, begin):
            faces = [
                (n, face)
                for n, face in enumerate(result.faces)
                if self.settings.all_faces or face.chosen
            ]
            rows += [_row_of(photo, number, face) for number, face in faces]
            if not faces:
                rows.append({"photo": photo.name, "reason": str(reason)})
            num_lost += isinstance(reason, Unanswered)
        own = {"fingerprint": job.fingerprint, "num_photos": len(job.photos), "num_lost": num_lost}
        metadata = {METADATA_KEY: json.dumps(self.about), SCORE_KEY: json.dumps(own)}
        with atomic_write(job.path) as part:
            pq.write_table(
                pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata)),
                part,
                compression="zstd",
            )

    def _results(
        self, job: Job, begin: Callable[[int], None]
    ) -> Iterator[tuple[ListedPhoto, PhotoResult, str | None]]:
        """Each photo with its result, and the reason where it has no face."""
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

        flip, stream = self.settings.flip, self.predictor.stream_photos
        results = (
            chain.from_iterable(stream([c], flip) for c in contents())
            if job.one_by_one
            else stream(contents(), flip)
        )
        try:
            for photo, result in zip(job.photos, results, strict=True):
                yield photo, result, reasons.pop(photo.place, result.reason)
        except Unreachable:
            raise
        except Exception as error:  # a reject with its reason, never the end of a million photos
            raise PhotoFailed(
                begun, f"cannot be looked at: {type(error).__name__}: {error}"
            ) from error


def _row_of(photo: ListedPhoto, number: int, face: FacePrediction) -> dict[str, Any]:
    return {
        "photo": photo.name,
        "face": number,
        **{
            name: getattr(face, name)
            for name in ("value", "std", "low", "high", "probability", "chosen")
        },
        "box": list(face.box),
        "landmarks": [coordinate for point in face.landmarks for coordinate in point],
        "distribution": face.probabilities,
        "reason": None,
    }
