"""A fused model beside each of its members, on the same faces: what fusing gains.

Legend: N faces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from visage.evaluation.bootstrap import Bootstrap, Difference, paired_bootstrap
from visage.evaluation.evaluate import Answers
from visage.evaluation.html import Table, title_of
from visage.inference.fused_member import member_model
from visage.model_config import ModelConfig
from visage.networks.fused import FusedNetwork


@dataclass(frozen=True, kw_only=True)
class MemberRow:
    """A member's name, mean absolute error, and the fused model's less it (below 0: fusing is
    better), in label units; `is_best`: the least error of all members."""

    name: str
    weight: float
    mae: float
    difference: Difference
    is_best: bool


def member_rows(
    network: FusedNetwork,
    config: ModelConfig,
    answers: Answers,
    values_of: Callable[[FusedNetwork, ModelConfig], dict[str, float]],
    bootstrap: Bootstrap,
) -> list[MemberRow]:
    """A row a member on the faces that the fused model answered; `values_of` gives a model's value
    of each photo."""
    label_N = answers.scored.label_N
    fused_error_N = np.abs(answers.scored.error_N)
    errors = []
    for number in range(len(network.options.members)):
        value_of = values_of(*member_model(network, config, number))
        value_N = np.array([value_of[photo] for photo in answers.photo_id_N])
        errors.append(np.abs(value_N - label_N))

    means = [float(error_N.mean()) for error_N in errors]
    rows = []
    for number, member in enumerate(network.options.members):
        difference = paired_bootstrap(fused_error_N, errors[number], bootstrap, answers.cluster_N)
        row = MemberRow(
            name=f"{number + 1}: {member.name}",
            weight=network.options.weights[number],
            mae=means[number],
            difference=difference,
            is_best=means[number] == min(means),
        )
        rows.append(row)
    return rows


def members_document(rows: Sequence[MemberRow]) -> list[dict[str, Any]]:
    """The rows as JSON has them."""
    return [asdict(row) for row in rows]


def members_table(rows: Sequence[Mapping[str, Any]], unit: str) -> Table:
    """The document's rows in words: the best member's difference is the gain of fusing."""
    lines = []
    for row in rows:
        own = row["difference"]
        gain = f"{own['value']:+.3f} ({own['low']:+.3f} to {own['high']:+.3f})"
        best = "best" if row["is_best"] else ""
        lines.append([row["name"], f"{row['weight']:.3f}", f"{row['mae']:.3f}", gain, best])
    header = ["member", "weight", title_of("mae", unit), "fused less member", ""]
    return Table(caption="The fused model's members", header=header, rows=lines)
