"""Losses against naive loops, autograd in float64, and the closed form that the paper prints (Eq.
17)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from visage.encodings import gaussian
from visage.labels import DECODERS, LabelGrid
from visage.methods import (
    METHODS,
    DLDLSettings,
    DLDLv2Settings,
    MeanVarianceSettings,
    kl_divergence,
)

GRIDS = [
    LabelGrid(minimum=0.0, step=1.0, maximum=100.0),
    LabelGrid(minimum=1.0, step=0.1, maximum=5.0),
    LabelGrid(minimum=0.0, step=4.0, maximum=20.0),
]


VALUES: dict[str, Any] = {
    "lambda_": 1.0,
    "kl_reduction": "sum",
    "min_sigma": 0.05,
    "mean_weight": 0.2,
    "variance_weight": 0.05,
}


def settings(name: str = "dldl_v2", **changes: Any) -> Any:
    """The method's own settings, with those of `changes` that it has."""
    kind = METHODS[name].settings
    values = VALUES | changes
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})


def batch(
    grid: LabelGrid, seed: int, size: int = 5, name: str = "dldl_v2"
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits as wide as the method's head, labels inside the grid and sigmas, float64."""
    generator, width = torch.Generator().manual_seed(seed), METHODS[name].head_width(grid)
    logits_BK = 2 * torch.randn(size, width, generator=generator, dtype=torch.float64)
    span = grid.maximum - grid.minimum
    label_B = grid.minimum + span * torch.rand(size, generator=generator, dtype=torch.float64)
    return (
        logits_BK,
        label_B,
        span * (0.02 + 0.1 * torch.rand(size, generator=generator, dtype=torch.float64)),
    )


def gradient(
    name: str,
    logits_BK: Tensor,
    label_B: Tensor,
    sigma_B: Tensor,
    grid: LabelGrid,
    how: Any,
) -> Tensor:
    logits_BK = logits_BK.clone().requires_grad_()
    METHODS[name].loss(logits_BK, label_B, sigma_B, grid, how).backward()
    assert logits_BK.grad is not None
    return logits_BK.grad


@pytest.mark.parametrize("grid", GRIDS)
@given(seed=st.integers(0, 10**6), lambda_=st.sampled_from([0.0, 0.3, 1.0, 101.0]))
def test_gradient_is_the_closed_form_of_equation_17(
    grid: LabelGrid, seed: int, lambda_: float
) -> None:
    logits_BK, label_B, sigma_B = batch(grid, seed)
    l_K = torch.from_numpy(grid.labels())
    found_BK = gradient("dldl_v2", logits_BK, label_B, sigma_B, grid, settings(lambda_=lambda_))
    for row in range(len(label_B)):
        p = gaussian(label_B[row : row + 1], sigma_B[row : row + 1], grid)[0]
        p_hat = logits_BK[row].exp() / logits_BK[row].exp().sum()
        y_hat = (p_hat * l_K).sum()
        closed_K = p_hat - p + lambda_ * torch.sign(y_hat - label_B[row]) * p_hat * (l_K - y_hat)
        torch.testing.assert_close(found_BK[row] * len(label_B), closed_K, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kl_reduction", ["sum", "mean"])
def test_gradient_agrees_with_differences_in_float64(
    name: str, grid: LabelGrid, kl_reduction: str
) -> None:
    logits_BK, label_B, sigma_B = batch(grid, seed=3, size=2, name=name)
    how = settings(name, kl_reduction=kl_reduction, lambda_=0.7)
    assert torch.autograd.gradcheck(
        lambda logits: METHODS[name].loss(logits, label_B, sigma_B, grid, how),
        logits_BK.requires_grad_(),
    )


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def naive_loss(
    name: str, logits: list[float], label: float, sigma: float, grid: LabelGrid
) -> float:
    """One face's loss, written out."""
    labels = grid.labels().tolist()
    if name in ("ranking", "coral"):
        total = 0.0
        for value, l_k in zip(logits, labels[:-1], strict=True):
            total -= math.log(sigmoid(value)) if label > l_k else math.log(1 - sigmoid(value))
        return total / (len(labels) - 1) if name == "ranking" else total
    if name in ("mr_l1", "mr_l2"):
        middle, half = (grid.minimum + grid.maximum) / 2, (grid.maximum - grid.minimum) / 2
        off = math.tanh(logits[0]) - (label - middle) / half
        return abs(off) if name == "mr_l1" else off**2
    total = sum(math.exp(value) for value in logits)
    p_hat = [math.exp(value) / total for value in logits]
    at_label = p_hat[min(range(len(labels)), key=lambda k: abs(labels[k] - label))]
    mean = sum(p * l_k for p, l_k in zip(p_hat, labels, strict=True))
    variance = sum(p * (l_k - mean) ** 2 for p, l_k in zip(p_hat, labels, strict=True))
    density = [math.exp(-0.5 * ((l_k - label) / sigma) ** 2) for l_k in labels]
    divergence = 0.0
    for weight, p in zip(density, p_hat, strict=True):
        share = weight / sum(density)
        divergence += share * math.log(share / p) if share > 0 else 0.0
    return {
        "dldl_v2": divergence + abs(mean - label),
        "dldl": divergence,
        "er": abs(mean - label),
        "dex": -math.log(at_label),
        "dex_released": -at_label,
        "mean_variance": -math.log(at_label) + 0.2 * (mean - label) ** 2 / 2 + 0.05 * variance,
    }[name]


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("grid", GRIDS)
def test_every_loss_is_the_mean_of_what_a_loop_gives(name: str, grid: LabelGrid) -> None:
    logits_BK, label_B, sigma_B = batch(grid, seed=1, name=name)
    rows = zip(logits_BK.tolist(), label_B.tolist(), sigma_B.tolist(), strict=True)
    expected = sum(
        naive_loss(name, logits, label, sigma, grid) for logits, label, sigma in rows
    ) / len(label_B)
    loss = METHODS[name].loss(logits_BK, label_B, sigma_B, grid, settings(name))
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@given(seed=st.integers(0, 10**6))
def test_ranking_predicts_the_label_after_as_many_as_say_yes(seed: int) -> None:
    """l[1 + #(p > 1/2)] in the paper's counting from 1, also where the sigmoids do not fall from
    label to label."""
    for grid in GRIDS:
        logits_BR, _, _ = batch(grid, seed, name="ranking")
        p_BK = METHODS["ranking"].probabilities(logits_BR, grid)
        expected = [
            grid.labels()[sum(sigmoid(value) > 0.5 for value in row)] for row in logits_BR.tolist()
        ]
        assert DECODERS["rank"](p_BK, grid).tolist() == pytest.approx(expected)


@given(seed=st.integers(0, 10**6))
def test_a_regressed_value_is_the_expectation_of_its_distribution(seed: int) -> None:
    for grid in GRIDS:
        logits_B1, _, _ = batch(grid, seed, name="mr_l1")
        p_BK = METHODS["mr_l1"].probabilities(logits_B1, grid)
        share_B = (torch.tanh(logits_B1[:, 0]) + 1) / 2
        expected_B = grid.minimum + (grid.maximum - grid.minimum) * share_B
        torch.testing.assert_close(DECODERS["expectation"](p_BK, grid), expected_B)
        assert (p_BK > 1e-9).sum(dim=1).max() <= 2


@pytest.mark.parametrize("name", list(METHODS))
def test_losses_are_finite_at_the_ends_of_the_range(name: str) -> None:
    for grid in GRIDS:
        ends_B = torch.tensor([grid.minimum, grid.maximum]).double()
        sigma_B = torch.ones(2).double()
        logits_BK = batch(grid, seed=0, size=2, name=name)[0]
        assert METHODS[name].loss(logits_BK, ends_B, sigma_B, grid, settings(name)).isfinite()


@pytest.mark.parametrize("grid", GRIDS)
def test_mean_reduction_is_the_sum_over_k_and_scales_lambda_by_k(grid: LabelGrid) -> None:
    """The released code's lambda = 1 is the paper's lambda = K: the two losses differ by the
    factor K."""
    logits_BK, label_B, sigma_B = batch(grid, seed=2)
    p_BK, num_labels = gaussian(label_B, sigma_B, grid), grid.num_labels
    summed, averaged = kl_divergence(p_BK, logits_BK, "sum"), kl_divergence(p_BK, logits_BK, "mean")
    assert averaged.item() == pytest.approx(summed.item() / num_labels, rel=1e-12)

    released = gradient(
        "dldl_v2", logits_BK, label_B, sigma_B, grid, settings(kl_reduction="mean", lambda_=1.0)
    )
    paper = gradient(
        "dldl_v2",
        logits_BK,
        label_B,
        sigma_B,
        grid,
        settings(kl_reduction="sum", lambda_=num_labels),
    )

    torch.testing.assert_close(released * num_labels, paper)


@given(st.integers(0, 10**6))
def test_divergence_is_zero_at_the_target_and_positive_elsewhere(seed: int) -> None:
    grid = GRIDS[0]
    logits_BK, label_B, sigma_B = batch(grid, seed)
    p_BK = gaussian(label_B, sigma_B, grid)
    assert kl_divergence(p_BK, p_BK.clamp_min(1e-300).log(), "sum").item() == pytest.approx(
        0, abs=1e-12
    )
    assert kl_divergence(p_BK, logits_BK, "sum").item() > 0
    shifted = kl_divergence(p_BK, logits_BK + 50, "sum")
    torch.testing.assert_close(shifted, kl_divergence(p_BK, logits_BK, "sum"))


def test_target_without_overlap_stays_finite() -> None:
    """A one-hot target has 0 ln 0, and float32 logits of +-500 overflow a naive softmax."""
    grid = GRIDS[0]
    logits_BK = torch.full((1, 101), -500.0)
    logits_BK[0, 7] = 500.0
    found_BK = gradient(
        "dldl_v2",
        logits_BK,
        torch.tensor([90.0]),
        torch.tensor([1e-6]),
        grid,
        settings(min_sigma=1e-6),
    )
    assert found_BK.isfinite().all()
    assert found_BK[0, 90] == pytest.approx(-1)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_judged_in_float32(low: torch.dtype) -> None:
    logits_BK, label_B, sigma_B = (value.float() for value in batch(GRIDS[0], seed=4))
    rounded_BK = logits_BK.to(low)
    loss = METHODS["dldl_v2"].loss(rounded_BK, label_B, sigma_B, GRIDS[0], settings())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, METHODS["dldl_v2"].loss(rounded_BK.float(), label_B, sigma_B, GRIDS[0], settings())
    )


def test_sigma_below_the_floor_trains_towards_the_floor() -> None:
    grid = GRIDS[0]
    logits_BK, label_B, _ = batch(grid, seed=5)
    sigmas = [torch.full_like(label_B, value) for value in (0.0, 0.3, 0.5, 0.6)]
    zero, low, floor, above = (
        METHODS["dldl_v2"].loss(logits_BK, label_B, sigma, grid, settings(min_sigma=0.5)).item()
        for sigma in sigmas
    )
    assert zero == low == floor != above


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("dldl_v2", "lambda_", -1.0),
        ("dldl_v2", "min_sigma", 0.0),
        ("dldl_v2", "min_sigma", math.nan),
        ("dldl", "min_sigma", 0.0),
        ("mean_variance", "mean_weight", -0.1),
        ("mean_variance", "variance_weight", math.nan),
    ],
)
def test_loss_settings_out_of_bounds_are_refused(method: str, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} (is )?{value}.*: give "):
        settings(method, **{name: value})


def test_a_method_brings_its_own_settings() -> None:
    kinds = {name: method.settings for name, method in METHODS.items()}
    assert (kinds["dldl_v2"], kinds["dldl"]) == (DLDLv2Settings, DLDLSettings)
    assert kinds["mean_variance"] is MeanVarianceSettings
    assert not dataclasses.fields(kinds["dex"])


@pytest.mark.parametrize(("name", "weight"), [("mean_weight", 3.0), ("variance_weight", 2.0)])
def test_the_weights_of_mean_and_variance_weigh_them(name: str, weight: float) -> None:
    """The loss is linear in each weight, with the term itself as slope."""
    grid = GRIDS[0]
    logits_BK, label_B, sigma_B = batch(grid, seed=6)
    loss = METHODS["mean_variance"].loss
    losses = [
        loss(logits_BK, label_B, sigma_B, grid, settings("mean_variance", **{name: value})).item()
        for value in (0.0, weight)
    ]

    p_BK = logits_BK.softmax(dim=1)
    labels_K = torch.from_numpy(grid.labels())
    mean_B = p_BK @ labels_K
    variance_B = p_BK @ labels_K**2 - mean_B**2
    term_B = (mean_B - label_B) ** 2 / 2 if name == "mean_weight" else variance_B

    assert losses[1] - losses[0] == pytest.approx(weight * term_B.mean().item(), rel=1e-9)


@pytest.mark.parametrize("name", list(METHODS))
def test_probabilities_are_distributions_as_wide_as_the_grid(name: str) -> None:
    for grid in GRIDS:
        logits_BK = torch.randn(
            3, METHODS[name].head_width(grid), generator=torch.Generator().manual_seed(0)
        )
        p_BK = METHODS[name].probabilities(logits_BK, grid)
        assert p_BK.shape == (3, grid.num_labels)
        torch.testing.assert_close(p_BK.sum(dim=1), torch.ones(3))
        assert (p_BK >= 0).all()


@pytest.mark.parametrize("name", ["dldl", "dldl_v2"])
def test_the_interval_loss_of_values_is_the_loss(name: str) -> None:
    method = METHODS[name]
    grid = LabelGrid(minimum=0.0, step=1.0, maximum=100.0)
    generator = torch.Generator().manual_seed(0)
    logits_BK = torch.randn(5, grid.num_labels, generator=generator)
    label_B = torch.tensor([0.0, 20.0, 33.3, 50.0, 100.0])
    sigma_B = torch.full((5,), 2.0)
    values = {"kl_reduction": "sum", "min_sigma": 0.5, "lambda_": 1.0}
    own = {field.name: values[field.name] for field in dataclasses.fields(method.settings)}
    settings = method.settings(**own)

    assert method.interval_loss is not None
    loss = method.interval_loss(logits_BK, label_B, torch.zeros(5), sigma_B, grid, settings)
    torch.testing.assert_close(loss, method.loss(logits_BK, label_B, sigma_B, grid, settings))


def test_an_expectation_inside_the_interval_costs_nothing() -> None:
    grid = LabelGrid(minimum=0.0, step=1.0, maximum=100.0)
    label_B = torch.tensor([30.0, 30.0, 30.0])
    half_width_B = torch.tensor([5.0, 5.0, 5.0])
    sigma_B = torch.full((3,), 2.0)
    logits_BK = gaussian(torch.tensor([26.0, 34.0, 42.0]), sigma_B, grid).clamp_min(1e-30).log()
    losses = []
    for lambda_ in (0.0, 1.0):
        settings = METHODS["dldl_v2"].settings(kl_reduction="sum", min_sigma=0.5, lambda_=lambda_)
        interval_loss = METHODS["dldl_v2"].interval_loss
        assert interval_loss is not None
        losses.append(
            interval_loss(logits_BK, label_B, half_width_B, sigma_B, grid, settings).item()
        )
    assert losses[1] - losses[0] == pytest.approx((0 + 0 + 7) / 3, abs=1e-3)
