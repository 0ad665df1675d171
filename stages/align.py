"""Manifest and photos become aligned faces: `data/<role>/manifest.parquet` ->
`data/<role>/faces/part-*.parquet`.

Each photo is read upright and MTCNN finds its faces. One face is chosen (the largest, weighted by
closeness to the centre), aligned to the template of the settings, and kept as a JPEG: one row a
face. Quarantined photos are left out. A photo without a face is listed in `rejects.csv` with its
reason. `align.json` holds the counts; it is written only if enough faces were found.

A photo of 200 px takes about 15 ms of one core. A stopped run resumes (stages/face_shards.py). The
same input gives the same bytes whatever `num_workers` is; memory does not grow with the number of
photos.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import itertools
import json
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from tqdm import tqdm

from stages.code import running_code
from stages.face_shards import (
    COPIED,
    AlignedPhotos,
    RowDict,
    Shard,
    is_finished,
    read_own,
    read_quarantine,
    read_shards,
    shard_paths,
    write_shard,
)
from stages.settings import Report, print_report, stage_main
from visage.atomic import atomic_write
from visage.data.jpeg import encode_jpeg
from visage.detection import align as alignment
from visage.detection.align import PhotoArray
from visage.detection.image_io import PhotoError, read_photo
from visage.detection.mtcnn import Detector, DetectorSettings, Faces
from visage.device import threads
from visage.parallel import batched, die_with_parent, map_ordered
from visage.strict import check_range

Work = Callable[[list[RowDict]], AlignedPhotos]
# Gives the results in the order of the chunks.
Runner = Callable[[Work, Iterable[list[RowDict]]], Iterator[AlignedPhotos]]
# Photos that one worker takes at a time.
CHUNK_ROWS = 64
# Pixels of the decoded photos that wait for the detector in one worker: bounds its memory.
PIXELS_TOGETHER = 24_000_000


@dataclass(frozen=True, kw_only=True)
class AlignSettings:
    """Crop, detector and policy. With `fallback: frame`, a photo in which no face was found counts
    as a face that fills the photo (right for sets of tight crops). `num_workers` 0 works in this
    process. `min_detection_rate` is a share of the photos that could be read."""

    template: str
    crop_px: int
    face_scale: float
    jpeg_quality: int
    detector: DetectorSettings
    fallback: Literal["none", "frame"]
    min_detection_rate: float
    shard_rows: int
    num_workers: int

    def __post_init__(self) -> None:
        alignment.template(self.template, self.crop_px, self.face_scale)
        check_range(
            self,
            jpeg_quality=(1, 100),
            min_detection_rate=(0, 1),
            shard_rows=(1, 10**6),
            num_workers=(0, None),
        )

    def preprocessing(self) -> dict[str, Any]:
        """How the crops were made, for the shards' metadata and the model's config."""
        crop = {
            name: getattr(self, name)
            for name in ("template", "crop_px", "face_scale", "jpeg_quality")
        }
        return {
            "alignment": crop,
            "detector": dataclasses.asdict(self.detector),
        }

    def provenance(self) -> str:
        """All that decides a shard's content besides its rows: settings, and the code that makes
        and writes it."""
        program = running_code("stages.align:_fill_shards", self)
        return json.dumps([self.preprocessing(), self.fallback, program], sort_keys=True)


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
    """The stage. `runner` maps chunks of photos over machines (a flow brings one); the default
    uses processes of this machine."""
    remedies = {manifest: "run the download stage", quarantine: "run the validate stage"}
    for path, remedy in remedies.items():
        if not path.is_file():
            raise ValueError(f"{path}: missing; {remedy}")
    if not gate.is_file():
        raise ValueError(
            f"{gate}: no validation report, so the data did not pass; see what the validate stage "
            f"says"
        )

    # If this run fails, no summary of an earlier run may remain.
    summary.unlink(missing_ok=True)
    table = pq.ParquetFile(manifest)
    left_out = read_quarantine(quarantine)
    num_rows = table.metadata.num_rows
    paths = shard_paths(faces, num_rows, settings.shard_rows)
    shards = read_shards(table, left_out, paths, settings.shard_rows, settings.provenance())

    runner = runner or functools.partial(run_local, settings.num_workers)
    with tqdm(total=num_rows, unit="photo", desc="align") as bar:
        _fill_shards(settings, shards, raw, runner, bar)

    _write_results(settings, paths, num_rows, rejects, summary, report)


def _fill_shards(
    settings: AlignSettings, shards: Iterator[Shard], raw: Path, runner: Runner, bar: tqdm[Any]
) -> None:
    """Aligns the shards that are not on disk yet. Each is written as soon as its last chunk is
    done.

    A runner may take all chunks before it gives the first result, so a shard's rows are not kept
    while it is aligned.
    """
    # Path, fingerprint and number of photos of each shard, in the order of the results.
    started: deque[tuple[Path, str, int]] = deque()

    def chunks() -> Iterator[list[RowDict]]:
        for shard in shards:
            if is_finished(shard):
                bar.update(len(shard.rows))
                continue

            started.append((shard.path, shard.fingerprint, len(shard.rows)))
            # A shard without rows is a chunk, too: it becomes an empty file.
            yield from batched(shard.rows, CHUNK_ROWS) if shard.rows else [[]]

    results = runner(functools.partial(align_photos, settings, raw), chunks())
    for first in results:
        path, fingerprint, num_photos = started.popleft()
        rest = itertools.islice(results, max(0, num_photos - 1) // CHUNK_ROWS)

        aligned = AlignedPhotos()
        for part in itertools.chain([first], rest):
            aligned.add(part)
            bar.update(len(part))

        assert len(aligned) == num_photos, (
            f"{path}: the runner gave {len(aligned)} results for {num_photos} photos"
        )
        write_shard(path, fingerprint, aligned, settings.preprocessing())


def run_local(
    num_workers: int, work: Work, chunks: Iterable[list[RowDict]]
) -> Iterator[AlignedPhotos]:
    """Runs chunks in processes of this machine and gives the results in order, at most four
    chunks a process at a time; 0 means this process."""
    if num_workers == 0:
        yield from map(work, chunks)
        return

    context = get_context("forkserver")
    # torch is imported once, not once a process.
    context.set_forkserver_preload(["visage.detection.torch_networks"])
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=die_with_parent)
    yield from map_ordered(work, chunks, pool, 4 * num_workers)


@threads(1)
def align_photos(settings: AlignSettings, raw: Path, rows: list[RowDict]) -> AlignedPhotos:
    """Manifest rows -> faces and rejects, the same bytes in any runner. One bad photo never
    affects the others.

    Errors: ValueError without the folder `raw`, as on a node that does not have it mounted.
    """
    if rows and not raw.is_dir():
        raise ValueError(
            f"{raw}: no such folder on {socket.gethostname()}; run the download stage, or mount it "
            f"there"
        )

    aligned = AlignedPhotos()
    group: list[tuple[RowDict, PhotoArray | str]] = []
    num_pixels = 0
    for row in rows:
        photo = _read(raw, row)
        group.append((row, photo))
        if not isinstance(photo, str):
            num_pixels += photo.size // 3
        if num_pixels > PIXELS_TOGETHER:
            _align_group(settings, group, aligned)
            group = []
            num_pixels = 0

    _align_group(settings, group, aligned)
    return aligned


def _read(raw: Path, row: RowDict) -> PhotoArray | str:
    """A manifest row -> its photo's pixels, or the reason why there are none."""
    if row["unreadable"] is not None:
        return str(row["unreadable"])

    try:
        data = (raw / row["photo_id"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            return "its bytes are not those of the manifest: run the download stage again"
        return read_photo(data)
    except PhotoError as error:
        return str(error)
    except OSError as error:
        # The error's own text holds the path.
        return f"cannot be read: {error.strerror}"


def _align_group(
    settings: AlignSettings, group: list[tuple[RowDict, PhotoArray | str]], aligned: AlignedPhotos
) -> None:
    """Adds the faces and rejects of some photos to `aligned`, in their order."""
    photos = [photo for _, photo in group if not isinstance(photo, str)]
    found = iter(_detect(settings.detector, photos))

    for row, photo in group:
        if isinstance(photo, str):
            result: RowDict | str = photo
        else:
            aligned.num_read += 1
            result = _aligned(settings, row, photo, next(found))

        if isinstance(result, str):
            aligned.rejects.append((row["photo_id"], result))
        else:
            aligned.faces.append(result)


def _detect(settings: DetectorSettings, group: list[PhotoArray]) -> list[Faces | str]:
    """Faces of each photo; if a photo makes the detector fail, the others still get theirs."""
    detector = _detector(settings)
    try:
        return list(detector.detect(group))
    except Exception as error:
        # One photo becomes a reject with its reason; it must not stop a run of five million.
        if len(group) == 1:
            return [f"detector failed: {type(error).__name__}: {error}"]
        results: list[Faces | str] = []
        for photo in group:
            results += _detect(settings, [photo])
        return results


@functools.lru_cache(maxsize=1)
def _detector(settings: DetectorSettings) -> Detector:
    """One detector a process: its networks are read once."""
    return Detector(settings, backend="torch")


def _aligned(
    settings: AlignSettings, row: RowDict, photo: PhotoArray, found: Faces | str
) -> RowDict | str:
    """A photo and its faces -> the face table's row, or the reason why there is none."""
    if isinstance(found, str):
        return found

    height, width = photo.shape[:2]
    if len(found):
        index = alignment.choose_face(found, width, height)
        box = found.boxes_N4[index]
        landmarks = found.landmarks_N52[index]
        probability = found.probabilities_N[index]
    elif settings.fallback == "frame":
        box = (0, 0, width, height)
        landmarks = alignment.frame_landmarks(width, height)
        probability = 0.0
    else:
        return "no face found"

    try:
        points = alignment.template(settings.template, settings.crop_px, settings.face_scale)
        matrix_23 = alignment.similarity(landmarks, points)
        crop_HWC = alignment.crop(photo, matrix_23, settings.crop_px)
        jpeg = encode_jpeg(crop_HWC, settings.jpeg_quality)
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


def _write_results(
    settings: AlignSettings,
    paths: list[Path],
    num_rows: int,
    rejects: Path,
    summary: Path,
    report: Report,
) -> None:
    """Writes the rejects and counts of all shards, the counts only if enough faces were found."""
    counts = dict.fromkeys(("num_photos", "num_read", "num_frame", "num_rejects", "num_faces"), 0)
    with atomic_write(rejects) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["photo_id", "reason"])
        for path in paths:
            own = read_own(path)
            writer.writerows(own["rejects"])
            for name in ("num_photos", "num_read", "num_frame"):
                counts[name] += own[name]
            counts["num_rejects"] += len(own["rejects"])
            counts["num_faces"] += own["num_photos"] - len(own["rejects"])

    num_found = counts["num_faces"] - counts["num_frame"]
    rate = num_found / max(1, counts["num_read"])
    if rate < settings.min_detection_rate or not counts["num_faces"]:
        raise ValueError(
            f"{rejects}: a face was found in {num_found} of {counts['num_read']} readable photos "
            f"({rate:.4f}), "
            f"min_detection_rate asks for {settings.min_detection_rate}; look at the rejects, or "
            f"lower the rate"
        )

    values = {
        **counts,
        "num_quarantined": num_rows - counts["num_photos"],
        "detection_rate": round(rate, 6),
    }
    with atomic_write(summary) as part:
        part.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    report(0, values)


if __name__ == "__main__":
    paths = ["manifest", "quarantine", "gate", "raw", "faces", "rejects", "summary"]
    stage_main("align", AlignSettings, align, paths, has_role=True)
