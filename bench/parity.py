"""Whether ONNX Runtime answers as torch does: the same photos through both, and how far apart.

    python -m bench.parity                                     # 50 drawn faces of 300 px
    python -m bench.parity FOLDER_OR_TAR --count 1000          # photos spread evenly over a set

A landmark is moved to steps of 1/8 px before a face is cut. Where the two runtimes' landmarks fall
on two sides of a step, the crop moves by that much and so does the value; these faces are counted
apart. Ends with status 1 where the bounds are not kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.detect import encoded_photos
from visage.detection.align import in_steps
from visage.inference.loading import load
from visage.inference.photos import Model
from visage.inference.results import PhotoPrediction

# Bounds of what the two runtimes may differ by
LANDMARK_PX = 0.05
VALUE = 1e-3
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Of `num_photos` photos: those on which the runtimes find another number of faces; and of each
    face that both found, the largest difference of a landmark's coordinate in pixels of the photo
    (N,), of the value and of the interval's ends in label units (N,), and whether its crop is the
    same (N,): its landmarks fall on the same steps."""

    num_photos: int
    num_other_faces: int
    landmark_px_N: Floats
    value_N: Floats
    ends_N: Floats
    same_crop_N: npt.NDArray[np.bool_]

    @property
    def is_kept(self) -> bool:
        """Whether the bounds hold: the same faces, their landmarks, values of the same crops."""
        return (
            not self.num_other_faces
            and bool((self.landmark_px_N <= LANDMARK_PX).all())
            and bool((self.value_N[self.same_crop_N] <= VALUE).all())
        )


def parity(photos: Iterable[bytes], one: Model, other: Model) -> Parity:
    """Two models on the same photos, each photo by itself."""
    num_photos = 0
    num_other_faces = 0
    rows: list[tuple[float, float, float, bool]] = []
    for photo in photos:
        num_photos += 1
        [left] = one.predict_many([photo])
        [right] = other.predict_many([photo])
        if len(left) != len(right):
            num_other_faces += 1
        else:
            rows += _differences(left, right)

    columns = np.array(rows, np.float64).reshape(-1, 4).T
    return Parity(
        num_photos=num_photos,
        num_other_faces=num_other_faces,
        landmark_px_N=columns[0],
        value_N=columns[1],
        ends_N=columns[2],
        same_crop_N=columns[3].astype(bool),
    )


def _differences(
    left: PhotoPrediction, right: PhotoPrediction
) -> list[tuple[float, float, float, bool]]:
    found = []
    for one, other in zip(left, right, strict=True):
        points_52 = np.array(one.landmarks)
        other_52 = np.array(other.landmarks)
        ends = max(abs(one.low - other.low), abs(one.high - other.high))
        is_same_crop = np.array_equal(in_steps(points_52), in_steps(other_52))
        row = float(np.abs(points_52 - other_52).max()), abs(one.value - other.value), ends
        found.append((*row, is_same_crop))
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.parity", description=__doc__)
    parser.add_argument(
        "photos", type=Path, nargs="?", help="a folder or tar; default: drawn faces"
    )
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--model", help="a released model's name, or a folder")
    arguments = parser.parse_args()

    models = [load(arguments.model, runtime=runtime) for runtime in ("onnx", "torch")]
    found = parity(encoded_photos(arguments.photos, arguments.count), *models)

    faces = len(found.value_N)
    print(f"{found.num_photos} photos, {found.num_other_faces} with another number of faces")
    print(f"{faces} faces, {faces - int(found.same_crop_N.sum())} of them cut elsewhere")
    same = found.same_crop_N
    for name, difference_N in (
        ("landmarks, px", found.landmark_px_N),
        ("value, same crop", found.value_N[same]),
        ("value, all", found.value_N),
        ("ends of the interval, all", found.ends_N),
    ):
        mean, most = difference_N.mean(), difference_N.max()
        high = np.quantile(difference_N, 0.999)
        print(f"{name:28} mean {mean:.2g}, 99.9 % {high:.2g}, max {most:.2g}")
    sys.exit(0 if found.is_kept else 1)


if __name__ == "__main__":
    main()
