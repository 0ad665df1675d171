"""Photos -> face boxes and five landmarks: the MTCNN cascade, its networks and weights taken from
facenet-pytorch.

Zhang, Zhang, Li, Qiao 2016, "Joint Face Detection and Alignment Using Multitask Cascaded
Convolutional Networks". The proposal network slides over an image pyramid, the refinement network
judges each proposal at 24 x 24 px, the output network at 48 x 48 px and gives the landmarks. The
cascade is numpy; its networks run in ONNX Runtime or in torch
(`visage.detection.cascade_networks`).

Boxes and probabilities equal `facenet_pytorch.MTCNN(keep_all=True).detect(photo)`, quirks included
(one-pixel conventions, order of the faces); the test holds them to 1e-3 px. What differs is the
driving:

- photos of one size go through the pyramid together;
- every area resampling (pyramid and candidate crops) is four look-ups in an integral image, exact
  in integers, in place of one interpolation per candidate;
- non-maximum suppression runs per photo, so a photo's faces do not depend on its neighbours in the
  batch.

Landmarks equal facenet-pytorch's where `landmark_passes` is 0. The library cuts a box at the
photo's rim, stretches the rest to a square and takes the landmarks for those of the full box: in
UTKFace's tight chips they scatter by 6 % of the side. So each face is aligned by its landmarks, the
output network sees it again (upright, uncut, with black beyond the rim, and its mirror image too),
and it is aligned again: two passes bring the scatter to 1 % (bench/landmarks.py).

Shapes: B photos, H W photo px, N candidates of all photos, K side of a network's input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from visage.detection.align import (
    PhotoArray,
    Reals,
    crop,
    invert,
    similarity,
    template,
    transform,
)
from visage.detection.cascade_networks import cascade_networks
from visage.detection.integral_image import Integral, normalised_
from visage.detection.suppression import nms

Float32Array = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

# Side of the square that one output cell of the proposal network sees.
CELL_PX = 12
# Distance between neighbouring cells.
STRIDE_PX = 2
# Sides of the second and the third network's input.
REFINE_PX = 24
OUTPUT_PX = 48
# Photo pixels that go through the pyramid together: bounds the memory, stays in reused pages.
BATCH_PIXELS = 1_000_000
# Candidates per forward pass: what stays inside the processor's cache.
REFINE_CHUNK = 256
OUTPUT_CHUNK = 32
# The square of a second look: 0.8 of the common template's side and a little lower, where landmarks
# scatter least.
LOOK_TEMPLATE = template("five_point_112", OUTPUT_PX, 112 / 90) - np.array([0, 9 / 90 * OUTPUT_PX])
# Which landmark each one is in the mirror.
MIRRORED = [1, 0, 2, 4, 3]
# A look is ignored when the output network gives a face a lower probability.
SEEN = 0.5
# Landmarks nearer to each other get no second look: they span no face.
MIN_SPREAD_PX = 1.0


@dataclass(frozen=True, kw_only=True)
class DetectorSettings:
    """The cascade's settings. `min_face_px` is in pixels of the photo after shrinking to
    `max_side_px`; `landmark_passes`: how many second looks refine the landmarks (0: as
    facenet-pytorch gives them)."""

    min_face_px: int
    thresholds: tuple[float, float, float]
    factor: float
    max_side_px: int
    landmark_passes: int

    def __post_init__(self) -> None:
        if self.min_face_px < CELL_PX:
            raise ValueError(
                f"detector.min_face_px is {self.min_face_px}: the smallest face is {CELL_PX} px"
            )

        if len(self.thresholds) != 3 or not all(0 < value < 1 for value in self.thresholds):
            raise ValueError(
                f"detector.thresholds is {self.thresholds}: give three numbers between 0 and 1"
            )

        if not 0 < self.factor < 1:
            raise ValueError(
                f"detector.factor is {self.factor}: a pyramid shrinks, give a number between 0 and "
                f"1"
            )

        if self.max_side_px < CELL_PX:
            raise ValueError(f"detector.max_side_px is {self.max_side_px}: give at least {CELL_PX}")
        if self.landmark_passes < 0:
            raise ValueError(f"detector.landmark_passes is {self.landmark_passes}: give 0 or more")


@dataclass(frozen=True, kw_only=True)
class Faces:
    """The faces of one photo, largest first: boxes x0 y0 x1 y1 and landmarks x y (left eye, right
    eye, nose, left and right corner of the mouth, as seen in the picture), all in pixels of the
    photo; they may be outside it."""

    boxes_N4: Float32Array
    landmarks_N52: Float32Array
    probabilities_N: Float32Array

    def __len__(self) -> int:
        return len(self.boxes_N4)


class Detector:
    """Finds every face of every photo; keeps no state between calls.

    `backend`: "onnx" (ONNX Runtime) or "torch" (facenet-pytorch). Their faces are the same and
    their landmarks less than 0.05 px apart. `num_threads`: of one call; on a busy machine more than
    one takes many times as long. Errors: ValueError for an unknown backend or fewer threads than 1.
    """

    def __init__(
        self, settings: DetectorSettings, backend: str = "onnx", num_threads: int = 1
    ) -> None:
        self.settings = settings
        self._networks = cascade_networks(backend, num_threads)

    def detect(self, photos: Sequence[PhotoArray]) -> list[Faces]:
        """RGB uint8 photos of any sizes (H, W, 3) -> their faces, in the same order."""
        small = [_shrink(photo, self.settings.max_side_px) for photo in photos]

        found: dict[int, Faces] = {}
        for indices in _same_size_batches([photo.shape for photo in small]):
            same_size = np.stack([small[index] for index in indices])
            batch = self._with_better_landmarks(same_size, self._detect_batch(same_size))
            for index, faces in zip(indices, batch, strict=True):
                found[index] = _enlarge(faces, small[index].shape, photos[index].shape)

        return [found[index] for index in range(len(photos))]

    def _detect_batch(self, photos: npt.NDArray[np.uint8]) -> list[Faces]:
        """Same-size photos (B, H, W, 3) -> faces in their pixels."""
        integral = Integral(photos)
        boxes_N4, photo_N = self._proposals(integral)
        boxes_N4, photo_N = self._refined(integral, boxes_N4, photo_N)
        return self._faces(integral, boxes_N4, photo_N)

    def _proposals(self, integral: Integral) -> tuple[Float32Array, Integers]:
        """First stage: pyramid -> square candidate boxes (N, 4) and the photo of each (N,), photo
        by photo."""
        levels: list[list[Float32Array]] = [[] for _ in range(integral.num_photos)]
        for scale in pyramid(integral.height, integral.width, self.settings):
            size = (int(integral.height * scale + 1), int(integral.width * scale + 1))
            regression_BCHW, score_BHW = self._networks.propose(integral.resample(size))
            for photo, candidates_N9 in enumerate(
                _candidates(regression_BCHW, score_BHW, scale, self.settings.thresholds[0])
            ):
                levels[photo].append(
                    candidates_N9[nms(candidates_N9[:, :4], candidates_N9[:, 4], 0.5)]
                )

        boxes: list[Float32Array] = []
        for photo_levels in levels:
            candidates_N9 = np.concatenate([np.zeros((0, 9), np.float32), *photo_levels])
            candidates_N9 = candidates_N9[nms(candidates_N9[:, :4], candidates_N9[:, 4], 0.7)]
            size_N2 = candidates_N9[:, 2:4] - candidates_N9[:, :2]
            boxes.append(
                _square(candidates_N9[:, :4] + candidates_N9[:, 5:9] * np.tile(size_N2, 2))
            )

        return np.concatenate(boxes), _photo_numbers(boxes)

    def _refined(
        self, integral: Integral, boxes_N4: Float32Array, photo_N: Integers
    ) -> tuple[Float32Array, Integers]:
        """Second stage: candidates -> fewer, better squares."""
        corners_N4, inside_N = _pixel_corners(boxes_N4, integral.height, integral.width)
        boxes_N4, photo_N, corners_N4 = boxes_N4[inside_N], photo_N[inside_N], corners_N4[inside_N]

        outputs: list[tuple[Float32Array, Float32Array]] = []
        for part in range(0, len(boxes_N4), REFINE_CHUNK):
            chunk = slice(part, part + REFINE_CHUNK)
            outputs.append(
                self._networks.refine(integral.crops(photo_N[chunk], corners_N4[chunk], REFINE_PX))
            )
        if not outputs:
            return boxes_N4, photo_N

        regression_N4, score_N = (np.concatenate(values) for values in zip(*outputs, strict=True))
        passed_N = _above(score_N, self.settings.thresholds[1])
        boxes_N4, photo_N, regression_N4 = (
            boxes_N4[passed_N],
            photo_N[passed_N],
            regression_N4[passed_N],
        )
        score_N = score_N[passed_N]

        kept = [
            rows[nms(boxes_N4[rows], score_N[rows], 0.7)]
            for rows in _rows_by_photo(photo_N, integral.num_photos)
        ]
        order = np.concatenate(kept)
        return _square(_regressed(boxes_N4[order], regression_N4[order])), photo_N[order]

    def _faces(self, integral: Integral, boxes_N4: Float32Array, photo_N: Integers) -> list[Faces]:
        """Third stage: candidates -> final boxes, landmarks and probabilities."""
        corners_N4, inside_N = _pixel_corners(boxes_N4, integral.height, integral.width)
        boxes_N4, photo_N, corners_N4 = boxes_N4[inside_N], photo_N[inside_N], corners_N4[inside_N]

        outputs: list[tuple[Float32Array, Float32Array, Float32Array]] = []
        for part in range(0, len(boxes_N4), OUTPUT_CHUNK):
            chunk = slice(part, part + OUTPUT_CHUNK)
            outputs.append(
                self._networks.output(integral.crops(photo_N[chunk], corners_N4[chunk], OUTPUT_PX))
            )
        if not outputs:
            return [_no_faces() for _ in range(integral.num_photos)]

        regression_N4, points_NP, score_N = (
            np.concatenate(values) for values in zip(*outputs, strict=True)
        )
        passed_N = _above(score_N, self.settings.thresholds[2])
        boxes_N4, photo_N = boxes_N4[passed_N], photo_N[passed_N]

        size_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2] + 1
        points_N25 = points_NP[passed_N].reshape(-1, 2, 5)
        landmarks_N25 = size_N2[:, :, None] * points_N25 + boxes_N4[:, :2, None] - 1

        final_N4 = _regressed(boxes_N4, regression_N4[passed_N])
        landmarks_N52 = landmarks_N25.swapaxes(1, 2)
        score_N = score_N[passed_N]
        return [
            _suppressed(final_N4[rows], landmarks_N52[rows], score_N[rows])
            for rows in _rows_by_photo(photo_N, integral.num_photos)
        ]

    def _with_better_landmarks(
        self, photos: npt.NDArray[np.uint8], found: list[Faces]
    ) -> list[Faces]:
        """The same faces, with the landmarks of a second look."""
        landmarks_N52 = np.concatenate([faces.landmarks_N52 for faces in found]).astype(np.float64)
        photo_N = np.repeat(np.arange(len(found)), [len(faces) for faces in found])
        [spread_N] = np.nonzero(
            np.ptp(landmarks_N52, axis=1).max(axis=1, initial=0) >= MIN_SPREAD_PX
        )

        for _ in range(self.settings.landmark_passes):
            for start in range(0, len(spread_N), OUTPUT_CHUNK):
                rows = spread_N[start : start + OUTPUT_CHUNK]
                landmarks_N52[rows] = self._look_again(
                    [photos[index] for index in photo_N[rows]], landmarks_N52[rows]
                )

        ends = np.cumsum([len(faces) for faces in found])[:-1]
        parts = np.split(landmarks_N52.astype(np.float32), ends)
        return [
            replace(faces, landmarks_N52=part) for faces, part in zip(found, parts, strict=True)
        ]

    def _look_again(self, photos: Sequence[PhotoArray], landmarks_N52: Reals) -> Reals:
        """One pass: each face's photo and landmarks -> its landmarks; where no face is seen now,
        they stay."""
        matrices = [similarity(points_52, LOOK_TEMPLATE) for points_52 in landmarks_N52]
        looks = [
            crop(photo, matrix_23, OUTPUT_PX)
            for photo, matrix_23 in zip(photos, matrices, strict=True)
        ]

        view_NCHW = normalised_(np.stack(looks).transpose(0, 3, 1, 2).astype(np.float32))
        both_NCHW = np.concatenate([view_NCHW, view_NCHW[..., ::-1]])
        _, points_NP, score_N = self._networks.output(both_NCHW)
        points_N52 = points_NP.astype(np.float64).reshape(-1, 2, 5).swapaxes(1, 2) * OUTPUT_PX
        seen_N52, mirrored_N52 = np.split(points_N52, 2)
        mirrored_N52 = np.array([OUTPUT_PX, 0]) - np.array([1, -1]) * mirrored_N52[:, MIRRORED]

        sees_face_N = score_N.reshape(2, -1).mean(axis=0) > SEEN
        middle_N52 = (seen_N52 + mirrored_N52) / 2

        better = [
            transform(points_52, invert(matrix))
            for points_52, matrix in zip(middle_N52, matrices, strict=True)
        ]
        kept_N52: Reals = np.where(sees_face_N[:, None, None], np.stack(better), landmarks_N52)
        return kept_N52


def pyramid(height: int, width: int, settings: DetectorSettings) -> Iterator[float]:
    """Scales at which the proposal network sees the photo: the smallest face at 12 px first, then
    by `factor`."""
    scale = CELL_PX / settings.min_face_px
    shorter = min(height, width) * scale

    while shorter >= CELL_PX:
        yield scale
        scale *= settings.factor
        shorter *= settings.factor


def _candidates(
    regression_B4HW: Float32Array, score_BHW: Float32Array, scale: float, threshold: float
) -> list[Float32Array]:
    """Cells over the threshold -> per photo (N, 9): the cell's box in photo px, its score, four
    regression values."""
    photo_N, row_N, column_N = np.nonzero(score_BHW >= np.float32(threshold))

    cell_N2 = np.stack([column_N, row_N], axis=1).astype(np.float32) * STRIDE_PX
    start_N2, end_N2 = np.floor((cell_N2 + 1) / scale), np.floor((cell_N2 + CELL_PX) / scale)
    score_N1 = score_BHW[photo_N, row_N, column_N][:, None]

    table_N9 = np.concatenate(
        [start_N2, end_N2, score_N1, regression_B4HW[photo_N, :, row_N, column_N]], axis=1
    )
    return [table_N9[rows] for rows in _rows_by_photo(photo_N, len(score_BHW))]


def _above(score_N: Float32Array, threshold: float) -> npt.NDArray[np.bool_]:
    """In float32, as facenet-pytorch compares them."""
    return score_N > np.float32(threshold)


def _square(boxes_N4: Float32Array) -> Float32Array:
    """The square of the longer side about each box's centre."""
    size_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    side_N1 = size_N2.max(axis=1, keepdims=True)
    start_N2 = boxes_N4[:, :2] + size_N2 * np.float32(0.5) - side_N1 * np.float32(0.5)
    return np.concatenate([start_N2, start_N2 + side_N1], axis=1)


def _regressed(boxes_N4: Float32Array, regression_N4: Float32Array) -> Float32Array:
    """Boxes moved by a network's regression, in units of their size with both end pixels."""
    size_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2] + 1
    moved_N4: Float32Array = boxes_N4 + regression_N4 * np.tile(size_N2, 2)
    return moved_N4


def _pixel_corners(
    boxes_N4: Float32Array, height: int, width: int
) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Boxes -> whole-pixel rectangles clipped to the photo (end excluded), and whether anything is
    left of each."""
    whole_N4 = np.trunc(boxes_N4).astype(np.int64)
    start_N2 = np.maximum(whole_N4[:, :2], 1) - 1
    end_N2 = np.minimum(whole_N4[:, 2:], (width, height))
    left_N2 = end_N2 > start_N2
    return np.concatenate([start_N2, end_N2], axis=1), left_N2[:, 0] & left_N2[:, 1]


def _photo_numbers(boxes: list[Float32Array]) -> Integers:
    return np.repeat(np.arange(len(boxes)), [len(rows) for rows in boxes])


def _rows_by_photo(photo_N: Integers, num_photos: int) -> list[Integers]:
    """Row numbers of each photo; rows are sorted by photo."""
    ends = np.cumsum(np.bincount(photo_N, minlength=num_photos))[:-1]
    return np.split(np.arange(len(photo_N)), ends)


def _no_faces() -> Faces:
    zero = np.zeros((0,), np.float32)
    return Faces(
        boxes_N4=zero.reshape(0, 4), landmarks_N52=zero.reshape(0, 5, 2), probabilities_N=zero
    )


def _suppressed(
    boxes_N4: Float32Array, landmarks_N52: Float32Array, score_N: Float32Array
) -> Faces:
    """Drops a face whose overlap with a likelier one is more than 0.7 of the smaller area; the
    largest box comes first."""
    area_N = (boxes_N4[:, 2] - boxes_N4[:, 0] + 1) * (boxes_N4[:, 3] - boxes_N4[:, 1] + 1)

    waiting, kept = np.argsort(score_N), []
    while len(waiting):
        best, waiting = waiting[-1], waiting[:-1]
        kept.append(best)
        start = np.maximum(boxes_N4[best, :2], boxes_N4[waiting, :2])
        end = np.minimum(boxes_N4[best, 2:], boxes_N4[waiting, 2:])
        shared = np.maximum(np.float32(0), end - start + 1).prod(axis=1)
        waiting = waiting[shared / np.minimum(area_N[best], area_N[waiting]) <= 0.7]

    picked = np.array(kept, dtype=np.int64)
    sides_N2 = boxes_N4[picked, 2:] - boxes_N4[picked, :2]
    picked = picked[np.argsort(sides_N2.prod(axis=1))[::-1]]

    return Faces(
        boxes_N4=boxes_N4[picked],
        landmarks_N52=landmarks_N52[picked],
        probabilities_N=score_N[picked],
    )


def _shrink(photo: PhotoArray, max_side_px: int) -> PhotoArray:
    """A photo whose longer side exceeds the limit -> the same at the limit, antialiased; others as
    they are."""
    height, width = photo.shape[:2]
    longer = max(height, width)
    if longer <= max_side_px:
        return photo

    size = tuple(max(1, round(side * max_side_px / longer)) for side in (width, height))
    return np.asarray(
        Image.fromarray(photo).resize(
            (size[0], size[1]), Image.Resampling.BILINEAR, reducing_gap=3.0
        )
    )


def _enlarge(faces: Faces, small_shape: tuple[int, ...], shape: tuple[int, ...]) -> Faces:
    """Faces in pixels of the shrunk photo -> in pixels of the photo."""
    if small_shape == shape:
        return faces

    ratio_2 = np.array([shape[1] / small_shape[1], shape[0] / small_shape[0]], dtype=np.float32)
    return Faces(
        boxes_N4=faces.boxes_N4 * np.tile(ratio_2, 2),
        landmarks_N52=faces.landmarks_N52 * ratio_2,
        probabilities_N=faces.probabilities_N,
    )


def _same_size_batches(shapes: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Indices of photos of one size, in batches of at most BATCH_PIXELS."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(index)

    for shape, indices in groups.items():
        count = max(1, math.floor(BATCH_PIXELS / (shape[0] * shape[1])))
        yield from (indices[start : start + count] for start in range(0, len(indices), count))
