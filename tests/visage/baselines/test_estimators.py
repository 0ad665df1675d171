"""SVR, OHRank and BFGS-LDL: against scikit-learn, finite differences and models that are known; and
drawn faces."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC
from torch import Tensor

from visage.baselines.bfgs_ldl import objective
from visage.baselines.bif import BIFSettings, bif
from visage.baselines.estimators import ESTIMATORS, Trial, best, predict, trial
from visage.baselines.features import described
from visage.baselines.linear import Examples, FitSettings, LinearModel
from visage.baselines.ohrank import fit_ohrank
from visage.encodings import gaussian, narrowest
from visage.labels import LabelGrid, expectation
from visage.methods import kl_divergence
from visage.synthetic import draw_face, sample_person, sample_photo

GRID = LabelGrid(minimum=0.0, step=1.0, maximum=10.0)
AGES = LabelGrid(minimum=0.0, step=5.0, maximum=100.0)
SETTINGS = FitSettings(max_iterations=2000, tolerance=1e-8, min_sigma=0.5, tube=0.0)


def random_examples(
    num_examples: int = 120, num_features: int = 6, rounded: bool = True
) -> Examples:
    """Labels 2 to 8 that some of the noisy features depend on; the last feature is the constant."""
    generator = torch.Generator().manual_seed(3)
    label_N = 2 + 6 * torch.rand(num_examples, generator=generator, dtype=torch.float64)
    label_N = label_N.round() if rounded else label_N
    features_ND = torch.randn(num_examples, num_features, generator=generator, dtype=torch.float64)
    features_ND[:, 0] += 0.5 * label_N
    features_ND[:, -1] = 1
    return Examples(features_ND=features_ND, label_N=label_N, sigma_N=torch.full_like(label_N, 1.0))


def fitted(
    name: str, examples: Examples, strength: float, grid: LabelGrid = GRID, **changes: Any
) -> LinearModel:
    return ESTIMATORS[name].fit(examples, grid, strength, dataclasses.replace(SETTINGS, **changes))


# -------------------------------------------------------------------------------
# OHRank
# -------------------------------------------------------------------------------


def test_ohrank_is_not_biased() -> None:
    """Integer labels seen through noise: as often too low as too high."""
    generator = torch.Generator().manual_seed(0)
    label_N = torch.randint(0, 11, (4000,), generator=generator).float()
    seen_N = label_N + torch.randn(4000, generator=generator)
    features_ND = torch.stack([seen_N / 10, torch.ones(4000)], dim=1)
    examples = Examples(features_ND=features_ND, label_N=label_N, sigma_N=torch.ones(4000))
    grid = LabelGrid(minimum=0, step=1, maximum=10)
    model = fit_ohrank(examples, grid, 10.0, SETTINGS)
    value_N = predict(ESTIMATORS["ohrank"], model, features_ND, grid).value
    assert abs(float((value_N - label_N.numpy()).mean())) < 0.1


@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
def test_ohrank_is_as_many_independent_machines(strength: float) -> None:
    examples = random_examples(rounded=False)
    model = fit_ohrank(examples, GRID, strength, SETTINGS)
    assert model.converged

    compared = 0
    for place, threshold in enumerate(GRID.labels()[:-1]):
        above_N = (examples.label_N > threshold).numpy()
        if 0 < above_N.sum() < len(above_N):
            machine = LinearSVC(
                C=strength,
                loss="squared_hinge",
                dual=False,
                fit_intercept=False,
                tol=1e-9,
                max_iter=10_000,
            )

            label_N = examples.label_N.numpy()
            cost_N = np.where(above_N, label_N - threshold, threshold + GRID.step - label_N)
            machine.fit(examples.features_ND.numpy(), above_N, sample_weight=cost_N)
            np.testing.assert_allclose(
                model.weight_OD[place].numpy(), machine.coef_[0], rtol=1e-4, atol=1e-5
            )
            compared += 1

    assert compared == 5


def test_ohrank_in_float32_comes_to_the_same_predictions() -> None:
    exact = random_examples(rounded=False)
    rough = Examples(**{f.name: getattr(exact, f.name).float() for f in dataclasses.fields(exact)})
    estimator = ESTIMATORS["ohrank"]
    values = []
    for examples in (exact, rough):
        model = fitted("ohrank", examples, 1.0, tolerance=1e-4)
        values.append(predict(estimator, model, examples.features_ND, GRID).value)
    assert (values[0] == values[1]).mean() > 0.98


def test_ohrank_counts_the_positive_questions() -> None:
    examples = random_examples()
    model = fitted("ohrank", examples, 1.0)
    positive_N = (model(examples.features_ND) > 0).sum(dim=1).numpy()

    predictions = predict(ESTIMATORS["ohrank"], model, examples.features_ND, GRID)
    np.testing.assert_array_equal(predictions.value, GRID.labels()[positive_N])
    assert predictions.value.min() >= 2
    assert predictions.value.max() <= 8

    np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1, atol=1e-6)
    assert (predictions.probabilities[:, :2] == 0).all()
    assert (predictions.probabilities[:, 9:] == 0).all()


def test_ohrank_of_one_label_predicts_it() -> None:
    examples = dataclasses.replace(
        random_examples(), label_N=torch.full((120,), 5.0, dtype=torch.float64)
    )
    model = fitted("ohrank", examples, 1.0)
    assert model.converged
    assert (predict(ESTIMATORS["ohrank"], model, examples.features_ND, GRID).value == 5).all()


# -------------------------------------------------------------------------------
# BFGS-LDL and SVR
# -------------------------------------------------------------------------------


def test_gradient_is_that_of_finite_differences() -> None:
    examples = random_examples(num_examples=7)
    generator = torch.Generator().manual_seed(5)
    p_NK = gaussian(examples.label_N, examples.sigma_N, GRID)
    weight_KD = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    _, slope_KD = objective(weight_KD, examples.features_ND, p_NK, 0.3)

    for row, column in ((0, 0), (4, 2), (10, 5)):
        step_KD = torch.zeros_like(weight_KD)
        step_KD[row, column] = 1e-6
        values = [
            objective(weight_KD + sign * step_KD, examples.features_ND, p_NK, 0.3)[0]
            for sign in (1, -1)
        ]
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(
            float(slope_KD[row, column]), abs=1e-7
        )


def test_bfgs_ldl_finds_a_model_that_is_known() -> None:
    """Gaussians of one sigma around y are maximum-entropy models of the features (y, 1): l y / s^2
    - l^2 / 2 s^2."""
    label_N = torch.linspace(2, 8, 40, dtype=torch.float64)
    features_ND = torch.stack([(label_N - 5) / 3, torch.ones_like(label_N)], dim=1)
    examples = Examples(
        features_ND=features_ND, label_N=label_N, sigma_N=torch.full_like(label_N, 1.5)
    )

    model = fitted("bfgs_ldl", examples, 1e7)

    between_B = torch.tensor([2.7, 5.1, 7.9], dtype=torch.float64)
    predictions = predict(
        ESTIMATORS["bfgs_ldl"],
        model,
        torch.stack([(between_B - 5) / 3, torch.ones(3)], dim=1),
        GRID,
    )

    p_BK = gaussian(between_B, torch.full_like(between_B, 1.5), GRID)
    np.testing.assert_allclose(predictions.probabilities, p_BK.numpy(), atol=2e-3)
    np.testing.assert_allclose(predictions.value, expectation(p_BK, GRID).numpy(), atol=5e-3)


def test_bfgs_ldl_without_strength_predicts_the_middle_and_more_strength_fits_closer() -> None:
    examples = random_examples()
    p_NK = gaussian(examples.label_N, examples.sigma_N, GRID)

    models = [fitted("bfgs_ldl", examples, strength) for strength in (1e-9, 0.01, 1.0, 100.0)]
    divergences = [
        float(kl_divergence(p_NK, model(examples.features_ND), "sum")) for model in models
    ]

    assert divergences == sorted(divergences, reverse=True)

    weakest = predict(ESTIMATORS["bfgs_ldl"], models[0], examples.features_ND, GRID)
    assert weakest.value == pytest.approx(5, abs=1e-4)


def test_bfgs_ldl_never_aims_at_less_than_the_least_sigma() -> None:
    examples = random_examples()
    sharp = dataclasses.replace(examples, sigma_N=torch.full_like(examples.sigma_N, 0.01))
    floor = dataclasses.replace(examples, sigma_N=torch.full_like(examples.sigma_N, 0.5))
    weights = [fitted("bfgs_ldl", one, 1.0).weight_OD for one in (sharp, floor)]
    torch.testing.assert_close(*weights)


def test_svr_finds_a_line() -> None:
    features_ND = random_examples().features_ND
    label_N = features_ND @ torch.tensor([0.3, -0.2, 0.1, 0.0, 0.05, 5.0], dtype=torch.float64)
    examples = Examples(features_ND=features_ND, label_N=label_N, sigma_N=torch.ones_like(label_N))
    predictions = predict(ESTIMATORS["svr"], fitted("svr", examples, 1e5), features_ND, GRID)
    np.testing.assert_allclose(predictions.value, label_N.numpy(), atol=1e-3)
    assert (predictions.std <= GRID.step / 2 + 1e-9).all()


def test_svr_is_pulled_towards_the_mean_label() -> None:
    examples = random_examples()
    predictions = predict(
        ESTIMATORS["svr"], fitted("svr", examples, 1e-9), examples.features_ND, GRID
    )
    assert predictions.value == pytest.approx(float(examples.label_N.mean()), abs=1e-4)


def test_the_narrowest_distribution_has_the_value_and_two_labels() -> None:
    value_B = torch.tensor([0.0, 3.25, 9.9, 10.0], dtype=torch.float64)
    p_BK = narrowest(value_B, GRID)
    torch.testing.assert_close(expectation(p_BK, GRID), value_B)
    assert ((p_BK > 0).sum(dim=1) <= 2).all()

    far = LinearModel(weight_OD=torch.tensor([[1e3]]), num_iterations=1, converged=True)
    predictions = predict(ESTIMATORS["svr"], far, torch.tensor([[1.0], [-1.0]]), GRID)
    assert predictions.value.tolist() == [10.0, 0.0]


# -------------------------------------------------------------------------------
# All of them
# -------------------------------------------------------------------------------


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """BIF features and ages of drawn faces."""
    rngs = np.random.default_rng(seed).spawn(count)
    photos = [
        sample_photo(sample_person(rng), rng, float(rng.uniform(5, 95)), clean=True) for rng in rngs
    ]

    crops_BCHW = torch.from_numpy(np.stack([draw_face(photo, 48) for photo in photos])).permute(
        0, 3, 1, 2
    )

    extract = partial(bif, settings=BIFSettings(side_px=32, num_bands=3, num_orientations=4))
    ages_B = torch.tensor([photo.age_years for photo in photos])
    return described(crops_BCHW, extract, flip=False), ages_B


@pytest.fixture(scope="module")
def faces() -> tuple[Examples, Examples]:
    """Drawn faces to learn from, and others."""
    parts = [drawn(count, seed) for count, seed in ((160, 1), (60, 2))]
    first, second = (
        Examples(features_ND=x, label_N=y, sigma_N=torch.full_like(y, 5.0)) for x, y in parts
    )
    return first, second


@pytest.mark.parametrize(
    ("name", "strength"), [("svr", 100.0), ("ohrank", 10.0), ("bfgs_ldl", 1000.0)]
)
def test_drawn_ages_are_predicted_better_than_by_their_mean(
    faces: tuple[Examples, Examples], name: str, strength: float
) -> None:
    train, others = faces
    settings = dataclasses.replace(SETTINGS, tolerance=1e-3)
    found = trial(ESTIMATORS[name], strength, train, others, AGES, settings)
    mean_error = float((others.label_N - train.label_N.mean()).abs().mean())
    assert found.error < 0.7 * mean_error

    predictions = predict(ESTIMATORS[name], found.model, others.features_ND, AGES)
    assert found.error == pytest.approx(
        np.abs(predictions.value - others.label_N.numpy()).mean(), abs=1e-4
    )
    assert ((predictions.low <= predictions.high) & (predictions.std >= 0)).all()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_fit_that_was_cut_short_says_so(name: str) -> None:
    examples = random_examples()
    assert not fitted(name, examples, 10.0, max_iterations=1).converged
    assert fitted(name, examples, 10.0, tolerance=1e-5).converged


def test_the_least_error_wins_and_of_equals_the_most_regularised() -> None:
    model = LinearModel(weight_OD=torch.zeros(1, 1), num_iterations=1, converged=True)
    trials = [
        Trial(strength=strength, model=model, error=error)
        for strength, error in ((9, 2), (3, 1), (1, 1), (2, 5))
    ]
    assert best(trials).strength == 1
