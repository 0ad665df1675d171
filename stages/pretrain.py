"""Aligned faces of the `identity` role become a pre-trained backbone.

data/identity/faces/ -> models/backbone/{backbone.safetensors, backbone.json},
reports/history/pretrain.csv Softmax over identities (DLDL-v2 section 4.1); people with fewer than
`min_images_per_person` training photos are cut. The faces are read as a stream
(visage/data/face_stream.py): memory does not grow with their number. About 10 s for the embedded
set and 10 minutes for LFW at 96 px on 2 cores with bfloat16; a paper-size run wants GPUs, which a
flow brings as a `runner` (flows/scale_out/pretrain_ray.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.exit_status import micro_batches
from stages.settings import Report, print_report, stage_main
from visage.atomic import atomic_write
from visage.data.augment import AugmentationSettings, training_view
from visage.data.face_stream import FaceSplit, FaceStream
from visage.data.preprocess import evaluation_view
from visage.device import available_device
from visage.model_config import NormaliseConfig
from visage.networks import Network, Pooling, build, initialise
from visage.strict import check_range
from visage.training import distributed
from visage.training.checkpoint import read_finished
from visage.training.loop import Task, fit
from visage.training.optim import RecipeSettings
from visage.training.provenance import fingerprint_by, table_digest
from visage.weights import write_weights

VALIDATION_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """`recipe` and `augmentation` name entries of `recipes` and `augmentations`.

    `window_faces`: encoded crops that a process holds in memory and draws its batches from
    (visage/data/face_stream.py); one of 96 px takes about 5 kB, one of 224 px 20 kB. `num_workers`:
    decoding threads of a process.
    """

    network: str
    pooling: Pooling
    normalise: NormaliseConfig
    min_images_per_person: int
    epochs: int
    seed: int
    recipe: str
    recipes: dict[str, RecipeSettings]
    augmentation: str
    augmentations: dict[str, AugmentationSettings]
    num_workers: int
    window_faces: int

    def __post_init__(self) -> None:
        check_range(self, window_faces=(1, None))


@dataclass(frozen=True, kw_only=True)
class Training:
    """What one process does to train the classifier, alone or in a process group of
    torch.distributed.

    It can be pickled. Every process calls it with a `report` of its own, and sees `faces` and
    `checkpoint` at the same paths; what comes of it lies in the checkpoint.
    """

    settings: PretrainSettings
    faces: FaceStream
    validation: FaceStream
    checkpoint: Path
    fingerprint: str
    micro_batches: int

    def __call__(self, report: Report) -> None:
        fit(
            self.network().to(available_device()),
            self._task(),
            self.recipe,
            epochs=self.settings.epochs,
            seed=self.settings.seed,
            checkpoint=self.checkpoint,
            fingerprint=self.fingerprint,
            report=report,
            micro_batches=self.micro_batches,
        )

    @property
    def recipe(self) -> RecipeSettings:
        return self.settings.recipes[self.settings.recipe]

    def network(self) -> Network:
        """As it starts."""
        network = build(self.settings.network, self.settings.pooling, len(self.faces.classes))
        initialise(network, torch.Generator().manual_seed(self.settings.seed))
        return network

    def _task(self) -> Task:
        settings, batch_size, device = self.settings, self.recipe.batch_size, available_device()
        augmentation = settings.augmentations[settings.augmentation]
        place = {
            "num_workers": settings.num_workers,
            "rank": distributed.rank(),
            "num_ranks": distributed.num_ranks(),
        }

        def batches(generator: torch.Generator) -> Iterable[tuple[Tensor, ...]]:
            for crops, target in self.faces.shuffled(
                batch_size, settings.window_faces, generator, **place
            ):
                view_BCHW = training_view(
                    crops.to(device), augmentation, settings.normalise, generator
                )
                yield view_BCHW, target.to(device)

        def validate(network: nn.Module) -> dict[str, float]:
            if len(self.validation) == 0:
                return {}
            right = _num_right(
                network,
                self.validation.in_order(VALIDATION_BATCH, **place),
                settings.normalise,
                device,
            )
            return {"val_top1": distributed.totals([right], device)[0] / len(self.validation)}

        return Task(
            batches=batches,
            num_batches=self.faces.num_batches(batch_size, distributed.num_ranks()),
            loss=functional.cross_entropy,
            validate=validate,
        )


Runner = Callable[[Training, Report], None]


def run_here(training: Training, report: Report) -> None:
    """In this process, alone."""
    training(report)


def pretrain(
    settings: PretrainSettings,
    *,
    faces: Path,
    checkpoints: Path,
    backbone: Path,
    history: Path,
    report: Report = print_report,
    runner: Runner = run_here,
) -> None:
    """Trains the identity classifier and keeps its trunk; see the module docstring.

    `runner` calls the training, in as many processes as it likes, and again after a failure; the
    default calls it here.
    """
    train, validation = FaceSplit.open(faces, "train"), FaceSplit.open(faces, "val")
    digest = table_digest(train)
    people = _kept(train.people(), settings.min_images_per_person, digest["num_faces"])
    threads = str(torch.get_num_threads()) if runner is run_here else "any"
    training = Training(
        settings=settings,
        faces=train.of(people),
        validation=validation.of(people),
        checkpoint=checkpoints / "last.pt",
        micro_batches=micro_batches(),
        fingerprint=fingerprint_by(settings, train.alignment, digest, Path(__file__), threads),
    )
    runner(training, report)
    trained = training.network()
    rows = read_finished(training.checkpoint, training.fingerprint, trained, settings.epochs)
    with atomic_write(history) as part:
        pd.DataFrame(rows).to_csv(part, index=False)
    document = {"network": settings.network, "pooling": settings.pooling, "num_people": len(people)}
    document |= {
        "alignment": train.alignment,
        "normalise": asdict(settings.normalise),
        "data": digest,
    }
    _save(backbone, trained, document, rows)


def _kept(counts: Counter[str], minimum: int, num_faces: int) -> dict[str, int]:
    """The classes of the people with at least `minimum` training photos, in alphabetical order."""
    people = sorted(name for name, count in counts.items() if count >= minimum)
    if len(people) < 2:
        raise ValueError(
            f"{len(people)} people have {minimum} or more training photos; lower "
            f"pretrain.min_images_per_person"
        )
    kept = sum(counts[name] for name in people)
    print(f"pretrain: {len(people)} of {len(counts)} people, {kept} of {num_faces} photos")
    return {name: index for index, name in enumerate(people)}


@torch.inference_mode()
def _num_right(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    normalise: NormaliseConfig,
    device: torch.device,
) -> int:
    """How many faces' most probable identity is the right one."""
    network.eval()
    right = 0
    for crops_BCHW, target_B in batches:
        logits_BK = network(evaluation_view(crops_BCHW.to(device), normalise))
        right += int((logits_BK.argmax(1).cpu() == target_B).sum())
    return right


def _save(
    folder: Path, network: nn.Module, document: Mapping[str, Any], rows: list[dict[str, float]]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = write_weights(network, folder / "backbone.safetensors", "float32")
    own: dict[str, Any] = {"weights": asdict(weights), "last_epoch": rows[-1]}
    own |= {"micro_batches": int(max(row.get("micro_batches", 1) for row in rows))}
    with atomic_write(folder / "backbone.json") as part:
        part.write_text(json.dumps({**document, **own}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    stage_main(
        "pretrain", PretrainSettings, pretrain, ["faces", "checkpoints", "backbone", "history"]
    )
