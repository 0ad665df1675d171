"""Metrics of faces -> figures with percentile-bootstrap intervals: of all faces, of groups, of two
models side by side.

One resample is a row of counts times the faces' summands (`visage.evaluation.metrics`), so all
metrics share the same draws, and memory is bounded by `CHUNK_DRAWS` for any number of resamples.
Pictures of one person err alike: with `cluster_N` (see `cluster_codes`) the bootstrap draws people
instead of faces, and intervals become as wide as they should be.

Shapes: N faces, C clusters, R resamples, S summands. Efron and Tibshirani 1993, chapter 13.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from visage.evaluation.metrics import FloatArray, IntArray, Metric, Scored

# Draws held at once: 32 MB of int64.
CHUNK_DRAWS = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and the ends of its bootstrap interval; nan where undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of a minus mean of b with its interval, and the share of resamples in which a is below
    b."""

    value: float
    low: float
    high: float
    share_below: float


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """How intervals are made: percentile bootstrap with `num_resamples` draws of a generator seeded
    with `seed`."""

    num_resamples: int
    interval: float
    seed: int

    def __post_init__(self) -> None:
        if self.num_resamples < 1:
            raise ValueError(
                f"num_resamples is {self.num_resamples}: the bootstrap needs at least 1"
            )
        if not 0 < self.interval < 1:
            raise ValueError(
                f"interval is {self.interval}: give a share between 0 and 1, such as 0.95"
            )

    def ends(self, draw_R: FloatArray) -> tuple[float, float]:
        """The percentile interval of resampled values, those that are undefined left out."""
        defined = draw_R[np.isfinite(draw_R)]
        if defined.size == 0:
            return float("nan"), float("nan")
        low, high = np.quantile(defined, [(1 - self.interval) / 2, (1 + self.interval) / 2])
        return float(low), float(high)

    def averages(self, summand_NS: FloatArray, cluster_N: IntArray | None) -> FloatArray:
        """Averages of summands over faces in R resamples of the faces, or of the clusters where
        they are given: (R, S)."""
        size_N = np.ones((len(summand_NS), 1))
        unit_CS = cluster_sums(np.hstack([size_N, summand_NS]), cluster_N)
        num_units = len(unit_CS)
        generator = np.random.default_rng(self.seed)
        rows = max(1, CHUNK_DRAWS // num_units)

        sums = []
        for start in range(0, self.num_resamples, rows):
            num_drawn = min(rows, self.num_resamples - start)
            sums.append(draw_counts(generator, num_drawn, num_units) @ unit_CS)

        sum_RS = np.concatenate(sums)
        return np.asarray(sum_RS[:, 1:] / sum_RS[:, :1])


def student(values: Sequence[float], interval: float) -> Estimate:
    """Mean of at least two repetitions (seeds, folds) with Student's t interval."""
    mean = float(np.mean(values))
    spread = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + interval) / 2, len(values) - 1)) * spread / len(values) ** 0.5
    return Estimate(value=mean, low=mean - half, high=mean + half)


def draw_counts(generator: np.random.Generator, num_resamples: int, num_units: int) -> FloatArray:
    """How often each unit is drawn in resamples of `num_units` draws with replacement: (resamples,
    units)."""
    drawn = generator.integers(0, num_units, size=(num_resamples, num_units))
    drawn += np.arange(num_resamples)[:, None] * num_units
    counts = np.bincount(drawn.ravel(), minlength=num_resamples * num_units)
    return counts.reshape(num_resamples, num_units).astype(np.float64)


def cluster_codes(name_N: Sequence[Hashable]) -> IntArray:
    """Names of clusters -> numbers in order of appearance; a face whose name is None is a cluster
    of its own."""
    codes: dict[Hashable, int] = {}
    code_N = np.empty(len(name_N), np.int64)
    for row, name in enumerate(name_N):
        # A name is wrapped, so that no name is equal to the row number of an unnamed face.
        key = row if name is None else (name,)
        code_N[row] = codes.setdefault(key, len(codes))
    return code_N


def who_is_shown(person_N: Iterable[str | None], sha256_N: Iterable[str]) -> list[tuple[str, str]]:
    """What errs together, for `cluster_codes`: the person of each face, or its picture where the
    person is unknown."""
    who = zip(person_N, sha256_N, strict=True)
    return [("picture", sha256) if person is None else ("person", person) for person, sha256 in who]


def cluster_sums(summand_NS: FloatArray, cluster_N: IntArray | None) -> FloatArray:
    """Sums of summands per cluster (C, S), by ascending code; without clusters every face is
    one of its own."""
    if cluster_N is None:
        return summand_NS

    codes, place_N = np.unique(cluster_N, return_inverse=True)
    sums = [
        np.bincount(place_N, weights=summand_N, minlength=len(codes)) for summand_N in summand_NS.T
    ]
    return np.stack(sums, axis=1)


def estimate(
    scored: Scored,
    metrics: Mapping[str, Metric],
    bootstrap: Bootstrap,
    cluster_N: IntArray | None = None,
) -> dict[str, Estimate]:
    """Every metric of the faces with its interval, all from the same resamples. ValueError without
    a face."""
    if len(scored) == 0:
        raise ValueError(
            "no face to evaluate: the split is empty; look at the splits of the face table"
        )

    summands = [metric.per_face(scored) for metric in metrics.values()]
    widths = [summand.shape[1] for summand in summands]
    average_RS = bootstrap.averages(np.hstack(summands), cluster_N)
    draws_of_metrics = np.split(average_RS, np.cumsum(widths)[:-1], axis=1)

    estimates = {}
    for (name, metric), draws in zip(metrics.items(), draws_of_metrics, strict=True):
        low, high = bootstrap.ends(metric.combine(draws))
        estimates[name] = Estimate(value=metric(scored), low=low, high=high)
    return estimates


def paired_bootstrap(
    error_a_N: FloatArray,
    error_b_N: FloatArray,
    bootstrap: Bootstrap,
    cluster_N: IntArray | None = None,
) -> Difference:
    """MAE of a minus MAE of b, two models on the same faces in the same order; below 0 means a is
    better."""
    if error_a_N.shape != error_b_N.shape or error_a_N.ndim != 1 or len(error_a_N) == 0:
        raise ValueError(
            f"paired errors of shapes {error_a_N.shape} and {error_b_N.shape}: give the same faces "
            "twice"
        )

    difference_N1 = (np.abs(error_a_N) - np.abs(error_b_N))[:, None]
    draw_R = bootstrap.averages(difference_N1, cluster_N)[:, 0]
    low, high = bootstrap.ends(draw_R)

    return Difference(
        value=float(difference_N1.mean()),
        low=low,
        high=high,
        share_below=float((draw_R < 0).mean()),
    )


@dataclass(frozen=True, kw_only=True)
class Group:
    """Faces that share a property: the property's value, how many they are, their figures."""

    name: str
    num_faces: int
    estimates: dict[str, Estimate]


def by_group(
    scored: Scored,
    group_N: Sequence[Hashable],
    metrics: Mapping[str, Metric],
    bootstrap: Bootstrap,
    cluster_N: IntArray | None = None,
    name: Callable[[Any], str] = str,
) -> list[Group]:
    """The figures of each group, in the order of the groups; faces whose group is None come last,
    as "unknown"."""
    rows: dict[Hashable, list[int]] = {}
    for row, group in enumerate(group_N):
        rows.setdefault(group, []).append(row)

    table = []
    for group in sorted(rows, key=lambda key: (key is None, key)):
        index = np.array(rows[group])
        clusters = None if cluster_N is None else cluster_N[index]
        estimates = estimate(scored.take(index), metrics, bootstrap, clusters)
        label = "unknown" if group is None else name(group)
        table.append(Group(name=label, num_faces=len(rows[group]), estimates=estimates))
    return table
