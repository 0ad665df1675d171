"""DLDL-v2's Fig. 1: how the labels of several sets are distributed, one over the other.

    python -m visage.evaluation.label_figure labels.png target=data/target/manifest.parquet \\
        other=OTHER/data/target/faces --unit years --width 1

A set is named by its manifest, or by a folder of aligned faces. No photo is read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from visage.atomic import atomic_write_bytes
from visage.evaluation.metrics import FloatArray, bands
from visage.evaluation.plots import BLUE, GREEN, GREY, ORANGE, VERMILION, canvas, dress, png

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, GREY)

# Lines differ without colours, too.
STYLES = ("-", "--", "-.", ":", (0, (1, 3)))


def read_labels(source: Path) -> FloatArray:
    """The labels that a manifest or a folder of face shards holds, (N,); ValueError where there are
    none."""
    files = sorted(source.glob("part-*.parquet")) if source.is_dir() else [source]
    if not files or not files[0].is_file():
        raise ValueError(f"{source}: no manifest and no face shards (part-*.parquet); name one")

    columns = [pq.read_table(file, columns=["label"])["label"].to_numpy() for file in files]
    label_N = np.concatenate(columns).astype(np.float64)
    known_N = label_N[np.isfinite(label_N)]
    if not known_N.size:
        raise ValueError(f"{source}: no photo has a label; name a set with labels")
    return np.asarray(known_N)


def label_shares(label_N: FloatArray, width: float) -> tuple[FloatArray, FloatArray]:
    """Lower ends of all bands of `width` from the lowest label's to the highest's, and the share of
    labels in each."""
    lower_N = bands(label_N, width)
    number_N = np.round((lower_N - lower_N.min()) / width).astype(np.int64)
    count_G = np.bincount(number_N)
    lower_G = lower_N.min() + width * np.arange(len(count_G))
    return lower_G, count_G / len(label_N)


def label_figure(sets: Mapping[str, FloatArray], width: float, unit: str) -> Figure:
    """An outline a set: the share of its photos in each band of the label; the title names the
    peaks."""
    shares = {name: label_shares(label_N, width) for name, label_N in sets.items()}
    peaks = [f"{name} {lower_G[share_G.argmax()]:g}" for name, (lower_G, share_G) in shares.items()]
    figure = canvas(f"Where labels peak, in {unit}: {', '.join(peaks)}", 7.4, 3.8)
    axes = figure.subplots()

    for number, (name, (lower_G, share_G)) in enumerate(shares.items()):
        axes.stairs(
            share_G,
            np.append(lower_G, lower_G[-1] + width),
            color=COLOURS[number % len(COLOURS)],
            linestyle=STYLES[number % len(STYLES)],
            linewidth=1.6,
            label=f"{name} ({len(sets[name]):,} photos)",
        )

    axes.legend(frameon=False, fontsize=9)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.1%}")
    axes.set_ylim(bottom=0)
    dress(axes, f"label ({unit})", f"share of the set's photos, bands of {width:g}")
    return figure


def main() -> None:
    """The command line; a set that cannot be read ends it with one line and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m visage.evaluation.label_figure", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("out", type=Path, help="the PNG that is written")
    parser.add_argument("sets", nargs="+", metavar="NAME=PATH", help="a manifest or faces folder")
    parser.add_argument("--unit", required=True, help="of the labels: years, points")
    parser.add_argument("--width", type=float, required=True, help="of a band, in label units")

    arguments = parser.parse_args()
    try:
        pairs = [one.partition("=") for one in arguments.sets]
        for name, sign, path in pairs:
            if not (name and sign and path):
                raise ValueError(f"{name}: write NAME=PATH")

        sets = {name: read_labels(Path(path)) for name, _, path in pairs}
    except ValueError as error:
        print(f"visage.evaluation.label_figure: {error}", file=sys.stderr)
        raise SystemExit(2) from error

    atomic_write_bytes(arguments.out, png(label_figure(sets, arguments.width, arguments.unit)))


if __name__ == "__main__":
    main()
