"""Manifest and photos become aligned faces: `data/<role>/manifest.parquet` -> `data/<role>/faces/part-*.parquet`.

Each photo is read upright, MTCNN finds its faces, the one in charge (largest, weighted by closeness to the centre) is
laid on the five-point template and kept as a JPEG, one row a face. Quarantined photos are left out; a photo that gives
no face stands in `rejects.csv` with its reason. `align.json` counts, and appears only if enough faces were found.

A shard covers `shard_rows` rows of the manifest and carries a fingerprint of all that it depends on, so a run that was
stopped goes on where it was, and a changed manifest redoes its shards alone. The same input gives the same bytes
whatever `num_workers` is. Takes about 10 ms a photo of 200 px on one core; memory does not grow with their number.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from stages.settings import Report, print_report, stage_main, written_whole
from visage import align as alignment
from visage import detect, photos
from visage.detect import Detector, DetectorSettings, Faces, Photo
from visage.faces import FACE_SCHEMA, METADATA_KEY
from visage.photos import PhotoError, read_photo

Row = dict[str, Any]
CHUNK_ROWS = 64  # photos that one worker takes at a time
PIXELS_TOGETHER = 24_000_000  # decoded photos that wait for the detector in one worker: bounds its memory
SHARD_KEY = b"align"  # a shard's own metadata: JSON with fingerprint, rejects and counts
COPIED = ("photo_id", "sha256", "label", "sigma", "person", "sex", "ethnicity", "split")


@dataclass(frozen=True, kw_only=True)
class AlignSettings:
    """Crop, detector and policy. `fallback: frame` takes a photo without a found face as a face that fills it (right
    for sets of tight crops); `num_workers` 0 works in this process; `min_detection_rate` is a share of the photos that
    could be read."""

    crop_px: int
    face_scale: float
    jpeg_quality: int
    detector: DetectorSettings
    choose: Literal["centre_largest"]
    fallback: Literal["none", "frame"]
    min_detection_rate: float
    shard_rows: int
    num_workers: int

    def __post_init__(self) -> None:
        alignment.template(self.crop_px, self.face_scale)
        for name, low, high in (("jpeg_quality", 1, 100), ("min_detection_rate", 0, 1), ("shard_rows", 1, 10**6)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}: give {low} to {high}")
        if self.num_workers < 0:
            raise ValueError(f"num_workers is {self.num_workers}: give 0 (this process) or more")


@dataclass(kw_only=True)
class Outcome:
    """What became of some photos, in their order."""

    faces: list[Row] = field(default_factory=list)
    rejects: list[tuple[str, str]] = field(default_factory=list)
    num_read: int = 0

    def add(self, other: Outcome) -> None:
        self.faces += other.faces
        self.rejects += other.rejects
        self.num_read += other.num_read


Work = Callable[[list[Row]], Outcome]
Runner = Callable[[Work, Iterable[list[Row]]], Iterator[Outcome]]  # outcomes in the chunks' order


@dataclass(kw_only=True)
class Shard:
    """One output file: the manifest's rows that belong in it and what has become of them so far."""

    path: Path
    rows: list[Row]
    fingerprint: str
    num_waiting: int
    outcome: Outcome


def align(
    settings: AlignSettings,
    *,
    manifest: Path,
    quarantine: Path,
    gate: Path,
    raw: Path,
    faces: Path,
    rejects: Path,
    summary: Path,
    report: Report = print_report,
    runner: Runner | None = None,
) -> None:
    """The stage. `runner` maps chunks of photos over machines (the flows' Ray); the default is processes here."""
    for path, remedy in ((manifest, "run the download stage"), (quarantine, "run the validate stage")):
        if not path.is_file():
            raise ValueError(f"{path}: missing; {remedy}")
    if not gate.is_file():
        raise ValueError(f"{gate}: no validation report, so the data did not pass; see what the validate stage says")
    table = pq.ParquetFile(manifest)
    paths = [faces / f"part-{index:05d}.parquet" for index in range(-(-table.metadata.num_rows // settings.shard_rows))]
    _remove_stale(faces, set(paths))
    with tqdm(total=table.metadata.num_rows, unit="photo", desc="align") as bar:
        _fill_shards(settings, _shards(settings, table, _quarantined(quarantine), paths), raw, runner, bar)
    _write_results(settings, paths, table.metadata.num_rows, rejects, summary, report)


def _fill_shards(
    settings: AlignSettings, shards: Iterator[Shard], raw: Path, runner: Runner | None, bar: tqdm[Any]
) -> None:
    """Aligns the shards that are not on disk yet; each is written as soon as its last chunk is back."""
    waiting: deque[Shard] = deque()

    def chunks() -> Iterator[list[Row]]:
        for shard in shards:
            if _is_finished(shard):
                bar.update(len(shard.rows))
                continue
            waiting.append(shard)
            for start in range(0, max(1, len(shard.rows)), CHUNK_ROWS):
                yield shard.rows[start : start + CHUNK_ROWS]

    work = functools.partial(align_photos, settings, raw)
    for outcome in (runner or functools.partial(run_local, settings.num_workers))(work, chunks()):
        shard = waiting[0]
        shard.outcome.add(outcome)
        shard.num_waiting -= 1
        bar.update(len(outcome.faces) + len(outcome.rejects))
        if not shard.num_waiting:
            _write_shard(settings, waiting.popleft())


def run_local(num_workers: int, work: Work, chunks: Iterable[list[Row]]) -> Iterator[Outcome]:
    """Chunks through processes of this machine, in order, at most four per process under way."""
    if num_workers == 0:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield from map(work, chunks)
        torch.set_num_threads(threads)
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running: deque[Future[Outcome]] = deque()
        source = iter(chunks)
        try:
            running.extend(pool.submit(work, chunk) for chunk in itertools.islice(source, 4 * num_workers))
            while running:
                yield running.popleft().result()
                running.extend(pool.submit(work, chunk) for chunk in itertools.islice(source, 1))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def align_photos(settings: AlignSettings, raw: Path, rows: list[Row]) -> Outcome:
    """Manifest rows -> faces and rejects. Whatever one photo does, the others are aligned."""
    outcome = Outcome()
    group: list[tuple[Row, Photo | str]] = []
    num_pixels = 0
    for row in rows:
        photo = _read(raw, row)
        group.append((row, photo))
        num_pixels += 0 if isinstance(photo, str) else photo.size // 3
        if num_pixels > PIXELS_TOGETHER:
            _align_group(settings, group, outcome)
            group, num_pixels = [], 0
    _align_group(settings, group, outcome)
    return outcome


def _read(raw: Path, row: Row) -> Photo | str:
    """A manifest row -> its photo's pixels, or the reason why there are none."""
    if row["unreadable"] is not None:
        return str(row["unreadable"])
    try:
        data = (raw / row["photo_id"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            return "its bytes are not those of the manifest: run the download stage again"
        return read_photo(data)
    except (PhotoError, OSError) as error:
        return error.strerror or "cannot be read" if isinstance(error, OSError) else str(error)


def _align_group(settings: AlignSettings, group: list[tuple[Row, Photo | str]], outcome: Outcome) -> None:
    """Adds what becomes of some photos to the outcome, in their order."""
    found = iter(_detect(settings.detector, [photo for _, photo in group if not isinstance(photo, str)]))
    for row, photo in group:
        result = photo if isinstance(photo, str) else _aligned(settings, row, photo, next(found))
        outcome.num_read += not isinstance(photo, str)
        if isinstance(result, str):
            outcome.rejects.append((row["photo_id"], result))
        else:
            outcome.faces.append(result)


def _detect(settings: DetectorSettings, group: list[Photo]) -> list[Faces | str]:
    """Faces of each photo; if a photo makes the detector fail, the others still get theirs."""
    detector = _detector(settings)
    try:
        return list(detector.detect(group))
    except Exception as error:  # a reject with its reason, never the end of five million photos
        if len(group) == 1:
            return [f"detector failed: {type(error).__name__}: {error}"]
        return [result for photo in group for result in _detect(settings, [photo])]


@functools.lru_cache(maxsize=1)
def _detector(settings: DetectorSettings) -> Detector:
    """One detector a process: its networks are read once."""
    return Detector(settings)


def _aligned(settings: AlignSettings, row: Row, photo: Photo, found: Faces | str) -> Row | str:
    """A photo and its faces -> the face table's row, or the reason why there is none."""
    if isinstance(found, str):
        return found
    height, width = photo.shape[:2]
    if len(found):
        index = alignment.choose_face(found, width, height)
        box, landmarks, probability = found.boxes_N4[index], found.landmarks_N52[index], found.probabilities_N[index]
    elif settings.fallback == "frame":
        box, landmarks, probability = (0, 0, width, height), alignment.frame_landmarks(width, height), 0.0
    else:
        return "no face found"
    try:
        matrix_23 = alignment.similarity(landmarks, alignment.template(settings.crop_px, settings.face_scale))
        jpeg = alignment.encode(alignment.crop(photo, matrix_23, settings.crop_px), settings.jpeg_quality)
    except Exception as error:  # as in _detect
        return f"crop failed: {type(error).__name__}: {error}"
    return {name: row[name] for name in COPIED} | {
        "jpeg": jpeg,
        "box": [float(value) for value in box],
        "landmarks": [float(value) for value in landmarks.ravel()],
        "probability": float(probability),
        "num_faces": len(found),
        "found": "mtcnn" if len(found) else "frame",
    }


def _quarantined(path: Path) -> frozenset[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return frozenset(line["photo_id"] for line in csv.DictReader(file))


def _shards(
    settings: AlignSettings, table: pq.ParquetFile, quarantined: frozenset[str], paths: list[Path]
) -> Iterator[Shard]:
    """The manifest, read as it is needed, cut into shards; quarantined rows are left out of theirs."""
    eye = json.dumps([eye_of(settings), settings.choose, settings.fallback, _code_sha256()], sort_keys=True)
    rows = (row for batch in table.iter_batches(batch_size=1024) for row in batch.to_pylist())
    for path in paths:
        kept = [row for row in itertools.islice(rows, settings.shard_rows) if row["photo_id"] not in quarantined]
        content = json.dumps([[row["photo_id"], row["unreadable"], *(row[name] for name in COPIED)] for row in kept])
        yield Shard(
            path=path,
            rows=kept,
            fingerprint=hashlib.sha256((eye + content).encode()).hexdigest(),
            num_waiting=max(1, -(-len(kept) // CHUNK_ROWS)),
            outcome=Outcome(),
        )


def eye_of(settings: AlignSettings) -> dict[str, Any]:
    """What a model's card must know of the crops, as the shards carry it."""
    return {
        "alignment": {
            "template": alignment.TEMPLATE_NAME,
            "crop_px": settings.crop_px,
            "face_scale": settings.face_scale,
            "jpeg_quality": settings.jpeg_quality,
        },
        "detector": dataclasses.asdict(settings.detector),
    }


def _code_sha256() -> str:
    """Of the modules that make a crop: shards of an older program are redone."""
    sources = (alignment.__file__, detect.__file__, photos.__file__, __file__)
    return hashlib.sha256(b"".join(Path(source).read_bytes() for source in sources)).hexdigest()


def _remove_stale(faces: Path, wanted: set[Path]) -> None:
    """Removes shards beyond the manifest's end and what a killed run left half-written."""
    faces.mkdir(parents=True, exist_ok=True)
    for path in [*faces.glob("part-*.parquet"), *faces.glob(".part-*")]:
        if path not in wanted:
            path.unlink()


def _own_metadata(path: Path) -> Any:
    """What a shard says of itself: fingerprint, rejects, counts."""
    return json.loads(pq.read_schema(path).metadata[SHARD_KEY])


def _is_finished(shard: Shard) -> bool:
    try:
        return bool(_own_metadata(shard.path)["fingerprint"] == shard.fingerprint)
    except (OSError, ValueError, KeyError, TypeError):  # absent, damaged or of another making: redone
        return False


def _write_shard(settings: AlignSettings, shard: Shard) -> None:
    own = {
        "fingerprint": shard.fingerprint,
        "rejects": shard.outcome.rejects,
        "num_photos": len(shard.rows),
        "num_read": shard.outcome.num_read,
        "num_frame": sum(row["found"] == "frame" for row in shard.outcome.faces),
    }
    metadata = {METADATA_KEY: json.dumps(eye_of(settings), sort_keys=True), SHARD_KEY: json.dumps(own, sort_keys=True)}
    table = pa.Table.from_pylist(shard.outcome.faces, schema=FACE_SCHEMA.with_metadata(metadata))
    compression = {name: "zstd" for name in FACE_SCHEMA.names} | {"jpeg": "none"}
    with written_whole(shard.path) as part:
        pq.write_table(table, part, compression=compression, use_dictionary=["split", "found", "sex", "ethnicity"])


def _write_results(
    settings: AlignSettings, paths: list[Path], num_rows: int, rejects: Path, summary: Path, report: Report
) -> None:
    """Rejects and counts of all shards; the summary is written only if enough faces were found."""
    counts = dict.fromkeys(("num_photos", "num_read", "num_frame", "num_rejects", "num_faces"), 0)
    with written_whole(rejects) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["photo_id", "reason"])
        for path in paths:
            own = _own_metadata(path)
            writer.writerows(own["rejects"])
            for name in ("num_photos", "num_read", "num_frame"):
                counts[name] += own[name]
            counts["num_rejects"] += len(own["rejects"])
            counts["num_faces"] += own["num_photos"] - len(own["rejects"])
    num_found = counts["num_faces"] - counts["num_frame"]
    rate = num_found / max(1, counts["num_read"])
    if rate < settings.min_detection_rate or not counts["num_faces"]:
        raise ValueError(
            f"{rejects}: a face was found in {num_found} of {counts['num_read']} readable photos ({rate:.4f}), "
            f"min_detection_rate asks for {settings.min_detection_rate}; look at the rejects, or lower the rate"
        )
    values = {**counts, "num_quarantined": num_rows - counts["num_photos"], "detection_rate": round(rate, 6)}
    with written_whole(summary) as part:
        part.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    report(0, values)


if __name__ == "__main__":
    paths = ["manifest", "quarantine", "gate", "raw", "faces", "rejects", "summary"]
    stage_main("align", AlignSettings, align, paths, has_role=True)
