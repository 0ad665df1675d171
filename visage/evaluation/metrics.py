"""Labels and predictions -> MAE, epsilon-error, RMSE, correlation, CS@k, bias, calibration.

Every metric here is a function of averages over faces: `per_face` gives its summands (N, S) and
`combine` turns averages (..., S) into values (...). That is what `visage.evaluation.bootstrap`
resamples.

Shapes: N faces, S summands, K labels. Errors are prediction minus label, in label units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# A sigma of 0 becomes this in the epsilon-error, as in the released code of DLDL-v2.
ZERO_SIGMA = 1e-10

PIT_BINS = 20

# Slack of "at most k", so that 3.6 - 3.3 <= 0.3.
TIE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Labels and predictions of N faces: float64 (N,) each, nan where unknown, in label units.

    `sigma_N` is the label's own ambiguity; `std_N`, `low_N`, `high_N` and `crps_N` are those of the
    predicted distribution.
    """

    label_N: FloatArray
    prediction_N: FloatArray
    sigma_N: FloatArray
    std_N: FloatArray
    low_N: FloatArray
    high_N: FloatArray
    crps_N: FloatArray

    def __post_init__(self) -> None:
        shapes = {field.name: getattr(self, field.name).shape for field in fields(self)}
        if len(set(shapes.values())) != 1 or self.label_N.ndim != 1:
            raise ValueError(
                f"Scored: every column must be one number a face, got the shapes {shapes}"
            )
        if not (np.isfinite(self.label_N).all() and np.isfinite(self.prediction_N).all()):
            raise ValueError(
                "Scored: a label or a prediction is not finite; leave faces without a label out"
            )

    def __len__(self) -> int:
        return len(self.label_N)

    @property
    def error_N(self) -> FloatArray:
        return self.prediction_N - self.label_N

    def take(self, rows: npt.NDArray[np.bool_] | IntArray) -> Scored:
        return Scored(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @classmethod
    def of_points(
        cls,
        label_N: npt.ArrayLike,
        prediction_N: npt.ArrayLike,
        sigma_N: npt.ArrayLike | None = None,
    ) -> Scored:
        """Scored faces of which no distribution is known."""
        label = np.asarray(label_N, dtype=np.float64)
        unknown = np.full(label.shape, np.nan)

        return cls(
            label_N=label,
            prediction_N=np.asarray(prediction_N, dtype=np.float64),
            sigma_N=unknown if sigma_N is None else np.asarray(sigma_N, dtype=np.float64),
            **dict.fromkeys(("std_N", "low_N", "high_N", "crps_N"), unknown),
        )


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: summands (N, S) of faces, and averages of summands (..., S) -> values (...)."""

    per_face: Callable[[Scored], FloatArray]
    combine: Callable[[FloatArray], FloatArray]

    def __call__(self, scored: Scored) -> float:
        """The metric of all faces; nan where it is undefined (no face, or a constant in a
        correlation)."""
        if len(scored) == 0:
            return float("nan")
        return float(self.combine(self.per_face(scored).mean(axis=0)))


def ratio(average_S: FloatArray) -> FloatArray:
    """Averages of [known values, whether known] -> their mean, nan where nothing is known; [values]
    are means as is."""
    if average_S.shape[-1] == 1:
        return average_S[..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(average_S[..., 0] / average_S[..., 1])


def mean_of(value: Callable[[Scored], npt.NDArray[np.generic]]) -> Metric:
    """The mean of a value per face; faces where it is nan are left out."""

    def per_face(scored: Scored) -> FloatArray:
        value_N = value(scored).astype(np.float64)
        known_N = np.isfinite(value_N)
        if known_N.all():
            return value_N[:, None]
        return np.stack([np.where(known_N, value_N, 0.0), known_N.astype(np.float64)], axis=1)

    return Metric(per_face=per_face, combine=ratio)


def epsilon(scored: Scored) -> FloatArray:
    """1 - exp(-(yhat - y)^2 / (2 sigma^2)) per face (DLDL-v2, Eq. 20), sigma 0 read as 1e-10, nan
    without a sigma."""
    sigma_N = np.where(scored.sigma_N == 0, ZERO_SIGMA, scored.sigma_N)
    return np.asarray(-np.expm1(-0.5 * (scored.error_N / sigma_N) ** 2))


def covered(scored: Scored) -> FloatArray:
    """1 where the label is in [low, high], ends included, else 0; nan without an interval."""
    inside_N = (scored.low_N - TIE <= scored.label_N) & (scored.label_N <= scored.high_N + TIE)
    return np.where(np.isfinite(scored.low_N), inside_N, np.nan)


def moments(scored: Scored) -> FloatArray:
    """The five summands of a correlation, from values centred on the mean of all faces (so that
    nothing cancels)."""
    x_N = scored.label_N - scored.label_N.mean()
    y_N = scored.prediction_N - scored.prediction_N.mean()
    return np.stack([x_N, y_N, x_N * x_N, y_N * y_N, x_N * y_N], axis=1)


def correlation(average_5: FloatArray) -> FloatArray:
    """Pearson correlation (DLDL-v2, Eq. 22) from averages of `moments`; nan where either side is
    constant."""
    x, y, xx, yy, xy = np.moveaxis(average_5, -1, 0)
    var_x = xx - x * x
    var_y = yy - y * y

    constant = (var_x <= 1e-12 * xx) | (var_y <= 1e-12 * yy)
    product = np.where(constant, 1.0, var_x * var_y)
    return np.where(constant, np.nan, np.clip((xy - x * y) / np.sqrt(product), -1.0, 1.0))


def cumulative_score(threshold: float) -> Metric:
    """CS@k: the share of faces whose absolute error is at most k label units."""
    return mean_of(lambda scored: np.abs(scored.error_N) <= threshold + TIE)


def squared(scored: Scored) -> FloatArray:
    return scored.error_N[:, None] ** 2


mae = mean_of(lambda scored: np.abs(scored.error_N))
bias = mean_of(lambda scored: scored.error_N)
epsilon_error = mean_of(epsilon)
rmse = Metric(per_face=squared, combine=lambda average_1: np.sqrt(average_1[..., 0]))
pearson = Metric(per_face=moments, combine=correlation)
coverage = mean_of(covered)
mean_std = mean_of(lambda scored: scored.std_N)
mean_crps = mean_of(lambda scored: scored.crps_N)


def metric_set(cs_thresholds: Iterable[float]) -> dict[str, Metric]:
    """Every metric of the evaluation by name; CS@k is `cs_k`."""
    scores = {f"cs_{threshold:g}": cumulative_score(threshold) for threshold in cs_thresholds}
    return {
        "mae": mae,
        "rmse": rmse,
        "pearson": pearson,
        "epsilon_error": epsilon_error,
        "bias": bias,
        **scores,
        "coverage_80": coverage,
        "crps": mean_crps,
        "mean_std": mean_std,
    }


def pit(
    probability_NK: npt.NDArray[np.floating],
    label_K: FloatArray,
    truth_N: FloatArray,
    level_N: FloatArray,
) -> FloatArray:
    """Randomised probability integral transform (N,): how much of each distribution is below its
    label.

    The label's own cell counts to the share `level_N` (uniform draws, which make the PIT of a
    calibrated model exactly uniform; Czado, Gneiting, Held 2009, section 2.1). A label counts as
    the nearest label of the grid.
    """
    step = label_K[1] - label_K[0]
    cell_N = np.rint((truth_N - label_K[0]) / step).astype(np.int64)
    cell_N1 = cell_N.clip(0, len(label_K) - 1)[:, None]

    cumulative_NK = np.cumsum(probability_NK, axis=1, dtype=np.float64)
    inside_N = np.take_along_axis(probability_NK, cell_N1, axis=1)[:, 0]
    upto_N = np.take_along_axis(cumulative_NK, cell_N1, axis=1)[:, 0]
    return np.asarray((upto_N - (1 - level_N) * inside_N) / cumulative_NK[:, -1])


def deviation_from_uniform(level_N: FloatArray) -> float:
    """The greatest distance of an empirical c.d.f. from that of the uniform distribution on [0, 1]
    (Kolmogorov)."""
    ordered_N = np.sort(level_N)
    size = len(level_N)
    steps = np.arange(size + 1) / size
    return float(max((steps[1:] - ordered_N).max(), (ordered_N - steps[:-1]).max()))


def pit_histogram(pit_N: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """PIT values -> lower ends, upper ends and shares of `PIT_BINS` equal bins: (PIT_BINS,)."""
    count_B, edges = np.histogram(pit_N, bins=PIT_BINS, range=(0, 1))
    return edges[:-1], edges[1:], count_B / len(pit_N)


def bands(label_N: FloatArray, width: float) -> FloatArray:
    """The lower end of the band [lower, lower + width) that holds each label: decades of age for a
    width of 10."""
    return np.asarray(np.floor((label_N + TIE) / width) * width)
