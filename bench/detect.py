"""Speed of face detection against a plain loop over facenet-pytorch, at identical boxes.

    python -m bench.detect                                     # 400 synthetic faces of 200 px
    python -m bench.detect --photos FOLDER_OR_TAR --count 400  # photos spread evenly over a set

Both sides start from encoded photos. The plain loop is one process that calls `MTCNN.detect` photo
by photo with torch's default number of threads. Ours is what the align stage does: chunks of 64
photos, in processes of one thread each. The sides take turns, so that other load affects both.
Starting the processes is not measured.
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
CHUNK = 64  # photos, as in the align stage
TOLERANCE_PX = 1e-3
SUFFIXES = (".jpg", ".jpeg", ".png")


def encoded_photos(source: Path | None, count: int) -> list[bytes]:
    """`count` files of a folder or tar, evenly spread; synthetic faces if no source is given."""
    if source is None:
        rng = np.random.default_rng(0)
        return [encode_face(sample_photo(sample_person(rng), rng), 200) for _ in range(count)]

    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
        spread = paths[:: max(1, len(paths) // count)][:count]
        return [path.read_bytes() for path in spread]

    photos = []
    with tarfile.open(source) as archive:
        members = [member for member in archive if member.name.lower().endswith(SUFFIXES)]
        members = [member for member in members if member.isfile()]
        for member in members[:: max(1, len(members) // count)][:count]:
            file = archive.extractfile(member)
            if file is not None:
                photos.append(file.read())
    return photos


def plain(networks: MTCNN, photos: list[bytes]) -> list[Faces]:
    """The baseline: one photo after the other."""
    found = []
    for data in photos:
        photo = Image.open(io.BytesIO(data)).convert("RGB")
        boxes, probabilities, landmarks = networks.detect(photo, landmarks=True)
        if boxes is None:
            boxes, probabilities, landmarks = np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2))
        found.append(Faces(boxes_N4=boxes, landmarks_N52=landmarks, probabilities_N=probabilities))
    return found


detector: Detector  # one per worker process, set by `start`


def start() -> None:
    """Initialises a worker process: one thread, networks loaded."""
    torch.set_num_threads(1)
    global detector
    detector = Detector(SETTINGS, backend="torch")


def work(photos: list[bytes]) -> tuple[list[Faces], float]:
    """A chunk's faces and the processor seconds that they took."""
    begin = time.process_time()
    faces = detector.detect([read_photo(data) for data in photos])
    return faces, time.process_time() - begin


def ours(pool: Executor, photos: list[bytes]) -> tuple[list[Faces], float]:
    """Faces of all photos and the workers' processor seconds."""
    chunks = [photos[start : start + CHUNK] for start in range(0, len(photos), CHUNK)]
    found: list[Faces] = []
    seconds = 0.0
    for faces, taken in pool.map(work, chunks):
        found += faces
        seconds += taken
    return found, seconds


def worst_difference(found: list[Faces], expected: list[Faces]) -> float:
    """The largest difference in pixels, over all boxes and landmarks.

    Errors: ValueError if the two sides found different numbers of faces in a photo.
    """
    worst = 0.0
    for index, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        if len(mine) != len(theirs):
            raise ValueError(
                f"photo {index}: {len(mine)} faces here, {len(theirs)} by facenet-pytorch"
            )
        if len(mine) == 0:
            continue

        boxes_N4 = mine.boxes_N4 - theirs.boxes_N4.astype(np.float32)
        landmarks_N52 = mine.landmarks_N52 - theirs.landmarks_N52.astype(np.float32)
        worst = max(worst, float(np.abs(boxes_N4).max()), float(np.abs(landmarks_N52).max()))
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
    context.set_forkserver_preload(["visage.detection.torch_networks"])

    wall = {"plain": 0.0, "ours": 0.0}
    processor = dict(wall)
    worst = 0.0
    num_faces = 0
    with ProcessPoolExecutor(arguments.workers, mp_context=context, initializer=start) as pool:
        # Warm-up: enough chunks that every worker gets one.
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
        wall_ms = 1e3 * seconds / len(photos)
        cpu_ms = 1e3 * processor[name] / len(photos)
        print(f"{name:6} {wall_ms:7.1f} ms per photo, {cpu_ms:7.1f} ms of processor")
    by_wall = wall["plain"] / wall["ours"]
    by_processor = processor["plain"] / processor["ours"]
    print(f"ratio  {by_wall:7.2f} of wall time, {by_processor:.2f} of processor time")
    if worst > TOLERANCE_PX:
        raise SystemExit(
            f"boxes are not identical: {worst} px apart, at most {TOLERANCE_PX} allowed"
        )


if __name__ == "__main__":
    main()
