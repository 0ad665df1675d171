"""Label distributions by property: what a Gaussian on a grid must be, and what every decoder must
give back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from visage.encodings import gaussian, interval, normal_cdf, ranking_encoding
from visage.labels import DECODERS, LabelGrid, central_interval, deviation, quantile, survival

AGES = LabelGrid(minimum=0.0, step=1.0, maximum=100.0)
GRIDS = [
    AGES,
    LabelGrid(minimum=1.0, step=0.1, maximum=5.0),
    LabelGrid(minimum=1.0, step=0.1, maximum=7.0),
    LabelGrid(minimum=-8.0, step=4.0, maximum=12.0),
]


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def distribution(grid: LabelGrid, label: float, sigma: float) -> Tensor:
    return gaussian(one(label), one(sigma), grid)


@st.composite
def gaussians(draw: st.DrawFn) -> tuple[LabelGrid, float, float]:
    """A grid, a label inside it, and a sigma from a hundredth of the step to the full range."""
    grid = draw(st.sampled_from(GRIDS))
    label = draw(st.floats(grid.minimum, grid.maximum))
    return grid, label, draw(st.floats(grid.step / 100, grid.maximum - grid.minimum))


@st.composite
def any_distributions(draw: st.DrawFn) -> tuple[LabelGrid, Tensor]:
    """A grid and any distribution over it, zeros among its probabilities."""
    grid = draw(st.sampled_from(GRIDS))
    weight_K = draw(
        arrays(np.float64, grid.num_labels, elements=st.one_of(st.just(0.0), st.floats(1e-3, 1)))
    )
    weight_K[draw(st.integers(0, grid.num_labels - 1))] += 1e-3
    return grid, torch.from_numpy(weight_K / weight_K.sum())[None]


@pytest.mark.parametrize(("grid", "num_labels"), list(zip(GRIDS, [101, 41, 61, 6], strict=True)))
def test_grid_has_its_labels_at_exact_steps(grid: LabelGrid, num_labels: int) -> None:
    assert grid.num_labels == len(grid.labels()) == num_labels
    expected = [grid.minimum + k * grid.step for k in range(num_labels)]
    assert grid.labels() == pytest.approx(expected, abs=1e-12)
    assert grid.labels()[-1] == grid.maximum


@pytest.mark.parametrize(
    ("minimum", "step", "maximum"), [(0, 3, 100), (0, 0, 100), (0, -1, 100), (5, 1, 5), (9, 1, 0)]
)
def test_grid_that_its_step_does_not_divide_is_refused(
    minimum: float, step: float, maximum: float
) -> None:
    with pytest.raises(ValueError, match=f"{minimum}:{step}:{maximum}"):
        LabelGrid(minimum=minimum, step=step, maximum=maximum)


@given(gaussians())
def test_gaussian_equals_the_density_renormalised(case: tuple[LabelGrid, float, float]) -> None:
    grid, label, sigma = case
    log_density = [-((value - label) ** 2) / (2 * sigma**2) for value in grid.labels().tolist()]
    density = [math.exp(value - max(log_density)) for value in log_density]
    p_K = distribution(grid, label, sigma)[0]
    assert p_K.sum().item() == pytest.approx(1, abs=1e-12)
    assert p_K.tolist() == pytest.approx([value / sum(density) for value in density], abs=1e-12)


@given(st.floats(20, 80), st.floats(0.6, 5))
def test_far_from_the_ends_mean_and_deviation_are_the_labels_own(
    label: float, sigma: float
) -> None:
    """A Gaussian sampled at steps below 1.7 sigma keeps its moments (Poisson summation): to 0.02 at
    0.6 years."""
    p_BK = distribution(AGES, label, sigma)
    assert DECODERS["expectation"](p_BK, AGES).item() == pytest.approx(label, abs=0.02)
    assert deviation(p_BK, AGES).item() == pytest.approx(sigma, abs=0.05)


@given(gaussians())
def test_gaussian_mirrors_with_its_label(case: tuple[LabelGrid, float, float]) -> None:
    grid, label, sigma = case
    mirrored = grid.minimum + (grid.maximum - label)
    p_K, mirrored_K = distribution(grid, label, sigma)[0], distribution(grid, mirrored, sigma)[0]
    torch.testing.assert_close(p_K, mirrored_K.flip(0), atol=1e-9, rtol=0)


@pytest.mark.parametrize("step", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_sigma_stays_in_label_units_whatever_the_step(step: float) -> None:
    grid = LabelGrid(minimum=0.0, step=step, maximum=100.0)
    label_B = torch.full((3,), 47.3, dtype=torch.float64)
    sigma_B = torch.tensor([4.0, 6.0, 9.0], dtype=torch.float64)

    p_BK = gaussian(label_B, sigma_B, grid)

    torch.testing.assert_close(deviation(p_BK, grid), sigma_B, atol=2e-3, rtol=0)
    torch.testing.assert_close(DECODERS["expectation"](p_BK, grid), label_B, atol=2e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma", [1e-2, 1e-6])
def test_vanishing_sigma_gives_the_nearest_label(sigma: float, dtype: torch.dtype) -> None:
    label_B = torch.tensor([30.2, 30.8, 0.0, 100.0, 99.6], dtype=dtype)
    p_BK = gaussian(label_B, torch.full_like(label_B, sigma), AGES)
    assert p_BK.argmax(dim=1).tolist() == [30, 31, 0, 100, 100]
    torch.testing.assert_close(p_BK.max(dim=1).values, torch.ones(5, dtype=dtype))


@given(any_distributions())
def test_decoders_equal_naive_ones(case: tuple[LabelGrid, Tensor]) -> None:
    grid, p_BK = case
    labels, p = grid.labels().tolist(), p_BK[0].tolist()
    mean = sum(share * value for share, value in zip(p, labels, strict=True))
    variance = sum(share * (value - mean) ** 2 for share, value in zip(p, labels, strict=True))
    assert DECODERS["expectation"](p_BK, grid).item() == pytest.approx(mean, abs=1e-9)
    assert deviation(p_BK, grid).item() == pytest.approx(math.sqrt(variance), abs=1e-6)
    assert DECODERS["argmax"](p_BK, grid).item() == labels[p.index(max(p))]


@given(any_distributions(), st.floats(0.01, 0.99))
def test_quantile_equals_the_inverse_of_the_piecewise_linear_cdf(
    case: tuple[LabelGrid, Tensor], mass: float
) -> None:
    """np.interp over the cells' edges is the reference; where the c.d.f. is flat any point of the
    flat is right."""
    grid, p_BK = case
    edges = np.append(grid.labels() - grid.step / 2, grid.maximum + grid.step / 2)
    cdf = np.append(0.0, p_BK[0].numpy().cumsum())

    value = quantile(p_BK, grid, mass).item()
    inside = grid.minimum < value < grid.maximum
    reached = np.interp(value, edges, cdf)

    if inside:
        assert reached == pytest.approx(mass, abs=1e-9)
    else:
        # Clamped to the grid: the quantile would be in the outer half of an end's cell.
        assert reached >= mass - 1e-9 if value == grid.minimum else reached <= mass + 1e-9


@given(any_distributions(), st.lists(st.floats(0.01, 0.99), min_size=2, max_size=6))
def test_quantile_rises_with_its_mass_and_stays_on_the_grid(
    case: tuple[LabelGrid, Tensor], masses: list[float]
) -> None:
    grid, p_BK = case
    values = [quantile(p_BK, grid, mass).item() for mass in sorted(masses)]
    assert values == sorted(values)
    assert grid.minimum <= values[0] <= values[-1] <= grid.maximum


@given(gaussians())
def test_median_of_a_symmetric_distribution_is_its_mean(
    case: tuple[LabelGrid, float, float],
) -> None:
    grid, _, sigma = case
    middle = (grid.minimum + grid.maximum) / 2
    p_BK = distribution(grid, middle, sigma)
    for name in ("expectation", "median"):
        assert DECODERS[name](p_BK, grid).item() == pytest.approx(middle, abs=1e-6)


@given(st.floats(25, 75), st.floats(2.0, 6.0), st.floats(0.3, 0.95))
def test_central_interval_holds_its_mass_of_a_gaussian(
    label: float, sigma: float, mass: float
) -> None:
    """To 0.02: spreading each label over its cell adds 1/12 to the variance."""
    low, high = (
        end.item() for end in central_interval(distribution(AGES, label, sigma), AGES, mass)
    )
    assert low < label < high
    cumulative = [
        0.5 * (1 + math.erf((end - label) / (sigma * math.sqrt(2)))) for end in (low, high)
    ]
    assert cumulative[1] - cumulative[0] == pytest.approx(mass, abs=0.02)


def test_every_row_of_a_batch_is_decoded_by_itself() -> None:
    label_B = torch.tensor([3.0, 50.0, 97.0]).double()
    sigma_B = torch.tensor([1.0, 9.0, 2.0]).double()
    p_BK = gaussian(label_B, sigma_B, AGES)
    for decode in [*DECODERS.values(), deviation, lambda p_BK, grid: quantile(p_BK, grid, 0.3)]:
        alone = torch.cat([decode(p_BK[row : row + 1], AGES) for row in range(3)])
        torch.testing.assert_close(decode(p_BK, AGES), alone)


# -------------------------------------------------------------------------------
# Ranking is learning a label distribution (DLDL-v2 section 3.2)
# -------------------------------------------------------------------------------


@given(gaussians())
def test_cdf_is_equation_2_and_gives_as_equation_3_the_labels_below(
    case: tuple[LabelGrid, float, float],
) -> None:
    grid, label, sigma = case
    c_K = normal_cdf(one(label), one(sigma), grid)[0].tolist()
    for c, l_k in zip(c_K, grid.labels().tolist(), strict=True):
        assert c == pytest.approx(
            0.5 * (1 + math.erf((l_k - label) / (sigma * math.sqrt(2)))), abs=1e-12
        )
        if abs(l_k - label) > 1e-9 * sigma:
            assert (1 - c > 0.5) == (l_k < label)


@given(gaussians())
def test_ranking_encoding_is_the_limit_of_one_minus_the_cdf(
    case: tuple[LabelGrid, float, float],
) -> None:
    """Eq. 4: exact for sigma -> 0, wherever no label is the value itself."""
    grid, label, _ = case
    distance = float(np.abs(grid.labels() - label).min())
    encoded_R = ranking_encoding(one(label), grid)[0]
    assert encoded_R.tolist() == [float(label > l_k) for l_k in grid.labels()[:-1]]
    if distance > 1e-3 * grid.step:
        c_K = normal_cdf(one(label), one(distance / 10), grid)[0]
        torch.testing.assert_close(1 - c_K[:-1], encoded_R)


@given(any_distributions())
def test_survival_is_linear_in_the_distribution_with_the_c_d_f_s_triangle(
    case: tuple[LabelGrid, Tensor],
) -> None:
    """Eq. 5-6 with T_ij = 1 for i >= j; and back: neighbouring differences are the distribution."""
    grid, p_BK = case
    triangle_KK = torch.ones(grid.num_labels, grid.num_labels).double().tril()
    above_R = survival(p_BK)[0]
    torch.testing.assert_close(above_R, 1 - (triangle_KK @ p_BK[0])[:-1], atol=1e-12, rtol=0)
    ends = torch.cat([one(1.0), above_R, one(0.0)])
    torch.testing.assert_close(-ends.diff(), p_BK[0], atol=1e-12, rtol=0)


@given(st.floats(20, 80), st.floats(1.5, 5))
def test_survival_of_a_gaussian_label_is_one_minus_its_cdf_half_a_step_on(
    label: float, sigma: float
) -> None:
    """A label's probability stands for its cell, so sums of p reach half a step further than the
    density's c.d.f."""
    half_on = normal_cdf(one(label - AGES.step / 2), one(sigma), AGES)[0, :-1]
    torch.testing.assert_close(
        survival(distribution(AGES, label, sigma))[0], 1 - half_on, atol=6e-3, rtol=0
    )


@given(any_distributions())
def test_rank_is_the_label_after_those_more_likely_exceeded_than_not(
    case: tuple[LabelGrid, Tensor],
) -> None:
    grid, p_BK = case
    total, expected = 0.0, grid.maximum
    for p, l_k in zip(p_BK[0].tolist(), grid.labels().tolist(), strict=True):
        total += p
        if abs(total - 0.5) < 1e-9:
            # A tie falls either way, by rounding.
            return
        if total > 0.5:
            expected = l_k
            break

    assert DECODERS["rank"](p_BK, grid).item() == expected


@pytest.mark.parametrize(("label", "half_width", "sigma"), [(28.5, 4.0, 0.5), (80.0, 20.5, 2.0)])
def test_an_interval_is_a_uniform_density_folded_with_a_gaussian(
    label: float, half_width: float, sigma: float
) -> None:
    """Against the mean of many Gaussians whose centres are spread evenly over the interval."""
    centres = np.linspace(label - half_width, label + half_width, 20_001)
    density_K = np.array(
        [np.exp(-0.5 * ((each - centres) / sigma) ** 2).mean() for each in AGES.labels()]
    )
    tensors = [torch.tensor([value], dtype=torch.float64) for value in (label, half_width, sigma)]
    p_BK = interval(*tensors, AGES)
    np.testing.assert_allclose(p_BK[0].numpy(), density_K / density_K.sum(), atol=5e-5)


def test_an_interval_of_no_width_is_the_gaussian_and_a_wide_one_is_flat() -> None:
    label_B = torch.tensor([30.0, 30.0, 50.0])
    half_width_B = torch.tensor([0.0, 1e-3, 10.5])
    sigma_B = torch.tensor([2.0, 2.0, 1e-3])
    p_BK = interval(label_B, half_width_B, sigma_B, AGES)
    torch.testing.assert_close(p_BK[0], gaussian(label_B[:1], sigma_B[:1], AGES)[0])
    torch.testing.assert_close(p_BK[1], p_BK[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(p_BK[2, 40:61], torch.full((21,), 1 / 21))
    torch.testing.assert_close(p_BK.sum(dim=1), torch.ones(3))
