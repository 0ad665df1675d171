"""Aligned faces of the `identity` role become a pre-trained backbone.

data/identity/faces/ -> models/backbone/{backbone.safetensors, backbone.json},
reports/history/pretrain.csv

Softmax over identities (DLDL-v2 section 4.1). People with fewer than `min_images_per_person`
training photos are left out. The faces are read as a stream (visage/data/face_stream.py): memory
does not grow with their number. About 10 s for the embedded set and 10 minutes for LFW at 96 px on
2 cores with bfloat16. A paper-size run needs GPUs, which a flow brings as a `runner`
(flows/scale_out/pretrain_ray.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from stages.code import running_code
from stages.exit_status import micro_batches
from stages.imported_weights import (
    SCRATCH,
    ImportSettings,
    Start,
    imported_start,
)
from stages.settings import Report, print_report, stage_main
from visage.atomic import atomic_folder, atomic_write
from visage.data.augment import AugmentationSettings, training_view
from visage.data.face_stream import FaceSplit, FaceStream
from visage.data.preprocess import evaluation_faces
from visage.device import available_device
from visage.model_config import NormaliseConfig
from visage.networks import FaceBatch, Network, NetworkSettings, build, initialise
from visage.strict import check_range
from visage.training import distributed
from visage.training.checkpoint import read_finished
from visage.training.loop import Batch, Task, fit
from visage.training.optim import RecipeSettings
from visage.training.provenance import fingerprint_by, table_digest
from visage.weights import write_weights

VALIDATION_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """`init`: `scratch`, or `import` (`imported`: a file under torchvision's names).
    `auxiliary_weight` is the weight of the loss of each head that only trains, in networks that
    have some. `recipe` and `augmentation` name entries of `recipes` and `augmentations`.

    `window_faces`: encoded crops that a process holds in memory and draws its batches from
    (visage/data/face_stream.py); one of 96 px takes about 5 kB, one of 224 px 20 kB. `num_workers`:
    decoding threads of a process.
    """

    network: NetworkSettings
    normalise: NormaliseConfig
    init: Literal["scratch", "import"]
    imported: ImportSettings | None
    auxiliary_weight: float
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
    """The work of one process that trains the classifier, alone or in a process group of
    torch.distributed.

    It can be pickled. Every process calls it with its own `report`, and finds `faces` and
    `checkpoint` at the same paths. The result is in the checkpoint.
    """

    settings: PretrainSettings
    faces: FaceStream
    validation: FaceStream
    checkpoint: Path
    fingerprint: str
    micro_batches: int

    def __call__(self, report: Report) -> None:
        network = self.network()
        start_of(self.settings).load_into(network, "pretrain.init import")
        fit(
            network.to(available_device()),
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
        """A new network, as it starts from scratch."""
        settings = self.settings.network
        network = build(settings.name, settings.options, len(self.faces.classes))
        initialise(network, torch.Generator().manual_seed(self.settings.seed))
        return network

    def _task(self) -> Task:
        settings = self.settings
        batch_size = self.recipe.batch_size
        device = available_device()
        augmentation = settings.augmentations[settings.augmentation]
        place = {
            "num_workers": settings.num_workers,
            "rank": distributed.rank(),
            "num_ranks": distributed.num_ranks(),
        }

        def batches(generator: torch.Generator) -> Iterable[Batch]:
            shuffled = self.faces.shuffled(batch_size, settings.window_faces, generator, **place)
            for (crops, landmarks), target in shuffled:
                faces = _on(device, crops, landmarks)
                view = training_view(faces, augmentation, settings.normalise, generator)
                yield Batch(view, (target.to(device),))

        def validate(network: Network) -> dict[str, float]:
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
            auxiliary_weight=settings.auxiliary_weight,
            validate=validate,
        )


def start_of(settings: PretrainSettings) -> Start:
    """The weights that the settings say to start from."""
    if settings.init == "scratch":
        return SCRATCH
    return imported_start(settings.imported, settings.network, settings.normalise)


def _on(device: torch.device, crops_BCHW: Tensor, landmarks_B52: Tensor | None) -> FaceBatch:
    if landmarks_B52 is not None:
        landmarks_B52 = landmarks_B52.to(device)
    return FaceBatch(crops_BCHW.to(device), landmarks_B52)


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

    `runner` calls the training, in as many processes as it likes, and again after a failure. The
    default calls it once in this process.
    """
    train = FaceSplit.open(faces, "train")
    validation = FaceSplit.open(faces, "val")
    digest = table_digest(train)
    people = _kept(train.people(), settings.min_images_per_person, digest["num_faces"])

    threads = str(torch.get_num_threads()) if runner is run_here else "any"
    needs_landmarks = _needs_landmarks(settings.network)
    start = start_of(settings)
    marks = [train.landmarks_sha256()] if needs_landmarks else []
    own_code = running_code("stages.pretrain:pretrain", settings)
    fingerprint = fingerprint_by(
        settings,
        train.alignment,
        digest,
        own_code,
        threads,
        start.digest,
        *marks,
    )

    training = Training(
        settings=settings,
        faces=train.of(people, needs_landmarks),
        validation=validation.of(people, needs_landmarks),
        checkpoint=checkpoints / "last.pt",
        fingerprint=fingerprint,
        micro_batches=micro_batches(),
    )
    runner(training, report)
    trained = training.network()
    rows = read_finished(training.checkpoint, training.fingerprint, trained, settings.epochs)

    with atomic_write(history) as part:
        pd.DataFrame(rows).to_csv(part, index=False)
    document = {
        "network": asdict(settings.network),
        "num_people": len(people),
        "start": start.ancestor,
        "alignment": train.alignment,
        "normalise": asdict(settings.normalise),
        "data": digest,
    }
    _save(backbone, trained, document, rows)


def _needs_landmarks(settings: NetworkSettings) -> bool:
    # On the device "meta" no weights take memory.
    with torch.device("meta"):
        return build(settings.name, settings.options, 2).needs_landmarks


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
    network: Network,
    batches: Iterable[tuple[FaceBatch, Tensor]],
    normalise: NormaliseConfig,
    device: torch.device,
) -> int:
    """The number of faces whose most probable identity is the right one."""
    network.eval()

    right = 0
    for crops, target_B in batches:
        faces = evaluation_faces(_on(device, *crops), normalise)
        logits_BK = network(faces).logits_BK
        right += int((logits_BK.argmax(1).cpu() == target_B).sum())

    return right


def _save(
    folder: Path, network: Network, document: Mapping[str, Any], rows: list[dict[str, float]]
) -> None:
    with atomic_folder(folder) as part:
        weights = write_weights(network, part / "backbone.safetensors", "float32")
        own: dict[str, Any] = {
            "weights": asdict(weights),
            "last_epoch": rows[-1],
            "micro_batches": int(max(row.get("micro_batches", 1) for row in rows)),
        }
        text = json.dumps({**document, **own}, indent=1) + "\n"
        (part / "backbone.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    stage_main(
        "pretrain", PretrainSettings, pretrain, ["faces", "checkpoints", "backbone", "history"]
    )
