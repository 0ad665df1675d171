"""How steady landmarks are, by how often they are looked at again, in faces cut as tightly as UTKFace's.

    python -m bench.landmarks                                      # 300 drawn faces: distance to where they were drawn
    python -m bench.landmarks --photos FOLDER_OR_TAR --count 800   # a set cut by its own alignment: scatter over it

Prints, for each number of passes, in per cent of the face's distance between eyes and mouth (drawn), or of the side
(a set of one-size chips): the spread of the similarity transform that the landmarks lead to, and its time a face.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch

from bench.detect import encoded_photos
from visage.align import Photo, Reals, choose_face, similarity, template, transform
from visage.detect import Detector, DetectorSettings
from visage.drawn import draw_face, landmarks, sample_person, sample_photo
from visage.photos import read_photo

PASSES = (0, 1, 2, 3)
PX = 200


def drawn_chips(count: int) -> tuple[list[Photo], list[Reals]]:
    """Drawn faces cut from hair line to chin, and their true landmarks; corner and side differ a little, as cuts do."""
    rng = np.random.default_rng(0)
    chips, points = [], []
    for _ in range(count):
        parameters = sample_photo(sample_person(rng), rng, clean=True)
        photo, true_52 = draw_face(parameters, 2 * PX), landmarks(parameters, 2 * PX)
        eye_to_mouth = float(np.linalg.norm(true_52[3:].mean(axis=0) - true_52[:2].mean(axis=0)))
        side = round(eye_to_mouth / 0.4 * rng.uniform(0.9, 1.1))
        left, top = (np.maximum(0, true_52.mean(axis=0) - side * rng.uniform(0.45, 0.55, 2))).astype(int)
        chips.append(np.ascontiguousarray(photo[top : top + side, left : left + side]))
        points.append(true_52 - (left, top))
    return chips, points


def effect(points_52: Reals, frame_52: Reals, px: float) -> list[float]:
    """Log scale, rotation in degrees, shift of the middle in x and y (% of the side) of the map points -> frame."""
    matrix_23 = similarity(points_52, frame_52)
    turn = complex(matrix_23[0, 0], matrix_23[1, 0])
    shift_2 = (transform(np.full((1, 2), px / 2), matrix_23)[0] - px / 2) / px
    return [math.log(abs(turn)), math.degrees(math.atan2(turn.imag, turn.real)), *(100 * shift_2)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.landmarks", description=__doc__)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--count", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    truth: list[Reals] | None = None
    if arguments.photos is None:
        chips, truth = drawn_chips(arguments.count)
    else:
        chips = [read_photo(data) for data in encoded_photos(arguments.photos, arguments.count)]
    print(f"{len(chips)} chips; standard deviation of scale (%), rotation (degrees), x and y (% of the side)")
    for passes in PASSES:
        detector = Detector(
            DetectorSettings(min_face_px=20, thresholds=(0.6, 0.7, 0.7), factor=0.709, max_side_px=1024,
                             landmark_passes=passes)
        )  # fmt: skip
        begin, effects = time.process_time(), []
        found = detector.detect(chips)
        seconds = time.process_time() - begin
        for index, (chip, faces) in enumerate(zip(chips, found, strict=True)):
            height, width = chip.shape[:2]
            if len(faces):
                points_52 = faces.landmarks_N52[choose_face(faces, width, height)].astype(np.float64)
                frame_52 = template("whole_face", width, 1.0) if truth is None else truth[index]
                effects.append(effect(points_52, frame_52, width))
        scale, rotation, x, y = np.std(effects, axis=0)
        print(f"{passes} passes: {100 * scale:5.1f} {rotation:5.1f} {x:5.1f} {y:5.1f}   "
              f"{len(effects)} found, {1e3 * seconds / len(chips):.1f} ms of processor a photo")  # fmt: skip


if __name__ == "__main__":
    main()
