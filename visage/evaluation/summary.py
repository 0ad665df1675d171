"""The first screen of an evaluation's page: how good the model is, for whom it is bad, how sure its
intervals are. Each is answered by one figure and the sentences that qualify it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from visage.evaluation.bootstrap import Estimate, Group
from visage.evaluation.evaluate import Evaluation
from visage.evaluation.html import Finding, Findings, number, with_interval
from visage.evaluation.plots import FEW_FACES
from visage.model_config import INTERVAL_MASS, ModelConfig

# Groups named one by one, besides the worst.
MAX_NAMED = 2

# An attribute of the faces and one of its groups.
Named = tuple[str, Group]


def summary(evaluation: Evaluation, config: ModelConfig, interval: float, digits: int) -> Findings:
    """The three findings; `interval` is the mass of the bootstrap's intervals, `digits` the
    decimals of figures in the model's unit."""
    return Findings(
        findings=[
            _how_good(evaluation, config.unit, interval, digits),
            _for_whom_bad(evaluation, config.unit, digits),
            _how_sure(evaluation, config, interval, digits),
        ]
    )


def _how_good(evaluation: Evaluation, unit: str, interval: float, digits: int) -> Finding:
    figures = evaluation.figures
    mae = figures["mae"]
    faces = f"{len(evaluation.answers.scored):,} faces of {evaluation.answers.name}"

    shares = []
    for name, share in figures.items():
        if name.startswith("cs_"):
            shares.append(f"{number(name, share.value, digits)} within {name[3:]}")

    sentences = [
        f"{faces}; {interval:.0%} interval {_span('mae', mae, digits)} {unit}.",
        _shift(figures["bias"], unit, digits),
    ]
    if shares:
        sentences.insert(1, f"{', '.join(shares)} {unit}.")

    return Finding(
        question="How good?",
        value=f"{number('mae', mae.value, digits)} {unit} off on average",
        sentences=sentences,
    )


def _shift(bias: Estimate, unit: str, digits: int) -> str:
    """A bias in words; one whose interval holds 0 is none."""
    span = with_interval("bias", bias, digits)
    if not bias.low > 0 and not bias.high < 0:
        return f"No shift to one side is seen: {span}."
    side = "high" if bias.value > 0 else "low"
    return f"Predictions are too {side} on average: {span} {unit}."


def _for_whom_bad(evaluation: Evaluation, unit: str, digits: int) -> Finding:
    overall = evaluation.figures["mae"]
    known = _named_groups(evaluation)
    large = _large(known)
    worst = max(large, key=_by("mae"))
    mae = worst[1].estimates["mae"]

    sentences = [
        f"{worst[1].num_faces:,} faces: {with_interval('mae', mae, digits)}, all faces "
        f"{number('mae', overall.value, digits)} {unit}."
    ]

    small = [named for named in known if named not in large and _by("mae")(named) > mae.value]
    for attribute, group in sorted(small, key=_by("mae"), reverse=True)[:MAX_NAMED]:
        error = number("mae", group.estimates["mae"].value, digits)
        faces = "1 face" if group.num_faces == 1 else f"{group.num_faces} faces"
        sentences.append(f"{attribute} {group.name}: {error}, but from {faces} only.")

    shifted = [named for named in large if _is_shifted(named[1])]
    if shifted:
        attribute, group = max(shifted, key=lambda named: abs(named[1].estimates["bias"].value))
        bias = group.estimates["bias"].value
        side = "high" if bias > 0 else "low"
        off = number("bias", abs(bias), digits)
        sentences.append(f"Most to one side: {attribute} {group.name}, {off} {unit} too {side}.")

    return Finding(
        question="For whom is it bad?",
        value=f"{worst[0]} {worst[1].name}: {number('mae', mae.value, digits)} {unit} off",
        sentences=sentences,
    )


def _how_sure(evaluation: Evaluation, config: ModelConfig, interval: float, digits: int) -> Finding:
    name = "coverage_80"
    share = evaluation.figures[name]
    if share.low <= INTERVAL_MASS <= share.high:
        verdict = "as wide as they should be"
    else:
        verdict = "too wide" if share.value > INTERVAL_MASS else "too narrow"

    attribute, lowest = min(_large(_named_groups(evaluation)), key=_by(name))
    spread = number("mean_std", evaluation.figures["mean_std"].value, digits)
    trust = "calibrated" if config.calibration is not None else "not calibrated"

    return Finding(
        question="How sure is it?",
        value=f"{number(name, share.value, digits)} of the labels are in the "
        f"{INTERVAL_MASS:.0%} interval",
        sentences=[
            f"The intervals are {verdict} ({interval:.0%} interval of the share: "
            f"{_span(name, share, digits)}; {trust}).",
            f"Lowest share: {attribute} {lowest.name}, "
            f"{with_interval(name, lowest.estimates[name], digits)}.",
            f"A prediction's standard deviation is {spread} {config.unit} on average.",
        ],
    )


def _named_groups(evaluation: Evaluation) -> list[Named]:
    return [(attribute, group) for attribute, of in evaluation.groups.items() for group in of]


def _large(groups: Sequence[Named]) -> list[Named]:
    """The groups large enough to be called best or worst; all of them where none is."""
    return [named for named in groups if named[1].num_faces >= FEW_FACES] or list(groups)


def _by(metric: str) -> Callable[[Named], float]:
    def value(named: Named) -> float:
        return named[1].estimates[metric].value

    return value


def _is_shifted(group: Group) -> bool:
    bias = group.estimates["bias"]
    return bias.low > 0 or bias.high < 0


def _span(metric: str, estimate: Estimate, digits: int) -> str:
    """4.32 to 4.61"""
    return f"{number(metric, estimate.low, digits)} to {number(metric, estimate.high, digits)}"
