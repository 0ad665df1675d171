"""DLDL-v2's Fig. 2: why Ranking learns a label distribution too.

    python -m visage.evaluation.ranking_figure docs/pictures/ranking.png

Shapes: S sigmas, K labels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from visage.atomic import atomic_write_bytes
from visage.encodings import gaussian, normal_cdf, ranking_encoding
from visage.evaluation.plots import BLUE, GREEN, ORANGE, VERMILION, canvas, dress, png
from visage.labels import LabelGrid

AGE_GRID = LabelGrid(minimum=0.0, step=1.0, maximum=100.0)

# In years.
SHOWN_AGE = 50.0
SIGMAS = (5.0, 2.0, 0.5)

# To both sides of the label.
SHOWN_YEARS = 12


def ranking_figure(
    label: float, sigmas: tuple[float, ...], grid: LabelGrid, shown: float, unit: str
) -> Figure:
    """Label distributions of one label, their c.d.f., and one minus c.d.f. with the ranking
    encoding (Eq. 1 to 6)."""
    label_S = torch.full((len(sigmas),), label, dtype=torch.float64)
    sigma_S = torch.tensor(sigmas, dtype=torch.float64)
    p_SK = gaussian(label_S, sigma_S, grid)
    c_SK = normal_cdf(label_S, sigma_S, grid)
    rank_K = ranking_encoding(label_S[:1], grid)[0]

    figure = canvas("As sigma falls to 0, one minus the c.d.f. becomes Ranking's target", 10.5, 3.3)
    left, middle, right = figure.subplots(1, 3)

    for index, (sigma, colour) in enumerate(zip(sigmas, (BLUE, GREEN, ORANGE), strict=False)):
        for axes, curve_K in ((left, p_SK[index]), (middle, c_SK[index]), (right, 1 - c_SK[index])):
            axes.plot(
                grid.labels(),
                curve_K,
                color=colour,
                marker="o",
                markersize=2.5,
                label=f"sigma {sigma:g}",
            )

    right.plot(
        grid.labels()[:-1],
        rank_K,
        color=VERMILION,
        marker="s",
        markersize=4.5,
        markerfacecolor="none",
        linestyle="none",
        label="ranking encoding",
    )

    for axes, what in (
        (left, "label distribution p"),
        (middle, "c.d.f. c"),
        (right, "1 - c and the encoding"),
    ):
        axes.set_xlim(label - shown, label + shown)
        axes.legend(frameon=False, fontsize=8)
        dress(axes, f"label l ({unit})", what)
    return figure


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m visage.evaluation.ranking_figure", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("out", type=Path, help="the PNG that is written")
    target = parser.parse_args().out

    figure = ranking_figure(SHOWN_AGE, SIGMAS, AGE_GRID, SHOWN_YEARS, "years")
    atomic_write_bytes(target, png(figure))


if __name__ == "__main__":
    main()
