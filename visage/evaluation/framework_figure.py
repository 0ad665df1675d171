"""DLDL-v2's Fig. 3: the framework, from a face to the joint loss, with a drawn face.

    python -m visage.evaluation.framework_figure docs/pictures/framework.png

The layers are counted in the network itself, the losses computed by the code that trains with them.
The prediction is made up: a distribution that is a little too wide and off to one side.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from visage.atomic import atomic_write_bytes
from visage.encodings import gaussian
from visage.evaluation.plots import BLUE, GREY, VERMILION, canvas, png
from visage.labels import LabelGrid, expectation
from visage.networks import any_options, build
from visage.networks.vgg import ThinVGG
from visage.synthetic import draw_face, sample_person, sample_photo

AGE_GRID = LabelGrid(minimum=0.0, step=1.0, maximum=100.0)
NETWORK = "thin"
NETWORK_NAME = "ThinAgeNet"

FACE_SEED = 11
FACE_PX = 224

LABEL_YEARS = 34.0
SIGMA_YEARS = 3.0

# Made up.
PREDICTED_YEARS = 37.0
PREDICTED_SIGMA_YEARS = 4.5

# Of the drawing, in its own units.
WIDTH = 130.0
HEIGHT = 43.0


def block_channels(name: str) -> list[tuple[int, int]]:
    """(channels, convolutions) of every block of a network."""
    network = build(name, any_options(name), AGE_GRID.num_labels)
    assert isinstance(network, ThinVGG)

    found = []
    for block in network.blocks:
        layers = [layer for layer in block.modules() if isinstance(layer, torch.nn.Conv2d)]
        found.append((layers[0].out_channels, len(layers)))
    return found


def losses() -> tuple[float, float, float]:
    """Of the made-up prediction: Kullback-Leibler divergence, expected label, absolute error."""
    target_K = target()[0]
    predicted_1K = predicted()
    log_ratio_K = target_K.clamp_min(1e-300).log() - predicted_1K[0].log()
    value = float(expectation(predicted_1K, AGE_GRID)[0])
    return float((target_K * log_ratio_K).sum()), value, abs(value - LABEL_YEARS)


def target() -> torch.Tensor:
    """The label's distribution, (1,K)."""
    label = torch.tensor([LABEL_YEARS]).double()
    sigma = torch.tensor([SIGMA_YEARS]).double()
    return gaussian(label, sigma, AGE_GRID)


def predicted() -> torch.Tensor:
    """The made-up prediction, (1,K)."""
    centre = torch.tensor([PREDICTED_YEARS]).double()
    sigma = torch.tensor([PREDICTED_SIGMA_YEARS]).double()
    return gaussian(centre, sigma, AGE_GRID)


def framework_figure() -> Figure:
    """Face -> blocks of convolutions -> hybrid pooling -> linear, softmax -> distribution and its
    expectation -> both losses."""
    figure = canvas(f"DLDL-v2: one network, two losses ({NETWORK_NAME})", 12.4, 4.5)
    axes = figure.subplots()
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.set_aspect("equal")
    axes.set_axis_off()

    _face(axes)
    end = _blocks(axes, 21.0)
    _box(axes, end + 2, 22, 11, 12, "hybrid\npooling", "2x2 max,\nthen mean")
    _arrow(axes, (end - 1, 28), (end + 2, 28))
    _box(axes, end + 16, 22, 11, 12, "linear,\nsoftmax", f"K = {AGE_GRID.num_labels}")
    _arrow(axes, (end + 13, 28), (end + 16, 28))
    _heads(axes, end + 27)
    return figure


def _face(axes: Axes) -> None:
    rng = np.random.default_rng(FACE_SEED)
    photo = sample_photo(sample_person(rng), rng, LABEL_YEARS, clean=True)
    face = draw_face(photo, FACE_PX)

    axes.imshow(face, extent=(1, 17, 20, 36), zorder=2)
    axes.text(9, 37.5, f"aligned face, {FACE_PX} px", ha="center", fontsize=8)
    axes.text(9, 17.5, f"label y = {LABEL_YEARS:g} years", ha="center", fontsize=8, color=VERMILION)

    # imshow sets its own limits.
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    _arrow(axes, (17.3, 28), (20.7, 28))


def _blocks(axes: Axes, start: float) -> float:
    """The convolution blocks, each as high as its maps and as wide as its depth; where they end."""
    x = start
    for number, (channels, depth) in enumerate(block_channels(NETWORK)):
        side = FACE_PX / 2**number
        height = 5.0 + 11.0 * side / FACE_PX

        for _ in range(depth):
            corner = (x, 28 - height / 2)
            axes.add_patch(
                Rectangle(corner, 1.5, height, facecolor=BLUE, edgecolor="white", alpha=0.8)
            )
            x += 1.7

        middle = x - 0.85 * depth - 0.1
        above = 28 + height / 2 + 1
        below = 28 - height / 2 - 2.2
        axes.text(middle, above, f"{depth} x {channels}", ha="center", fontsize=7)
        axes.text(middle, below, f"{side:g}", ha="center", fontsize=7)
        x += 2.6

    axes.text(
        (start + x) / 2,
        14.5,
        "3x3 convolutions with BatchNorm and ReLU;\nchannels above, side in pixels below",
        ha="center",
        fontsize=7.5,
    )
    return x


def _heads(axes: Axes, start: float) -> None:
    """Predicted and target distribution, the expectation, and both losses."""
    kl, value, error = losses()

    curves = axes.inset_axes((start + 4, 24, 20, 16), transform=axes.transData)
    labels = AGE_GRID.labels()
    for p_K, colour, name in (
        (predicted()[0], BLUE, "predicted"),
        (target()[0], VERMILION, "target N(y, sigma)"),
    ):
        curves.fill_between(labels, p_K, color=colour, alpha=0.3, step="mid", linewidth=0)
        curves.step(labels, p_K, color=colour, where="mid", linewidth=1.2, label=name)
    curves.set(xlim=(15, 60), yticks=[], ylim=(0, 0.2))
    curves.tick_params(labelsize=7)
    curves.spines[["top", "right", "left"]].set_visible(False)
    curves.legend(frameon=False, fontsize=6.5, loc="upper right", handlelength=1.0)
    _arrow(axes, (start, 28), (start + 3.5, 28))

    kl_text = f"KL divergence (Eq. 9)\nL_ld = {kl:.2f}"
    _box(axes, start + 28, 27, 18, 10, "label distribution", kl_text)
    _arrow(axes, (start + 24.5, 32), (start + 28, 32))

    expected = f"sum of p l (Eq. 10): {value:.1f}"
    _box(axes, start + 4, 6, 20, 9, "expectation", expected)
    _arrow(axes, (start + 14, 21), (start + 14, 15))
    error_text = f"|{value:.1f} - y| (Eq. 11)\nL_er = {error:.1f}"
    _box(axes, start + 28, 6, 18, 9, "expectation regression", error_text)
    _arrow(axes, (start + 24.5, 10.5), (start + 28, 10.5))

    axes.text(
        start + 37,
        21,
        "L = L_ld + lambda L_er\n(Eq. 12)",
        ha="center",
        va="center",
        fontsize=9,
        weight="bold",
    )
    _arrow(axes, (start + 37, 27), (start + 37, 24))
    _arrow(axes, (start + 37, 15), (start + 37, 18))


def _box(
    axes: Axes, x: float, y: float, width: float, height: float, title: str, words: str
) -> None:
    outline = FancyBboxPatch(
        (x, y),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=1",
        facecolor="white",
        edgecolor=GREY,
    )
    axes.add_patch(outline)

    centre = x + width / 2
    axes.text(
        centre,
        y + 0.66 * height,
        title,
        ha="center",
        va="center",
        fontsize=8,
        weight="bold",
    )
    axes.text(centre, y + 0.27 * height, words, ha="center", va="center", fontsize=7)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "black"})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m visage.evaluation.framework_figure", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("out", type=Path, help="the PNG that is written")
    atomic_write_bytes(parser.parse_args().out, png(framework_figure()))


if __name__ == "__main__":
    main()
