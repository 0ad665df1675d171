"""Several models of one quantity become one, by a rule whose weights validation faces choose.

models/model/ + models/members/*/ + data/target/faces/ -> models/fused/{model.safetensors,
config.json}

Without members the model is passed on as it is: so the stage stands in the one graph, and what
comes after it takes a fused model like any other. The members share quantity, unit, detector and
the alignment's template and scale; label grids, networks, kinds of input and crop sizes may differ.
`visage.networks.fused` has the rules. Takes as long as all members need for the validation faces,
flip averaged; `kernel` needs them for training faces, too.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.settings import Report, print_report, stage_main
from visage.atomic import atomic_folder
from visage.data.augment import UNCHANGED, AugmentationSettings, training_view
from visage.data.face_table import FaceTable, evenly_spread
from visage.device import available_device
from visage.evaluation.bootstrap import Bootstrap, cluster_codes, who_is_shown
from visage.evaluation.fusion_weights import Known, Learned, Objective, learned
from visage.inference.faces import CropPredictor
from visage.inference.fused_member import member_model
from visage.inference.predict_table import answer, check_preprocessing, faces_of
from visage.labels import LabelGrid
from visage.model_config import CONFIG_FORMAT, ModelConfig, NetworkConfig, find_config
from visage.networks import FUSED, Network
from visage.networks.fused import (
    FIRST,
    SECOND,
    FusedNetwork,
    FusedOptions,
    MemberInput,
    MemberNetwork,
    MemberOptions,
    Rule,
    plain_options,
)
from visage.strict import check_range
from visage.training.provenance import table_digest
from visage.weights import load_model, save_model

# Test faces choose nothing, and on training faces every member is too sure
CHOOSING = "val"
REMEMBERED = "train"
# The fused model's outputs are logarithms of probabilities, which a softmax gives back
METHOD = "dldl"
DECODE = "expectation"
OWN = "model"


@dataclass(frozen=True, kw_only=True)
class KernelSettings:
    """What the rule `kernel` chooses from, by the error on validation faces: `neighbours`, and
    `widths` as multiples of the median distance to the nearest one. `max_remembered` training faces
    are remembered, as the members answer under `augmentation`: their answers to faces as they have
    learnt them are sharper than those to any new face."""

    neighbours: tuple[int, ...]
    widths: tuple[float, ...]
    max_remembered: int

    def __post_init__(self) -> None:
        check_range(self, max_remembered=(1, None))
        if not self.neighbours or not self.widths:
            raise ValueError("neighbours and widths: give one at least of each")


@dataclass(frozen=True, kw_only=True)
class FuseSettings:
    """`rule` and `zooms`: see visage.networks.fused. `objective`: what `weights` minimise, and
    `gate` inside each stream: an entry of visage.evaluation.fusion_weights.OBJECTIVES.
    `second_stream`: the members of the second stream by name; models/model is called `model`.
    `threshold`: of the gate, label units. Fewer than `min_faces` validation faces learn nothing."""

    rule: Rule
    objective: Objective
    second_stream: tuple[str, ...]
    threshold: float
    zooms: tuple[float, ...]
    kernel: KernelSettings
    augmentation: str
    augmentations: dict[str, AugmentationSettings]
    min_faces: int
    num_folds: int
    num_resamples: int
    interval: float
    batch_size: int
    seed: int
    epsilon_sigma: float | None = field(metadata={"section": "labels"})
    flip: bool = field(metadata={"section": "inference"})

    def __post_init__(self) -> None:
        check_range(self, min_faces=(1, None), num_folds=(2, None), batch_size=(1, None))
        if self.augmentation not in self.augmentations:
            raise ValueError(f"augmentation {self.augmentation!r} is none of augmentations")


@dataclass(frozen=True, kw_only=True)
class Member:
    """A trained model under the name that it has among the members."""

    name: str
    network: Network
    config: ModelConfig


def fuse(
    settings: FuseSettings,
    *,
    model: Path,
    members: Path,
    faces: Path,
    fused: Path,
    report: Report = print_report,
) -> None:
    """Fuses the model with the members, if there are any; see the module docstring."""
    folders = member_folders(members)
    if not folders:
        with atomic_folder(fused) as part:
            shutil.copytree(model, part, dirs_exist_ok=True)
        print(f"nothing to fuse: no model in {members}; {model} is passed on as it is")
        return

    network, config = fused_model(settings, {OWN: model, **folders}, faces, report)
    with atomic_folder(fused) as part:
        save_model(part, network, config, "float32")
    print(f"fused model: {fused}")


def member_folders(members: Path) -> dict[str, Path]:
    """The models' folders in a folder, by name."""
    folders = sorted(members.iterdir()) if members.is_dir() else []
    return {path.name: path for path in folders if path.is_dir() and find_config(path) is not None}


def fused_model(
    settings: FuseSettings, folders: Mapping[str, Path], faces: Path | None, report: Report
) -> tuple[FusedNetwork, ModelConfig]:
    """The models of some folders as one, and its config; the first gives its name and lineage.

    `faces`: those that choose; with None `mean` and `gate` have equal weights. Raises ValueError
    for models that do not go together.
    """
    members = []
    for name, folder in folders.items():
        network, config = load_model(folder)
        members.append(Member(name=name, network=network, config=config))
    check_together(members)

    options = equal_options(settings, members)
    largest = max(members, key=lambda member: member.config.alignment.crop_px)
    config = _config(members, largest, options)
    choice: dict[str, Any] = {"rule": settings.rule, "reason": "the rule needs no faces"}
    network = built(options, members)
    data: dict[str, Any] = {}

    if faces is None and settings.rule in ("weights", "kernel"):
        raise ValueError(
            f"fuse.rule {settings.rule}: weights are chosen on validation faces; give a folder of "
            f"faces, or the rule mean or gate"
        )
    if faces is None:
        choice["reason"] = "no faces to choose on: equal weights"
    elif settings.rule != "mean":
        table = FaceTable.open(faces, [CHOOSING])
        check_preprocessing(config, table, faces)
        options, choice = _chosen(settings, members, options, config, table)
        data = {"fuse": table_digest(table)}
        if settings.rule == "kernel":
            remembered = FaceTable.open(faces, [REMEMBERED])
            network, choice = _with_memory(settings, members, options, table, remembered)
        else:
            network = built(options, members)
        print(f"{settings.rule}: {choice['reason']}")

    shown = {member.name: weight for member, weight in zip(members, options.weights, strict=True)}
    report(0, shown)
    training = _training(members, choice | {"weights": shown})
    return network, dataclasses.replace(
        config,
        network=_network_config(network.options),
        training=training,
        data=_data(members) | data,
    )


def check_together(members: Sequence[Member]) -> None:
    """ValueError where models cannot be one: another quantity, unit, detector, template or scale of
    the face."""
    if len(members) < 2:
        raise ValueError("one model alone is not fused; name two at least")

    first = members[0]
    for other in members[1:]:
        for what in ("quantity", "unit", "detector", "template", "face_scale"):
            mine, its = (_of(member.config, what) for member in (first, other))
            if mine != its:
                raise ValueError(
                    f"{other.name}: {what} is {its}, that of {first.name} is {mine}; fuse models "
                    f"that see and mean the same"
                )


def _of(config: ModelConfig, what: str) -> Any:
    return getattr(config.alignment if hasattr(config.alignment, what) else config, what)


def common_grid(members: Sequence[Member]) -> LabelGrid:
    """The grid from the least to the greatest label of all members, in the finest of their
    steps."""
    grids = [member.config.grid for member in members]
    return LabelGrid(
        minimum=min(grid.minimum for grid in grids),
        step=min(grid.step for grid in grids),
        maximum=max(grid.maximum for grid in grids),
    )


def equal_options(settings: FuseSettings, members: Sequence[Member]) -> FusedOptions:
    """The settings' rule with equal weights; `kernel` as `mean`, until there are faces to
    remember."""
    unknown = sorted(set(settings.second_stream) - {member.name for member in members})
    names = ", ".join(member.name for member in members)
    if unknown:
        raise ValueError(f"fuse.second_stream: {unknown[0]!r} is none of the members {names}")

    is_gate = settings.rule == "gate"
    streams = [SECOND if one.name in settings.second_stream else FIRST for one in members]
    if is_gate and len(set(streams)) < 2:
        raise ValueError(
            f"fuse.second_stream: rule gate wants members in both streams; name some of {names}"
        )

    weights = [1 / len(members)] * len(members)
    if is_gate:
        weights = [1 / streams.count(stream) for stream in streams]

    return FusedOptions(
        members=tuple(map(_member_options, members, streams)),
        grid=common_grid(members),
        crop_px=max(member.config.alignment.crop_px for member in members),
        rule="mean" if settings.rule == "kernel" else settings.rule,
        weights=tuple(weights),
        threshold=settings.threshold if is_gate else None,
        width=None,
        neighbours=0,
        num_remembered=0,
        zooms=settings.zooms,
    )


def _member_options(member: Member, stream: int) -> MemberOptions:
    config = member.config
    own = config.normalise
    return MemberOptions(
        name=config.name,
        sha256=config.weights.sha256,
        network=MemberNetwork(**asdict(config.network)),
        method=config.method,
        grid=config.grid,
        normalise=MemberInput(input=own.input, mean=own.mean, std=own.std),
        crop_px=config.alignment.crop_px,
        stream=stream,
    )


def built(options: FusedOptions, members: Sequence[Member]) -> FusedNetwork:
    """The fused network with the members' weights."""
    return FusedNetwork(options, [member.network for member in members]).eval()


def _network_config(options: FusedOptions) -> NetworkConfig:
    return NetworkConfig(
        name=FUSED, options=plain_options(options), num_outputs=options.grid.num_labels
    )


def _config(members: Sequence[Member], largest: Member, options: FusedOptions) -> ModelConfig:
    """The first member's config with the largest one's alignment and what is the fused model's own;
    `training` and `data` are still the first's."""
    first = members[0].config
    return dataclasses.replace(
        first,
        format=CONFIG_FORMAT,
        name=f"{first.name}-fused",
        network=_network_config(options),
        grid=options.grid,
        method=METHOD,
        decode=DECODE,
        alignment=largest.config.alignment,
        normalise=UNCHANGED,
        calibration=None,
        metrics={},
        terms=" ".join(dict.fromkeys(member.config.terms for member in members)),
    )


def _training(members: Sequence[Member], choice: Mapping[str, Any]) -> dict[str, Any]:
    """The lineage: how the rule's numbers were chosen, and each member's own training."""
    return {
        "init": FUSED,
        "start": None,
        "fused": dict(choice),
        "members": {
            member.name: {
                "name": member.config.name,
                "sha256": member.config.weights.sha256,
                "data": member.config.data,
                "training": member.config.training,
            }
            for member in members
        },
    }


def _data(members: Sequence[Member]) -> dict[str, Any]:
    """The digests of the first member's faces, with which served faces are compared."""
    return dict(members[0].config.data)


# -------------------------------------------------------------------------------
# Chosen on validation faces
# -------------------------------------------------------------------------------


def _chosen(
    settings: FuseSettings,
    members: Sequence[Member],
    options: FusedOptions,
    config: ModelConfig,
    table: FaceTable,
) -> tuple[FusedOptions, dict[str, Any]]:
    """The options with weights learned on the table's faces, and what is to say of them."""
    known = known_faces(settings, members, options, config, table)
    cluster_N = np.asarray(cluster_codes(who_is_shown(table.person, table.sha256)))
    labelled_N = np.isfinite(table.label)
    bootstrap = Bootstrap(
        num_resamples=settings.num_resamples, interval=settings.interval, seed=settings.seed
    )

    weights = np.zeros(len(members))
    reasons: list[str] = []
    choice: dict[str, Any] = {"rule": settings.rule, "objective": settings.objective}
    for stream in options.streams():
        numbers = [place for place, one in enumerate(options.members) if one.stream in stream]
        own = Known(
            value_MN=known.value_MN[numbers],
            likelihood_MN=known.likelihood_MN[numbers],
            label_N=known.label_N,
            sigma_N=known.sigma_N,
        )
        found: Learned = learned(
            own,
            settings.objective,
            cluster_N=cluster_N[labelled_N],
            min_faces=settings.min_faces,
            num_folds=settings.num_folds,
            bootstrap=bootstrap,
        )
        weights[numbers] = found.weights
        reasons.append(found.reason)
        if found.difference is not None:
            choice["difference"] = asdict(found.difference)

    choice["reason"] = "; ".join(dict.fromkeys(reasons))
    choice["num_faces"] = len(known.label_N)
    return dataclasses.replace(options, weights=tuple(weights.tolist())), choice


def known_faces(
    settings: FuseSettings,
    members: Sequence[Member],
    options: FusedOptions,
    config: ModelConfig,
    table: FaceTable,
) -> Known:
    """Each member's values, and its probability of the label, for the table's labelled faces."""
    labelled_N = np.isfinite(table.label)
    label_N = table.label[labelled_N]
    sigma_N = table.sigma[labelled_N]
    if settings.epsilon_sigma is not None:
        sigma_N = np.where(np.isnan(sigma_N), settings.epsilon_sigma, sigma_N)
    if settings.objective == "epsilon_error" and np.isnan(sigma_N).any():
        raise ValueError(
            "fuse.objective epsilon_error: some validation faces have no sigma; set "
            "labels.epsilon_sigma, or another objective"
        )

    grid = options.grid
    bins_N = ((label_N - grid.minimum) / grid.step).round().astype(np.int64)
    bins_N = bins_N.clip(0, grid.num_labels - 1)
    values = []
    likelihoods = []
    for number, member in enumerate(members):
        alone, own = member_model(built(options, members), config, number)
        predictor = CropPredictor(alone.to(available_device()), own)
        predictions = answer(
            predictor,
            table,
            flip=settings.flip,
            batch_size=settings.batch_size,
            task=f"fuse {member.name}",
        )
        values.append(predictions.value[labelled_N])
        likelihoods.append(predictions.probabilities[labelled_N][np.arange(len(bins_N)), bins_N])

    return Known(
        value_MN=np.stack(values),
        likelihood_MN=np.stack(likelihoods).astype(np.float64),
        label_N=label_N,
        sigma_N=sigma_N,
    )


# -------------------------------------------------------------------------------
# The rule `kernel`
# -------------------------------------------------------------------------------


def _with_memory(
    settings: FuseSettings,
    members: Sequence[Member],
    options: FusedOptions,
    table: FaceTable,
    remembered: FaceTable,
) -> tuple[FusedNetwork, dict[str, Any]]:
    """A network that votes among training faces; width and number of neighbours are those of the
    least error on the table's faces."""
    network = built(options, members).to(available_device())
    some = evenly_spread(len(remembered), settings.kernel.max_remembered)
    bank_NX = _outputs(settings, network, remembered, some, augmented=True)
    bank_label_N = torch.from_numpy(remembered.label[some])

    labelled = np.flatnonzero(np.isfinite(table.label))
    seen_NX = _outputs(settings, network, table, labelled, augmented=False)
    label_N = table.label[labelled]
    distance_NN = torch.cdist(seen_NX, bank_NX, p=1.0)
    nearest = float(distance_NN.min(dim=1).values.median())

    found: list[tuple[float, float, int]] = []
    for neighbours in settings.kernel.neighbours:
        near = torch.topk(-distance_NN, min(neighbours, len(some)), dim=1)
        for factor in settings.kernel.widths:
            width = factor * max(nearest, 1e-6)
            weight_NN = torch.softmax(near.values / width, dim=1)
            value_N = (weight_NN * bank_label_N[near.indices]).sum(dim=1).numpy()
            error = float(np.abs(value_N - label_N).mean())
            found.append((error, width, near.indices.shape[1]))

    error, width, neighbours = min(found)
    voting = dataclasses.replace(
        options,
        rule="kernel",
        width=width,
        neighbours=neighbours,
        num_remembered=len(some),
    )
    network = built(voting, members)
    network.remembered_NX = bank_NX.float()
    network.remembered_label_N = bank_label_N.float()
    reason = f"{neighbours} neighbours, width {width:.4g}: validation error {error:.4f}"
    return network, {"rule": "kernel", "reason": reason, "num_faces": len(label_N)}


@torch.inference_mode()
def _outputs(
    settings: FuseSettings,
    network: FusedNetwork,
    table: FaceTable,
    rows: npt.NDArray[np.int64],
    *,
    augmented: bool,
) -> Tensor:
    """All members' distributions of some faces side by side, float64 (N,X) on the CPU."""
    generator = torch.Generator().manual_seed(settings.seed)
    augmentation = settings.augmentations[settings.augmentation]
    device = available_device()

    parts = []
    for some in np.array_split(rows, -(-len(rows) // settings.batch_size)):
        crops = faces_of(table, some, network.needs_landmarks)
        if augmented:
            faces = training_view(crops, augmentation, UNCHANGED, generator)
        else:
            faces = crops._replace(view_BCHW=crops.view_BCHW.float() / 255)
        landmarks_B52 = faces.landmarks_B52
        if landmarks_B52 is not None:
            landmarks_B52 = landmarks_B52.to(device)
        features_BC = network.forward_head(faces.view_BCHW.to(device), landmarks_B52)
        distributions = network.distributions(features_BC, torch.float64)
        parts.append(torch.cat(distributions, dim=1).cpu())
    return torch.cat(parts)


if __name__ == "__main__":
    stage_main("fuse", FuseSettings, fuse, ["model", "members", "faces", "fused"])
