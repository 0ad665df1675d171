"""The error of each head of a network that has several: the heads that only train, and the last
one, which predicts (DHAA's Fig. 6).

The mean over face and mirror image is taken as in a prediction. Legend: B faces of a batch, K
labels of the grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from visage.data.mirror import mirrored
from visage.data.preprocess import evaluation_faces
from visage.evaluation.bootstrap import Bootstrap, Estimate, estimate
from visage.evaluation.evaluate import Answers
from visage.evaluation.html import Table, title_of, with_interval
from visage.evaluation.metrics import FloatArray, Scored, mae
from visage.evaluation.plots import BLUE, GREY, canvas, dress, spans
from visage.labels import DECODERS
from visage.methods import METHODS
from visage.model_config import ModelConfig
from visage.networks.protocol import FaceBatch, Network

# The head that predicts, beside the names of those that only train
LAST = "last"


@torch.inference_mode()
def head_values(
    network: Network, config: ModelConfig, batches: Iterable[FaceBatch], *, flip: bool
) -> dict[str, FloatArray]:
    """uint8 crops with landmarks -> each head's value of every face, by the head's name; nothing
    where the network has one head."""
    names = network.auxiliary_names()
    if not names:
        return {}

    network.eval()
    device = next(network.parameters()).device
    found: dict[str, list[FloatArray]] = {name: [] for name in (*names, LAST)}
    for crops in batches:
        faces = evaluation_faces(_on(device, crops), config.normalise)
        views = [faces, FaceBatch(*mirrored(*faces))] if flip else [faces]
        of_views = [_values(network, config, view) for view in views]

        for name, columns in found.items():
            value_B = torch.stack([view[name] for view in of_views]).mean(dim=0)
            columns.append(value_B.cpu().numpy())

    return {name: np.concatenate(columns) for name, columns in found.items()}


def head_errors(
    values: Mapping[str, FloatArray], answers: Answers, bootstrap: Bootstrap
) -> dict[str, Estimate]:
    """The mean absolute error of each head's values for the faces of `answers`."""
    errors: dict[str, Estimate] = {}
    for name, value_N in values.items():
        scored = Scored.of_points(answers.scored.label_N, value_N)
        errors |= estimate(scored, {name: mae}, bootstrap, answers.cluster_N)
    return errors


def heads_table(errors: Mapping[str, Estimate], unit: str, digits: int) -> Table:
    """A line a head."""
    rows = [[name, with_interval("mae", one, digits)] for name, one in errors.items()]
    return Table(caption="Error of each head", header=["head", title_of("mae", unit)], rows=rows)


def heads_figure(errors: Mapping[str, Estimate], unit: str) -> Figure:
    """A bar a head; the one that predicts in blue."""
    only_train = {name: one.value for name, one in errors.items() if name != LAST}
    best = min(only_train, key=lambda name: only_train[name])
    figure = canvas(
        f"The last head errs by {errors[LAST].value:.2f} {unit}, "
        f"the best that only trains ({best}) by {only_train[best]:.2f}",
        7,
        3.6,
    )
    axes = figure.subplots()

    value, span = spans(list(errors.values()))
    colours = [BLUE if name == LAST else GREY for name in errors]
    axes.bar(list(errors), value, yerr=span, color=colours, capsize=3)
    axes.set_ylim(bottom=0.8 * float(value.min()))
    dress(axes, "head (the axis does not begin at 0)", f"mean absolute error ({unit})")
    return figure


def _values(network: Network, config: ModelConfig, faces: FaceBatch) -> dict[str, Tensor]:
    """Each head's values (B,), float64."""
    outputs = network(faces)
    of_heads = zip(
        (*network.auxiliary_names(), LAST), (*outputs.auxiliary, outputs.logits_BK), strict=True
    )

    found = {}
    for name, logits_BK in of_heads:
        p_BK = METHODS[config.method].probabilities(logits_BK.double(), config.grid)
        found[name] = DECODERS[config.decode](p_BK, config.grid)
    return found


def _on(device: torch.device, faces: FaceBatch) -> FaceBatch:
    landmarks_B52 = faces.landmarks_B52
    if landmarks_B52 is not None:
        landmarks_B52 = landmarks_B52.to(device)
    return FaceBatch(faces.view_BCHW.to(device), landmarks_B52)
