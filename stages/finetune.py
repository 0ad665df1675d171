"""Aligned faces of the `target` role and the pre-trained backbone become the model.

data/target/faces/ + models/backbone/ (or models/start/) -> models/model/{model.safetensors,
config.json}, reports/history/finetune.csv

DLDL-v2: KL divergence to the label distribution plus lambda times the l1 error of its expectation
(paper, Eq. 12). About 2 minutes for the embedded set; 45 minutes for UTKFace's CORAL split
(TinyAgeNet, 96 px, 36 epochs, one thread with bfloat16). Weights are saved after every epoch; a
killed run resumes from there.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from stages.code import running_code
from stages.exit_status import micro_batches
from stages.imported_weights import (
    IMAGENET_NORMALISE,
    SCRATCH,
    ImportSettings,
    Start,
    imported_start,
    plain,
)
from stages.settings import Report, convert, print_report, stage_main
from stages.warm_start import (
    backbone_normalise,
    backbone_start,
    model_start,
    refuse_off_grid,
    started_config,
)
from visage.atomic import atomic_folder, atomic_write
from visage.data.augment import AugmentationSettings, training_view
from visage.data.face_table import FaceTable, prefetched, shuffled_batches
from visage.data.normalisation import own_normalise
from visage.data.preprocess import evaluation_faces
from visage.device import available_device
from visage.export.quantisable import check_quantisable
from visage.labels import DECODERS, LabelGrid
from visage.methods import METHODS
from visage.model_config import (
    CONFIG_FORMAT,
    AlignmentConfig,
    DetectorConfig,
    ModelConfig,
    NetworkConfig,
    NormaliseConfig,
    WeightsConfig,
)
from visage.networks import FaceBatch, Network, NetworkSettings, build, initialise
from visage.training.loop import Batch, Task, fit
from visage.training.optim import RecipeSettings, computing_dtype
from visage.training.provenance import fingerprint_of, git_commit, table_digest
from visage.weights import save_model

OpenFaces = Callable[[Path, Sequence[str], int], FaceTable]


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """`init`: `backbone` (the pretrain stage's trunk), `scratch`, `model` (another fine-tuned
    model, in models/start/; `start_head`: whether its head is kept) or `import` (`imported`: a file
    under torchvision's names). `fixed_sigma` is used where the set gives no sigma.
    `measure_normalise`: mean and deviation of `normalise` are not those given but, from scratch,
    the training faces' own, and else those of the start; its `input` holds as it is.

    `method`: an entry of visage.methods.METHODS. `loss` holds the settings of all methods by name;
    each takes its own. `auxiliary_weight` is the weight of the loss of each head that only trains,
    in networks that have some. `decode`: an entry of visage.labels.DECODERS (Ranking's and CORAL's
    own rule is `rank`). `schedule`: `joint`, or `two_stage` as released (all epochs with KL alone,
    the head's bias zeroed, then all epochs jointly). The last epoch is kept, or its running
    average. `terms` are those of each role's data, kept in the config. `recipe` and `augmentation`
    name entries of `recipes` and `augmentations`.
    """

    name: str
    quantity: str = field(metadata={"section": "labels"})
    unit: str = field(metadata={"section": "labels"})
    network: NetworkSettings
    normalise: NormaliseConfig
    measure_normalise: bool
    init: Literal["backbone", "scratch", "model", "import"]
    start_head: Literal["keep", "fresh"]
    imported: ImportSettings | None
    grid: LabelGrid = field(metadata={"section": "labels"})
    method: str
    decode: str = field(metadata={"section": "inference"})
    loss: dict[str, Any]
    auxiliary_weight: float
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

    def __post_init__(self) -> None:
        if self.method in METHODS:  # an unknown one is refused with those known, before training
            loss_settings(self)


def finetune(
    settings: FinetuneSettings,
    *,
    faces: Path,
    backbone: Path,
    start: Path,
    checkpoints: Path,
    model: Path,
    history: Path,
    report: Report = print_report,
    open_faces: OpenFaces = FaceTable.open,
) -> None:
    """Trains the model; see the module docstring. `open_faces(folder, splits, cache_mb)` gives the
    faces: a caller that trains many models on the same faces has them open already."""
    train = open_faces(faces, ["train"], settings.cache_mb)
    validation = open_faces(faces, ["val"], 0)
    _check(settings, train)
    if settings.measure_normalise:
        settings = replace(settings, normalise=_measured(settings, train, backbone, start))

    earlier = _start(settings, train, backbone, start)
    network = _network(settings, earlier).to(available_device())
    _say_what_cannot_be_exported(settings.network.name, network)

    landmarks = [train.landmarks_sha256()] if network.needs_landmarks else []
    own_code = running_code("stages.finetune:finetune", settings)
    stamp = fingerprint_of(settings, train, own_code, earlier.digest, *landmarks)

    rows: list[dict[str, float]] = []
    for number, phase in enumerate(_phases(settings)):
        task = _task(phase, train, validation, network.needs_landmarks)
        # As in the released code: between its two stages, the head's bias starts over.
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
    with atomic_folder(model) as part:
        save_model(part, network, _config(settings, train, validation, rows, earlier), "float32")


def _later(row: Mapping[str, float], epochs: int) -> dict[str, float]:
    return {**row, "epoch": row["epoch"] + epochs}


def _counted_on(report: Report, epochs: int) -> Report:
    """A later phase's epochs go on from those before it."""
    return lambda step, row: report(step + epochs, _later(row, epochs))


def _phases(settings: FinetuneSettings) -> list[FinetuneSettings]:
    """The released code's two stages, or the paper's joint one."""
    if settings.schedule == "joint":
        return [settings]
    return [replace(settings, loss=settings.loss | {"lambda_": 0.0}), settings]


def loss_settings(settings: FinetuneSettings) -> Any:
    """The method's own settings, taken by name from `settings.loss`."""
    known: set[str] = set()
    for method in METHODS.values():
        known.update(field.name for field in fields(method.settings))
    unknown = sorted(set(settings.loss) - known)
    if unknown:
        raise ValueError(
            f"loss: unknown key {unknown[0]!r}; known keys: {', '.join(sorted(known))}"
        )

    kind = METHODS[settings.method].settings
    own = {field.name for field in fields(kind)}
    values = {name: value for name, value in settings.loss.items() if name in own}
    return convert(values, kind, "loss")


def _check(settings: FinetuneSettings, train: FaceTable) -> None:
    """Refuses what cannot be trained: unknown names, faces without a label or with one off the
    grid, fewer than two faces."""
    choices: dict[str, Mapping[str, Any]] = {
        "method": METHODS,
        "decode": DECODERS,
        "recipe": settings.recipes,
        "augmentation": settings.augmentations,
    }
    for name, known in choices.items():
        value = getattr(settings, name)
        if value not in known:
            raise ValueError(f"finetune.{name}: {value!r} is unknown; known: {', '.join(known)}")

    if settings.schedule == "two_stage" and settings.method != "dldl_v2":
        raise ValueError(
            f"finetune.schedule: two_stage is DLDL-v2's (first KL alone), {settings.method} has no "
            f"stages; set it to joint"
        )

    refuse_off_grid(train, settings.grid, "finetune")
    has_intervals = bool((train.half_width_or_0 > 0).any())
    if has_intervals and METHODS[settings.method].interval_loss is None:
        able = [name for name, method in METHODS.items() if method.interval_loss is not None]
        raise ValueError(
            f"finetune.method: some labels are intervals, which {settings.method} cannot learn "
            f"from; set it to {' or '.join(able)}"
        )
    if len(train) < 2:
        raise ValueError(
            "fewer than 2 training faces; see data/target/rejects.csv and quarantine.csv"
        )


def _measured(
    settings: FinetuneSettings, train: FaceTable, backbone: Path, start: Path
) -> NormaliseConfig:
    """The start's mean and deviation, or from scratch the training faces', of the wanted input."""
    kind = settings.normalise.input
    match settings.init:
        case "backbone":
            return replace(backbone_normalise(backbone), input=kind)
        case "model":
            return replace(started_config(start).normalise, input=kind)
        case "import":
            return replace(IMAGENET_NORMALISE, input=kind)
        case "scratch":
            return own_normalise(train, kind)


def _start(settings: FinetuneSettings, train: FaceTable, backbone: Path, start: Path) -> Start:
    """The weights that the settings say to start from."""
    wanted = {
        "network": asdict(settings.network),
        "alignment": train.alignment,
        "normalise": plain(settings.normalise),
    }

    match settings.init:
        case "backbone":
            return backbone_start(backbone, wanted)
        case "model":
            return model_start(start, wanted, settings.grid, settings.start_head)
        case "import":
            return imported_start(settings.imported, settings.network, settings.normalise)
        case "scratch":
            return SCRATCH


def _network(settings: FinetuneSettings, start: Start) -> Network:
    """A new network, with the weights of its start."""
    method = METHODS[settings.method]
    network = build(
        settings.network.name,
        settings.network.options,
        method.head_width(settings.grid),
        method.shared_head,
    )
    initialise(network, torch.Generator().manual_seed(settings.seed))
    start.load_into(network, f"finetune.init {settings.init}")
    return network


def _say_what_cannot_be_exported(name: str, network: Network) -> None:
    """One sentence before training starts, where an int8 export will be refused."""
    try:
        check_quantisable(name, network)
    except ValueError as error:
        print(f"note: {error}")


def _task(
    settings: FinetuneSettings, train: FaceTable, validation: FaceTable, needs_landmarks: bool
) -> Task:
    """Batches, loss and validation of one phase."""
    device = available_device()
    method = METHODS[settings.method]
    own_settings = loss_settings(settings)
    recipe = settings.recipes[settings.recipe]
    augmentation = settings.augmentations[settings.augmentation]
    landmarks = torch.from_numpy(train.landmarks).to(device) if needs_landmarks else None
    label = torch.tensor(train.label, dtype=torch.float32, device=device)
    sigma = torch.tensor(train.with_sigma(settings.fixed_sigma), dtype=torch.float32, device=device)
    half_width = torch.tensor(train.half_width_or_0, dtype=torch.float32, device=device)
    interval_loss = method.interval_loss if bool((half_width > 0).any()) else None

    def batches(generator: torch.Generator) -> Iterable[Batch]:
        order = shuffled_batches(len(train), recipe.batch_size, generator)
        for indices, crops in prefetched(train, order, settings.num_workers):
            points = None if landmarks is None else landmarks[indices]
            faces = FaceBatch(crops.to(device), points)
            view = training_view(faces, augmentation, settings.normalise, generator)
            yield Batch(view, (label[indices], sigma[indices], half_width[indices]))

    def loss(logits_BK: Tensor, label_B: Tensor, sigma_B: Tensor, half_width_B: Tensor) -> Tensor:
        if interval_loss is not None:
            return interval_loss(
                logits_BK, label_B, half_width_B, sigma_B, settings.grid, own_settings
            )
        return method.loss(logits_BK, label_B, sigma_B, settings.grid, own_settings)

    def validate(network: Network) -> dict[str, float]:
        if len(validation) == 0:
            return {}
        return {"val_mae": _mae(network, validation, settings)}

    num_batches = len(shuffled_batches(len(train), recipe.batch_size, torch.Generator()))
    return Task(
        batches=batches,
        num_batches=num_batches,
        loss=loss,
        auxiliary_weight=settings.auxiliary_weight,
        validate=validate,
    )


@torch.inference_mode()
def _mae(network: Network, table: FaceTable, settings: FinetuneSettings) -> float:
    """Mean absolute error on a table, without flip averaging."""
    network.eval()
    device = available_device()
    method = METHODS[settings.method]

    errors: list[np.ndarray] = []
    for places in np.array_split(np.arange(len(table)), max(1, len(table) // 128)):
        points = None
        if network.needs_landmarks:
            points = torch.from_numpy(table.landmarks[places]).to(device)
        crops = FaceBatch(table.decode(places).to(device), points)

        logits_BK = network(evaluation_faces(crops, settings.normalise)).logits_BK
        p_BK = method.probabilities(logits_BK, settings.grid)
        value = DECODERS[settings.decode](p_BK, settings.grid)
        errors.append(np.abs(value.cpu().numpy() - table.label[places]))

    return float(np.concatenate(errors).mean())


def _config(
    settings: FinetuneSettings,
    train: FaceTable,
    validation: FaceTable,
    rows: list[dict[str, float]],
    start: Start,
) -> ModelConfig:
    """The model's config; `save_model` fills in the weights."""
    recipe = settings.recipes[settings.recipe]
    training: dict[str, Any] = {
        "init": settings.init,
        "start": start.ancestor,
        "loss": asdict(loss_settings(settings)),
        "fixed_sigma": settings.fixed_sigma,
        "schedule": settings.schedule,
        "epochs": settings.epochs,
        "seed": settings.seed,
        "recipe": {"name": settings.recipe, **asdict(recipe)},
        "augmentation": settings.augmentation,
        "computed_in": str(computing_dtype(recipe.precision, available_device())),
        "micro_batches": int(max(row.get("micro_batches", 1) for row in rows)),
        "seconds": round(sum(row["seconds"] for row in rows)),
    }

    network = NetworkConfig(
        name=settings.network.name,
        options=settings.network.options,
        num_outputs=METHODS[settings.method].head_width(settings.grid),
    )
    validated = {key: value for key, value in rows[-1].items() if key.startswith("val_")}

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
        metrics={"val": validated},
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
        ["faces", "backbone", "start", "checkpoints", "model", "history"],
    )
