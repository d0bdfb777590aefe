"""Rates by multipliers: Eban et al. 2017, "Scalable Learning of Non-Decomposable Objectives" (arXiv:1608.04802).

True positives are bounded from below and false positives from above by a loss l that is at least the 0-1 loss (hinge, or cross entropy / ln 2):
TP >= sum over positives of 1 - l(f, +1), FP <= sum over negatives of l(f, -1). Weights as the authors' code has them (global_objectives);
losses may be negative and need not fall. Positive is predicted where a score is above 0: give the network a bias.

Deviation, for the better (Cotter et al.'s proxy Lagrangian): the bound moves the weights, while the multiplier follows the true 0-1 rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from niwaki.train.rates import RateError

Bounded = Literal["recall_at_precision", "precision_at_recall", "tpr_at_fpr"]
Bound = Literal["cross_entropy", "hinge"]
AREA_ANCHORS = 20


def bounds(scores: Tensor, positive: Tensor, bound: Bound) -> tuple[Tensor, Tensor]:
    """(L+, L-): sums of the surrogate over positives and over negatives, in its own unit: cross entropy is not divided by ln 2 yet.

    With the unit taken out, TP >= positives - L+ and FP <= L-.
    """
    sign = torch.where(positive, 1.0, -1.0).to(scores.dtype)
    losses = F.softplus(-sign * scores) if bound == "cross_entropy" else torch.relu(1 - sign * scores)
    return losses[positive].sum(), losses[~positive].sum()


def unit(bound: Bound) -> float:
    """By what the surrogate must be divided to be at least 1 for every mistake: ln 2 for cross entropy."""
    return math.log(2) if bound == "cross_entropy" else 1.0


@dataclass(frozen=True)
class RateBound:
    """A rate's loss with a multiplier: `state = bound.init()`; per batch `bound.loss(...)`, and then `state = bound.update(...)`.

    kind and target: "recall_at_precision" and the precision, "precision_at_recall" and the recall, "tpr_at_fpr" and the false-positive
    rate. rate: of the multiplier, which starts at 1 and stays at 0 or above (the code's dual steps are a tenth of the others).
    """

    kind: Bounded
    target: float
    bound: Bound = "cross_entropy"
    rate: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in get_args(Bounded):
            raise RateError(f"there is no bound on {self.kind!r}; there are {', '.join(get_args(Bounded))}")
        if self.bound not in get_args(Bound):
            raise RateError(f"bound={self.bound!r} is not known; it is {' or '.join(get_args(Bound))}")
        if not 0 < self.target < 1 or not 0 <= self.rate < math.inf:
            raise RateError(f"target={self.target}, rate={self.rate}: a target lies between 0 and 1, and a rate is at least 0 and finite")

    def init(self) -> Mapping[str, Any]:
        return {"multiplier": 1.0}

    def loss(self, scores: Tensor, positive: Tensor, state: Mapping[str, Any]) -> Tensor:
        """Per example: a scalar. scores: (B,); positive: bool (B,); the multiplier is a constant here."""
        positive = positive.bool()
        plus, minus = bounds(scores, positive, self.bound)
        of_plus, of_minus, constant = self._weights(float(positive.double().mean()), state["multiplier"])
        return (of_plus * plus + of_minus * minus) / len(scores) + constant * unit(self.bound)

    def update(self, state: Mapping[str, Any], scores: Tensor, positive: Tensor) -> Mapping[str, Any]:
        """The multiplier after a batch: up where the true rates break the constraint, down where they keep it."""
        return {"multiplier": max(0.0, state["multiplier"] + self.rate * self.excess(scores.detach(), positive.bool()))}

    def excess(self, scores: Tensor, positive: Tensor) -> float:
        """By how much the true rates of a batch break the constraint, above 0 where they do: the recall that is missing, the false-positive
        rate that is too much; for a precision, target * FP - (1 - target) * TP over the positives. 0 of a batch without the examples it is about.

        Per positive (or negative), not per example as the gradient by the multiplier would be: a rate that fits does not depend on prevalence.
        """
        predicted = scores > 0
        tp, fp = float((predicted & positive).sum()), float((predicted & ~positive).sum())
        positives, negatives = float(positive.sum()), float((~positive).sum())
        if (negatives if self.kind == "tpr_at_fpr" else positives) == 0:
            return 0.0
        if self.kind == "recall_at_precision":  # precision < target, times predicted positives
            return (self.target * fp - (1 - self.target) * tp) / positives
        return self.target - tp / positives if self.kind == "precision_at_recall" else fp / negatives - self.target

    def _weights(self, prior: float, multiplier: float) -> tuple[float, float, float]:
        """Of positives, of negatives, and a constant that matters to the multiplier alone."""
        if self.kind == "recall_at_precision":  # the multiplier scaled by 1 - target, as in the code
            return 1 + multiplier * (1 - self.target), multiplier * self.target, -multiplier * (1 - self.target) * prior
        if self.kind == "precision_at_recall":
            return multiplier, 1.0, multiplier * (self.target - 1) * prior
        return 1.0, multiplier, -multiplier * self.target * (1 - prior)


def area_loss(scores: Tensor, positive: Tensor, biases: Tensor, multipliers: Tensor, *, bound: Bound = "cross_entropy") -> Tensor:
    """The area under the precision-recall curve, as a mean over precisions of the loss of recall at each: a scalar.

    scores: (B,); positive: bool (B,); biases: (A,), added to the scores, learned with the weights, one threshold for each anchor;
    multipliers: (A,), constants, from `area_multipliers` on. Anchors: the precisions i / (A + 1).
    """
    positive = positive.bool()
    precisions = area_precisions(len(biases)).to(scores)
    sign = torch.where(positive, 1.0, -1.0).to(scores.dtype)
    margins = sign[:, None] * (scores[:, None] + biases)  # (B, A)
    losses = F.softplus(-margins) if bound == "cross_entropy" else torch.relu(1 - margins)
    multipliers = multipliers.detach().to(scores)
    weights = torch.where(positive[:, None], 1 + multipliers * (1 - precisions), multipliers * precisions)
    constant = multipliers * (1 - precisions) * positive.to(scores.dtype).mean() * unit(bound)
    return ((weights * losses).mean(0) - constant).mean()


def area_multipliers(multipliers: Tensor, scores: Tensor, positive: Tensor, biases: Tensor, *, rate: float = 0.1) -> Tensor:
    """(A,): the multipliers after a batch, by true rates."""
    positive = positive.bool()
    precisions = area_precisions(len(biases)).to(scores)
    predicted = (scores.detach()[:, None] + biases.detach()) > 0
    tp = (predicted & positive[:, None]).to(scores.dtype).sum(0)
    fp = (predicted & ~positive[:, None]).to(scores.dtype).sum(0)
    return (multipliers + rate * (precisions * fp - (1 - precisions) * tp) / positive.sum().clamp(min=1)).clamp(min=0)


def area_precisions(anchors: int = AREA_ANCHORS) -> Tensor:
    """(A,): the precisions between 0 and 1 at which the area is looked at."""
    return torch.arange(1, anchors + 1, dtype=torch.float64) / (anchors + 1)
