"""An evaluation -> its plots, and the sections of its HTML page. The page shows no photo, neither a
real nor a synthetic one.

Shapes: F faces shown one by one, K labels of the grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from visage.evaluation import plots
from visage.evaluation.evaluate import Evaluation, Unanswered, band_name
from visage.evaluation.html import (
    Code,
    Gallery,
    Part,
    Picture,
    Section,
    Table,
    Words,
    figures_table,
    groups_table,
    settings_table,
)
from visage.evaluation.metrics import FloatArray, bands
from visage.evaluation.summary import summary
from visage.model_config import ModelConfig

# Rejected photos named on the page.
MAX_LISTED = 200

# Best and worst predictions shown.
NUM_CASES = 8

SPLITS = {"train", "val", "test"}

# Ends the name of a de-duplicated list of faces.
UNSEEN = "_unseen"
WHAT_UNSEEN = (
    "The unseen list is the split without pictures that another split holds and without pictures "
    "that have two labels; of copies it has one."
)

GROUP_METRICS = ("mae", "bias", "coverage_80", "pearson")

# Column name -> number per epoch.
History = Mapping[str, FloatArray]


def digits_of(config: ModelConfig) -> int:
    """Decimals of figures in the model's unit: hundredths of years, thousandths of points."""
    return 2 if config.grid.step >= 1 else 3


def cases(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Rows of the best and the worst predictions by CRPS: the best are sharp and right, the worst
    are sharp and wrong."""
    order = np.argsort(evaluation.answers.scored.crps_N, kind="stable")
    return {"best": order[:NUM_CASES], "worst": order[::-1][:NUM_CASES]}


def case_figure(evaluation: Evaluation, which: str, config: ModelConfig) -> Figure:
    """Label distributions of the best or worst predictions."""
    rows = cases(evaluation)[which]
    answers = evaluation.answers
    scored = replace(answers.scored.take(rows), sigma_N=answers.sigma_N[rows])
    errors = np.abs(scored.error_N)

    if which == "worst":
        miss = f"{errors.min():.3g} to {errors.max():.3g}"
    else:
        miss = f"at most {errors.max():.2g}"
    title = f"The {len(rows)} {which} predictions miss by {miss} {config.unit}"

    return plots.label_distributions(
        title, config.grid.labels(), answers.probability_NK[rows], scored, config.unit
    )


def pictures(
    evaluation: Evaluation,
    config: ModelConfig,
    cs_thresholds: Sequence[float],
    band_width: float,
    histories: Mapping[str, History],
) -> dict[str, Picture]:
    """Every picture by file name (without suffix), in the order of the page."""
    scored = evaluation.answers.scored
    unit = config.unit

    # The confusion matrix needs names for the bands of the labels and of the predictions.
    labelled_N = bands(scored.label_N, band_width)
    predicted_N = bands(scored.prediction_N, band_width)
    lowest = np.unique(np.concatenate([labelled_N, predicted_N])).tolist()
    names = {lower: band_name(lower, band_width, config.grid.step) for lower in lowest}

    mae = evaluation.figures["mae"]
    curve = evaluation.cs_curve
    reliable = evaluation.reliability
    served = evaluation.figures["coverage_80"]
    before = list(evaluation.uncalibrated.values())

    figures = {
        "predicted_vs_true": plots.predicted_vs_true(scored, mae, unit),
        "error_by_band": plots.error_by_band(
            evaluation.groups[config.quantity], config.quantity, unit
        ),
        "cs_curve": plots.cs_curve(list(curve), list(curve.values()), cs_thresholds, unit),
        "group_errors": plots.group_errors(evaluation.groups, mae, unit),
        "confusion": plots.confusion(scored, band_width, names, unit),
        "reliability": plots.reliability(list(reliable), list(reliable.values()), served, before),
        "pit": plots.pit(evaluation.pit_N),
        "best_cases": case_figure(evaluation, "best", config),
        "worst_cases": case_figure(evaluation, "worst", config),
    }
    for stage, rows in histories.items():
        if rows:
            figures[f"learning_{stage}"] = plots.learning_curves(stage, rows, unit)

    return {
        name: Picture(caption=str(figure.get_suptitle()), png=plots.png(figure))
        for name, figure in figures.items()
    }


def headline(evaluations: Sequence[Evaluation], config: ModelConfig) -> Table:
    """Every metric with its interval, one column for each list of faces."""
    columns = {}
    for evaluation in evaluations:
        answers = evaluation.answers
        columns[f"{answers.name} ({len(answers.scored):,} faces)"] = evaluation.figures

    return figures_table(
        f"{config.name}: {config.quantity} in {config.unit}",
        columns,
        config.unit,
        digits_of(config),
    )


def case_table(evaluation: Evaluation, config: ModelConfig) -> Table:
    """The worst predictions by photo, so that a person who has the photos can look at them."""
    answers = evaluation.answers
    scored = answers.scored
    columns = [scored.label_N, scored.prediction_N, scored.std_N, scored.crps_N]
    digits = digits_of(config)

    cells = []
    for row in cases(evaluation)["worst"]:
        numbers = [f"{column[row]:.{digits}f}" for column in columns]
        cells.append([str(answers.photo_id_N[row]), *numbers])

    header = ["photo", "label", "prediction", "standard deviation", "CRPS"]
    return Table(caption="Worst predictions", header=header, rows=cells)


def left_out(losses: Mapping[str, Unanswered]) -> list[Part]:
    """The photos without a prediction, counted: without them the metrics would look better than
    they are."""
    parts: list[Part] = []
    for split, loss in losses.items():
        predicted = loss.num_photos - loss.num_quarantined - len(loss.rejects)
        text = (
            f"{split}: {loss.num_photos:,} photos, of which {loss.num_quarantined:,} were "
            f"quarantined by validate, {len(loss.rejects):,} rejected by align, {predicted:,} "
            f"predicted ({loss.num_found_frame:,} of them on the full frame, because no face was "
            "found)."
        )
        parts.append(Words(text=text))

        if loss.rejects:
            shown = loss.rejects[:MAX_LISTED]
            caption = f"Rejected ({len(shown)} of {len(loss.rejects)} shown)"
            parts.append(Table(caption=caption, header=["photo", "reason"], rows=shown))

    return parts


def quality(document: Mapping[str, Any] | None) -> list[Part]:
    """The validation report: its checks, and its facts one a row."""
    if document is None:
        return [Words(text="No validation report was given.")]

    columns = {
        "check": "check",
        "result": "result",
        "found": "found",
        "quarantined": "quarantined",
        "claim": "required",
    }

    def cells(check: Mapping[str, Any]) -> list[str]:
        return [str(check.get(name, "")) for name in columns]

    checks = [cells(check) for check in document["checks"]]
    counts = (
        f"{document['photos']:,} photos were checked, {document['quarantined']:,} of them "
        "quarantined."
    )

    return [
        Words(text=counts),
        Table(caption="Checks", header=list(columns.values()), rows=checks),
        *facts_tables(document["facts"]),
    ]


def facts_tables(facts: Mapping[str, Any]) -> list[Part]:
    """Facts that differ between splits, one table each with a column a split; the others, one a
    row, in a last table."""
    tables: list[Part] = []
    others: list[list[str]] = []

    for title, values in _by_split(facts):
        if title is None:
            others += [[name, _count(value)] for name, value in values.items()]
            continue

        # Each name once, in the order in which they appear.
        names: dict[str, None] = {}
        for counts in values.values():
            names |= dict.fromkeys(counts)
        rows = [
            [name, *(_count(counts.get(name, 0)) for counts in values.values())] for name in names
        ]
        tables.append(Table(caption=title, header=["", *values], rows=rows))

    if others:
        tables.append(Table(caption="Other facts", header=["", ""], rows=others))
    return tables


def _count(value: float) -> str:
    """1,781 for a number of photos, 98.41 for a label."""
    return f"{value:,}".removesuffix(".0")


def _by_split(
    values: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[str | None, Mapping[str, Any]]]:
    """The facts in their order: (title, split -> name -> number) for those of the splits, and
    (None, name -> number) for the others."""
    single: dict[str, Any] = {}

    for name, value in values.items():
        inside = (*path, name.replace("_", " "))
        if not isinstance(value, Mapping):
            single[", ".join(inside)] = value
        elif value and all(isinstance(counts, Mapping) for counts in value.values()):
            if name == "splits":
                yield "Photos", value
            elif set(value) <= SPLITS:
                yield "Photos by " + ", ".join(inside).removesuffix(", photos"), value
            else:
                yield from _by_split(value, path)
        else:
            yield from _by_split(value, inside)

    if single:
        yield None, single


def trust_in_words(config: ModelConfig) -> str:
    """How the model was calibrated, in a sentence."""
    found = config.calibration
    if found is None:
        return "Not calibrated: distributions and intervals are the method's own."

    views = ", flip averaged" if found.flip else ""
    side = "out" if found.offset >= 0 else "in"
    return (
        f"Calibrated on {found.num_faces:,} validation faces{views}: temperature "
        f"{found.temperature:.3f}, both ends of the {found.mass:.0%} interval moved {side} by "
        f"{abs(found.offset):.{digits_of(config)}f} {config.unit}. No value was changed."
    )


def sections(
    evaluations: Sequence[Evaluation],
    config: ModelConfig,
    drawn: Mapping[str, Picture],
    losses: Mapping[str, Unanswered],
    validation: Mapping[str, Any] | None,
    settings: Mapping[str, object],
) -> list[Section]:
    """The page's chapters; pictures and groups are those of the first list of faces."""
    first = evaluations[0]
    digits = digits_of(config)
    views = "flip averaged" if settings["flip"] else "one view"
    decode = settings["decode"] or config.decode
    how = f"Prediction: {decode} of the distribution, {views}. "
    intervals = (
        f"Brackets: {settings['interval']:.0%} percentile bootstrap, "
        f"{settings['num_resamples']:,} resamples."
    )

    notes = [Words(text=how + intervals), Words(text=trust_in_words(config))]
    if any(evaluation.answers.name.endswith(UNSEEN) for evaluation in evaluations):
        notes.insert(0, Words(text=WHAT_UNSEEN))
    tables = [
        groups_table(name, groups, GROUP_METRICS, config.unit, digits)
        for name, groups in first.groups.items()
    ]
    learning = [picture for name, picture in drawn.items() if name.startswith("learning_")]

    def side_by_side(*names: str) -> Gallery:
        return Gallery(pictures=[drawn[name] for name in names])

    worst: list[Part] = [drawn["best_cases"], drawn["worst_cases"], case_table(first, config)]

    return [
        Section(
            title="Summary",
            parts=[
                summary(first, config, float(str(settings["interval"])), digits),
                side_by_side("predicted_vs_true", "error_by_band"),
            ],
        ),
        Section(
            title="Metrics",
            parts=[headline(evaluations, config), *notes],
        ),
        Section(title="Groups", parts=[drawn["group_errors"], *tables]),
        Section(title="Size of the errors", parts=[side_by_side("cs_curve", "confusion")]),
        Section(title="Uncertainty", parts=[side_by_side("reliability", "pit")]),
        Section(title="Best and worst predictions", parts=worst),
        Section(title="Photos without a prediction", parts=left_out(losses)),
        Section(title="Training", parts=learning or [Words(text="No learning curves were given.")]),
        Section(title="Data quality", parts=quality(validation)),
        Section(
            title="Settings",
            parts=[settings_table("Section evaluate of params.yaml", settings)],
            folded=True,
        ),
        Section(title="Model config", parts=[Code(text=config.to_json())], folded=True),
    ]
