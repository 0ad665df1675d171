"""The batched cascade against facenet-pytorch's own, photo by photo, on drawn faces and one public
portrait."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN
from facenet_pytorch.models.utils.detect_face import nms_numpy
from PIL import Image

from visage.detection.align import PhotoArray
from visage.detection.cascade_networks import BACKENDS
from visage.detection.image_io import read_photo
from visage.detection.mtcnn import Detector, DetectorSettings, Faces, _suppressed
from visage.synthetic import draw_face, sample_person, sample_photo

SETTINGS = DetectorSettings(
    min_face_px=20, thresholds=(0.6, 0.7, 0.7), factor=0.709, max_side_px=1024, landmark_passes=0
)
TOLERANCE_PX = 1e-3


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def portrait() -> PhotoArray:
    """Rear Admiral Hopper, as matplotlib ships her (public domain)."""
    return read_photo(Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg")


@pytest.fixture(scope="module")
def drawn() -> list[PhotoArray]:
    rng = np.random.default_rng(5)
    return [draw_face(sample_photo(sample_person(rng), rng), px) for px in (128, 128, 96, 128, 160)]


@pytest.fixture(scope="module")
def crowd(portrait: PhotoArray, drawn: list[PhotoArray]) -> PhotoArray:
    """Many faces of several sizes, some cut by the rim, overlapping."""
    canvas = Image.new("RGB", (500, 400), (90, 120, 90))
    places = [
        (-30, -20, 160),
        (200, 10, 60),
        (230, 40, 180),
        (60, 220, 130),
        (400, 300, 150),
        (300, 230, 90),
    ]

    for (x, y, px), photo in zip(places, [*drawn, drawn[0]], strict=True):
        canvas.paste(Image.fromarray(photo).resize((px, px)), (x, y))
    canvas.paste(Image.fromarray(portrait).resize((120, 140)), (180, 240))

    return np.asarray(canvas)


def reference(photo: PhotoArray, settings: DetectorSettings = SETTINGS) -> Faces:
    networks = MTCNN(
        keep_all=True,
        min_face_size=settings.min_face_px,
        thresholds=list(settings.thresholds),
        factor=settings.factor,
    )

    boxes, probabilities, landmarks = networks.detect(Image.fromarray(photo), landmarks=True)
    if boxes is None:
        boxes, probabilities, landmarks = np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2))

    return Faces(
        boxes_N4=boxes.astype(np.float32),
        landmarks_N52=landmarks.astype(np.float32),
        probabilities_N=np.asarray(probabilities, np.float32),
    )


def replace_passes(landmark_passes: int) -> DetectorSettings:
    return dataclasses.replace(SETTINGS, landmark_passes=landmark_passes)


def assert_same(found: Faces, expected: Faces) -> None:
    for field in dataclasses.fields(Faces):
        mine, theirs = getattr(found, field.name), getattr(expected, field.name)
        assert mine.dtype == np.float32
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=TOLERANCE_PX, err_msg=field.name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_reference_on_photos_of_mixed_sizes_in_one_call(
    backend: str, portrait: PhotoArray, drawn: list[PhotoArray], crowd: PhotoArray
) -> None:
    photos = [crowd, *drawn, portrait, portrait[:200], np.ascontiguousarray(portrait[:, ::-1])]
    found = Detector(SETTINGS, backend=backend).detect(photos)
    expected = [reference(photo) for photo in photos]
    assert sum(map(len, expected)) >= 10
    assert max(map(len, expected)) >= 4
    for mine, theirs in zip(found, expected, strict=True):
        assert_same(mine, theirs)


@pytest.mark.parametrize(
    "changes",
    [
        {"min_face_px": 40},
        {"factor": 0.5},
        {"thresholds": (0.3, 0.3, 0.3)},
        {"thresholds": (0.9, 0.9, 0.99)},
    ],
)
def test_equals_the_reference_under_other_settings(
    changes: dict[str, object], crowd: PhotoArray
) -> None:
    settings = dataclasses.replace(SETTINGS, **changes)  # type: ignore[arg-type]
    assert_same(Detector(settings).detect([crowd])[0], reference(crowd, settings))


def test_the_backends_agree_far_below_the_landmarks_steps(
    portrait: PhotoArray, drawn: list[PhotoArray], crowd: PhotoArray
) -> None:
    photos = [crowd, *drawn, portrait]
    in_onnx, in_torch = (
        Detector(replace_passes(2), backend=backend).detect(photos) for backend in BACKENDS
    )
    for mine, theirs in zip(in_onnx, in_torch, strict=True):
        assert_same(mine, theirs)


def test_no_torch_without_the_torch_backend() -> None:
    """In a process of its own: photos to faces on ONNX Runtime."""
    program = """
import sys
import numpy as np
from visage.detection.mtcnn import Detector, DetectorSettings
settings = DetectorSettings(min_face_px=20, thresholds=(.6, .7, .7), factor=.709, max_side_px=99,
                            landmark_passes=2)
Detector(settings).detect([np.zeros((64, 64, 3), np.uint8)])
print(sorted({"torch", "torchvision", "facenet_pytorch", "pandas"} & set(sys.modules)))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"backend": "caffe"}, "'caffe' is unknown"), ({"num_threads": 0}, "num_threads is 0")],
)
def test_backends_that_cannot_be_are_refused(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Detector(SETTINGS, **arguments)  # type: ignore[arg-type]


def test_the_torch_backend_leaves_the_process_its_threads(portrait: PhotoArray) -> None:
    torch.set_num_threads(2)
    try:
        Detector(SETTINGS, backend="torch", num_threads=1).detect([portrait])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("seed", range(20))
def test_faces_within_faces_are_dropped_as_the_reference_drops_them(seed: int) -> None:
    """The last suppression, by the smaller area: real photos seldom reach it."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 40, (30, 2))
    boxes = np.concatenate([start, start + rng.uniform(10, 60, (30, 2))], axis=1).astype(np.float32)
    scores = rng.uniform(0.7, 1, 30).astype(np.float32)

    kept = nms_numpy(boxes, scores, 0.7, "Min")
    found = _suppressed(boxes, boxes[:, :2, None].repeat(5, 2).transpose(0, 2, 1), scores)

    assert 1 < len(kept) < 30
    assert set(found.probabilities_N.tolist()) == set(scores[kept].tolist())
    areas = (found.boxes_N4[:, 2:] - found.boxes_N4[:, :2]).prod(axis=1)
    assert (np.diff(areas) <= 0).all()
    np.testing.assert_array_equal(found.landmarks_N52[:, 0], found.boxes_N4[:, :2])


def test_nothing_is_found_in_nothing() -> None:
    rng = np.random.default_rng(0)
    photos = [
        np.zeros((1, 1, 3), np.uint8),
        # No level of the pyramid is large enough.
        np.zeros((19, 300, 3), np.uint8),
        np.zeros((20, 20, 3), np.uint8),
        np.full((100, 80, 3), 255, np.uint8),
        rng.integers(0, 255, (64, 64, 3), dtype=np.uint8),
    ]

    for faces in Detector(SETTINGS).detect(photos):
        assert len(faces) == 0
        assert faces.boxes_N4.shape == (0, 4)
        assert faces.landmarks_N52.shape == (0, 5, 2)
    assert Detector(SETTINGS).detect([]) == []


def test_neighbours_in_the_batch_change_nothing(crowd: PhotoArray, drawn: list[PhotoArray]) -> None:
    detector = Detector(SETTINGS)
    flipped = np.ascontiguousarray(crowd[:, ::-1])
    [alone] = detector.detect([crowd])
    for batch in ([flipped, crowd, flipped], [*drawn, crowd]):
        position = next(index for index, photo in enumerate(batch) if photo is crowd)
        assert_same(detector.detect(batch)[position], alone)


def test_a_large_photo_is_searched_small_and_boxed_in_its_own_pixels(
    portrait: PhotoArray,
) -> None:
    """The portrait four times as large, searched at its own size: the same face, four times as
    large."""
    height, width = portrait.shape[:2]
    large = np.asarray(
        Image.fromarray(portrait).resize((4 * width, 4 * height), Image.Resampling.BICUBIC)
    )

    settings = dataclasses.replace(SETTINGS, max_side_px=max(height, width))
    [expected] = Detector(settings).detect([portrait])
    [found] = Detector(settings).detect([large])

    assert len(found) == len(expected) == 1
    np.testing.assert_allclose(found.landmarks_N52 / 4, expected.landmarks_N52, atol=1.0)
    np.testing.assert_allclose(found.boxes_N4 / 4, expected.boxes_N4, atol=3.0)


def test_landmarks_looked_at_again_hold_still_where_the_rim_cuts_the_face(
    portrait: PhotoArray,
) -> None:
    """The portrait cut ever closer to the face: its landmarks should stay, and facenet-pytorch's do
    not."""
    [uncut] = Detector(replace_passes(2)).detect([portrait])
    left, top, right, bottom = uncut.boxes_N4[0]
    wander = {0: 0.0, 2: 0.0}

    for margin in (20, 10, 0, -5):
        x, y = int(left) - margin, int(top) - margin
        chip = np.ascontiguousarray(
            portrait[max(0, y) : int(bottom) + margin, max(0, x) : int(right) + margin]
        )
        for passes in wander:
            [cut] = Detector(replace_passes(passes)).detect([chip])
            points = cut.landmarks_N52[0] + [max(0, x), max(0, y)]
            moved_px = float(np.abs(points - uncut.landmarks_N52[0]).max())
            wander[passes] = max(wander[passes], moved_px)

    face_px = right - left
    assert wander[2] < 0.03 * face_px
    assert wander[0] > 2 * wander[2]


def test_looking_again_keeps_boxes_and_probabilities_and_needs_no_face(
    portrait: PhotoArray, crowd: PhotoArray
) -> None:
    photos = [portrait, crowd, np.zeros((60, 60, 3), np.uint8)]
    before, after = (Detector(replace_passes(passes)).detect(photos) for passes in (0, 2))
    for mine, theirs in zip(after, before, strict=True):
        np.testing.assert_array_equal(mine.boxes_N4, theirs.boxes_N4)
        np.testing.assert_array_equal(mine.probabilities_N, theirs.probabilities_N)
        assert mine.landmarks_N52.dtype == np.float32
        assert mine.landmarks_N52.shape == theirs.landmarks_N52.shape


def test_a_look_that_sees_no_face_is_ignored(portrait: PhotoArray) -> None:
    detector, [found] = Detector(replace_passes(1)), Detector(SETTINGS).detect([portrait])
    landmarks_152 = found.landmarks_N52.astype(np.float64)
    assert not np.array_equal(detector._look_again([portrait], landmarks_152), landmarks_152)
    np.testing.assert_array_equal(
        detector._look_again([np.zeros_like(portrait)], landmarks_152), landmarks_152
    )


def test_landmarks_that_span_no_face_stay_as_they_are(portrait: PhotoArray) -> None:
    one_point = Faces(
        boxes_N4=np.zeros((1, 4), np.float32),
        landmarks_N52=np.full((1, 5, 2), 7.0, np.float32),
        probabilities_N=np.ones(1, np.float32),
    )

    [found] = Detector(SETTINGS).detect([portrait])
    both = [one_point, found]
    [same, better] = Detector(replace_passes(2))._with_better_landmarks(
        np.stack([portrait] * 2), both
    )

    np.testing.assert_array_equal(same.landmarks_N52, one_point.landmarks_N52)
    assert not np.array_equal(better.landmarks_N52, found.landmarks_N52)


def test_the_mirrored_photo_has_the_mirrored_landmarks(portrait: PhotoArray) -> None:
    [found], [mirrored] = (
        Detector(replace_passes(2)).detect([photo])
        for photo in (portrait, np.ascontiguousarray(portrait[:, ::-1]))
    )
    back = (np.array([portrait.shape[1], 0]) - np.array([1, -1]) * mirrored.landmarks_N52[0])[
        [1, 0, 2, 4, 3]
    ]
    np.testing.assert_allclose(
        back, found.landmarks_N52[0], atol=0.01 * np.ptp(found.boxes_N4[0, ::2])
    )


def test_landmarks_are_in_their_order(portrait: PhotoArray) -> None:
    """Landmarks in the order eyes, nose, mouth, left before right, as seen in the picture."""
    [faces] = Detector(SETTINGS).detect([portrait])
    left_eye, right_eye, nose, left_mouth, right_mouth = faces.landmarks_N52[0]
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1]
    assert faces.probabilities_N[0] > 0.99


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"min_face_px": 11}, "min_face_px is 11"),
        ({"thresholds": (0.6, 0.7, 1.0)}, "thresholds"),
        ({"thresholds": (0.6, 0.7)}, "thresholds"),
        ({"factor": 1.0}, "factor is 1.0"),
        ({"max_side_px": 5}, "max_side_px is 5"),
        ({"landmark_passes": -1}, "landmark_passes is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(SETTINGS, **changes)  # type: ignore[arg-type]


@pytest.mark.real_data
def test_equals_the_reference_on_real_photos(shared_data: Path) -> None:
    import tarfile

    photos = []
    with tarfile.open(shared_data / "lfw" / "lfw-deepfunneled-min10.tar") as archive:
        for number, member in enumerate(archive):
            if member.isfile() and number % 40 == 0:
                photos.append(read_photo(archive.extractfile(member).read()))  # type: ignore[union-attr]
            if len(photos) == 12:
                break
    for mine, theirs in zip(Detector(SETTINGS).detect(photos), map(reference, photos), strict=True):
        assert_same(mine, theirs)
