"""Rates in place of accuracy: precision at k, precision at a recall, recall at a precision, true positives at a false-positive rate, F-beta.

Scores f(x), larger for what is more likely positive; positive is predicted where f(x) reaches a threshold. A constraint that fixes the share of
a subset that is predicted positive fixes the threshold: it is a quantile of the subset's scores. Put into a loss it leaves nothing to constrain
(Mackey, Luo & Eban 2018, "Constrained Classification and Ranking via Quantiles", arXiv:1803.00067; the surrogates' forms as their readers
give them). The other published way, multipliers and bounds, is in `rate_bounds.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from niwaki.task.around import Around

Kind = Literal["precision_at_k", "precision_at_recall", "recall_at_precision", "tpr_at_fpr", "f_beta", "aucpr"]
Surrogate = Literal["negatives", "positives", "contrast"]
ANCHORS = 10  # recalls over which the area under the precision-recall curve is a mean
SHARPNESS = 2.0  # of the surrogates: errors are smoothed over half a standard deviation of the scores
FEWEST = 2  # order statistics on each side of a quantile that its kernel reaches at least


class RateError(ValueError):
    """Rates that cannot be asked for, or that these labels do not have."""


# ---------------------------------------------------------------- quantiles


def quantile(values: Tensor, level: float, *, bandwidth: float = 0.02) -> Tensor:
    """The `level`-quantile of `values` (N,) as a weighted mean of order statistics: a scalar, differentiable.

    Order statistic i of N stands at (i - 1/2) / N and weighs as a triangle of half-width `bandwidth` around the level; weights sum to 1, so
    that a constant added to the values is added to the quantile. The triangle is never narrower than 1 / N, where it is linear
    interpolation (numpy's method "hazen"), and no wider than the level is from 0 and 1, where it would lean to one side.

    >>> quantile(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0.5, bandwidth=0.0)
    tensor(2.5000)
    """
    if values.ndim != 1 or not len(values):
        raise RateError(f"a quantile is of one or more values (N,), not of {tuple(values.shape)}")
    if not 0 <= level <= 1 or not bandwidth >= 0:
        raise RateError(f"level={level}, bandwidth={bandwidth}: a level is from 0 to 1, and a bandwidth at least 0")
    return _quantile_of_sorted(values.sort().values, level, bandwidth)


def _quantile_of_sorted(ordered: Tensor, level: float, bandwidth: float) -> Tensor:
    count = len(ordered)
    width = max(1 / count, min(bandwidth, level, 1 - level))
    inside = min(max(level, 0.5 / count), 1 - 0.5 / count)  # beyond the outermost order statistics it is they
    at = (torch.arange(count, dtype=torch.float64, device=ordered.device) + 0.5) / count
    weights = (1 - (at - inside).abs() / width).clamp(min=0)
    return ((weights / weights.sum()).to(ordered.dtype) * ordered).sum()


# ---------------------------------------------------------------- losses


def quantile_loss(
    scores: Tensor,
    positive: Tensor,
    subset: Tensor,
    share: float,
    surrogate: Surrogate,
    *,
    bandwidth: float = 0.02,
    through_threshold: bool = True,
) -> Tensor:
    """A surrogate for the errors left when the threshold lets `share` of `subset` pass: a scalar.

    scores: (N,); positive, subset: bool (N,). z = 2 (score - threshold) / standard deviation of the scores that are penalised. Without the
    division, shrinking all scores is a way to a small loss. The gradient runs through it, too: the loss then does not change with the scale of the scores, and nothing
    pushes it either way; held constant, as the spread is in other accounts, it let linear models on HIGGS end at chance.
    "negatives": mean softplus(z) over negatives, false positives. "positives": mean softplus(-z) over positives, false negatives: useless
    where the share is far below that of the positives, most of which must then lie below. "contrast": mean sigmoid(z) over negatives minus
    that over positives. through_threshold: False cuts the gradient through the threshold, which is another algorithm, and a wrong one: for
    experiments that show it.
    """
    if not bool(subset.any()):
        raise RateError("the subset whose share is fixed has no example in this batch; take larger or stratified batches")
    kept = scores[subset]
    threshold = quantile(kept, 1 - share, bandwidth=max(bandwidth, FEWEST / len(kept)))
    if not through_threshold:
        threshold = threshold.detach()
    return _surrogate(scores, positive, threshold, surrogate)


def _surrogate(scores: Tensor, positive: Tensor, threshold: Tensor, surrogate: Surrogate) -> Tensor:
    """The spread is that of the scores that are penalised: over all it would also grow as the classes part, and work against that."""
    kept = {"negatives": ~positive, "positives": positive, "contrast": torch.ones_like(positive)}[surrogate]
    spread = scores[kept].std(correction=0).clamp(min=1e-6) if bool(kept.any()) else torch.ones_like(threshold)
    z = SHARPNESS * (scores - threshold) / spread
    if surrogate == "negatives":
        return _mean(F.softplus(z[~positive]), scores)
    if surrogate == "positives":
        return _mean(F.softplus(-z[positive]), scores)
    return _mean(torch.sigmoid(z[~positive]), scores) - _mean(torch.sigmoid(z[positive]), scores)


def _mean(values: Tensor, of: Tensor) -> Tensor:
    """The mean; 0, with a gradient of 0, of nothing: a small batch may have examples of one kind only."""
    return values.mean() if len(values) else of.sum() * 0.0


@dataclass(frozen=True)
class RateObjective:
    """What is to be large, and what is fixed: a loss to train by and a metric to judge by.

    kind and target: "precision_at_k" and the share of all examples that is taken; "precision_at_recall" and the recall; "tpr_at_fpr" and the
    false-positive rate; "recall_at_precision" and the precision (its loss: `rate_bounds.py`); "f_beta" and beta, with `share`, the share of
    all that is predicted positive, from a sweep; "aucpr", the area under the precision-recall curve, without a target.
    surrogate: None takes "negatives" where the threshold is the positives' or the share is far below theirs, "positives" for true positives
    at a false-positive rate, and "contrast" else; which is best depends on the data: choose on validation.
    """

    kind: Kind
    target: float = 0.0
    surrogate: Surrogate | None = None
    bandwidth: float = 0.02
    share: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise RateError(f"there is no rate {self.kind!r}; there are {', '.join(get_args(Kind))}")
        if self.surrogate not in (None, *get_args(Surrogate)):
            raise RateError(
                f"there is no surrogate {self.surrogate!r}; there are {', '.join(get_args(Surrogate))}, or None to leave it open"
            )
        most = math.inf if self.kind == "f_beta" else 1.0
        if self.kind != "aucpr" and not 0 < self.target < most:
            raise RateError(f"{self.kind} of {self.target}: it lies between 0 and {'infinity' if most > 1 else '1'}, both excluded")
        if self.share is not None and (self.kind != "f_beta" or not 0 < self.share < 1):
            raise RateError(f"share={self.share}: it belongs to f_beta, and lies between 0 and 1")
        if not 0 <= self.bandwidth < 1:
            raise RateError(f"bandwidth={self.bandwidth}: it is a share of the examples, at least 0 and below 1")

    @property
    def name(self) -> str:
        """Of the metric, such as "precision_at_recall_0.95"."""
        return self.kind if self.kind == "aucpr" else f"{self.kind}_{self.target:g}"

    @property
    def text(self) -> str:
        """What `parse_rate` reads, such as "precision@recall=0.95"."""
        number = f"{self.target:.12f}".rstrip("0").rstrip(".")
        forms = {"precision_at_k": "precision@", "precision_at_recall": "precision@recall=", "recall_at_precision": "recall@precision="}
        return "aucpr" if self.kind == "aucpr" else f"{ {**forms, 'tpr_at_fpr': 'tpr@fpr=', 'f_beta': 'f'}[self.kind] }{number}"

    def loss(self, scores: Tensor, positive: Tensor) -> Tensor:
        """The quantile surrogate over a batch: a scalar. scores: (B,), positive: bool (B,)."""
        scores, positive = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores, positive.bool()
        everything, of_all = torch.ones_like(positive), float(positive.double().mean())
        if self.kind == "recall_at_precision":
            raise RateError("recall at a precision fixes no share; train by rate_bounds.RateBound, or sweep the share with f_beta")
        if self.kind == "f_beta" and self.share is None:
            raise RateError("f_beta is trained for at a share of predicted positives; give share=..., as f_beta_sweep does")
        if self.kind == "precision_at_recall":
            return self._at(scores, positive, positive, self.target, self.surrogate or "negatives")
        if self.kind == "tpr_at_fpr":
            return self._at(scores, positive, ~positive, self.target, self.surrogate or "positives")
        if self.kind == "aucpr":
            return self._area(scores, positive)
        share = self.target if self.share is None else self.share
        return self._at(scores, positive, everything, share, self.surrogate or ("negatives" if share < of_all / 4 else "contrast"))

    def metric(self, scores: Tensor, positive: Tensor) -> float:
        """The figure itself, on all examples at once, at the best threshold that keeps what is fixed; more is better."""
        if self.kind == "precision_at_k":
            return precision_at_k(scores, positive, self.target)
        curve = Curve.of(scores, positive)
        if self.kind == "aucpr":
            return curve.average_precision()
        best = curve.best(self)
        return 0.0 if best is None else float(curve.figures(self)[best])

    def threshold(self, scores: Tensor, positive: Tensor) -> float:
        """The threshold to use elsewhere, from validation: where the metric is best among those that keep what is fixed.

        precision_at_k: the k-th largest score. RateError where no threshold keeps it.
        """
        if self.kind == "precision_at_k":
            return float(scores.sort(descending=True).values[_k(len(scores), self.target) - 1])
        if self.kind == "aucpr":
            raise RateError("the area under a curve has no threshold")
        curve = Curve.of(scores, positive)
        if (best := curve.best(self)) is None:
            raise RateError(f"no threshold of {len(scores)} scores gives {self.name}")
        return float(curve.thresholds[best])

    def _at(self, scores: Tensor, positive: Tensor, subset: Tensor, share: float, surrogate: Surrogate) -> Tensor:
        if not bool(subset.any()):  # a batch without positives, say: it says nothing about their quantile
            return scores.sum() * 0.0
        return quantile_loss(scores, positive, subset, share, surrogate, bandwidth=self.bandwidth)

    def _area(self, scores: Tensor, positive: Tensor) -> Tensor:
        """The mean over recalls of false positives at them: one sort for all."""
        if not bool(positive.any()):
            return scores.sum() * 0.0
        ordered = scores[positive].sort().values
        bandwidth = max(self.bandwidth, FEWEST / len(ordered))
        recalls = [(i + 0.5) / ANCHORS for i in range(ANCHORS)]
        thresholds = [_quantile_of_sorted(ordered, 1 - recall, bandwidth) for recall in recalls]
        return torch.stack([_surrogate(scores, positive, t, self.surrogate or "negatives") for t in thresholds]).mean()


def f_beta_sweep(beta: float, prevalence: float, *, count: int = 5, surrogate: Surrogate | None = None) -> list[RateObjective]:
    """F-beta objectives at shares around the prevalence of the positives: train by each, keep the best by validation.

    At a fixed share c of predicted positives F_beta = (1 + beta^2) TP / (beta^2 P + c N): only TP is left to make large. The best share is
    somewhat below the prevalence for beta < 1 and above it for beta > 1; the grid is from half of it to min(0.9, twice beta of it).
    """
    if not 0 < prevalence < 1 or count < 2:
        raise RateError(f"prevalence={prevalence}, count={count}: a prevalence lies between 0 and 1, and a sweep has at least 2 shares")
    low, high = 0.5 * prevalence, min(0.9, max(1.5, 2 * beta) * prevalence)
    shares = [low * (max(high, 1.2 * low) / low) ** (i / (count - 1)) for i in range(count)]
    return [RateObjective("f_beta", beta, surrogate=surrogate, share=min(share, 0.99)) for share in shares]


def parse_rate(text: str) -> RateObjective:
    """A rate from text: "precision@2%", "precision@recall=0.95", "recall@precision=0.9", "tpr@fpr=0.01", "f2", "aucpr".

    >>> parse_rate("precision@recall=0.95").name, parse_rate("f0.5").name, parse_rate("precision@2%").target
    ('precision_at_recall_0.95', 'f_beta_0.5', 0.02)
    """
    plain = re.sub(r"\s", "", text)
    number = r"(\d*\.?\d+)(%?)"
    patterns: Mapping[str, Kind] = {
        rf"precision@{number}": "precision_at_k",
        rf"precision@recall={number}": "precision_at_recall",
        rf"recall@precision={number}": "recall_at_precision",
        rf"tpr@fpr={number}": "tpr_at_fpr",
        rf"f{number}": "f_beta",
    }
    if plain == "aucpr":
        return RateObjective("aucpr")
    for pattern, kind in patterns.items():
        if match := re.fullmatch(pattern, plain):
            return RateObjective(kind, float(match.group(1)) / (100 if match.group(2) else 1))
    known = ("precision@2%", "precision@recall=0.95", "recall@precision=0.9", "tpr@fpr=0.01", "f2", "aucpr")
    near = get_close_matches(plain, known, n=1)
    raise RateError(f"{text!r} is no rate{f' (did you mean {near[0]}?)' if near else ''}; it looks like {', '.join(known)}")


# ---------------------------------------------------------------- figures


def precision_at_k(scores: Tensor, positive: Tensor, share: float) -> float:
    """The share of positives among the `share` of all with the largest scores (at least one); of equal scores each is as likely in."""
    _check(scores, positive)
    k = _k(len(scores), share)
    last = scores.sort(descending=True).values[k - 1]
    over, level = scores > last, scores == last
    hits = positive[over].double().sum() + (k - over.sum()) * positive[level].double().mean()
    return float(hits / k)


@dataclass(frozen=True)
class Curve:
    """What every threshold gives: positive is predicted where a score reaches it. thresholds, tp, fp: (T,), the thresholds falling."""

    thresholds: Tensor
    tp: Tensor
    fp: Tensor
    positives: int
    negatives: int

    @staticmethod
    def of(scores: Tensor, positive: Tensor) -> Curve:
        _check(scores, positive)
        ordered, order = scores.detach().double().sort(descending=True)
        hit = positive.bool()[order]
        last = torch.cat(
            [ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool, device=ordered.device)]
        )  # equal scores pass together
        return Curve(
            ordered[last], hit.cumsum(0)[last].double(), (~hit).cumsum(0)[last].double(), int(hit.sum()), int(len(hit) - hit.sum())
        )

    @property
    def precision(self) -> Tensor:
        return self.tp / (self.tp + self.fp)

    @property
    def recall(self) -> Tensor:
        return self.tp / self.positives

    @property
    def false_positive_rate(self) -> Tensor:
        return self.fp / self.negatives

    def f_beta(self, beta: float) -> Tensor:
        return (1 + beta**2) * self.tp / (beta**2 * self.positives + self.tp + self.fp)

    def average_precision(self) -> float:
        """The area under precision over recall, by steps."""
        return float((self.precision * torch.diff(self.recall, prepend=torch.zeros(1, dtype=torch.float64, device=self.tp.device))).sum())

    def figures(self, objective: RateObjective) -> Tensor:
        """(T,): what the objective makes large."""
        return {
            "precision_at_recall": lambda: self.precision,
            "recall_at_precision": lambda: self.recall,
            "tpr_at_fpr": lambda: self.recall,
            "f_beta": lambda: self.f_beta(objective.target),
        }[objective.kind]()

    def best(self, objective: RateObjective) -> int | None:
        """The threshold with the best figure among those that keep what is fixed, if there is one."""
        kept = {
            "precision_at_recall": lambda: self.recall >= objective.target,
            "recall_at_precision": lambda: self.precision >= objective.target,
            "tpr_at_fpr": lambda: self.false_positive_rate <= objective.target,
            "f_beta": lambda: torch.ones_like(self.tp, dtype=torch.bool),
        }[objective.kind]()
        if not bool(kept.any()):
            return None
        return int(self.figures(objective).masked_fill(~kept, -1.0).argmax())


def rates_at(scores: Tensor, positive: Tensor, threshold: float) -> dict[str, float]:
    """Precision, recall, false-positive rate and the share of predicted positives where scores reach `threshold`; precision 1 of nothing."""
    _check(scores, positive)
    predicted, positive = scores >= threshold, positive.bool()
    tp, fp = float((predicted & positive).sum()), float((predicted & ~positive).sum())
    return {
        "precision": tp / (tp + fp) if tp + fp else 1.0,
        "recall": tp / float(positive.sum()),
        "false_positive_rate": fp / float((~positive).sum()),
        "share": (tp + fp) / len(scores),
    }


def _k(count: int, share: float) -> int:
    return min(count, max(1, round(share * count)))


def _check(scores: Tensor, positive: Tensor) -> None:
    if scores.ndim != 1 or positive.shape != scores.shape:
        raise RateError(f"rates are of scores (N,) and as many labels, not of {tuple(scores.shape)} and {tuple(positive.shape)}")
    if not bool(scores.isfinite().all()):
        raise RateError("scores of rates are finite; some are NaN or infinite")
    if not 0 < int(positive.bool().sum()) < len(positive):
        raise RateError(f"rates need positive and negative examples; {int(positive.bool().sum())} of {len(positive)} are positive")


# ---------------------------------------------------------------- tasks


def score_of(outputs: Tensor, positive_class: int = 1) -> Tensor:
    """(B,): how much outputs are for the positive class: of logits (B, K) its log odds against all others; (B,) and (B, 1) are scores."""
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        return outputs.reshape(-1)
    if not 0 <= positive_class < outputs.shape[1]:
        raise RateError(f"class {positive_class} cannot be the positive one of {outputs.shape[1]} classes")
    others = [number for number in range(outputs.shape[1]) if number != positive_class]
    return outputs[:, positive_class] - torch.logsumexp(outputs[:, others], 1)


@dataclass(frozen=True)
class Rated(Around):
    """A classification task, trained for and judged by a rate of one class against all others. Everything else is the task's own.

    own_share: of the task's own loss in the loss. The quantile of a small batch is noisy and its loss is flat far from the threshold; a fifth of
    cross entropy points the way from the start (digits, recall 0.95, 30 epochs of SGD: precision 1.0 with it, 0.43 without).
    """

    objective: RateObjective
    positive_class: int = 1
    own_share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.own_share < 1:
            raise RateError(f"own_share={self.own_share}: the share of the task's own loss is at least 0 and below 1")
        if self.task.outputs > 1 and not 0 <= self.positive_class < self.task.outputs:
            raise RateError(f"class {self.positive_class} cannot be the positive one of {self.task.outputs} classes")

    @property
    def metric(self) -> str:
        return self.objective.name

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """The rate's surrogate. label_smoothing: of the task's own share."""
        own = self.objective.loss(score_of(outputs, self.positive_class), targets == self.positive_class)
        if not self.own_share:
            return own
        return (1 - self.own_share) * own + self.own_share * self.task.loss(outputs, targets, label_smoothing=label_smoothing)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """The task's own, and the rate."""
        figure = self.objective.metric(score_of(outputs, self.positive_class), targets == self.positive_class)
        return self.task.metrics(outputs, targets) | {self.objective.name: figure}

    def describe(self) -> dict[str, Any]:
        """What identifies the task, as JSON."""
        rate = {name: getattr(self.objective, name) for name in self.objective.__dataclass_fields__}
        return self.task.describe() | {
            "metric": self.metric,
            "rate": rate,
            "positive_class": self.positive_class,
            "own_share": self.own_share,
        }
