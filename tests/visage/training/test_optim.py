"""Schedules at their corners, optimisers against hand-written steps, the running average against
its formula."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.small_faces import RECIPE
from visage.training import optim
from visage.training.optim import (
    RecipeSettings,
    build_optimiser,
    computing_dtype,
    count_updates,
    learning_rate,
    moving_average,
)

PAPER_RECIPE = RecipeSettings(
    optimiser="adam",
    momentum=0.0,
    nesterov=False,
    learning_rate=1e-3,
    weight_decay=0.0,
    batch_size=128,
    schedule="step",
    decay_fraction=0.5,
    decay_factor=0.1,
    warmup_fraction=0.0,
    ema_decay=0.0,
    precision="auto",
    channels_last=True,
)


def recipe(**changes: Any) -> RecipeSettings:
    return dataclasses.replace(RECIPE, **changes)


def small_network() -> nn.Sequential:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=generator)
    return network


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("weight_decay", -0.1),
        ("batch_size", 1),
        ("decay_fraction", 0.0),
        ("decay_factor", 1.5),
        ("warmup_fraction", 1.0),
        ("ema_decay", 1.0),
        ("learning_rate", math.nan),
        ("momentum", 1.0),
    ],
)
def test_recipe_out_of_bounds_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}: give "):
        recipe(optimiser="sgd", **{name: value})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimiser": "lion"}, "optimiser 'lion' is unknown; known: adam, adamw, sgd"),
        ({"optimiser": "adam", "momentum": 0.9}, "adam has no momentum; .*or optimiser: sgd"),
        ({"optimiser": "adamw", "nesterov": True}, "adamw has no momentum"),
        ({"optimiser": "sgd", "nesterov": True}, "nesterov is true and momentum 0"),
    ],
)
def test_recipe_of_settings_that_do_not_belong_together_is_refused(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        recipe(**changes)


# -------------------------------------------------------------------------------
# Learning rate
# -------------------------------------------------------------------------------


@pytest.mark.parametrize("num_batches", [1, 7, 20, 113])
def test_papers_rate_is_a_tenth_from_the_thirtieth_of_sixty_epochs(num_batches: int) -> None:
    """Step 30 * num_batches of 60 * num_batches is the first at the lower rate, whatever the
    rounding."""
    steps = 60 * num_batches
    rates = [learning_rate(PAPER_RECIPE, step / steps) for step in range(steps)]
    assert rates[: steps // 2] == [1e-3] * (steps // 2)
    assert rates[steps // 2 :] == pytest.approx([1e-4] * (steps // 2))


@given(st.integers(1, 12), st.integers(1, 40))
def test_steps_fall_at_every_share_of_the_run(num_stages: int, steps_in_one: int) -> None:
    """A share like 1/3 or 1/7 is no binary fraction; the step must not fall one late."""
    how, steps = (
        recipe(
            schedule="step", decay_fraction=1 / num_stages, decay_factor=0.5, warmup_fraction=0.0
        ),
        (num_stages * steps_in_one),
    )
    for step in range(steps):
        expected = RECIPE.learning_rate * 0.5 ** (step // steps_in_one)
        assert learning_rate(how, step / steps) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_warm_up_rises_in_a_line_from_almost_nothing(schedule: str) -> None:
    how = recipe(schedule=schedule, warmup_fraction=0.2)
    assert 0 < learning_rate(how, 0.0) <= 0.01 * how.learning_rate
    for progress in (0.05, 0.1, 0.15, 0.1999999):
        assert learning_rate(how, progress) == pytest.approx(how.learning_rate * progress / 0.2)
    assert learning_rate(how, 0.2) == pytest.approx(how.learning_rate)


@given(st.floats(0, 0.5), st.floats(0, 1))
def test_cosine_falls_from_the_rate_to_its_last_share(warmup: float, last: float) -> None:
    how = recipe(warmup_fraction=warmup, decay_factor=last)
    after = [
        learning_rate(how, warmup + (1 - warmup) * share) / how.learning_rate
        for share in (0.0, 0.25, 0.5, 1.0)
    ]
    half_angle = (1 + math.cos(math.pi / 4)) / 2
    assert after == pytest.approx(
        [1.0, last + (1 - last) * half_angle, (1 + last) / 2, last], abs=1e-6
    )


# -------------------------------------------------------------------------------
# Optimiser
# -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_first_steps_equal_the_published_formulas(name: str) -> None:
    """Adam (Kingma 2015, algorithm 1) and AdamW (Loshchilov 2019, algorithm 2), kernels and
    matrices decayed alone."""
    network, rate, decay = small_network().double(), 0.01, 0.1
    optimiser = build_optimiser(
        network, recipe(optimiser=name, learning_rate=rate, weight_decay=decay)
    )
    generator = torch.Generator().manual_seed(1)
    parameters = list(network.parameters())
    expected = [parameter.detach().clone() for parameter in parameters]
    first, second = ([torch.zeros_like(value) for value in expected] for _ in range(2))
    for step in (1, 2, 3):
        for index, parameter in enumerate(parameters):
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            gradient, theta = parameter.grad.clone(), expected[index]
            own_decay = decay if theta.ndim > 1 else 0.0
            if name == "adam":
                gradient += own_decay * theta
            first[index] = 0.9 * first[index] + 0.1 * gradient
            second[index] = 0.999 * second[index] + 0.001 * gradient**2
            direction = (first[index] / (1 - 0.9**step)) / (
                (second[index] / (1 - 0.999**step)).sqrt() + 1e-8
            )
            expected[index] = (
                theta - rate * direction - (rate * own_decay * theta if name == "adamw" else 0.0)
            )
        optimiser.step()
    for parameter, theta in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), theta, atol=1e-12, rtol=0)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_first_steps_of_sgd_equal_the_published_formulas(momentum: float, nesterov: bool) -> None:
    """Momentum, and Nesterov's (Sutskever et al. 2013, as torch writes it): v = m v + g, and a step
    along v, or along g + m v."""
    network, rate, decay = small_network().double(), 0.01, 0.1
    how = recipe(
        optimiser="sgd",
        momentum=momentum,
        nesterov=nesterov,
        learning_rate=rate,
        weight_decay=decay,
    )
    optimiser = build_optimiser(network, how)
    generator = torch.Generator().manual_seed(1)
    parameters = list(network.parameters())
    expected = [parameter.detach().clone() for parameter in parameters]
    speeds = [torch.zeros_like(value) for value in expected]
    for _ in range(3):
        for index, parameter in enumerate(parameters):
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            theta = expected[index]
            gradient = parameter.grad + (decay if theta.ndim > 1 else 0.0) * theta
            speeds[index] = momentum * speeds[index] + gradient
            along = gradient + momentum * speeds[index] if nesterov else speeds[index]
            expected[index] = theta - rate * along
        optimiser.step()
    for parameter, theta in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), theta, atol=1e-12, rtol=0)


def test_every_parameter_is_trained_once() -> None:
    network = small_network()
    groups = build_optimiser(network, RECIPE).param_groups
    trained = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(trained) == sorted(id(parameter) for parameter in network.parameters())


# -------------------------------------------------------------------------------
# Running average
# -------------------------------------------------------------------------------


def test_average_follows_its_formula_and_warms_up() -> None:
    network = small_network().double()
    average = moving_average(network, 0.9)
    generator = torch.Generator().manual_seed(2)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    for num_updates in range(120):
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.normal_(generator=generator)
            else:
                value += 3
        if num_updates == 60:  # as if it went on from a checkpoint
            resumed = moving_average(network, 0.9)
            resumed.module.load_state_dict(average.module.state_dict())
            average = resumed
            count_updates(average, num_updates)
        average.update_parameters(network)
        decay = min(0.9, (1 + num_updates) / (10 + num_updates))
        for name, value in network.state_dict().items():
            mixed = decay * expected[name] + (1 - decay) * value
            expected[name] = mixed if value.is_floating_point() else value.clone()
    assert {"1.running_mean", "1.num_batches_tracked"} <= set(expected)
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-12, rtol=0)
    assert average.module.state_dict()["1.num_batches_tracked"] == 360


def test_average_is_the_network_after_a_first_update_without_memory() -> None:
    network = small_network()
    average = moving_average(network, 0.0)
    with torch.no_grad():
        network[3].weight += 1
    average.update_parameters(network)
    assert all(
        torch.equal(mine, its)
        for mine, its in zip(
            average.module.state_dict().values(), network.state_dict().values(), strict=True
        )
    )


# -------------------------------------------------------------------------------
# Precision
# -------------------------------------------------------------------------------


def test_precision_is_what_was_asked_for() -> None:
    cpu = torch.device("cpu")
    assert computing_dtype("float32", cpu) == torch.float32
    assert computing_dtype("bfloat16", cpu) == torch.bfloat16


@pytest.mark.parametrize(("has_it", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bfloat16_only_where_the_cpu_computes_in_it(
    has_it: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim.torch.cpu, "_is_avx512_bf16_supported", lambda: has_it)
    assert computing_dtype("auto", torch.device("cpu")) == dtype
