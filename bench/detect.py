"""How much faster faces are found here than by a plain loop over facenet-pytorch, at identical
boxes.

    python -m bench.detect                                    # 400 drawn faces of 200 px
    python -m bench.detect --photos FOLDER_OR_TAR --count 400  # photos spread evenly over a set

Both sides start from encoded photos. The plain loop is one process calling `MTCNN.detect` photo by
photo with torch's own number of threads; ours is what the align stage does, chunks of 64 photos
through processes of one thread each. They take turns, so that other load on the machine hits both;
processes are started before the clock.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from facenet_pytorch import MTCNN
from PIL import Image

from visage.detection.image_io import read_photo
from visage.detection.mtcnn import Detector, DetectorSettings, Faces
from visage.synthetic import encode_face, sample_person, sample_photo

SETTINGS = DetectorSettings(
    min_face_px=20, thresholds=(0.6, 0.7, 0.7), factor=0.709, max_side_px=100_000, landmark_passes=0
)
CHUNK = 64
TOLERANCE_PX = 1e-3
SUFFIXES = (".jpg", ".jpeg", ".png")


def encoded_photos(source: Path | None, count: int) -> list[bytes]:
    """`count` files of a folder or tar, evenly spread; drawn faces where no source is given."""
    if source is None:
        rng = np.random.default_rng(0)
        return [encode_face(sample_photo(sample_person(rng), rng), 200) for _ in range(count)]
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
        return [path.read_bytes() for path in paths[:: max(1, len(paths) // count)][:count]]
    with tarfile.open(source) as archive:
        members = [
            member
            for member in archive
            if member.isfile() and member.name.lower().endswith(SUFFIXES)
        ]
        files = (
            archive.extractfile(member)
            for member in members[:: max(1, len(members) // count)][:count]
        )
        return [file.read() for file in files if file is not None]


def plain(networks: MTCNN, photos: list[bytes]) -> list[Faces]:
    """The loop that everybody writes."""
    found = []
    for data in photos:
        boxes, probabilities, landmarks = networks.detect(
            Image.open(io.BytesIO(data)).convert("RGB"), landmarks=True
        )
        if boxes is None:
            boxes, probabilities, landmarks = np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2))
        found.append(Faces(boxes_N4=boxes, landmarks_N52=landmarks, probabilities_N=probabilities))
    return found


detector: Detector  # a worker's own, made by `start`


def start() -> None:
    """A worker's beginning, once: one thread, the networks read."""
    torch.set_num_threads(1)
    global detector
    detector = Detector(SETTINGS)


def work(photos: list[bytes]) -> tuple[list[Faces], float]:
    """A chunk's faces and the processor seconds they took."""
    begin = time.process_time()
    return detector.detect([read_photo(data) for data in photos]), time.process_time() - begin


def ours(pool: Executor, photos: list[bytes]) -> tuple[list[Faces], float]:
    results = list(
        pool.map(work, [photos[start : start + CHUNK] for start in range(0, len(photos), CHUNK)])
    )
    return [faces for chunk, _ in results for faces in chunk], sum(
        seconds for _, seconds in results
    )


def worst_difference(found: list[Faces], expected: list[Faces]) -> float:
    """In pixels, over all boxes and landmarks; ValueError where another number of faces was found."""
    worst = 0.0
    for index, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        if len(mine) != len(theirs):
            raise ValueError(
                f"photo {index}: {len(mine)} faces here, {len(theirs)} by facenet-pytorch"
            )
        if len(mine):
            worst = max(
                worst, float(np.abs(mine.boxes_N4 - theirs.boxes_N4.astype(np.float32)).max())
            )
            worst = max(
                worst,
                float(np.abs(mine.landmarks_N52 - theirs.landmarks_N52.astype(np.float32)).max()),
            )
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.detect", description=__doc__)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    photos = encoded_photos(arguments.photos, arguments.count)
    networks = MTCNN(
        keep_all=True, min_face_size=SETTINGS.min_face_px, thresholds=list(SETTINGS.thresholds)
    )
    context = get_context("forkserver")
    context.set_forkserver_preload(["visage.detection.mtcnn"])
    wall = {"plain": 0.0, "ours": 0.0}
    processor = dict(wall)
    worst, num_faces = 0.0, 0
    with ProcessPoolExecutor(arguments.workers, mp_context=context, initializer=start) as pool:
        ours(pool, photos[:1] * CHUNK * arguments.workers * 2)
        plain(networks, photos[:2])
        turn = max(CHUNK * arguments.workers, len(photos) // 4)
        for first in range(0, len(photos), turn):
            part = photos[first : first + turn]
            begin, begin_processor = time.perf_counter(), time.process_time()
            expected = plain(networks, part)
            wall["plain"] += time.perf_counter() - begin
            processor["plain"] += time.process_time() - begin_processor
            begin = time.perf_counter()
            found, seconds = ours(pool, part)
            wall["ours"] += time.perf_counter() - begin
            processor["ours"] += seconds
            worst = max(worst, worst_difference(found, expected))
            num_faces += sum(map(len, found))
    print(
        f"{len(photos)} photos, {num_faces} faces, boxes and landmarks differ by at most "
        f"{worst:.1e} px"
    )
    for name, seconds in wall.items():
        per_photo, cpu = 1e3 * seconds / len(photos), 1e3 * processor[name] / len(photos)
        print(f"{name:6} {per_photo:7.1f} ms a photo, {cpu:7.1f} ms of processor")
    by_clock, by_processor = (seconds["plain"] / seconds["ours"] for seconds in (wall, processor))
    print(f"ratio  {by_clock:7.2f} on the clock, {by_processor:.2f} of processor")
    if worst > TOLERANCE_PX:
        raise SystemExit(
            f"boxes are not identical: {worst} px apart, at most {TOLERANCE_PX} allowed"
        )


if __name__ == "__main__":
    main()
