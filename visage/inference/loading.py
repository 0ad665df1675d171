"""The released models by name, and a model's folder as a `Model`.

The models that visage ships stand in `visage/released/`, one folder each; `default.txt` names the
one that is taken where none is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from visage.detection.image_io import MAX_PIXELS
from visage.inference.engine import Engine
from visage.inference.faces import Observer
from visage.inference.onnx_engine import INT8_FILE, ONNX_FILE, load_onnx
from visage.inference.photos import (
    FaceAligner,
    FaceDetector,
    Model,
    Mtcnn,
    PhotoSource,
    Runtime,
    read_source,
)
from visage.labels import LabelGrid
from visage.model_config import ModelConfig, find_config

RELEASED = Path(__file__).resolve().parents[1] / "released"
DEFAULT_FILE = "default.txt"
Precision = Literal["float", "int8"]


@dataclass(frozen=True, kw_only=True)
class ReleasedModel:
    """A model that visage ships: what it predicts, in which unit and range of labels, the bytes of
    its float ONNX file, its measured error on test faces (mean absolute, with the ends of its 95 %
    interval), and the terms of its weights."""

    name: str
    folder: Path
    is_default: bool
    quantity: str
    unit: str
    grid: LabelGrid
    num_parameters: int
    num_bytes: int
    precisions: tuple[Precision, ...]
    mean_absolute_error: tuple[float, float, float]
    terms: str

    def __repr__(self) -> str:
        error, _, _ = self.mean_absolute_error
        return f"<{self.name}: {self.quantity}, off by {error:.2f} {self.unit} on average>"


def models() -> list[ReleasedModel]:
    """The released models, the default one first."""
    found = [_released(folder) for folder in _folders()]
    return sorted(found, key=lambda model: (not model.is_default, model.name))


def load(
    model: str | Path | None = None,
    *,
    runtime: Runtime | None = None,
    precision: Precision = "float",
    flip: bool = True,
    detector: FaceDetector | None = None,
    num_threads: int = 1,
    max_photo_pixels: int = MAX_PIXELS,
    observe: Observer | None = None,
) -> Model:
    """A model that predicts for photos.

    `model`: the name of a released one, or a folder that holds one; None is the default released
    model. `runtime`: `onnx` runs model.onnx in ONNX Runtime, `torch` the safetensors in PyTorch; by
    default `onnx` where the folder has the file. `precision`: `int8` runs model.int8.onnx, faster
    and a little less exact. `flip`: average each face with its mirror image. `detector`: another
    detector than the model's own. `num_threads`: those of one answer. Photos of more than
    `max_photo_pixels` are refused. `observe` gets the values and pooled features of each batch of
    faces (see `visage.inference.faces.CropPredictor`).

    Raises ValueError, with the remedy, for a model that is absent, damaged or needs what is not
    installed.
    """
    if num_threads < 1:
        raise ValueError(f"num_threads is {num_threads}: give 1 or more")
    folder = model_folder(model)
    engine, config = _engine(folder, runtime, precision, num_threads)
    return Model(
        engine,
        config,
        flip=flip,
        detector=detector,
        num_threads=num_threads,
        observe=observe,
        max_photo_pixels=max_photo_pixels,
    )


def align(
    photo: PhotoSource,
    model: str | Path | None = None,
    *,
    detector: FaceDetector | None = None,
    num_threads: int = 1,
    max_photo_pixels: int = MAX_PIXELS,
) -> list[npt.NDArray[np.uint8]]:
    """A photo's faces, largest first, as crops, RGB uint8 (crop_px,crop_px,3): cut as the model's
    config says, the same pixels that the model gets.

    `photo` and `model` as in `load` and `Model.predict`. Raises PhotoError for a photo that cannot
    be read.
    """
    config = config_of(model_folder(model))
    photo_HWC = read_source(photo, max_photo_pixels)
    aligner = FaceAligner(config, detector or Mtcnn(config.detector, "onnx", num_threads))
    [faces] = aligner.find([photo_HWC])
    return [aligner.cut(photo_HWC, points_52).crop_HWC for points_52 in faces.landmarks_N52]


def model_folder(model: str | Path | None) -> Path:
    """The folder of a model: a released one's name (`./NAME` is a folder of yours), a folder, or
    None for the default released model. ValueError where there is none."""
    if model is None:
        return RELEASED / (RELEASED / DEFAULT_FILE).read_text(encoding="utf-8").strip()
    is_name = isinstance(model, str) and Path(model).name == model
    if is_name and find_config(RELEASED / model) is not None:
        return RELEASED / model

    folder = Path(model)
    if not folder.is_dir():
        names = ", ".join(each.name for each in _folders())
        raise ValueError(
            f"{model}: no such folder, and no released model; the released ones: {names}"
        )
    return folder


def _engine(
    folder: Path, runtime: Runtime | None, precision: Precision, num_threads: int
) -> tuple[Engine, ModelConfig]:
    """The folder's model on a runtime."""
    if runtime not in (None, "onnx", "torch"):
        raise ValueError(f"runtime {runtime!r} is unknown; give 'onnx' or 'torch'")
    if precision not in ("float", "int8"):
        raise ValueError(f"precision {precision!r} is unknown; give 'float' or 'int8'")

    if precision == "int8":
        if runtime == "torch":
            raise ValueError("precision 'int8' runs in ONNX Runtime; give runtime='onnx'")
        if not (folder / INT8_FILE).is_file():
            raise ValueError(
                f"{folder / INT8_FILE}: no such file; export the model with export.int8, or give "
                f"precision='float'"
            )
        return load_onnx(folder / INT8_FILE, num_threads=num_threads)

    if runtime is None:
        runtime = "onnx" if (folder / ONNX_FILE).is_file() else "torch"
    if runtime == "onnx":
        return load_onnx(folder / ONNX_FILE, num_threads=num_threads)

    try:
        from visage.inference.torch_engine import TorchEngine
        from visage.weights import load_model
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{folder}: runtime 'torch' needs PyTorch ({error}); pip install 'visage[torch]', or "
            f"use a model with {ONNX_FILE}"
        ) from error
    network, config = load_model(folder)
    return TorchEngine(network, config, num_threads=num_threads), config


def _folders() -> list[Path]:
    return [folder for folder in sorted(RELEASED.iterdir()) if find_config(folder) is not None]


def config_of(folder: Path) -> ModelConfig:
    """The config in a model's folder; ValueError where there is none."""
    source = find_config(folder)
    if source is None:
        raise ValueError(f"{folder}: holds no model (no config.json); name another folder")
    return ModelConfig.read(source)


def _released(folder: Path) -> ReleasedModel:
    config = config_of(folder)
    mae = config.metrics["test"]["mae"]
    precisions: tuple[Precision, ...] = ("float",)
    if (folder / INT8_FILE).is_file():
        precisions += ("int8",)
    return ReleasedModel(
        name=config.name,
        folder=folder,
        is_default=folder == model_folder(None),
        quantity=config.quantity,
        unit=config.unit,
        grid=config.grid,
        num_parameters=config.weights.num_parameters,
        num_bytes=(folder / ONNX_FILE).stat().st_size,
        precisions=precisions,
        mean_absolute_error=(mae["value"], mae["low"], mae["high"]),
        terms=config.terms,
    )
