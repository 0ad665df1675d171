"""Stability of landmarks in faces that are cropped as tightly as UTKFace's, by the number of
detection passes.

    python -m bench.landmarks                  # 300 synthetic faces, against their true landmarks
    python -m bench.landmarks --photos FOLDER_OR_TAR --count 800  # real chips, against their mean

For each number of passes it prints the time, and the spread of the similarity transform from the
landmarks found to the reference landmarks. Spread is half of the central 68 %, which a few gross
errors do not dominate. The numbers of passes take turns.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench.detect import SETTINGS, encoded_photos
from visage.detection.align import PhotoArray, Reals, choose_face, similarity, template, transform
from visage.detection.image_io import read_photo
from visage.detection.mtcnn import Detector
from visage.synthetic import draw_face, landmarks, sample_person, sample_photo

PASSES = (0, 1, 2, 3)
PX = 200
TURN = 50  # chips


def drawn_chips(count: int) -> tuple[list[PhotoArray], list[Reals]]:
    """Drawn faces cut from hair line to chin, and their true landmarks; corner and side differ a
    little, as cuts do."""
    rng = np.random.default_rng(0)
    chips = []
    points = []
    for _ in range(count):
        parameters = sample_photo(sample_person(rng), rng, clean=True)
        photo = draw_face(parameters, 2 * PX)
        true_52 = landmarks(parameters, 2 * PX)

        # In the template whole_face, eyes and mouth are 0.4 of the side apart.
        eye_to_mouth = float(np.linalg.norm(true_52[3:].mean(axis=0) - true_52[:2].mean(axis=0)))
        side = round(eye_to_mouth / 0.4 * rng.uniform(0.9, 1.1))
        corner_2 = true_52.mean(axis=0) - side * rng.uniform(0.45, 0.55, 2)
        left, top = np.maximum(0, corner_2).astype(int)

        chips.append(np.ascontiguousarray(photo[top : top + side, left : left + side]))
        points.append(true_52 - (left, top))
    return chips, points


def effect(points_52: Reals, frame_52: Reals, px: float) -> list[float]:
    """Log scale, rotation in degrees, and shift of the centre in x and y (% of the side), of the
    transform points -> frame."""
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
    detectors = {
        passes: Detector(replace(SETTINGS, landmark_passes=passes), backend="torch")
        for passes in PASSES
    }
    effects: dict[int, list[list[float]]] = {passes: [] for passes in PASSES}
    seconds = dict.fromkeys(PASSES, 0.0)
    for detector in detectors.values():
        detector.detect(chips[:4])  # warm-up

    for start in range(0, len(chips), TURN):
        for passes, detector in detectors.items():
            begin = time.process_time()
            found = detector.detect(chips[start : start + TURN])
            seconds[passes] += time.process_time() - begin

            for index, faces in enumerate(found, start):
                if len(faces) == 0:
                    continue
                height, width = chips[index].shape[:2]
                chosen = choose_face(faces, width, height)
                points_52 = faces.landmarks_N52[chosen].astype(np.float64)
                frame_52 = template("whole_face", width, 1.0) if truth is None else truth[index]
                effects[passes].append(effect(points_52, frame_52, width))

    print(f"{len(chips)} chips; spread of scale (%), rotation (degrees), x and y (% of the side)")
    for passes in PASSES:
        low, high = np.percentile(effects[passes], [16, 84], axis=0)
        scale, rotation, x, y = (high - low) / 2
        print(
            f"{passes} passes: {100 * scale:5.1f} {rotation:5.1f} {x:5.1f} {y:5.1f}   "
            f"{len(effects[passes])} found, "
            f"{1e3 * seconds[passes] / len(chips):.1f} ms of processor per photo"
        )


if __name__ == "__main__":
    main()
