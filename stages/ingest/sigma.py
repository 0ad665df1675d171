"""The sigma of labels that come without one, as a polynomial of the label; and its fit on a set
that has sigmas.

    python -m stages.ingest.sigma data/target/manifest.parquet [--degree 3]

Training photos with a label and a sigma -> one line of YAML for `download.<role>.sigma` of another
set. A set's raters disagree more about some ages than about others: sigma(y) = c_0 + c_1 y + c_2
y^2 + ..., held between the least and the greatest sigma that the fit was made on. The authors of
the two-stream system fitted a cubic to ChaLearn's deviations.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from stages.ingest.records import ManifestRow

# Nothing may be learnt from other photos
SPLIT = "train"
DEGREE = 3
# Sigmas of fewer photos a coefficient are noise
PHOTOS_A_COEFFICIENT = 10


@dataclass(frozen=True, kw_only=True)
class SigmaRule:
    """`polynomial`: coefficients from the constant on, of labels on the wanted scale; sigmas stay
    between `minimum` and `maximum`. One coefficient is a constant."""

    polynomial: tuple[float, ...]
    minimum: float
    maximum: float

    def __post_init__(self) -> None:
        if not self.polynomial:
            raise ValueError("polynomial is empty: give one coefficient at least")
        if not 0 < self.minimum <= self.maximum:
            raise ValueError(
                f"minimum {self.minimum}, maximum {self.maximum}: the first must be above 0 and "
                f"not above the second"
            )

    def of(self, label: float) -> float:
        """The sigma of a label, in label units."""
        value = float(np.polynomial.polynomial.polyval(label, self.polynomial))
        return min(max(value, self.minimum), self.maximum)

    def rows(self, rows: Iterator[ManifestRow]) -> Iterator[ManifestRow]:
        """The rows, with a sigma where they have a label, no sigma of their own, and no interval.

        An interval says itself how wide it is.
        """
        for row in rows:
            has_none = row.sigma is None and row.half_width is None
            if has_none and row.label is not None:
                row = row._replace(sigma=self.of(row.label))
            yield row


def fitted_rule(
    label_N: npt.NDArray[np.float64], sigma_N: npt.NDArray[np.float64], degree: int
) -> SigmaRule:
    """The polynomial of least squares. ValueError for too few photos."""
    wanted = PHOTOS_A_COEFFICIENT * (degree + 1)
    if len(label_N) < wanted:
        raise ValueError(
            f"{len(label_N)} training photos have a label and a sigma, degree {degree} wants "
            f"{wanted}; fit on another set, or give a lower degree"
        )

    fit = np.polynomial.Polynomial.fit(label_N, sigma_N, degree).convert()
    coefficients = np.zeros(degree + 1)
    coefficients[: len(fit.coef)] = fit.coef
    positive_N = sigma_N[sigma_N > 0]
    if not len(positive_N):
        raise ValueError("all sigmas are 0; fit on another set")

    return SigmaRule(
        polynomial=tuple(float(f"{each:.6g}") for each in coefficients),
        minimum=round(float(positive_N.min()), 4),
        maximum=round(float(positive_N.max()), 4),
    )


def fit(manifest: Path, degree: int) -> SigmaRule:
    """The rule of a manifest's training photos; ValueError where it has too few sigmas."""
    table = pq.read_table(manifest, columns=["label", "sigma"], filters=[("split", "=", SPLIT)])
    label_N = table["label"].to_numpy().astype(np.float64)
    sigma_N = table["sigma"].to_numpy().astype(np.float64)
    known_N = np.isfinite(label_N) & np.isfinite(sigma_N)
    try:
        return fitted_rule(label_N[known_N], sigma_N[known_N], degree)
    except ValueError as error:
        raise ValueError(f"{manifest}: {error}") from error


def main() -> None:
    """The command line; a manifest without sigmas ends it with one line and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.ingest.sigma", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("manifest", type=Path, help="data/<role>/manifest.parquet")
    parser.add_argument("--degree", type=int, default=DEGREE, help="of the polynomial")
    arguments = parser.parse_args()

    try:
        rule = fit(arguments.manifest, arguments.degree)
    except (OSError, ValueError) as error:
        print(f"stages.ingest.sigma: {error}", file=sys.stderr)
        raise SystemExit(2) from error

    polynomial = list(rule.polynomial)
    print(f"sigma: {{polynomial: {polynomial}, minimum: {rule.minimum}, maximum: {rule.maximum}}}")


if __name__ == "__main__":
    main()
