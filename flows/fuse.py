"""Any two or more models of one quantity become one model folder, the released ones too.

    visage fuse MODEL MODEL ... --output FOLDER [--rule gate ...]     (make fuse)

folders, or names of released models -> FOLDER/{model.safetensors, config.json, model.onnx}: a model
like any other, for `visage predict --model`, serving and scoring. The settings are section `fuse`
of params.yaml. `weights` and `kernel` choose on the validation faces of --faces, which must have
been aligned as the models want; `gate` without faces has equal weights in each stream. The first
model gives the name. Half a minute for two small models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from stages.fuse import FuseSettings, fused_model
from stages.settings import print_report
from visage.atomic import atomic_folder
from visage.export.onnx_file import export_model, measure_parity
from visage.inference.faces import CropPredictor
from visage.inference.loading import model_folder
from visage.model_config import ModelConfig
from visage.networks import FaceBatch, Network

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
