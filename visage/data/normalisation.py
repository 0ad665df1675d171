"""The mean and deviation of a set's own training faces, as the `normalise` of params.yaml wants
them.

    python -m visage.data.normalisation data/target/faces [--input grey|sobel]

Aligned faces of split train -> one line of YAML. The released constants are of other faces
(ChaLearn16 and faces from Google); a network that starts from a backbone needs the backbone's.
Legend: B batch, C colour channels, H height, W width.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

import torch

from visage.data.face_table import FaceTable, in_order
from visage.model_config import InputKind, NormaliseConfig
from visage.networks.inputs import input_of

BATCH_FACES = 256
# Nothing may be learnt from other faces
SPLIT = "train"
# As many as the released constants have
DIGITS = 4


def own_normalise(table: FaceTable, kind: InputKind) -> NormaliseConfig:
    """Mean and standard deviation of each channel of the input over all pixels of all faces, of
    colours of 0 to 1."""
    sum_C, square_C = torch.zeros(2, 3, dtype=torch.float64)
    num_pixels = 0
    for _, crops_BCHW in in_order(table, BATCH_FACES, 1, "normalisation"):
        face_BCHW = input_of(crops_BCHW.double() / 255, kind)
        sum_C += face_BCHW.sum(dim=(0, 2, 3))
        square_C += face_BCHW.square().sum(dim=(0, 2, 3))
        num_pixels += face_BCHW[:, 0].numel()

    mean_C = sum_C / num_pixels
    std_C = (square_C / num_pixels - mean_C.square()).sqrt()
    red, green, blue = (round(mean, DIGITS) for mean in mean_C.tolist())
    red_std, green_std, blue_std = (round(std, DIGITS) for std in std_C.tolist())
    return NormaliseConfig(mean=(red, green, blue), std=(red_std, green_std, blue_std), input=kind)


def main() -> None:
    """The command line; a folder without training faces ends it with one line and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m visage.data.normalisation", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("faces", type=Path, help="a folder of aligned faces, data/<role>/faces")
    kinds = get_args(InputKind)
    parser.add_argument("--input", choices=kinds, default="rgb", help="what the network sees")
    arguments = parser.parse_args()
    folder = arguments.faces

    try:
        table = FaceTable.open(folder, [SPLIT])
        if not len(table):
            raise ValueError(f"{folder}: no face of split {SPLIT!r}; align a set that has one")
    except ValueError as error:
        print(f"visage.data.normalisation: {error}", file=sys.stderr)
        raise SystemExit(2) from error

    found = own_normalise(table, arguments.input)
    print(f"normalise: {{input: {found.input}, mean: {list(found.mean)}, std: {list(found.std)}}}")


if __name__ == "__main__":
    main()
