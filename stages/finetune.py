"""Aligned faces of the `target` role and the pre-trained backbone become the model.

data/target/faces/ + models/backbone/ -> models/model/{model.safetensors, config.json},
reports/history/finetune.csv DLDL-v2: KL divergence to the label distribution plus lambda times the
l1 error of its expectation (paper, Eq. 12). About 2 minutes for the embedded set; 45 minutes for
UTKFace's CORAL split (TinyAgeNet, 96 px, 36 epochs, one thread with bfloat16). Weights are saved
after every epoch; a killed run goes on from there.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from stages.exit_status import micro_batches
from stages.settings import Report, print_report, stage_main
from stages.warm_start import read_backbone, refuse_off_grid
from visage.atomic import atomic_write
from visage.data.augment import AugmentationSettings, training_view
from visage.data.face_table import FaceTable, prefetched, shuffled_batches
from visage.data.preprocess import evaluation_view
from visage.device import available_device
from visage.labels import DECODERS, LabelGrid
from visage.methods import METHODS, LossSettings
from visage.model_config import (
    CONFIG_FORMAT,
    AlignmentConfig,
    DetectorConfig,
    ModelConfig,
    NetworkConfig,
    NormaliseConfig,
    WeightsConfig,
)
from visage.networks import Network, Pooling, build, initialise
from visage.training.loop import Task, fit
from visage.training.optim import RecipeSettings, computing_dtype
from visage.training.provenance import fingerprint_of, git_commit, table_digest
from visage.weights import save_model, sha256_of

OpenFaces = Callable[[Path, Sequence[str], int], FaceTable]


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """`init`: `backbone` (the pretrain stage's trunk) or `scratch`. `fixed_sigma`: where the set
    gives none.

    `method`: an entry of visage.methods.METHODS; `loss` is DLDL-v2's, the others take what they
    have of it. `decode`: an entry of visage.labels.DECODERS (Ranking's and CORAL's own rule is
    `rank`). `schedule`: `joint`, or `two_stage` as released (all epochs with KL alone, the head's
    bias zeroed, then all epochs jointly). The last epoch is kept, or its running average. `terms`:
    of the data of each role, kept in the config. `recipe` and `augmentation` name entries of
    `recipes` and `augmentations`.
    """

    name: str
    quantity: str = field(metadata={"section": "labels"})
    unit: str = field(metadata={"section": "labels"})
    network: str
    pooling: Pooling
    normalise: NormaliseConfig
    init: Literal["backbone", "scratch"]
    grid: LabelGrid = field(metadata={"section": "labels"})
    method: str
    decode: str = field(metadata={"section": "inference"})
    loss: LossSettings
    fixed_sigma: float = field(metadata={"section": "labels"})
    schedule: Literal["joint", "two_stage"]
    epochs: int
    seed: int
    recipe: str
    recipes: dict[str, RecipeSettings]
    augmentation: str
    augmentations: dict[str, AugmentationSettings]
    num_workers: int
    cache_mb: int
    terms: dict[str, str]


def finetune(
    settings: FinetuneSettings,
    *,
    faces: Path,
    backbone: Path,
    checkpoints: Path,
    model: Path,
    history: Path,
    report: Report = print_report,
    open_faces: OpenFaces = FaceTable.open,
) -> None:
    """Trains the model; see the module docstring. `open_faces(folder, splits, cache_mb)` gives the
    faces: who trains many models on them has them already."""
    train = open_faces(faces, ["train"], settings.cache_mb)
    validation = open_faces(faces, ["val"], 0)
    _check(settings, train)
    network = _start(settings, train, backbone).to(available_device())
    start = (
        sha256_of(backbone / "backbone.safetensors") if settings.init == "backbone" else "scratch"
    )
    stamp = fingerprint_of(settings, train, Path(__file__), start)
    rows: list[dict[str, float]] = []
    for number, phase in enumerate(_phases(settings)):
        task = _task(phase, train, validation)
        if number > 0:
            nn.init.zeros_(network.head.bias)
        trained, phase_rows = fit(
            network,
            task,
            phase.recipes[phase.recipe],
            epochs=phase.epochs,
            seed=settings.seed + number,
            checkpoint=checkpoints / f"phase-{number}.pt",
            fingerprint=f"{stamp}-{number}",
            report=_counted_on(report, number * settings.epochs),
            micro_batches=micro_batches(),
        )
        network.load_state_dict(trained.state_dict())
        rows += [_later(row, number * settings.epochs) for row in phase_rows]
    with atomic_write(history) as part:
        pd.DataFrame(rows).to_csv(part, index=False)
    save_model(model, network, _config(settings, train, validation, rows), "float32")


def _later(row: Mapping[str, float], epochs: int) -> dict[str, float]:
    return {**row, "epoch": row["epoch"] + epochs}


def _counted_on(report: Report, epochs: int) -> Report:
    """A later phase's epochs go on from those before it."""
    return lambda step, row: report(step + epochs, _later(row, epochs))


def _phases(settings: FinetuneSettings) -> list[FinetuneSettings]:
    """The released code's two stages, or the paper's joint one."""
    if settings.schedule == "joint":
        return [settings]
    return [replace(settings, loss=replace(settings.loss, lambda_=0.0)), settings]


def _check(settings: FinetuneSettings, train: FaceTable) -> None:
    """Refuses what would train on nonsense: an unknown method, faces without a label or with one
    off the grid."""
    for name, known in (
        ("method", METHODS),
        ("decode", DECODERS),
        ("recipe", settings.recipes),
        ("augmentation", settings.augmentations),
    ):
        if getattr(settings, name) not in known:
            raise ValueError(
                f"finetune.{name}: {getattr(settings, name)!r} is unknown; known: "
                f"{', '.join(known)}"
            )
    if settings.schedule == "two_stage" and settings.method != "dldl_v2":
        raise ValueError(
            f"finetune.schedule: two_stage is DLDL-v2's (first KL alone), {settings.method} knows "
            f"no stages; say joint"
        )
    refuse_off_grid(train, settings.grid, "finetune")
    if len(train) < 2:
        raise ValueError(
            "fewer than 2 training faces; see data/target/rejects.csv and quarantine.csv"
        )


def _start(settings: FinetuneSettings, train: FaceTable, backbone: Path) -> Network:
    """A fresh network, its trunk from the backbone where the settings say so."""
    method = METHODS[settings.method]
    network = build(
        settings.network, settings.pooling, method.head_width(settings.grid), method.shared_head
    )
    initialise(network, torch.Generator().manual_seed(settings.seed))
    if settings.init == "scratch":
        return network
    mine = {
        "network": settings.network,
        "alignment": train.alignment,
        "normalise": _plain(settings.normalise),
    }
    remedy = "run the pretrain stage with the same settings, or set finetune.init: scratch"
    _, state = read_backbone(backbone, mine, "fine-tuning", remedy)
    trunk = {name: value for name, value in state.items() if not name.startswith("head.")}
    network.load_state_dict(
        trunk | {f"head.{name}": value for name, value in network.head.state_dict().items()}
    )
    return network


def _plain(normalise: NormaliseConfig) -> dict[str, list[float]]:
    return {name: list(values) for name, values in asdict(normalise).items()}


def _task(settings: FinetuneSettings, train: FaceTable, validation: FaceTable) -> Task:
    """Batches, loss and validation of one phase."""
    device, method = available_device(), METHODS[settings.method]
    recipe, augmentation = (
        settings.recipes[settings.recipe],
        settings.augmentations[settings.augmentation],
    )
    label = torch.tensor(train.label, dtype=torch.float32, device=device)
    sigma = torch.tensor(train.with_sigma(settings.fixed_sigma), dtype=torch.float32, device=device)

    def batches(generator: torch.Generator) -> Iterable[tuple[Tensor, ...]]:
        order = shuffled_batches(len(train), recipe.batch_size, generator)
        for indices, crops in prefetched(train, order, settings.num_workers):
            view = training_view(crops.to(device), augmentation, settings.normalise, generator)
            yield view, label[indices], sigma[indices]

    def loss(logits_BK: Tensor, label_B: Tensor, sigma_B: Tensor) -> Tensor:
        return method.loss(logits_BK, label_B, sigma_B, settings.grid, settings.loss)

    def validate(network: nn.Module) -> dict[str, float]:
        return {"val_mae": _mae(network, validation, settings)} if len(validation) else {}

    num_batches = len(shuffled_batches(len(train), recipe.batch_size, torch.Generator()))
    return Task(batches=batches, num_batches=num_batches, loss=loss, validate=validate)


@torch.inference_mode()
def _mae(network: nn.Module, table: FaceTable, settings: FinetuneSettings) -> float:
    """Mean absolute error on a table, without flip averaging."""
    network.eval()
    device, method, errors = available_device(), METHODS[settings.method], []
    for places in np.array_split(np.arange(len(table)), max(1, len(table) // 128)):
        logits = network(evaluation_view(table.decode(places).to(device), settings.normalise))
        value = DECODERS[settings.decode](
            method.probabilities(logits, settings.grid), settings.grid
        )
        errors.append(np.abs(value.cpu().numpy() - table.label[places]))
    return float(np.concatenate(errors).mean())


def _config(
    settings: FinetuneSettings,
    train: FaceTable,
    validation: FaceTable,
    rows: list[dict[str, float]],
) -> ModelConfig:
    """The model's config; `save_model` fills in the weights."""
    recipe = settings.recipes[settings.recipe]
    training: dict[str, Any] = {
        "init": settings.init,
        "loss": asdict(settings.loss),
        "fixed_sigma": settings.fixed_sigma,
    }
    training |= {"schedule": settings.schedule, "epochs": settings.epochs, "seed": settings.seed}
    training |= {
        "recipe": {"name": settings.recipe, **asdict(recipe)},
        "augmentation": settings.augmentation,
    }
    training |= {"computed_in": str(computing_dtype(recipe.precision, available_device()))}
    training |= {"micro_batches": int(max(row.get("micro_batches", 1) for row in rows))}
    training |= {"seconds": round(sum(row["seconds"] for row in rows))}
    network = NetworkConfig(
        name=settings.network,
        pooling=settings.pooling,
        num_outputs=METHODS[settings.method].head_width(settings.grid),
    )
    return ModelConfig(
        format=CONFIG_FORMAT,
        name=settings.name,
        quantity=settings.quantity,
        unit=settings.unit,
        network=network,
        grid=settings.grid,
        method=settings.method,
        decode=settings.decode,
        alignment=AlignmentConfig(**train.alignment),
        detector=DetectorConfig(**_tuples(train.detector)),
        normalise=settings.normalise,
        weights=WeightsConfig(file="", sha256="", dtype="float32", num_parameters=0),
        calibration=None,
        training=training,
        data={"train": table_digest(train), "val": table_digest(validation)},
        metrics={"val": {k: v for k, v in rows[-1].items() if k.startswith("val_")}},
        terms=" ".join(dict.fromkeys(settings.terms.values())),
        code={
            "git_commit": git_commit(),
            "torch": torch.__version__,
            "machine": platform.machine(),
        },
    )


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }


if __name__ == "__main__":
    stage_main(
        "finetune",
        FinetuneSettings,
        finetune,
        ["faces", "backbone", "checkpoints", "model", "history"],
    )
