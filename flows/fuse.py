"""Any two or more models of one quantity become one model folder, the released ones too.

    python -m flows.fuse MODEL MODEL ... --output FOLDER [--rule gate ...]     (make fuse)

folders, or names of released models -> FOLDER/{model.safetensors, config.json, model.onnx}: a model
like any other, for `visage predict --model`, serving and scoring. The settings are section `fuse`
of params.yaml. `weights` and `kernel` choose on the validation faces of --faces, which must have
been aligned as the models want; `gate` without faces has equal weights in each stream. The first
model gives the name. Half a minute for two small models.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch

from flows.pipeline.step_cache import REPOSITORY
from stages.fuse import FuseSettings, fused_model
from stages.settings import load_section, print_report
from visage.atomic import atomic_folder
from visage.export.onnx_file import export_model, measure_parity
from visage.inference.faces import CropPredictor
from visage.inference.loading import model_folder
from visage.model_config import ModelConfig
from visage.networks import FaceBatch, Network
from visage.networks.fused import Rule

# Label units: as export.parity_tolerance, and what float32 sums of several members add
TOLERANCE = 1e-3
PARITY_CROPS = 8


def fuse_models(
    settings: FuseSettings, models: Sequence[str], faces: Path | None, output: Path
) -> ModelConfig:
    """Writes the fused model into `output`; returns its config. ValueError for models that are not
    there or do not go together, and where ONNX computes something else."""
    folders: dict[str, Path] = {}
    for model in models:
        folder = model_folder(model)
        if folder.name in folders:
            raise ValueError(f"{model}: the second model called {folder.name}; rename one's folder")
        folders[folder.name] = folder

    network, config = fused_model(settings, folders, faces, print_report)
    with atomic_folder(output) as part:
        written = export_model(network, config, part, "float16")
        _check_parity(network, config, part)
    return written


def _check_parity(network: Network, config: ModelConfig, folder: Path) -> None:
    """ValueError where the ONNX file's values are not torch's, on smooth random crops."""
    px = config.alignment.crop_px
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(PARITY_CROPS, 3, 6, 6, generator=generator) * 255
    crops_BCHW = torch.nn.functional.interpolate(coarse, size=px, mode="bilinear").to(torch.uint8)
    landmarks_B52 = torch.rand(PARITY_CROPS, 5, 2, generator=generator) * px
    needed = landmarks_B52 if network.needs_landmarks else None

    batches = [FaceBatch(crops_BCHW, needed)]
    parity = measure_parity(folder, CropPredictor(network, config), batches)
    print(f"ONNX against torch: {parity.max_abs_difference:.2g} {config.unit}")
    if not parity.max_abs_difference <= TOLERANCE:
        raise ValueError(
            f"{config.name}: ONNX differs from torch by {parity.max_abs_difference:.2g} "
            f"{config.unit}, more than {TOLERANCE}; leave out a member and find which one differs"
        )


def main() -> None:
    """The command line; models that do not go together end it with one line and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.fuse", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("models", nargs="+", help="folders, or names of released models")
    parser.add_argument("--output", type=Path, required=True, help="folder of the fused model")
    parser.add_argument("--rule", choices=get_args(Rule), help="in place of fuse.rule")
    parser.add_argument("--faces", type=Path, help="aligned faces; their split val chooses")
    parser.add_argument(
        "--second-stream", nargs="+", default=[], help="of the gate: folders' names"
    )
    arguments = parser.parse_args()

    try:
        settings = load_section(REPOSITORY / "params.yaml", "fuse", FuseSettings)
        if arguments.rule is not None:
            settings = dataclasses.replace(settings, rule=arguments.rule)
        if arguments.second_stream:
            second = tuple(arguments.second_stream)
            settings = dataclasses.replace(settings, second_stream=second)
        config = fuse_models(settings, arguments.models, arguments.faces, arguments.output)
    except ValueError as error:
        print(f"flows.fuse: {error}", file=sys.stderr)
        raise SystemExit(2) from error

    print(f"{config.name}: {arguments.output}")


if __name__ == "__main__":
    main()
