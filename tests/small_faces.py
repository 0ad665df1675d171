"""Face tables and settings small enough for tests of training: random crops whose brightness
follows their label."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from stages.baseline import BaselineSettings
from stages.finetune import FinetuneSettings
from stages.fuse import FuseSettings, KernelSettings
from stages.pretrain import PretrainSettings
from stages.settings import shared_fields
from visage.baselines.bif import BIFSettings
from visage.baselines.linear import FitSettings
from visage.data.augment import AugmentationSettings
from visage.data.preprocess import PAPER_NORMALISE
from visage.data.schemas import FACE_SCHEMA, METADATA_KEY
from visage.detection import align
from visage.labels import LabelGrid
from visage.networks import NetworkSettings
from visage.training.optim import RecipeSettings

CROP_PX = 32
ALIGNMENT = {
    "template": "five_point_112",
    "crop_px": CROP_PX,
    "face_scale": 0.75,
    "jpeg_quality": 90,
}
DETECTOR = {
    "min_face_px": 20,
    "thresholds": [0.6, 0.7, 0.7],
    "factor": 0.709,
    "max_side_px": 1024,
    "landmark_passes": 2,
}
NOTHING = AugmentationSettings(
    flip_probability=0.0,
    grey_probability=0.0,
    scale_probability=0.0,
    min_scale=1.0,
    scaling="antialiased",
    rotation_degrees=0.0,
    zoom=0.0,
    translation=0.0,
    interpolation="bilinear",
    jitter=0.0,
    erase_probability=0.0,
)
PAPER = dataclasses.replace(
    NOTHING,
    flip_probability=0.5,
    grey_probability=0.5,
    scale_probability=1.0,
    min_scale=0.5,
    scaling="released",
    rotation_degrees=15.0,
    jitter=0.4,
)
EXTENDED = dataclasses.replace(
    PAPER,
    scale_probability=0.2,
    scaling="antialiased",
    zoom=0.1,
    translation=0.05,
    interpolation="bicubic",
    erase_probability=0.3,
)
RECIPE = RecipeSettings(
    optimiser="adamw",
    momentum=0.0,
    nesterov=False,
    learning_rate=2e-3,
    weight_decay=0.05,
    batch_size=8,
    schedule="cosine",
    decay_fraction=1.0,
    decay_factor=0.01,
    warmup_fraction=0.1,
    ema_decay=0.9,
    precision="float32",
    channels_last=True,
)
GRID = LabelGrid(minimum=0.0, step=10.0, maximum=100.0)
TINY = NetworkSettings(name="tiny", options={"pooling": "hybrid"})
LOSS: dict[str, Any] = {
    "lambda_": 1.0,
    "kl_reduction": "sum",
    "min_sigma": 0.5,
    "mean_weight": 0.2,
    "variance_weight": 0.05,
}


def face(
    index: int, split: str, rng: np.random.Generator, crop_px: int = CROP_PX
) -> dict[str, Any]:
    """One row: a label of 10 to 90 years, shown by the crop's brightness, and a person, shown by
    its stripes."""
    label, person = float(rng.uniform(10, 90)), index % 4
    crop_HWC = rng.normal(40 + 2 * label, 12, (crop_px, crop_px, 3))
    crop_HWC += 30 * np.sin(np.arange(crop_px) * (person + 1) / 3)[:, None, None]
    buffer = io.BytesIO()
    Image.fromarray(np.clip(crop_HWC, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    row: dict[str, Any] = dict.fromkeys(FACE_SCHEMA.names)
    row |= {
        "photo_id": f"{split}/{index:04d}.jpg",
        "sha256": f"{rng.integers(1 << 62):064x}",
        "jpeg": buffer.getvalue(),
    }
    row |= {
        "box": [0.0] * 4,
        "landmarks": [0.0] * 10,
        "probability": 0.9,
        "num_faces": 1,
        "found": "mtcnn",
    }
    return row | {"label": label, "person": f"person {person}", "split": split}


def some_faces(
    num_train: int = 20, num_val: int = 6, num_test: int = 4, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of three splits, mixed as a manifest sorted by name mixes them."""
    rng = np.random.default_rng(seed)
    splits = ["train"] * num_train + ["val"] * num_val + ["test"] * num_test
    rows = [face(index, split, rng) for index, split in enumerate(splits)]
    return [rows[place] for place in rng.permutation(len(rows))]


def marked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows with landmarks of their own, in pixels of a photo: the template turned, scaled,
    shifted and a little bent."""
    rng = np.random.default_rng(9)
    with_landmarks = []
    for row in rows:
        turn = rng.uniform(30, 300) * np.exp(1j * rng.uniform(-0.5, 0.5))
        bent_52 = align.TEMPLATES["five_point_112"] + rng.normal(0, 0.02, (5, 2))
        places = (bent_52 @ np.array([1, 1j])) * turn + rng.uniform(50, 500) * (1 + 1j)
        points = np.stack([places.real, places.imag], axis=1).ravel().tolist()
        with_landmarks.append(row | {"landmarks": points})
    return with_landmarks


def write_faces(
    folder: Path,
    rows: list[dict[str, Any]],
    *,
    num_shards: int = 2,
    alignment: dict[str, Any] = ALIGNMENT,
    detector: dict[str, Any] = DETECTOR,
) -> Path:
    """Rows in shards, as the align stage leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {METADATA_KEY: json.dumps({"alignment": alignment, "detector": detector})}
    for shard, places in enumerate(np.array_split(np.arange(len(rows)), num_shards)):
        table = pa.Table.from_pylist(
            [rows[place] for place in places], FACE_SCHEMA.with_metadata(metadata)
        )
        pq.write_table(table, folder / f"part-{shard:05d}.parquet")
    return folder


def _training(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "network": TINY,
        "imported": None,
        "auxiliary_weight": 1.0,
        "normalise": PAPER_NORMALISE,
        "epochs": 2,
        "seed": 0,
        "recipe": "small",
        "recipes": {"small": RECIPE},
        "augmentation": "paper",
        "augmentations": {"none": NOTHING, "paper": PAPER, "extended": EXTENDED},
        "num_workers": 1,
    }
    return values | changes


def pretrain_settings(**changes: Any) -> PretrainSettings:
    """Two epochs of pre-training; `changes` replaces fields."""
    own = {"init": "scratch", "min_images_per_person": 2, "window_faces": 64}
    return PretrainSettings(**(_training(**own) | changes))


def finetune_settings(**changes: Any) -> FinetuneSettings:
    """Two epochs of fine-tuning from scratch; `changes` replaces fields."""
    values: dict[str, Any] = {
        "name": "small",
        "quantity": "age",
        "unit": "years",
        "init": "scratch",
        "start_head": "keep",
        "measure_normalise": False,
        "grid": GRID,
        "method": "dldl_v2",
        "decode": "expectation",
        "loss": LOSS,
        "fixed_sigma": 10.0,
        "schedule": "joint",
        "terms": {"target": "none"},
        "cache_mb": 1,
    }
    return FinetuneSettings(**(_training(**values) | changes))


def fuse_settings(**changes: Any) -> FuseSettings:
    """The mean of all members; `changes` replaces fields."""
    values: dict[str, Any] = {
        "rule": "mean",
        "objective": "mae",
        "second_stream": (),
        "threshold": 11.0,
        "zooms": (1.0,),
        "kernel": KernelSettings(neighbours=(2, 4), widths=(0.5, 1.0), max_remembered=16),
        "augmentation": "none",
        "augmentations": {"none": NOTHING},
        "min_faces": 10,
        "num_folds": 2,
        "num_resamples": 200,
        "interval": 0.95,
        "batch_size": 8,
        "seed": 0,
        "epsilon_sigma": None,
        "flip": True,
    }
    return FuseSettings(**(values | changes))


def classic_settings(**changes: Any) -> BaselineSettings:
    """A baseline on the backbone's features that takes no time; `changes` replaces fields."""
    values: dict[str, Any] = {
        "quantity": "age",
        "features": "cnn",
        "estimator": "bfgs_ldl",
        "bif": BIFSettings(side_px=24, num_bands=2, num_orientations=4),
        "average_mirror": True,
        "grid": GRID,
        "fixed_sigma": 10.0,
        "strengths": (1.0, 100.0),
        "fit": FitSettings(max_iterations=500, tolerance=1e-3, min_sigma=0.5, tube=0.1),
        "batch_size": 8,
        "num_workers": 1,
        "max_feature_mb": 16,
        "splits": ("test",),
        "num_resamples": 20,
        "interval": 0.95,
        "seed": 0,
        "cs_thresholds": (5.0,),
        "band_width": 10.0,
        "epsilon_sigma": None,
        "with_dedup": True,
    }
    return BaselineSettings(**(values | changes))


def plain_settings(**sections: Any) -> dict[str, dict[str, Any]]:
    """Settings dataclasses as params.yaml has them: a section each, what they share in its own."""
    plain: dict[str, dict[str, Any]] = {}
    for name, section in sections.items():
        own = json.loads(json.dumps(dataclasses.asdict(section)))
        for field, shared in shared_fields(type(section)).items():
            plain.setdefault(shared, {})[field] = own.pop(field)
        plain[name] = own
    return plain


def write_params(path: Path, **sections: Any) -> Path:
    """The same as a file."""
    plain = plain_settings(**sections)
    path.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    return path
