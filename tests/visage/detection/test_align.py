"""Alignment by property: least squares, inverse, template, resampling against a dense reference,
choice of the face."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from visage.data.jpeg import decode_jpeg, encode_jpeg
from visage.detection.align import (
    TEMPLATES,
    choose_face,
    crop,
    frame_landmarks,
    invert,
    similarity,
    template,
    transform,
)
from visage.detection.mtcnn import Faces

angles = st.floats(-math.pi, math.pi)
scales = st.floats(0.05, 20)
shifts = st.floats(-500, 500)

TEMPLATE_112 = template("five_point_112", 112, 1.0)


def matrix(angle: float, scale: float, x: float, y: float) -> np.ndarray:
    a, b = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[a, -b, x], [b, a, y]])


def smooth_photo(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width] + 0.5
    waves = [np.sin(x / 9) * np.cos(y / 13), np.cos(x / 15), np.sin((x + y) / 20)]
    return np.round(127.5 + 110 * np.stack(waves, axis=2)).astype(np.uint8)


@given(angles, st.floats(0.2, 20), shifts, shifts)
def test_an_exact_similarity_is_found_again(angle: float, scale: float, x: float, y: float) -> None:
    # Landmarks count in eighths.
    landmarks = np.round(TEMPLATE_112 * 8 * 3) / 8
    wanted = matrix(angle, scale, x, y)
    np.testing.assert_allclose(
        similarity(landmarks, transform(landmarks, wanted)), wanted, atol=1e-8 * scale
    )


@given(st.integers(0, 10_000))
def test_no_other_similarity_is_nearer(seed: int) -> None:
    """Least squares: the gradient of the squared distance vanishes (the four normal equations)."""
    rng = np.random.default_rng(seed)
    landmarks = np.round(rng.uniform(0, 200, (5, 2)) * 8) / 8
    goal = rng.uniform(0, 112, (5, 2))

    x, y = landmarks.T
    zero, one = np.zeros(5), np.ones(5)
    design = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    (a, b, tx, ty), *_ = np.linalg.lstsq(
        design, np.concatenate([goal[:, 0], goal[:, 1]]), rcond=None
    )

    np.testing.assert_allclose(similarity(landmarks, goal), [[a, -b, tx], [b, a, ty]], atol=1e-7)


def test_a_mirrored_face_is_not_mirrored_back() -> None:
    mirrored = np.round(TEMPLATE_112 * [-8, 8]) / 8
    assert np.linalg.det(similarity(mirrored, TEMPLATE_112)[:, :2]) > 0


def test_the_last_digits_of_the_landmarks_change_nothing() -> None:
    noise = np.random.default_rng(0).uniform(-1e-4, 1e-4, (5, 2))
    landmarks = np.round(TEMPLATE_112 * 8) / 8
    assert np.array_equal(
        similarity(landmarks + noise, TEMPLATE_112), similarity(landmarks, TEMPLATE_112)
    )


@pytest.mark.parametrize(
    "landmarks", [np.full((5, 2), 7.0), np.full((5, 2), np.nan), TEMPLATE_112 * np.inf]
)
def test_landmarks_that_span_nothing_are_refused(landmarks: np.ndarray) -> None:
    with pytest.raises(ValueError, match="span no face"), np.errstate(invalid="ignore"):
        similarity(landmarks, TEMPLATE_112)


@given(angles, scales, shifts, shifts)
def test_the_inverse_undoes(angle: float, scale: float, x: float, y: float) -> None:
    there = matrix(angle, scale, x, y)
    points = np.array([[0.0, 0.0], [112.0, 3.0], [-50.0, 700.0]])
    np.testing.assert_allclose(
        transform(transform(points, there), invert(there)), points, atol=1e-6
    )
    np.testing.assert_allclose(invert(invert(there)), there, atol=1e-6)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_scales_about_the_centre(name: str) -> None:
    np.testing.assert_allclose(template(name, 112, 1.0), TEMPLATES[name] * 112)
    np.testing.assert_allclose(template(name, 224, 0.8), 2 * template(name, 112, 0.8))
    for face_scale in (0.5, 1.5):
        np.testing.assert_allclose(
            template(name, 112, face_scale) - 56, (template(name, 112, 1.0) - 56) * face_scale
        )
    for crop_px, face_scale in ((0, 1.0), (112, 0.0), (112, -1.0)):
        with pytest.raises(ValueError, match="positive"):
            template(name, crop_px, face_scale)


def test_an_unknown_template_is_refused() -> None:
    with pytest.raises(
        ValueError, match="'six_point' is unknown; known: five_point_112, whole_face"
    ):
        template("six_point", 112, 1.0)


def test_the_identity_copies_the_photo() -> None:
    photo = smooth_photo(50, 50)
    np.testing.assert_array_equal(crop(photo, matrix(0, 1, 0, 0), 50), photo)
    np.testing.assert_array_equal(crop(photo, matrix(0, 1, -10, -20), 30), photo[20:50, 10:40])


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_quarter_turn_keeps_every_pixel(turns: int) -> None:
    photo = smooth_photo(40, 40)
    quarter = matrix(-turns * math.pi / 2, 1, 0, 0)
    quarter[:, 2] = 20 - quarter[:, :2] @ [20, 20]
    difference = crop(photo, quarter, 40) - np.rot90(photo, turns).astype(int)
    # Pillow's bicubic kernel rounds down.
    assert np.abs(difference).max() <= 1


def dense_reference(photo: np.ndarray, there: np.ndarray, crop_px: int, density: int) -> np.ndarray:
    """Every crop pixel as the mean of density x density bilinear samples of the photo under it."""
    steps = (np.arange(crop_px * density) + 0.5) / density
    x, y = np.meshgrid(steps, steps)
    seen = transform(np.stack([x.ravel(), y.ravel()], axis=1), invert(there)) - 0.5
    low = np.floor(seen).astype(int)
    fraction = seen - low

    total = np.zeros((len(seen), 3))
    for dx in (0, 1):
        for dy in (0, 1):
            column, row = low[:, 0] + dx, low[:, 1] + dy
            inside = (column >= 0) & (row >= 0) & (column < photo.shape[1]) & (row < photo.shape[0])
            weight = np.abs(1 - dx - fraction[:, 0]) * np.abs(1 - dy - fraction[:, 1]) * inside
            total += weight[:, None] * photo[row * inside, column * inside]

    return total.reshape(crop_px, density, crop_px, density, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("scale", [0.13, 0.34, 0.5, 0.77, 1.0, 1.6])
@pytest.mark.parametrize("angle", [0.0, -2.0])
def test_crops_agree_with_dense_sampling(scale: float, angle: float) -> None:
    side = 40
    photo = smooth_photo(int(90 / scale), int(100 / scale))
    # Waves in crop pixels, as a large photo of the same face would have.
    if scale < 1:
        photo = np.asarray(
            Image.fromarray(smooth_photo(90, 100)).resize(
                photo.shape[1::-1], Image.Resampling.BICUBIC
            )
        )

    there = matrix(angle, scale, 0, 0)
    there[:, 2] = side / 2 - there[:, :2] @ [50 / scale, 45 / scale]

    difference = np.abs(
        crop(photo, there, side) - dense_reference(photo, there, side, max(3, math.ceil(2 / scale)))
    )

    assert difference.mean() < 1.5
    assert difference.max() < 12


@pytest.mark.parametrize("scale", [0.05, 0.13, 0.3, 0.45, 0.6])
def test_what_is_too_fine_for_the_crop_becomes_grey_not_a_pattern(scale: float) -> None:
    """A chessboard of single pixels, shrunk: antialiasing leaves its mean."""
    photo = np.indices((600, 600)).sum(axis=0) % 2 * np.uint8(255)
    there = matrix(0.3, scale, 0, 0)
    there[:, 2] = 8 - there[:, :2] @ [300, 300]
    shrunk = crop(np.repeat(photo[:, :, None], 3, axis=2).astype(np.uint8), there, 16).astype(float)
    assert np.abs(shrunk - 127.5).max() < (30 if scale > 0.5 else 12)


def test_beyond_the_photo_it_is_black() -> None:
    white = np.full((40, 40, 3), 255, np.uint8)
    for scale in (0.3, 1.0, 2.0):
        shifted = crop(white, matrix(0, scale, 20, 0), 30)
        assert (shifted[:, :19] == 0).all()
        assert (
            shifted[: int(30 * min(1, scale)) // 2, 21 : 20 + int(10 * min(1, scale))] > 250
        ).all()
        assert (crop(white, matrix(0, scale, 1000, 0), 30) == 0).all()


@given(
    angles,
    scales,
    st.floats(-100, 100),
    st.floats(-100, 100),
    st.integers(1, 60),
    st.integers(1, 60),
)
def test_any_matrix_gives_a_crop(
    angle: float, scale: float, x: float, y: float, height: int, width: int
) -> None:
    photo = np.full((height, width, 3), 200, np.uint8)
    result = crop(photo, matrix(angle, scale, x, y), 12)
    assert result.shape == (12, 12, 3)
    assert result.dtype == np.uint8
    assert result.max() <= 200


def test_encoding_keeps_the_crop_nearly_and_its_size() -> None:
    photo = smooth_photo(64, 64)
    data = encode_jpeg(photo, 95)
    assert data == encode_jpeg(photo, 95)
    assert np.abs(decode_jpeg(data).astype(int) - photo).mean() < 1.5
    assert len(encode_jpeg(photo, 40)) < len(data)


def faces(*boxes: tuple[float, float, float, float]) -> Faces:
    count = len(boxes)
    return Faces(
        boxes_N4=np.array(boxes, np.float32).reshape(count, 4),
        landmarks_N52=np.zeros((count, 5, 2), np.float32),
        probabilities_N=np.ones(count, np.float32),
    )


def test_the_face_that_the_photo_is_about() -> None:
    middle, rim, large_rim = (70, 70, 130, 130), (0, 0, 60, 60), (0, 0, 90, 90)
    assert choose_face(faces(rim, middle), 200, 200) == 1
    assert choose_face(faces(large_rim, middle), 200, 200) == 1
    # Both near the centre: the larger one.
    assert choose_face(faces((80, 80, 120, 120), (60, 60, 150, 150)), 200, 200) == 1
    assert choose_face(faces(rim), 200, 200) == 0
    with pytest.raises(ValueError, match="no face"):
        choose_face(faces(), 200, 200)


@given(st.permutations(range(4)))
def test_the_choice_does_not_depend_on_the_order(order: list[int]) -> None:
    boxes = [(10, 10, 60, 60), (80, 70, 140, 130), (150, 0, 240, 80), (0, 150, 40, 190)]
    assert order[choose_face(faces(*[boxes[index] for index in order]), 300, 200)] == 1


def test_a_face_that_fills_the_frame() -> None:
    points = frame_landmarks(200, 100)
    assert points.shape == (5, 2)
    assert ((points > 0) & (points < [200, 100])).all()
    upright = similarity(frame_landmarks(200, 200), TEMPLATE_112)
    assert abs(math.atan2(upright[1, 0], upright[0, 0])) < 0.02
