"""The promotion gate: a challenger is compared with the champion on the test faces of both, and
replaces it or is refused.

Each version's run holds its predictions, made by the pipeline that made the version; nothing is
predicted again. A face counts where it is in the test split of both, with the same label, so that
neither was trained on it. All rules must hold (limits in `PromoteSettings`):

- shared: `min_shared_faces` of the champion's test faces are still test faces;
- overall: the MAE is higher by at most `max_mae_increase`, and not provably higher: the interval of
  the difference (paired bootstrap over people, visage.evaluation.bootstrap) reaches 0 or below;
- groups (sex, ethnicity, band of the label; those of at least `min_group_faces` shared faces): the
  MAE is higher by at most `max_group_mae_increase`. No interval is asked for: with twenty groups,
  one would be above 0 by chance alone;
- calibration: the share of labels inside the 80 % interval is not further from 80 % than the
  champion's by more than `max_coverage_loss`;
- size of the weights file and time for a face, both measured here on the same machine:
  `max_size_ratio`, `max_latency_ratio`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow import MlflowClient

from model_registry.mlflow_client import connect, patiently
from model_registry.package import fetch
from model_registry.promote import (
    AGAINST,
    CHALLENGER,
    DECISION,
    PROMOTED,
    REASONS,
    REFUSED,
    add_event,
    champion,
    last_event,
    promote,
    set_tags,
)
from model_registry.record import PREDICTIONS
from visage.detection.align import template
from visage.evaluation.bootstrap import Bootstrap, cluster_codes, paired_bootstrap, who_is_shown
from visage.evaluation.metrics import bands
from visage.inference.faces import CropPredictor
from visage.model_config import INTERVAL_MASS, AlignmentConfig
from visage.networks.protocol import FaceBatch
from visage.strict import check_positive
from visage.weights import load_model

TEST = "test"

# Faces predicted one by one to compare the speed; the first ones only warm up.
NUM_TIMED = 15
NUM_WARM = 3


@dataclass(frozen=True, kw_only=True)
class PromoteSettings:
    """The limits of the rules above. MAE in label units; coverage and `min_shared_faces` as shares
    of 1; `band_width` of the label, in its units."""

    max_mae_increase: float
    max_group_mae_increase: float
    min_group_faces: int
    band_width: float = field(metadata={"section": "labels"})
    max_coverage_loss: float
    max_size_ratio: float
    max_latency_ratio: float
    min_shared_faces: float
    num_resamples: int
    interval: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.min_shared_faces <= 1:
            raise ValueError(
                f"min_shared_faces is {self.min_shared_faces}: give a share above 0 and up to 1"
            )
        check_positive(self, "band_width")
        self.bootstrap  # noqa: B018  # refuses impossible numbers

    @property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap(num_resamples=self.num_resamples, interval=self.interval, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One rule's result: both figures, the limit in the rule's own terms, and whether it holds."""

    name: str
    champion: float
    challenger: float
    limit: float
    passed: bool
    num_faces: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether the challenger becomes champion, the reasons, and the result of every rule that was
    checked."""

    promote: bool
    champion: int | None
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [asdict(check) for check in self.checks]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A version in the comparison: its test predictions (columns of visage.evaluation.tables) and
    its model's folder."""

    version: int
    predictions: pd.DataFrame
    folder: Path


def decide(
    model: str, version: int, settings: PromoteSettings, lineage: Mapping[str, str]
) -> Decision:
    """Makes the version challenger, compares it with the champion, and promotes or refuses it.

    May be called again after an interruption anywhere. `lineage`: tags that say what the version
    was made of. Raises ValueError where the champion changed during the comparison.
    """
    client = connect()
    patiently(lambda: client.set_registered_model_alias(model, CHALLENGER, str(version)))
    incumbent = champion(model)

    decision = patiently(lambda: compare(client, model, version, incumbent, settings))
    if champion(model) != incumbent:
        raise ValueError(
            f"{model}: another champion was named while version {version} was compared; try again"
        )

    tags = {
        AGAINST: str(incumbent),
        REASONS: "\n".join(decision.reasons),
        **lineage,
        DECISION: PROMOTED if decision.promote else REFUSED,
    }
    patiently(lambda: set_tags(client, model, version, tags))
    if decision.promote:
        promote(model, version, decision.reasons[0])
        patiently(lambda: client.delete_registered_model_alias(model, CHALLENGER))
    elif (REFUSED, version) != last_event(model):
        add_event(client, model, REFUSED, version, "; ".join(decision.reasons))
    return decision


def compare(
    client: MlflowClient,
    model: str,
    challenger: int,
    champion: int | None,
    settings: PromoteSettings,
) -> Decision:
    """The decision about version `challenger` of `model`. Without a champion any version is
    promoted."""
    if champion is None:
        return Decision(
            promote=True, champion=None, reasons=("there is no champion yet",), checks=()
        )
    if champion == challenger:  # it was decided before
        tags = client.get_model_version(model, str(challenger)).tags
        reason = tags.get(REASONS, "it is the champion already")
        return Decision(promote=True, champion=champion, reasons=(reason,), checks=())

    with tempfile.TemporaryDirectory() as place:
        ours, theirs = (
            _contender(client, model, version, Path(place) / str(version))
            for version in (challenger, champion)
        )
        return judge(ours, theirs, settings)


def judge(challenger: Contender, champion: Contender, settings: PromoteSettings) -> Decision:
    """Applies the rules to two versions."""
    shared = shared_faces(challenger.predictions, champion.predictions)
    first = _shared_check(len(shared), champion.predictions["sha256"].nunique(), settings)

    checks = [first]
    if first.passed:
        checks += [
            _overall(shared, settings),
            *_groups(shared, settings),
            _calibration(shared, settings),
        ]
    checks += [
        _size(challenger.folder, champion.folder, settings),
        _latency(challenger.folder, champion.folder, settings),
    ]

    refused = tuple(check.reason for check in checks if not check.passed)
    held = f"no worse than version {champion.version} on {len(shared)} shared test faces"
    return Decision(
        promote=not refused,
        champion=champion.version,
        reasons=refused or (held,),
        checks=tuple(checks),
    )


def shared_faces(challenger: pd.DataFrame, champion: pd.DataFrame) -> pd.DataFrame:
    """One row for each face that is a test face of both with the same label; the champion's columns
    end in _champion."""
    mine, theirs = (
        table.drop_duplicates("sha256").set_index("sha256") for table in (challenger, champion)
    )
    theirs = theirs[["label", "prediction", "low", "high"]].add_suffix("_champion")
    both = mine.join(theirs, how="inner")
    return both[both["label"] == both["label_champion"]].reset_index()


def _contender(client: MlflowClient, model: str, version: int, place: Path) -> Contender:
    run_id = client.get_model_version(model, str(version)).run_id
    place.mkdir()
    path = mlflow.artifacts.download_artifacts(
        run_id=run_id, artifact_path=PREDICTIONS, dst_path=str(place)
    )
    table = pd.read_parquet(
        path,
        columns=[
            "sha256",
            "person",
            "label",
            "split",
            "sex",
            "ethnicity",
            "prediction",
            "low",
            "high",
        ],
    )
    test = table[table["split"] == TEST]
    return Contender(
        version=version,
        predictions=test,
        folder=fetch(f"models:/{model}/{version}", place / "model"),
    )


def _shared_check(num_shared: int, num_champion: int, settings: PromoteSettings) -> Check:
    share = num_shared / max(1, num_champion)
    passed = num_shared > 0 and share >= settings.min_shared_faces
    return Check(
        name="shared test faces",
        champion=num_champion,
        challenger=num_shared,
        limit=settings.min_shared_faces,
        passed=passed,
        num_faces=num_shared,
        reason=f"{num_shared} of the champion's {num_champion} test faces are test for the "
        f"challenger with the same label, fewer than {settings.min_shared_faces:.0%}: on other "
        "faces nothing can be compared. If the data were changed on purpose, give package.model "
        "another name, or promote by hand",
    )


def _overall(shared: pd.DataFrame, settings: PromoteSettings) -> Check:
    mine, theirs = _errors(shared)
    people = cluster_codes(who_is_shown(_or_none(shared["person"]), shared["sha256"]))
    difference = paired_bootstrap(mine, theirs, settings.bootstrap, people)
    return Check(
        name="MAE",
        champion=float(theirs.mean()),
        challenger=float(mine.mean()),
        limit=settings.max_mae_increase,
        passed=difference.value <= settings.max_mae_increase and difference.low <= 0,
        num_faces=len(shared),
        reason=f"MAE {mine.mean():.3f} against {theirs.mean():.3f}: higher by "
        f"{difference.value:.3f} ({settings.interval:.0%} interval {difference.low:.3f} to "
        f"{difference.high:.3f}), which must be at most {settings.max_mae_increase:g} and not "
        "provably above 0",
    )


def _groups(shared: pd.DataFrame, settings: PromoteSettings) -> Iterator[Check]:
    band = pd.Series(bands(shared["label"].to_numpy(), settings.band_width), shared.index)
    attributes = {"sex": shared["sex"], "ethnicity": shared["ethnicity"], "label from": band}

    for name, values in attributes.items():
        for value, rows in shared.groupby(values):
            if len(rows) < settings.min_group_faces:
                continue
            mine, theirs = (float(errors.mean()) for errors in _errors(rows))
            yield Check(
                name=f"MAE, {name} {value}",
                champion=theirs,
                challenger=mine,
                limit=settings.max_group_mae_increase,
                passed=mine - theirs <= settings.max_group_mae_increase,
                num_faces=len(rows),
                reason=f"MAE of {name} {value} ({len(rows)} faces) {mine:.3f} against "
                f"{theirs:.3f}: higher by {mine - theirs:.3f}, which must be at most "
                f"{settings.max_group_mae_increase:g}",
            )


def _calibration(shared: pd.DataFrame, settings: PromoteSettings) -> Check:
    mine = _coverage(shared, "")
    theirs = _coverage(shared, "_champion")
    loss = abs(mine - INTERVAL_MASS) - abs(theirs - INTERVAL_MASS)
    return Check(
        name="coverage of the 80 % interval",
        champion=theirs,
        challenger=mine,
        limit=settings.max_coverage_loss,
        passed=loss <= settings.max_coverage_loss,
        num_faces=len(shared),
        reason=f"the 80 % interval holds {mine:.1%} of the labels, the champion's {theirs:.1%}: "
        f"further from 80 % by {loss:.3f}, which must be at most {settings.max_coverage_loss:g}",
    )


def _coverage(shared: pd.DataFrame, end: str) -> float:
    """The share of labels inside the intervals of the version whose columns end in `end`."""
    label = shared["label"]
    inside = (shared[f"low{end}"] <= label) & (label <= shared[f"high{end}"])
    return float(inside.mean())


def _size(challenger: Path, champion: Path, settings: PromoteSettings) -> Check:
    mine, theirs = (
        sum(file.stat().st_size for file in place.glob("*.safetensors"))
        for place in (challenger, champion)
    )
    return Check(
        name="bytes of the weights",
        champion=theirs,
        challenger=mine,
        limit=settings.max_size_ratio,
        passed=mine <= settings.max_size_ratio * theirs,
        num_faces=0,
        reason=f"the weights take {mine} bytes, the champion's {theirs}: {mine / theirs:.2f} times "
        f"as many, which must be at most {settings.max_size_ratio:g}",
    )


def _latency(challenger: Path, champion: Path, settings: PromoteSettings) -> Check:
    mine, theirs = milliseconds_a_face([challenger, champion])
    return Check(
        name="milliseconds a face",
        champion=theirs,
        challenger=mine,
        limit=settings.max_latency_ratio,
        passed=mine <= settings.max_latency_ratio * theirs,
        num_faces=NUM_TIMED,
        reason=f"an aligned face takes {mine:.1f} ms, the champion's {theirs:.1f} ms: "
        f"{mine / theirs:.2f} times as long, which must be at most "
        f"{settings.max_latency_ratio:g}",
    )


def milliseconds_a_face(folders: list[Path]) -> list[float]:
    """The median time of each model for one aligned face. The models take turns, so that another
    load on the machine hits them alike."""
    predictors = [CropPredictor(*load_model(folder)) for folder in folders]
    faces = [_random_face(predictor.config.alignment) for predictor in predictors]

    seconds: list[list[float]] = [[] for _ in folders]
    for turn in range(NUM_WARM + NUM_TIMED):
        for place, (predictor, face) in enumerate(zip(predictors, faces, strict=True)):
            started = time.perf_counter()
            predictor.predict_crops(*face)
            if turn >= NUM_WARM:
                seconds[place].append(time.perf_counter() - started)

    return [1000 * statistics.median(each) for each in seconds]


def _random_face(how: AlignmentConfig) -> FaceBatch:
    """A crop of random colours, uint8, its landmarks at the template's places."""
    generator = torch.Generator().manual_seed(0)
    crop_1CHW = torch.randint(256, (1, 3, how.crop_px, how.crop_px), generator=generator)
    template_52 = template(how.template, how.crop_px, how.face_scale)
    return FaceBatch(crop_1CHW.to(torch.uint8), torch.from_numpy(template_52).float()[None])


def _errors(shared: pd.DataFrame) -> tuple[Any, Any]:
    """Absolute errors of challenger and champion, (N,) each."""
    return tuple(
        np.abs((shared[f"prediction{end}"] - shared["label"]).to_numpy())
        for end in ("", "_champion")
    )


def _or_none(names: pd.Series[Any]) -> list[str | None]:
    return [None if pd.isna(name) else str(name) for name in names]
