"""Aligned faces of the `identity` role become a pre-trained backbone.

data/identity/faces/ -> models/backbone/{backbone.safetensors, backbone.json}, reports/history/pretrain.csv
Softmax over identities (DLDL-v2 section 4.1); people with fewer than `min_images_per_person` training photos are cut.
About 10 s for the embedded set and 10 minutes for LFW at 96 px on 2 cores with bfloat16; a paper-size run wants GPUs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from stages.endings import micro_batches
from stages.settings import Report, print_report, stage_main
from visage.card import NormaliseCard, write_weights
from visage.eye import AugmentationSettings, evaluation_view, training_view
from visage.faces import FaceTable, prefetched, shuffled_batches
from visage.fit import Task, available_device, fit
from visage.lineage import fingerprint_of, table_digest
from visage.networks import Pooling, build, initialise
from visage.optim import RecipeSettings
from visage.whole import written_whole


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """`recipe` and `augmentation` name entries of `recipes` and `augmentations`; `cache_mb` bounds decoded faces."""

    network: str
    pooling: Pooling
    normalise: NormaliseCard
    min_images_per_person: int
    epochs: int
    seed: int
    recipe: str
    recipes: dict[str, RecipeSettings]
    augmentation: str
    augmentations: dict[str, AugmentationSettings]
    num_workers: int
    cache_mb: int


def pretrain(
    settings: PretrainSettings, *, faces: Path, checkpoints: Path, backbone: Path, history: Path,
    report: Report = print_report,
) -> None:  # fmt: skip
    """Trains the identity classifier and keeps its trunk; see the module docstring."""
    train, people = _cut(FaceTable.open(faces, ["train"], settings.cache_mb), settings.min_images_per_person)
    validation = FaceTable.open(faces, ["val"], 0)
    device = available_device()
    recipe, augmentation = settings.recipes[settings.recipe], settings.augmentations[settings.augmentation]
    identity = {name: index for index, name in enumerate(people)}
    target = torch.tensor([identity.get(name, -1) for name in train.person], device=device)
    kept = np.flatnonzero(target.cpu().numpy() >= 0)

    def batches(generator: torch.Generator) -> Iterable[tuple[torch.Tensor, ...]]:
        order = [kept[places] for places in shuffled_batches(len(kept), recipe.batch_size, generator)]
        for indices, crops in prefetched(train, order, settings.num_workers):
            yield training_view(crops.to(device), augmentation, settings.normalise, generator), target[indices]

    def validate(network: nn.Module) -> dict[str, float]:
        known = np.flatnonzero([name in identity for name in validation.person])
        if len(known) == 0:
            return {}
        return {"val_top1": _top1(network, validation, known, identity, settings.normalise, device)}

    network = build(settings.network, settings.pooling, len(people))
    initialise(network, torch.Generator().manual_seed(settings.seed))
    task = Task(batches=batches, num_batches=len(shuffled_batches(len(kept), recipe.batch_size, torch.Generator())),
                loss=functional.cross_entropy, validate=validate)  # fmt: skip
    trained, rows = fit(network.to(device), task, recipe, epochs=settings.epochs, seed=settings.seed,
                        checkpoint=checkpoints / "last.pt",
                        fingerprint=fingerprint_of(settings, train, Path(__file__)), report=report,
                        micro_batches=micro_batches())  # fmt: skip
    with written_whole(history) as part:
        pd.DataFrame(rows).to_csv(part, index=False)
    _save(backbone, trained, settings, train, people, rows)


def _cut(table: FaceTable, minimum: int) -> tuple[FaceTable, list[str]]:
    """The people with at least `minimum` training photos, in alphabetical order."""
    names, counts = np.unique([name for name in table.person if name is not None], return_counts=True)
    people = [str(name) for name, count in zip(names, counts, strict=True) if count >= minimum]
    if len(people) < 2:
        raise ValueError(
            f"{len(people)} people have {minimum} or more training photos; lower pretrain.min_images_per_person"
        )
    print(
        f"pretrain: {len(people)} of {len(names)} people, {int(counts[counts >= minimum].sum())} of {len(table)} photos"
    )
    return table, people


@torch.inference_mode()
def _top1(
    network: nn.Module, table: FaceTable, rows: np.ndarray, identity: dict[str, int], normalise: NormaliseCard,
    device: torch.device,
) -> float:  # fmt: skip
    """Share of the faces `rows` whose most probable identity is the right one."""
    network.eval()
    right = 0
    for places in np.array_split(rows, max(1, len(rows) // 128)):
        logits = network(evaluation_view(table.decode(places).to(device), normalise))
        right += int((logits.argmax(1).cpu() == torch.tensor([identity[n] for n in table.person[places]])).sum())
    return right / len(rows)


def _save(
    folder: Path, network: nn.Module, settings: PretrainSettings, table: FaceTable, people: list[str],
    rows: list[dict[str, float]],
) -> None:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    weights = write_weights(network, folder / "backbone.safetensors", "float32")
    document = {"network": settings.network, "pooling": settings.pooling, "num_people": len(people)}
    document |= {"alignment": table.alignment, "normalise": asdict(settings.normalise), "weights": asdict(weights)}
    document |= {"micro_batches": int(max(row.get("micro_batches", 1) for row in rows))}
    document |= {"data": table_digest(table), "last_epoch": rows[-1]}
    with written_whole(folder / "backbone.json") as part:
        part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    stage_main("pretrain", PretrainSettings, pretrain, ["faces", "checkpoints", "backbone", "history"])
