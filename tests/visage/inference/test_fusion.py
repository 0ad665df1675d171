"""An ensemble's label, spread and sigma against a mixture that is really drawn from."""

from __future__ import annotations

import numpy as np
import pytest

from tests.small_model import small_config, small_network, some_crops
from visage.explain.score_map import pooled_features
from visage.inference.faces import CropPredictor
from visage.inference.fusion import FusedEngine, combined
from visage.inference.torch_engine import TorchEngine


def test_sigma_is_that_of_the_mixture() -> None:
    rng = np.random.default_rng(0)
    values, stds = (
        np.array([[30.0, 10.0], [36.0, 10.0], [33.0, 40.0]]),
        np.array([[2.0, 1.0], [4.0, 0.0], [3.0, 5.0]]),
    )
    which = rng.integers(0, 3, 200_000)
    drawn = rng.normal(values[which], stds[which])
    label, spread, sigma = combined(values, stds)
    assert label == pytest.approx(drawn.mean(0), rel=0.01)
    assert sigma == pytest.approx(drawn.std(0), rel=0.01)
    assert spread == pytest.approx(values.std(0))


def test_one_model_speaks_for_itself() -> None:
    label, spread, sigma = combined(np.array([[30.0]]), np.array([[2.5]]))
    assert (label.item(), spread.item(), sigma.item()) == (30.0, 0.0, 2.5)


def test_models_that_agree_add_no_spread() -> None:
    _, spread, sigma = combined(np.full((4, 1), 30.0), np.full((4, 1), 3.0))
    assert (spread.item(), sigma.item()) == (0.0, pytest.approx(3.0))


@pytest.mark.parametrize("flip", [True, False])
def test_a_fused_engine_is_the_mixture_and_is_observed(flip: bool) -> None:
    config, crops = small_config(), some_crops(5)
    networks = [small_network(config, seed) for seed in (0, 1)]
    first, second = (TorchEngine(network, config) for network in networks)
    heard: list[tuple[np.ndarray, np.ndarray]] = []
    fused = CropPredictor(
        FusedEngine([(first, 0.3), (second, 0.7)]),
        config,
        observe=lambda *both: heard.append(both),
    )

    predicted = fused.predict_crops(crops, flip=flip)
    alone = [CropPredictor(network, config).predict_crops(crops, flip=flip) for network in networks]
    assert np.abs(alone[0].value - alone[1].value).min() > 0.01
    for name in ("value", "probabilities"):
        one, other = (getattr(predictions, name) for predictions in alone)
        np.testing.assert_allclose(getattr(predicted, name), 0.3 * one + 0.7 * other, atol=1e-5)

    [(value_N, features_NC)] = heard
    np.testing.assert_array_equal(value_N, predicted.value)
    parts = [pooled_features(network, config, crops) for network in networks]
    np.testing.assert_allclose(features_NC, np.concatenate(parts, axis=1), atol=1e-4)


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.5, -0.5], [0.0, 1.0], []])
def test_weights_that_are_no_shares_are_refused(weights: list[float]) -> None:
    config = small_config()
    engine = TorchEngine(small_network(config), config)
    with pytest.raises(ValueError, match=r"weights are .* sum to 1"):
        FusedEngine([(engine, weight) for weight in weights])
