"""The embedded data set: reproducible to the byte, found by the real detector, true to its labels,
and learnable."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from visage.detection.mtcnn import Detector, DetectorSettings, Faces
from visage.synthetic import (
    DrawnSet,
    FaceParameters,
    Person,
    draw_face,
    draw_set,
    encode_face,
    files,
    landmarks,
    read_labels,
    sample_person,
    sample_photo,
)
from visage.synthetic.contact_sheet import drawn_sheet
from visage.synthetic.people import SKIN_TONES
from visage.synthetic.shape import proportions

DETECTOR = DetectorSettings(
    min_face_px=20, thresholds=(0.6, 0.7, 0.7), factor=0.709, max_side_px=1024, landmark_passes=2
)
seeds = st.integers(0, 2**20)


def small_set(**changes: Any) -> DrawnSet:
    chosen = {
        "num_people": 3,
        "photos_per_person": 2,
        "px": 32,
        "seed": 7,
        "age_span_years": 10.0,
        "label_noise": 1.0,
    }
    return DrawnSet(**{**chosen, "dirt": {}, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def photos_of(count: int, seed: int, **chosen: Any) -> list[FaceParameters]:
    rngs = [np.random.default_rng((seed, index)) for index in range(count)]
    return [sample_photo(sample_person(rng), rng, **chosen) for rng in rngs]


def person_of(tone: int, sex: str, rng: np.random.Generator) -> Person:
    person = sample_person(rng)
    while (person.tone, person.sex) != (tone, sex):
        person = sample_person(rng)
    return person


# -------------------------------------------------------------------------------
# One picture
# -------------------------------------------------------------------------------


def test_the_same_parameters_give_the_same_bytes() -> None:
    (first,), (again,) = photos_of(1, seed=3), photos_of(1, seed=3)
    assert first == again
    assert encode_face(first, 64) == encode_face(again, 64)
    assert encode_face(first, 64) != encode_face(
        dataclasses.replace(first, seed=first.seed + 1), 64
    )


def test_a_file_says_that_it_is_drawn() -> None:
    (photo,) = photos_of(1, seed=3)
    picture = Image.open(io.BytesIO(encode_face(photo, 48)))
    assert picture.size == (48, 48)
    assert b"drawn by visage" in picture.info["comment"]


def test_a_picture_needs_pixels() -> None:
    with pytest.raises(ValueError, match="px 8"):
        draw_face(photos_of(1, seed=3)[0], 8)


@given(seeds)
def test_landmarks_grow_with_the_picture(seed: int) -> None:
    (photo,) = photos_of(1, seed)
    np.testing.assert_allclose(landmarks(photo, 200), 2.0 * landmarks(photo, 100), atol=1e-9)


@given(seeds)
def test_landmarks_of_the_eyes_are_on_the_irises(seed: int) -> None:
    """The eyes are where the picture changes with the colour of the eyes."""
    px = 160
    (photo,) = photos_of(1, seed, clean=True)
    photo = dataclasses.replace(photo, gaze=0.0, blur=0.0, noise=0.0)

    pictures = [
        draw_face(
            dataclasses.replace(photo, person=dataclasses.replace(photo.person, eye_colour=colour)),
            px,
        )
        for colour in ((0.2, 0.2, 0.2), (0.9, 0.9, 0.9))
    ]

    rows, columns = np.nonzero(np.abs(pictures[1].astype(int) - pictures[0]).max(axis=2) > 20)
    five = landmarks(photo, px)
    left = columns < five[:2, 0].mean()

    for eye, chosen in zip(five[:2], (left, ~left), strict=True):
        centre = np.array([columns[chosen].mean(), rows[chosen].mean()]) + 0.5
        assert np.hypot(*(centre - eye)) < 0.022 * px


def test_the_five_points_are_in_order() -> None:
    for photo in photos_of(50, seed=5):
        upright = dataclasses.replace(photo, roll=0.0)
        left, right, nose, mouth_left, mouth_right = landmarks(upright, 100)
        assert left[0] < nose[0] < right[0]
        assert mouth_left[0] < mouth_right[0]
        assert max(left[1], right[1]) < nose[1] < min(mouth_left[1], mouth_right[1])


# -------------------------------------------------------------------------------
# The real detector
# -------------------------------------------------------------------------------


def clean_faces(per_group: int) -> list[FaceParameters]:
    """Every skin tone, sex and ten ages, so many of each."""
    faces = []
    for tone in range(len(SKIN_TONES)):
        for sex in ("female", "male"):
            for age in np.linspace(0.5, 90.0, 10):
                rng = np.random.default_rng((tone, sex == "male", int(age)))
                faces += [
                    sample_photo(person_of(tone, sex, rng), rng, float(age), clean=True)
                    for _ in range(per_group)
                ]

    return faces


def detected(faces: list[FaceParameters], px: int) -> list[Faces]:
    return list(Detector(DETECTOR).detect([draw_face(face, px) for face in faces]))


def check_detection(faces: list[FaceParameters], px: int) -> None:
    results = detected(faces, px)
    missed = [face for face, found in zip(faces, results, strict=True) if len(found) == 0]
    assert len(missed) <= 0.01 * len(faces), [(face.person.tone, face.age_years) for face in missed]

    errors = []
    for face, found in zip(faces, results, strict=True):
        if len(found):
            true = landmarks(face, px)
            between_eyes = np.hypot(*(true[1] - true[0]))
            errors.append(np.hypot(*(found.landmarks_N52[0] - true).T) / between_eyes)

    assert np.median(errors, axis=0).max() < 0.10
    assert np.quantile(np.array(errors)[:, :2], 0.95) < 0.13


def test_the_detector_finds_clean_faces_of_every_tone_and_age() -> None:
    check_detection(clean_faces(per_group=1), px=128)


@pytest.mark.slow
def test_the_detector_finds_nearly_all_of_many_clean_faces() -> None:
    check_detection(clean_faces(per_group=6), px=128)


# -------------------------------------------------------------------------------
# What is true
# -------------------------------------------------------------------------------


@given(seeds, st.floats(0.0, 90.0), st.floats(0.0, 90.0))
def test_nobody_grows_younger(seed: int, age: float, other: float) -> None:
    (photo,) = photos_of(1, seed)
    young, old = (
        proportions(dataclasses.replace(photo, age_years=years)) for years in sorted((age, other))
    )
    for sign in ("growth", "wrinkles", "folds", "sagging", "bags", "grey", "spots", "bald"):
        assert getattr(young, sign) <= getattr(old, sign), sign


@given(seeds)
def test_children_have_large_low_eyes_and_short_faces(seed: int) -> None:
    (photo,) = photos_of(1, seed)
    child, adult = (
        proportions(dataclasses.replace(photo, age_years=years)) for years in (2.0, 20.0)
    )
    low_child, low_adult = (
        (head.eye_v + head.crown) / (head.chin + head.crown) for head in (child, adult)
    )
    assert low_child > 0.54 > low_adult
    assert child.eye_half_width / child.chin > adult.eye_half_width / adult.chin


def test_lower_attractiveness_is_less_symmetric() -> None:
    """Mean distance between a frontal face's five points and their mirror image, in pixels."""
    means = []
    for attractiveness in (1.0, 3.0, 5.0):
        unevenness = []
        for photo in photos_of(60, seed=6, age_years=25.0):
            person = dataclasses.replace(photo.person, attractiveness=attractiveness)
            five = landmarks(
                dataclasses.replace(photo, person=person, yaw=0.0, roll=0.0, centre=(0.5, 0.5)), 128
            )
            mirrored = (np.array([128.0, 0.0]) + five * [-1.0, 1.0])[[1, 0, 2, 4, 3]]
            unevenness.append(np.abs(mirrored - five).mean())
        means.append(np.mean(unevenness))

    assert means[0] > 1.5 * means[1] > 2.0 * means[2]


def test_labels_scatter_around_the_truth_by_their_sigma() -> None:
    rows = [files._row("", "", photo, 1.0) for photo in photos_of(1500, seed=8, age_years=50.0)]
    z = [(row.apparent_age - row.age_years) / row.sigma_age for row in rows]
    assert stats.kstest(z, "norm").pvalue > 0.01
    assert all(
        files._row("", "", photo, 0.0).apparent_age == 50.0
        for photo in photos_of(5, seed=8, age_years=50.0)
    )
    babies = [files._row("", "", photo, 3.0) for photo in photos_of(200, seed=9, age_years=0.2)]
    assert min(row.apparent_age for row in babies) >= 0.0


def test_age_is_learnable_but_no_single_pixel_is_enough() -> None:
    """Ridge regression on 32 x 32 pixels does much better than the mean age; no pixel explains half
    the variance."""
    photos = photos_of(700, seed=10)
    ages = np.array([photo.age_years for photo in photos])

    small = [
        Image.fromarray(draw_face(photo, 48)).convert("L").resize((32, 32)) for photo in photos
    ]
    pixels = np.array([np.asarray(picture, float).ravel() / 255.0 for picture in small])

    centred = pixels - pixels.mean(axis=0)
    correlation = centred.T @ (ages - ages.mean()) / (len(ages) * pixels.std(axis=0) * ages.std())
    assert np.abs(correlation).max() < 0.66

    train, test = centred[:550], centred[550:]
    dual = np.linalg.solve(train @ train.T + 10.0 * np.eye(550), ages[:550] - ages[:550].mean())
    predicted = ages[:550].mean() + test @ (train.T @ dual)
    guess = np.abs(ages[550:] - ages[:550].mean()).mean()
    assert np.abs(ages[550:] - predicted).mean() < 0.68 * guess


# -------------------------------------------------------------------------------
# Files
# -------------------------------------------------------------------------------


def test_processes_change_nothing(tmp_path: Path) -> None:
    many = small_set(num_people=files.FEW_PEOPLE + 2, photos_per_person=1, px=24)
    draw_set(tmp_path / "one", many, num_workers=1)
    draw_set(tmp_path / "two", many, num_workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_larger_set_begins_with_the_smaller(tmp_path: Path) -> None:
    draw_set(tmp_path / "small", small_set(), num_workers=1)
    draw_set(tmp_path / "large", small_set(num_people=4, photos_per_person=3), num_workers=1)
    small, large = contents(tmp_path / "small"), contents(tmp_path / "large")
    assert all(large[name] == photo for name, photo in small.items() if name.endswith(".jpg"))
    assert set(read_labels(tmp_path / "small")) < set(read_labels(tmp_path / "large"))


def test_a_killed_run_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_set(tmp_path / "whole", small_set(dirt={"tiny": 1}), num_workers=1)
    drawn = 0

    def encode_some(parameters: FaceParameters, px: int) -> bytes:
        nonlocal drawn
        drawn += 1
        if drawn == 4:
            raise KeyboardInterrupt
        return encode_face(parameters, px)

    monkeypatch.setattr(files, "encode_face", encode_some)
    with pytest.raises(KeyboardInterrupt):
        draw_set(tmp_path / "killed", small_set(dirt={"tiny": 1}), num_workers=1)
    # Photos and the note, no table, no half file.
    assert len(contents(tmp_path / "killed")) == 3 + 1

    draw_set(tmp_path / "killed", small_set(dirt={"tiny": 1}), num_workers=1)
    assert drawn == 4 + 3
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_two_sets_are_not_mixed(tmp_path: Path) -> None:
    draw_set(tmp_path, small_set(), num_workers=1)
    with pytest.raises(ValueError, match="other settings"):
        draw_set(tmp_path, small_set(seed=8), num_workers=1)


def test_dirt_is_what_it_says(tmp_path: Path) -> None:
    dirt = {"duplicate": 2, "contradiction": 2, "unreadable": 1, "tiny": 1}
    draw_set(tmp_path, small_set(dirt=dirt), num_workers=1)
    rows = {row.photo_id: row for row in read_labels(tmp_path)}
    assert set(rows) == {name for name in contents(tmp_path) if name.endswith(".jpg")}

    flawed = {name: row for name, row in rows.items() if name.startswith("dirt/")}
    assert {kind: sum(kind in name for name in flawed) for kind in dirt} == dirt
    for name, row in flawed.items():
        first = rows[f"{row.person}/000.jpg"]
        photo, intact = ((tmp_path / x.photo_id).read_bytes() for x in (row, first))
        assert (photo == intact) == ("duplicate" in name or "contradiction" in name)
        assert (row._replace(photo_id="") == first._replace(photo_id="")) == (
            "contradiction" not in name
        )
        assert 0.0 <= row.apparent_age <= 100.0

    with (
        Image.open(tmp_path / "dirt/unreadable_000.jpg") as cut,
        pytest.raises(OSError, match=r"(?i)truncated"),
    ):
        cut.load()

    with Image.open(tmp_path / "dirt/tiny_000.jpg") as tiny:
        assert tiny.size == (8, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_people": 0}, "0 people"),
        ({"age_span_years": 91.0}, "age_span_years 91"),
        ({"label_noise": -1.0}, "label_noise -1"),
        ({"dirt": {"mud": 1}}, "'mud'"),
        ({"dirt": {"tiny": 4}}, "at most one"),
    ],
)
def test_impossible_sets_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_set(**changes)


def test_a_persons_photos_are_within_the_span() -> None:
    chosen = small_set(num_people=40, photos_per_person=5)
    spans = [
        [photo.age_years for photo in files.person_photos(chosen, index)] for index in range(40)
    ]
    assert all(max(ages) - min(ages) <= 10.0 for ages in spans)
    assert min(map(min, spans)) < 10.0
    assert max(map(max, spans)) > 80.0


def test_the_contact_sheet(tmp_path: Path) -> None:
    drawn_sheet(tmp_path / "sheet.png", num_people=2, px=24, seed=1)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (192, 48)
