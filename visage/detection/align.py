"""Five landmarks -> a similarity transform -> a square crop in which every face has its eyes at the
same place.

Coordinates are continuous: pixel i covers [i, i + 1), so a photo W px wide reaches from 0 to W, for
landmarks, template and crops alike. Matrices (2, 3) map (x, y, 1) of the photo to (x, y) of the
crop.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

PhotoArray = npt.NDArray[np.uint8]
FloatingArray = npt.NDArray[np.floating]
Reals = npt.NDArray[np.float64]

# Left eye, right eye, nose, left and right corner of the mouth, left meaning left in the picture,
# in a crop of side 1.
TEMPLATES: dict[str, Reals] = {
    # In common use for face recognition (ArcFace, CosFace, InsightFace), there in 112 px. The
    # forehead is inside, the chin only just.
    "five_point_112": np.array(
        [
            [38.2946, 51.6963],
            [73.5318, 51.5014],
            [56.0252, 71.7366],
            [41.5493, 92.3655],
            [70.7299, 92.2041],
        ]
    )
    / 112,
    # From hair line to chin, where the signs of age are: the five points that
    # visage.detection.mtcnn finds in UTKFace's chips, as the mean over 2,950 of them (every eighth;
    # standard deviation 0.02 to 0.04), made symmetric.
    "whole_face": np.array(
        [[0.3038, 0.2887], [0.6962, 0.2887], [0.5, 0.5233], [0.3271, 0.6934], [0.6729, 0.6934]]
    ),
}
# Steps to the pixel.
LANDMARK_STEPS = 8
# Share of the shorter side: a face this far from the centre counts as 0.61 of its area.
CENTRE_SPREAD = 0.25


def template(name: str, crop_px: int, face_scale: float) -> Reals:
    """The five points (5, 2) in a crop of `crop_px`: one of TEMPLATES, scaled about the centre.

    Below a scale of 1 more of the surroundings is seen (hair, ears, neck), above 1 less.
    """
    if name not in TEMPLATES:
        raise ValueError(f"template {name!r} is unknown; known: {', '.join(TEMPLATES)}")
    if crop_px < 1 or face_scale <= 0:
        raise ValueError(f"crop_px {crop_px}, face_scale {face_scale}: both must be positive")
    points_52: Reals = ((TEMPLATES[name] - 0.5) * face_scale + 0.5) * crop_px
    return points_52


def similarity(landmarks_52: FloatingArray, template_52: FloatingArray) -> Reals:
    """The rotation, scale and shift (2, 3) that brings the landmarks nearest to the template, in
    least squares.

    Umeyama 1991, eq. 40-42, in the plane: with points as complex numbers z -> a z + b, and centred
    points, a = sum(conj(z) w) / sum(|z|^2). A reflection is never chosen. ValueError if all
    landmarks are one point.

    Landmarks are rounded to steps of 1/8 px, far below their own error: the last digits of a
    network's arithmetic depend on what else is in its batch, and a photo must give the same crop in
    every batch.
    """
    points = (in_steps(landmarks_52), template_52)
    source, target = (points_52 @ np.array([1, 1j]) for points_52 in points)

    centred = source - source.mean()
    energy = float((np.abs(centred) ** 2).sum())
    if not math.isfinite(energy) or energy < 1e-12:
        raise ValueError(
            f"landmarks {landmarks_52.tolist()} span no face: they must be five finite, distinct "
            f"points"
        )

    turn = complex((centred.conj() * (target - target.mean())).sum() / energy)
    shift = complex(target.mean() - turn * source.mean())
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def invert(matrix_23: Reals) -> Reals:
    """The inverse matrix (2, 3): crop -> photo."""
    back_22 = np.linalg.inv(matrix_23[:, :2])
    return np.concatenate([back_22, -back_22 @ matrix_23[:, 2:]], axis=1)


def transform(points_N2: FloatingArray, matrix_23: Reals) -> Reals:
    """Points (N, 2) through a matrix."""
    return points_N2 @ matrix_23[:, :2].T + matrix_23[:, 2]


def landmarks_in_crop(landmarks_52: FloatingArray, matrix_23: Reals) -> npt.NDArray[np.float32]:
    """The photo's landmarks (5, 2) in pixels of the crop, in the same steps as `similarity` takes
    them, so that a photo gives the same landmarks in a batch of any size."""
    return transform(in_steps(landmarks_52), matrix_23).astype(np.float32)


def in_steps(landmarks_52: FloatingArray) -> Reals:
    """Landmarks in steps of 1/8 px."""
    return np.round(landmarks_52.astype(np.float64) * LANDMARK_STEPS) / LANDMARK_STEPS


def crop(photo_HWC: PhotoArray, matrix_23: Reals, crop_px: int) -> PhotoArray:
    """RGB uint8 photo -> RGB uint8 (crop_px, crop_px, 3); black where the crop reaches beyond the
    photo.

    Antialiased where the crop is smaller than its piece of the photo. First, whole blocks of pixels
    are averaged (Image.reduce), which leaves between one and two times the wanted resolution. Then
    one bicubic affine resampling goes to twice the crop's size, and 2 x 2 averages to the crop. An
    enlarging crop is one bicubic resampling.
    """
    scale = math.sqrt(abs(float(np.linalg.det(matrix_23[:, :2]))))
    oversampling = 2 if scale < 1 else 1
    block = max(1, math.floor(1 / scale))

    left, top, right, bottom = _piece(photo_HWC.shape, matrix_23, crop_px, block)
    if right <= left or bottom <= top:
        return np.zeros((crop_px, crop_px, 3), np.uint8)

    piece = Image.fromarray(photo_HWC[top:bottom, left:right])
    back_23 = invert(matrix_23)
    back_23[:, :2] /= oversampling
    back_23[:, 2] -= (left, top)
    back_23 /= block

    size = (crop_px * oversampling, crop_px * oversampling)
    warped = (piece.reduce(block) if block > 1 else piece).transform(
        size, Image.Transform.AFFINE, tuple(back_23.ravel().tolist()), Image.Resampling.BICUBIC
    )
    return np.asarray(warped.reduce(oversampling) if oversampling > 1 else warped)


def _piece(
    shape: tuple[int, ...], matrix_23: Reals, crop_px: int, block: int
) -> tuple[int, int, int, int]:
    """The part of the photo that the crop needs, x0 y0 x1 y1, with a rim for the bicubic kernel,
    clipped to the photo."""
    corners = np.array([[0, 0], [crop_px, 0], [0, crop_px], [crop_px, crop_px]], np.float64)
    seen = transform(corners, invert(matrix_23))

    rim = 4 * block
    start = np.floor(seen.min(axis=0)) - rim
    end = np.ceil(seen.max(axis=0)) + rim
    left, top = (int(value) for value in np.maximum(start, 0))
    right, bottom = (int(value) for value in np.minimum(end, (shape[1], shape[0])))
    return left, top, right, bottom


class Boxes(Protocol):
    """What a choice looks at: `visage.detection.mtcnn.Faces`, without the detector's libraries."""

    @property
    def boxes_N4(self) -> npt.NDArray[np.float32]: ...


def choose_face(faces: Boxes, width: int, height: int) -> int:
    """Which of several faces the photo is about: the largest box, weighted by a Gaussian of its
    distance to the centre.

    The spread is a quarter of the photo's shorter side, so that a passer-by at the rim must be far
    larger than the person in the middle to be taken. ValueError if there is no face.
    """
    if not len(faces.boxes_N4):
        raise ValueError("no face to choose from: take the fallback or reject the photo")

    boxes_N4 = faces.boxes_N4.astype(np.float64)
    area_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(axis=1)
    offset_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:] - (width, height)) / 2
    spread = CENTRE_SPREAD * min(width, height)
    return int(np.argmax(area_N * np.exp(-0.5 * (offset_N2**2).sum(axis=1) / spread**2)))


def frame_landmarks(width: int, height: int) -> npt.NDArray[np.float32]:
    """Landmarks (5, 2) of a face that fills the frame, for photos known to be tight crops in which
    none was found."""
    return (TEMPLATES["whole_face"] * (width, height)).astype(np.float32)
