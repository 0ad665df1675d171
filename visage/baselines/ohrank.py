"""OHRank: one cost-sensitive linear SVM for each threshold, all of them solved together (Chang,
Chen, Hung 2011).

Question k of K - 1 is whether y > l_k. The solver is liblinear's (Newton's method with conjugate
gradients, Lin, Weng, Keerthi 2008), but every product with the features serves all questions: a
hundred of them cost a few matrix products instead of about ten thousand passes over the features.
Legend: N examples, R = K - 1 questions, S those not solved yet, D features with the constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visage.baselines.linear import Examples, FitSettings, LinearModel
from visage.encodings import ranking_encoding
from visage.labels import LabelGrid

# Of a Newton system, at which its solution is good enough: liblinear's.
RESIDUAL = 0.1
MAX_CONJUGATE_STEPS = 100
# Share of the decrease that the slope promises: liblinear's.
SUFFICIENT_DECREASE = 0.01
MAX_HALVINGS = 20


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Right answers (N,R), +1 or -1, and what a wrong one costs, C included, (N,R)."""

    answer_NR: Tensor
    cost_NR: Tensor

    def take(self, rows_S: Tensor) -> Questions:
        return Questions(answer_NR=self.answer_NR[:, rows_S], cost_NR=self.cost_NR[:, rows_S])

    def slack(self, outputs_NR: Tensor) -> Tensor:
        """By how much each output misses its margin of 1, (N,R)."""
        return (1 - self.answer_NR * outputs_NR).clamp_min(0)

    def value(self, weight_RD: Tensor, outputs_NR: Tensor) -> Tensor:
        """1/2 w.w + C sum c max(0, 1 - s w.x)^2 of each question, summed in float64, (R,)."""
        losses_NR = self.cost_NR * self.slack(outputs_NR) ** 2
        penalty_R = 0.5 * weight_RD.square().sum(dim=1, dtype=torch.float64)
        return penalty_R + losses_NR.sum(dim=0, dtype=torch.float64)

    def slope(self, weight_RD: Tensor, outputs_NR: Tensor, features_ND: Tensor) -> Tensor:
        """Gradient of `value` with respect to the weights, (R,D)."""
        pull_NR = self.cost_NR * self.answer_NR * self.slack(outputs_NR)
        return weight_RD - 2 * pull_NR.T @ features_ND


def fit_ohrank(
    examples: Examples, grid: LabelGrid, strength: float, settings: FitSettings
) -> LinearModel:
    """1/2 w.w + C sum c max(0, 1 - s w.x)^2 for each question, c as in `questions_of`; O = K - 1.

    Where all examples have the same answer there is nothing to learn: the constant gets an infinite
    weight of that sign.
    """
    questions = questions_of(examples.label_N, grid, strength)
    lowest_R = questions.answer_NR.amin(dim=0)
    highest_R = questions.answer_NR.amax(dim=0)
    open_S = (lowest_R < highest_R).nonzero()[:, 0]

    weight_RD = examples.features_ND.new_zeros(grid.num_labels - 1, examples.features_ND.shape[1])
    weight_RD[:, -1] = highest_R * torch.inf
    weight_RD[open_S], num_iterations, converged = solved(
        questions.take(open_S), examples.features_ND, settings
    )
    return LinearModel(weight_OD=weight_RD, num_iterations=num_iterations, converged=converged)


def questions_of(label_N: Tensor, grid: LabelGrid, strength: float) -> Questions:
    """y > l_k for k = 1 .. K - 1; a wrong answer costs C times the least error that it leads to.

    A face above l_k that is answered with no gets at most l_k, an error of y - l_k. A face at or
    below l_k that is answered with yes gets at least l_{k+1}, an error of l_{k+1} - y. |y - l_k|
    for both would give the labels at l_k no weight, and the values would be too high.
    """
    answer_NR = 2 * ranking_encoding(label_N, grid) - 1
    labels_K = grid.labels_as(label_N)
    distance_NR = torch.where(
        answer_NR > 0, label_N[:, None] - labels_K[:-1], labels_K[1:] - label_N[:, None]
    )
    return Questions(answer_NR=answer_NR, cost_NR=strength * distance_NR)


def solved(
    questions: Questions, features_ND: Tensor, settings: FitSettings
) -> tuple[Tensor, int, bool]:
    """The best weights (R,D), the number of Newton steps of the slowest question, and whether all
    converged.

    A question is done when its gradient is small enough, or when no step lowers its value any more:
    the floating type allows no better.
    """
    outputs_NR = torch.zeros_like(questions.answer_NR)
    weight_RD = features_ND.new_zeros(outputs_NR.shape[1], features_ND.shape[1])
    slope_RD = questions.slope(weight_RD, outputs_NR, features_ND)
    goal_R = settings.tolerance * slope_RD.norm(dim=1)
    rows_S = torch.arange(len(weight_RD))

    for iteration in range(settings.max_iterations):
        if len(rows_S) == 0:
            return weight_RD, iteration, True

        part = questions.take(rows_S)
        weight_SD = weight_RD[rows_S]
        outputs_NS = outputs_NR[:, rows_S]
        curvature_NS = part.cost_NR * (part.slack(outputs_NS) > 0)
        step_SD = newton_step(slope_RD[rows_S], curvature_NS, features_ND)

        change_NS = features_ND @ step_SD.T
        length_S = step_lengths(part, weight_SD, outputs_NS, step_SD, change_NS, slope_RD[rows_S])
        weight_RD[rows_S] += length_S[:, None] * step_SD
        outputs_NR[:, rows_S] += length_S * change_NS
        slope_RD[rows_S] = part.slope(weight_RD[rows_S], outputs_NR[:, rows_S], features_ND)

        steep_S = slope_RD[rows_S].norm(dim=1) > goal_R[rows_S]
        rows_S = rows_S[steep_S & (length_S > 0)]

    return weight_RD, settings.max_iterations, len(rows_S) == 0


def newton_step(slope_SD: Tensor, curvature_NS: Tensor, features_ND: Tensor) -> Tensor:
    """d with (1 + 2 X' diag(curvature) X) d = -slope for each question, nearly, by conjugate
    gradients, (S,D)."""
    step_SD = torch.zeros_like(slope_SD)
    residual_SD = -slope_SD
    search_SD = residual_SD.clone()
    square_S = residual_SD.square().sum(dim=1)
    goal_S = RESIDUAL**2 * square_S
    rows_S = torch.arange(len(slope_SD))

    for _ in range(MAX_CONJUGATE_STEPS):
        curved_NS = curvature_NS[:, rows_S] * (features_ND @ search_SD.T)
        bent_SD = search_SD + 2 * curved_NS.T @ features_ND
        length_S = square_S / (search_SD * bent_SD).sum(dim=1)
        step_SD[rows_S] += length_S[:, None] * search_SD
        residual_SD = residual_SD - length_S[:, None] * bent_SD

        ratio_S = 1 / square_S
        square_S = residual_SD.square().sum(dim=1)
        search_SD = residual_SD + (ratio_S * square_S)[:, None] * search_SD

        # Solved questions leave, so that later products are smaller.
        kept = square_S > goal_S[rows_S]
        search_SD = search_SD[kept]
        rows_S = rows_S[kept]
        residual_SD = residual_SD[kept]
        square_S = square_S[kept]
        if len(rows_S) == 0:
            break

    return step_SD


def step_lengths(
    questions: Questions,
    weight_SD: Tensor,
    outputs_NS: Tensor,
    step_SD: Tensor,
    change_NS: Tensor,
    slope_SD: Tensor,
) -> Tensor:
    """1, 1/2, 1/4 ... (S,): the first step by which each question's value falls enough, else 0."""
    before_S = questions.value(weight_SD, outputs_NS)
    promise_S = SUFFICIENT_DECREASE * (slope_SD * step_SD).sum(dim=1, dtype=torch.float64)

    length_S = weight_SD.new_ones(len(weight_SD))
    for _ in range(MAX_HALVINGS):
        after_S = questions.value(
            weight_SD + length_S[:, None] * step_SD, outputs_NS + length_S * change_NS
        )
        short_S = after_S > before_S + length_S * promise_S
        if not short_S.any():
            return length_S
        length_S = torch.where(short_S, length_S / 2, length_S)

    return torch.where(short_S, 0.0, length_S)
