"""Occlusion: places tile the crop, the mirror image is covered at the mirrored place, losses
against naive ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.one_place import COLUMN, PLACES, ROW, OnePlace, one_place_config
from tests.small_model import CROP_PX, small_config, small_network, some_crops
from visage.data.preprocess import evaluation_view
from visage.evaluation.bootstrap import Bootstrap
from visage.explain.occlusion import (
    covered,
    mean_colour,
    occlusion_errors,
    relative_losses,
    squares,
    stripes,
)
from visage.inference.faces import CropPredictor
from visage.networks import FaceBatch

BOOTSTRAP = Bootstrap(num_resamples=200, interval=0.9, seed=0)


def silent(_count: int) -> None:
    """Progress that nobody reads."""


@pytest.mark.parametrize("px", [7, 32, 64, 96, 112, 224])
def test_squares_and_stripes_tile_the_crop_and_its_mirror_image(px: int) -> None:
    for places, count in ((squares(px, 7), 49), (stripes(px, 7), 7)):
        assert len(places) == count
        number_HW = np.full((px, px), -1)
        hits_HW = np.zeros((px, px), int)
        for number, place in enumerate(places):
            number_HW[place] = number
            hits_HW[place] += 1
        assert (hits_HW == 1).all()
        columns = 7 if count == 49 else 1
        mirrored = number_HW // columns * columns + (columns - 1 - number_HW % columns)
        assert np.array_equal(mirrored, number_HW[:, ::-1])
        heights = [place[0].stop - place[0].start for place in places]
        assert max(heights) - min(heights) <= (0 if px % 7 == 0 else 1)


def test_places_of_the_paper() -> None:
    assert {(p[0].stop - p[0].start, p[1].stop - p[1].start) for p in squares(224, 7)} == {(32, 32)}
    assert {(p[0].stop - p[0].start, p[1].stop - p[1].start) for p in stripes(224, 7)} == {
        (32, 224)
    }
    assert [p[0].start for p in stripes(224, 7)] == list(range(0, 224, 32))


def test_more_places_than_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="places_per_side is 33, a crop has 32 px"):
        squares(32, 33)


def test_only_the_place_is_covered_and_the_network_sees_zero_there() -> None:
    crops = some_crops(2)
    before = crops.clone()
    config = small_config()
    place = squares(CROP_PX, 4)[6]

    hidden = covered(crops, place, mean_colour(config.normalise))
    assert torch.equal(crops, before)

    rest = torch.ones(CROP_PX, CROP_PX, dtype=torch.bool)
    rest[place] = False
    assert torch.equal(hidden[:, :, rest], crops[:, :, rest])
    seen = evaluation_view(hidden, config.normalise)[:, :, ~rest]
    assert float(seen.abs().max()) <= 0.5 / 255 / min(config.normalise.std) + 1e-6


def test_the_mirror_image_is_covered_at_the_mirrored_place() -> None:
    config = small_config()
    seen = []

    class Recorder:
        needs_landmarks = gives_features = False

        def answer(self, crops_BCHW: np.ndarray, _landmarks_B52: object) -> tuple[np.ndarray, None]:
            seen.append(torch.from_numpy(crops_BCHW))
            even = 1 / config.grid.num_labels
            return np.full((len(crops_BCHW), config.grid.num_labels), even), None

    place = squares(CROP_PX, 4)[4]  # at the left rim
    faces = FaceBatch(some_crops(2), None)
    predictor = CropPredictor(Recorder(), config)
    occlusion_errors(predictor, faces, np.zeros(2), [place], True, silent)
    face_BCHW, mirror_BCHW = seen[-1].chunk(2)
    assert torch.equal(mirror_BCHW, face_BCHW.flip(3))
    colour_C = mean_colour(config.normalise)[:, None, None]
    assert (face_BCHW[0, :, 8:16, :8] == colour_C).all()
    assert (mirror_BCHW[0, :, 8:16, -8:] == colour_C).all()


def test_errors_are_the_predictors_on_covered_crops() -> None:
    config, crops, label_B = small_config(), some_crops(5), np.linspace(10, 90, 5)
    predictor, places = CropPredictor(small_network(config), config), stripes(CROP_PX, 3)
    counts: list[int] = []
    error_BP = occlusion_errors(
        predictor, FaceBatch(crops, None), label_B, places, True, counts.append
    )
    assert (error_BP.shape, counts) == ((5, 4), [5] * 4)
    for face in range(5):
        for column, rows in enumerate([slice(0, 0), slice(0, 11), slice(11, 21), slice(21, 32)]):
            crop = crops[face : face + 1].clone()
            crop[0, :, rows] = torch.tensor([153, 128, 102], dtype=torch.uint8)[:, None, None]
            naive = abs(predictor.predict_crops(crop, flip=True).value[0] - label_B[face])
            assert error_BP[face, column] == pytest.approx(naive, abs=1e-9)


def test_a_network_that_looks_at_one_place_loses_there_and_nowhere_else() -> None:
    config = one_place_config()
    crops = torch.full((3, 3, CROP_PX, CROP_PX), 250, dtype=torch.uint8)
    places = squares(CROP_PX, PLACES) + stripes(CROP_PX, PLACES)
    error_BP = occlusion_errors(
        CropPredictor(OnePlace(config), config),
        FaceBatch(crops, None),
        np.full(3, 100.0),
        places,
        False,
        silent,
    )
    losses = [loss.value for loss in relative_losses(error_BP, np.arange(3), BOOTSTRAP)]
    touched = {ROW * PLACES + COLUMN, PLACES**2 + ROW}
    assert all(losses[place] > 0.1 for place in touched)
    assert all(losses[place] == 0 for place in set(range(len(places))) - touched)


def test_losses_are_relative_to_the_mean_error_with_intervals_around_them() -> None:
    generator = np.random.default_rng(1)
    error_NP = np.abs(generator.normal([5, 6, 5, 4], 2, (40, 4)))
    found = relative_losses(error_NP, np.arange(40), BOOTSTRAP)
    for column, loss in enumerate(found, start=1):
        naive = (error_NP[:, column].mean() - error_NP[:, 0].mean()) / error_NP[:, 0].mean()
        assert loss.value == pytest.approx(naive)
        assert loss.low < loss.value < loss.high
    one_person = relative_losses(error_NP, np.zeros(40, np.int64), BOOTSTRAP)
    assert all(
        loss.low == pytest.approx(loss.high) == pytest.approx(loss.value) for loss in one_person
    )


def test_errors_that_grow_by_one_factor_leave_no_doubt() -> None:
    """Both means of the ratio are of the same resample."""
    error_N = np.random.default_rng(2).uniform(1, 9, 30)
    [loss] = relative_losses(np.stack([error_N, 1.5 * error_N], axis=1), np.arange(30), BOOTSTRAP)
    assert [loss.value, loss.low, loss.high] == pytest.approx([0.5] * 3)


def test_a_loss_of_exact_predictions_is_undefined() -> None:
    [loss] = relative_losses(np.array([[0.0, 1.0]]), np.zeros(1, np.int64), BOOTSTRAP)
    assert np.isnan([loss.value, loss.low, loss.high]).all()
