"""Views against naive per-face, per-pixel versions that draw the same random numbers in the same
order."""

from __future__ import annotations

import dataclasses
import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.small_faces import EXTENDED, NOTHING, PAPER
from visage.data.augment import AugmentationSettings, bicubic_matrix, training_view
from visage.data.mirror import mirrored
from visage.data.preprocess import (
    PAPER_NORMALISE,
    evaluation_faces,
    evaluation_view,
)
from visage.model_config import NormaliseConfig
from visage.networks import FaceBatch
from visage.networks.inputs import GREY
from visage.synthetic import draw_face, sample_person, sample_photo

PLAIN = NormaliseConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # views in [0, 1]


def only(**changes: Any) -> AugmentationSettings:
    return dataclasses.replace(NOTHING, **changes)


def crops(count: int = 5, side: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def view(
    crops_BCHW: Tensor,
    settings: AugmentationSettings,
    seed: int = 0,
    normalise: NormaliseConfig = PLAIN,
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return training_view(FaceBatch(crops_BCHW, None), settings, normalise, generator).view_BCHW


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flip_probability", 1.1),
        ("grey_probability", -0.1),
        ("scale_probability", 2.0),
        ("min_scale", 0.0),
        ("rotation_degrees", -5.0),
        ("zoom", 1.0),
        ("translation", -0.1),
        ("jitter", 1.5),
        ("erase_probability", math.nan),
    ],
)
def test_augmentation_out_of_bounds_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}: give "):
        only(**{name: value})


def test_evaluation_view_is_the_plain_formula() -> None:
    crops_BCHW = crops(2, 4)
    found = evaluation_view(crops_BCHW, PAPER_NORMALISE)
    assert found.dtype == torch.float32
    for b, c, h, w in np.ndindex(*crops_BCHW.shape):
        expected = (
            crops_BCHW[b, c, h, w].item() / 255 - PAPER_NORMALISE.mean[c]
        ) / PAPER_NORMALISE.std[c]
        assert found[b, c, h, w].item() == pytest.approx(expected, abs=1e-5)


def test_training_view_with_everything_off_is_the_evaluation_view() -> None:
    crops_BCHW = crops(33)
    found = view(crops_BCHW, NOTHING, normalise=PAPER_NORMALISE)
    torch.testing.assert_close(
        found, evaluation_view(crops_BCHW, PAPER_NORMALISE), atol=1e-5, rtol=0
    )


def test_flip_is_exact_and_as_frequent_as_said() -> None:
    crops_BCHW = crops(200, 8)
    plain, turned = view(crops_BCHW, NOTHING), view(crops_BCHW.flip(3), NOTHING)
    assert torch.equal(view(crops_BCHW, only(flip_probability=1.0)), turned)
    found = view(crops_BCHW, only(flip_probability=0.5))
    is_plain, is_turned = ((found == other).flatten(1).all(dim=1) for other in (plain, turned))
    assert (is_plain ^ is_turned).all()
    assert 70 < is_turned.sum() < 130


def naive_move(
    crop_CHW: np.ndarray, angle: float, zoom: float, shift: tuple[float, float], flip: bool
) -> np.ndarray:
    """Every pixel looks up, by bilinear interpolation between pixel centres, where it comes from;
    outside is black."""
    side = crop_CHW.shape[-1]
    moved = np.zeros(crop_CHW.shape)
    for row, column in np.ndindex(side, side):
        x, y = column + 0.5 - side / 2, row + 0.5 - side / 2
        from_x = (math.cos(angle) * x - math.sin(angle) * y) / zoom
        from_y = (math.sin(angle) * x + math.cos(angle) * y) / zoom
        from_x = (-from_x if flip else from_x) + shift[0] * side + side / 2 - 0.5
        from_y += shift[1] * side + side / 2 - 0.5
        left, top = math.floor(from_x), math.floor(from_y)
        for near_y, near_x in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            if 0 <= near_x < side and 0 <= near_y < side:
                weight = (1 - abs(from_x - near_x)) * (1 - abs(from_y - near_y))
                moved[:, row, column] += weight * crop_CHW[:, near_y, near_x]
    return moved


def test_geometry_equals_a_loop_over_pixels() -> None:
    settings = only(flip_probability=0.5, rotation_degrees=25.0, zoom=0.3, translation=0.1)
    crops_BCHW, generator = crops(6, 12), torch.Generator().manual_seed(7)
    flip_B = (torch.rand(6, generator=generator) < 0.5).tolist()
    angle_B = ((2 * torch.rand(6, generator=generator) - 1) * math.radians(25)).tolist()
    zoom_B = (0.7 + 0.6 * torch.rand(6, generator=generator)).tolist()
    shift_B2 = (0.1 * (2 * torch.rand(6, 2, generator=generator) - 1)).tolist()
    found = view(crops_BCHW, settings, seed=7).numpy()
    for b in range(6):
        expected = naive_move(
            crops_BCHW[b].numpy() / 255, angle_B[b], zoom_B[b], tuple(shift_B2[b]), flip_B[b]
        )
        np.testing.assert_allclose(found[b], expected, atol=2e-5)
    assert 0 < sum(flip_B) < 6


def test_bicubic_moves_a_face_to_the_same_place_and_keeps_most_of_its_detail() -> None:
    """Bilinear training views blur small crops, and what training never sees sharp, evaluation
    misjudges."""
    rng = np.random.default_rng(0)
    faces = [draw_face(sample_photo(sample_person(rng), rng, clean=True), 64) for _ in range(24)]
    crops_BCHW = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)
    settings = only(rotation_degrees=7.0, zoom=0.08, translation=0.03)
    plain = view(crops_BCHW, NOTHING)
    bilinear, bicubic = (
        view(crops_BCHW, dataclasses.replace(settings, interpolation=name), seed=1)
        for name in ("bilinear", "bicubic")
    )

    def detail(view_BCHW: Tensor) -> float:
        """The energy of differences between neighbours, away from the black corners."""
        inner = view_BCHW[:, :, 16:48, 16:48]
        return float(inner.diff(dim=3).square().mean() + inner.diff(dim=2).square().mean())

    assert detail(bilinear) < 0.65 * detail(plain)
    assert 0.8 < detail(bicubic) / detail(plain) < 1
    assert (bilinear - bicubic).abs().mean() < 0.01


def test_rotation_turns_marked_pixels_about_the_centre() -> None:
    """Two marks keep their distance from the centre and turn together, by at most the angle, to
    both sides."""
    crops_BCHW = torch.zeros(100, 3, 41, 41, dtype=torch.uint8)
    crops_BCHW[:, 0, 19:22, 34:37] = 255  # red: 15 px to the right
    crops_BCHW[:, 2, 7:10, 19:22] = 255  # blue: 12 px up
    found = view(crops_BCHW, only(rotation_degrees=15.0)).double()
    place = torch.arange(41).double() - 20
    mass_BC = found.sum(dim=(2, 3))
    right_BC, down_BC = (found.sum(dim=dim) @ place / mass_BC.clamp_min(1e-9) for dim in (2, 3))
    for channel, radius, start in ((0, 15.0, 0.0), (2, 12.0, -90.0)):
        torch.testing.assert_close(
            torch.hypot(right_BC[:, channel], down_BC[:, channel]),
            torch.full((100,), radius).double(),
            atol=0.1,
            rtol=0,
        )
        turned = torch.rad2deg(torch.atan2(down_BC[:, channel], right_BC[:, channel])) - start
        assert 12 < turned.max() <= 15.5
        assert -15.5 <= turned.min() < -12
        if channel == 0:
            red_turned = turned
    torch.testing.assert_close(turned, red_turned, atol=0.6, rtol=0)


def test_corners_that_a_rotation_uncovers_are_black() -> None:
    white = torch.full((50, 3, 20, 20), 255, dtype=torch.uint8)
    found = view(white, only(rotation_degrees=15.0), normalise=PAPER_NORMALISE)
    black = evaluation_view(torch.zeros(1, 3, 20, 20, dtype=torch.uint8), PAPER_NORMALISE)
    darkest = found.flatten(2).amin(dim=2).amin(dim=0)
    torch.testing.assert_close(darkest, black[0, :, 0, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [16, 21])
def test_down_and_up_is_two_interpolations(side: int) -> None:
    crops_BCHW, generator = crops(8, side), torch.Generator().manual_seed(3)
    is_scaled_B = torch.rand(8, generator=generator) < 0.6
    scale_B = torch.where(is_scaled_B, 0.5 + 0.5 * torch.rand(8, generator=generator), 1.0).tolist()
    assert 0 < is_scaled_B.sum() < 8
    found = view(crops_BCHW, only(scale_probability=0.6, min_scale=0.5), seed=3)
    for b, scale in enumerate(scale_B):
        smaller = round(side * scale)
        face_1CHW = crops_BCHW[b : b + 1].float() / 255
        small = functional.interpolate(
            face_1CHW, size=(smaller, smaller), mode="bilinear", antialias=True
        )
        back = functional.interpolate(small, size=(side, side), mode="bilinear")
        torch.testing.assert_close(found[b : b + 1], back, atol=1e-5, rtol=0)


def naive_colours(
    face_CHW: Tensor,
    is_grey: bool,
    factors: dict[str, float],
    order: tuple[str, ...],
    normalise: NormaliseConfig,
) -> Tensor:
    """One step after another, as torch's and Torch7's colour jitter do, without clipping."""
    red, green, blue = GREY

    def luma(picture: Tensor) -> Tensor:
        return red * picture[0] + green * picture[1] + blue * picture[2]

    if is_grey:
        face_CHW = luma(face_CHW).expand(3, -1, -1)
    for name in order:
        other = {
            "brightness": torch.zeros(()),
            "contrast": luma(face_CHW).mean(),
            "saturation": luma(face_CHW),
        }[name]
        face_CHW = factors[name] * face_CHW + (1 - factors[name]) * other
    return (face_CHW - torch.tensor(normalise.mean)[:, None, None]) / torch.tensor(normalise.std)[
        :, None, None
    ]


@pytest.mark.parametrize("order", list(permutations(("brightness", "contrast", "saturation"))))
@pytest.mark.parametrize("normalise", [PLAIN, PAPER_NORMALISE])
def test_colours_in_one_map_equal_colours_step_by_step_in_any_order(
    order: tuple[str, ...], normalise: NormaliseConfig
) -> None:
    crops_BCHW, generator = crops(20), torch.Generator().manual_seed(5)
    torch.rand(20, generator=generator)  # the flips
    grey_B = torch.rand(20, generator=generator) < 0.5
    factor_B = {
        name: 0.6 + 0.8 * torch.rand(20, generator=generator)
        for name in ("brightness", "contrast", "saturation")
    }
    found = view(crops_BCHW, only(grey_probability=0.5, jitter=0.4), seed=5, normalise=normalise)
    for b in range(20):
        factors = {name: factor_B[name][b].item() for name in factor_B}
        expected = naive_colours(
            crops_BCHW[b].float() / 255, bool(grey_B[b]), factors, order, normalise
        )
        torch.testing.assert_close(found[b], expected, atol=2e-5, rtol=0)


def test_brightness_lies_in_its_range_on_a_picture_that_nothing_else_changes() -> None:
    """Contrast and saturation leave one uniform grey alone."""
    grey = torch.full((400, 3, 4, 4), 100, dtype=torch.uint8)
    factor_B = view(grey, only(jitter=0.4)).mean(dim=(1, 2, 3)) * 255 / 100
    assert 0.6 <= factor_B.min() < 0.62
    assert 1.38 < factor_B.max() <= 1.4
    assert factor_B.mean().item() == pytest.approx(1, abs=0.05)


def test_grey_faces_are_as_many_as_said_and_keep_their_luma() -> None:
    crops_BCHW = crops(300, 4)
    found = view(crops_BCHW, only(grey_probability=0.3))
    is_grey = (found[:, 0] - found[:, 1]).abs().flatten(1).amax(dim=1) < 1e-6
    assert 60 < is_grey.sum() < 120
    weights = torch.tensor(GREY)[:, None, None]
    torch.testing.assert_close(
        found[is_grey][:, 0], (weights * crops_BCHW[is_grey] / 255).sum(dim=1)
    )


def test_erased_rectangles_take_the_mean_colour_and_nothing_else_changes() -> None:
    crops_BCHW = crops(300, 40)
    whole = view(crops_BCHW, NOTHING, normalise=PAPER_NORMALISE)
    found = view(crops_BCHW, only(erase_probability=0.5), normalise=PAPER_NORMALISE)
    changed_BHW = (found != whole).any(dim=1)
    assert (found.permute(0, 2, 3, 1)[changed_BHW] == 0).all()
    shares = changed_BHW.flatten(1).float().mean(dim=1)
    erased = shares > 0
    assert 120 < erased.sum() < 180
    assert shares.max() <= 0.22
    for face in changed_BHW[erased][:20]:
        rows, columns = face.any(dim=1), face.any(dim=0)
        assert face.sum() == rows.sum() * columns.sum()


@pytest.mark.parametrize("settings", [PAPER, EXTENDED])
@pytest.mark.parametrize("count", [1, 17])
def test_views_come_from_their_generator_alone(settings: AugmentationSettings, count: int) -> None:
    crops_BCHW = crops(count)
    before, state = crops_BCHW.clone(), torch.get_rng_state()
    first, same, other = (view(crops_BCHW, settings, seed) for seed in (1, 1, 2))
    assert first.shape == crops_BCHW.shape
    assert first.dtype == torch.float32
    assert first.isfinite().all()
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(crops_BCHW, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_second_batch_differs_from_the_first() -> None:
    generator, crops_BCHW = torch.Generator().manual_seed(1), crops()
    faces = FaceBatch(crops_BCHW, None)
    first, second = (training_view(faces, PAPER, PLAIN, generator) for _ in range(2))
    assert not torch.equal(first.view_BCHW, second.view_BCHW)


# -------------------------------------------------------------------------------
# Landmarks
# -------------------------------------------------------------------------------

DOTS = ((20.0, 22.5), (41.0, 25.0), (33.5, 34.0), (24.0, 43.0), (38.0, 45.5))


def dotted(count: int, side: int = 64) -> tuple[FaceBatch, Tensor]:
    """Dark crops with a bright dot at each landmark, the five of them in five shades of red and
    blue; and the colours (5,3), which no mirror image changes."""
    colours_53 = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 1], [1, 1, 0]])
    centres = torch.arange(side) + 0.5
    crop_CHW = torch.zeros(3, side, side)
    for (x, y), colour_C in zip(DOTS, colours_53, strict=True):
        dot_HW = torch.exp(-((centres[:, None] - y) ** 2 + (centres - x) ** 2) / (2 * 1.5**2))
        crop_CHW += 255 * colour_C[:, None, None] * dot_HW
    crops_BCHW = crop_CHW.clamp(0, 255).round().to(torch.uint8).repeat(count, 1, 1, 1)
    return FaceBatch(crops_BCHW, torch.tensor(DOTS).repeat(count, 1, 1)), colours_53


def dot_near(view_CHW: Tensor, place_2: Tensor, radius: int = 4) -> tuple[Tensor, Tensor]:
    """Centre of mass (2,) of what is bright around a place, and its colour (3,), largest 1."""
    side = view_CHW.shape[-1]
    centres = torch.arange(side) + 0.5
    is_near_HW = (centres[:, None] - place_2[1]) ** 2 + (centres - place_2[0]) ** 2 < radius**2
    near_CHW = view_CHW.clamp_min(0) * is_near_HW
    mass_HW = near_CHW.sum(dim=0)
    x, y = (mass_HW.sum(dim=dim) @ centres / mass_HW.sum() for dim in (0, 1))
    colour_C = near_CHW.sum(dim=(1, 2))
    return torch.stack([x, y]), colour_C / colour_C.max()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"flip_probability": 1.0},
        {"rotation_degrees": 25.0},
        {"zoom": 0.2},
        {"translation": 0.1},
        {"flip_probability": 0.5, "rotation_degrees": 20.0, "zoom": 0.15, "translation": 0.08},
        {"flip_probability": 0.5, "scale_probability": 1.0, "min_scale": 0.7},
        {
            "flip_probability": 0.5,
            "rotation_degrees": 15.0,
            "scale_probability": 1.0,
            "min_scale": 0.7,
            "scaling": "released",
        },
    ],
)
def test_landmarks_follow_the_dots_that_they_mark(changes: dict[str, Any]) -> None:
    """Each is on a dot, and the left one is the left one in the picture: in a mirror image it is on
    the dot that was the right one's."""
    faces, colours_53 = dotted(12)
    settings = only(**changes)
    moved = training_view(faces, settings, PLAIN, torch.Generator().manual_seed(3))
    assert moved.landmarks_B52 is not None
    mirrored_colours_53 = colours_53[[1, 0, 2, 4, 3]]
    num_mirrored = 0
    for view_CHW, landmarks_52 in zip(moved.view_BCHW, moved.landmarks_B52, strict=True):
        found = [dot_near(view_CHW, landmark_2) for landmark_2 in landmarks_52]
        places_52 = torch.stack([place_2 for place_2, _ in found])
        torch.testing.assert_close(places_52, landmarks_52, atol=0.35, rtol=0)
        shown_53 = torch.stack([colour_C for _, colour_C in found])
        turn_2 = landmarks_52[1] - landmarks_52[0]
        down_2 = landmarks_52[3:].mean(dim=0) - landmarks_52[:2].mean(dim=0)
        assert turn_2[0] * down_2[1] - turn_2[1] * down_2[0] > 0  # no mirrored order
        is_mirrored = bool((shown_53[0] - colours_53[0]).abs().max() > 0.5)
        expected_53 = mirrored_colours_53 if is_mirrored else colours_53
        torch.testing.assert_close(shown_53, expected_53, atol=0.15, rtol=0)
        num_mirrored += is_mirrored
    share = settings.flip_probability
    assert num_mirrored == 12 * share if share in (0, 1) else 0 < num_mirrored < 12


def test_landmarks_change_nothing_of_the_view() -> None:
    faces, _ = dotted(9)
    views = [
        training_view(given, EXTENDED, PLAIN, torch.Generator().manual_seed(1)).view_BCHW
        for given in (faces, faces._replace(landmarks_B52=None))
    ]
    assert torch.equal(*views)


def test_a_mirror_image_of_a_mirror_image_is_the_face() -> None:
    faces, _ = dotted(3)
    once = FaceBatch(*mirrored(*faces))
    twice = FaceBatch(*mirrored(*once))
    assert torch.equal(twice.view_BCHW, faces.view_BCHW)
    torch.testing.assert_close(twice.landmarks_B52, faces.landmarks_B52)
    assert torch.equal(once.view_BCHW, faces.view_BCHW.flip(3))
    assert once.landmarks_B52 is not None
    assert once.landmarks_B52[0, 0].tolist() == [64 - 41.0, 25.0]
    assert mirrored(faces.view_BCHW)[1] is None


def test_mirrored_landmarks_are_those_of_a_flipped_training_view() -> None:
    faces, _ = dotted(3)
    generator = torch.Generator().manual_seed(0)
    flipped = training_view(faces, only(flip_probability=1.0), PLAIN, generator)
    torch.testing.assert_close(flipped.landmarks_B52, mirrored(*faces)[1])


def test_evaluation_moves_no_landmark() -> None:
    faces, _ = dotted(2)
    seen = evaluation_faces(faces, PAPER_NORMALISE)
    assert seen.landmarks_B52 is faces.landmarks_B52
    assert torch.equal(seen.view_BCHW, evaluation_view(faces.view_BCHW, PAPER_NORMALISE))


# -------------------------------------------------------------------------------
# Scaling as released
# -------------------------------------------------------------------------------


def torch7_row(pixels: list[float], wanted: int) -> list[float]:
    """A row resampled pixel by pixel as Torch7's image.scale does with "bicubic"."""
    row = []
    for number in range(wanted - 1):
        place = number * (len(pixels) - 1) / (wanted - 1)
        left, t = int(place), place - int(place)
        second, third = pixels[left], pixels[left + 1]
        first = pixels[left - 1] if left > 0 else 2 * second - third
        fourth = pixels[left + 2] if left + 2 < len(pixels) else 2 * third - second
        slope = third - first
        bend = 2 * first - 5 * second + 4 * third - fourth
        twist = 3 * (second - third) + fourth - first
        row.append(second + 0.5 * t * (slope + t * (bend + t * twist)))
    return [*row, pixels[-1]]


def torch7_scale(face_CHW: np.ndarray, side: int) -> np.ndarray:
    """Rows, then columns."""
    wide = np.array([[torch7_row(row, side) for row in plane] for plane in face_CHW.tolist()])
    columns = np.array(
        [[torch7_row(column, side) for column in plane.T.tolist()] for plane in wide]
    )
    return columns.transpose(0, 2, 1)


@pytest.mark.parametrize(("side", "wanted"), [(8, 5), (9, 5), (5, 9), (16, 16), (2, 6)])
def test_bicubic_is_torch7s(side: int, wanted: int) -> None:
    pixels = np.random.default_rng(side).random(side)
    found = bicubic_matrix(side, wanted).double() @ torch.from_numpy(pixels)
    np.testing.assert_allclose(found, torch7_row(pixels.tolist(), wanted), atol=1e-6)


@pytest.mark.parametrize("side", [12, 13])
def test_released_scaling_turns_the_face_while_it_is_small(side: int) -> None:
    settings = only(
        scale_probability=1.0,
        min_scale=0.5,
        scaling="released",
        flip_probability=0.5,
        rotation_degrees=15.0,
    )
    crops_BCHW, generator = crops(6, side), torch.Generator().manual_seed(7)
    torch.rand(6, generator=generator)  # every face is scaled
    scale_B = (0.5 + 0.5 * torch.rand(6, generator=generator)).tolist()
    flip_B = (torch.rand(6, generator=generator) < 0.5).tolist()
    angle_B = ((2 * torch.rand(6, generator=generator) - 1) * math.radians(15)).tolist()
    found = view(crops_BCHW, settings, seed=7).numpy()
    for b in range(6):
        smaller = side - 2 * round((1 - scale_B[b]) * side / 2)
        small = torch7_scale(crops_BCHW[b].numpy() / 255, smaller)
        turned = naive_move(small, angle_B[b], 1.0, (0.0, 0.0), flip_B[b])
        np.testing.assert_allclose(found[b], torch7_scale(turned, side), atol=2e-5)
    assert 0 < sum(flip_B) < 6


def test_released_scaling_keeps_more_detail_than_the_antialiased_one() -> None:
    """Of the energy of differences between neighbouring pixels of drawn faces (LOG.md)."""
    rng = np.random.default_rng(0)
    faces = [draw_face(sample_photo(sample_person(rng), rng, clean=True), 96) for _ in range(40)]
    crops_BCHW = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)

    def detail(**changes: Any) -> float:
        inner = view(crops_BCHW, only(**changes), seed=1)[:, :, 24:72, 24:72]
        return float(inner.diff(dim=3).square().mean() + inner.diff(dim=2).square().mean())

    scaled = {"scale_probability": 1.0, "min_scale": 0.5}
    released = detail(**scaled, scaling="released") / detail()
    antialiased = detail(**scaled, scaling="antialiased") / detail()
    assert 0.6 < released < 0.72
    assert 0.35 < antialiased < 0.43


def test_released_scaling_refuses_a_translation() -> None:
    with pytest.raises(ValueError, match=r"translation is 0.1 with scaling released"):
        only(scaling="released", translation=0.1)
