"""A policy over paths through shared weights, learned while these are: TuNAS's controller, with its warm-ups (Bender et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from niwaki.factor.expect import expected
from niwaki.factor.within import Within
from niwaki.net.place import Placement, forks
from niwaki.objective.reward import Absolute, Spent
from niwaki.space.architecture import Architecture
from niwaki.space.size import scope
from niwaki.strategy.policy import Conditioned, Softmaxes
from niwaki.strategy.policy_gradient import Adam, Baseline, DelayedRamp, Moments, WarmUp


@dataclass(frozen=True)
class Control:
    """Hyper-parameters of a controller. The defaults are those of TuNAS's code, for batches of 4,096; there lr is 3e-4 per 256 examples.

    delay, ramp: the learning rate is 0 for that share of the steps, then grows exponentially to so many times itself. momentum: of the
    baseline. beta: of the absolute reward Q + beta |T / T0 - 1|. operation_warm_up, filter_warm_up: shares of the steps, at most the delay,
    over which fewer and fewer decisions are replaced (see `PathController`).

    budget: "hard" (ours) draws given that the budget holds, p(y) / P(V), exactly (as TabNAS means to): the reward only draws the cost up to
    the limit then. "soft" is as published: anything may be drawn, and the reward alone draws the cost to the limit, from both sides.
    """

    lr: float = 4.8e-3
    delay: float = 0.25
    ramp: float = 10.0
    momentum: float = 0.95
    beta: float = -0.10
    operation_warm_up: float = 0.25
    filter_warm_up: float = 0.25
    budget: Literal["hard", "soft"] = "hard"

    def __post_init__(self) -> None:
        if self.budget not in ("hard", "soft") or not 0 <= self.momentum < 1:
            raise ValueError(
                f"budget={self.budget!r}, momentum={self.momentum}: a budget is hard or soft, and a momentum from 0 to below 1"
            )
        Absolute(self.beta)
        Adam(self.lr)
        schedule = DelayedRamp(1000, self.delay, self.ramp)
        for share in (self.operation_warm_up, self.filter_warm_up):
            WarmUp(1000, share).before(schedule)


@dataclass(frozen=True)
class Draw:
    """One path. row: (D,) option numbers; counted: (D,) the decisions that exist and were drawn; undecided: (D,) those of which all options
    run, averaged; decisions: the same for a supernet, those that exist."""

    row: np.ndarray
    counted: np.ndarray
    undecided: np.ndarray
    decisions: Mapping[str, Any] = field(compare=False)


class PathController:
    """Independent softmaxes, from uniform, that REINFORCE moves towards paths of a high reward; one path a step.

    While warm-ups last, each decision is replaced with their probability, independently: an operation by the uniform average of all its
    options, so that all their weights learn, a number of filters by the largest. What is replaced does not depend on the policy, so its
    log-probability is a constant, and only decisions that were drawn have a gradient. With a hard budget the path is drawn within it before
    anything is replaced, a number of filters becomes the largest that keeps the path within it (one after the other, in random order; of
    averaged operations the one that was drawn counts), and the gradient is that of log p(what was drawn | V), everything else summed out.

    filters: names of the decisions that are numbers of filters (`filters_of`). steps: how many there will be.
    """

    def __init__(self, within: Within, filters: frozenset[str], method: Control, *, steps: int) -> None:
        space = within.space
        self.within, self.method = within, method
        self.softmaxes = Softmaxes(space)
        self.policy: Softmaxes | Conditioned = Conditioned(within) if method.budget == "hard" else self.softmaxes
        self.parameters = self.policy.initial()
        self.moments, self.baseline = Moments.of(self.parameters), Baseline()
        schedule = DelayedRamp(steps, method.delay, method.ramp)
        self.adam = Adam(method.lr, betas=(0.0, 0.999), schedule=schedule)
        self.filters = np.array([decision.name in filters for decision in space.decisions], dtype=bool)
        self.largest = np.array([_largest(decision.options) if decision.name in filters else 0 for decision in space.decisions])
        self.operation_warm_up = WarmUp(steps, method.operation_warm_up).before(schedule)
        self.filter_warm_up = WarmUp(steps, method.filter_warm_up).before(schedule)

    # --- a step ------------------------------------------------------------------------------------------------------

    def draw(self, generator: np.random.Generator) -> Draw:
        """The path of the next step."""
        row, step = self.policy.sample(self.parameters, 1, generator)[0], self.moments.steps
        chance = np.where(self.filters, self.filter_warm_up(step), self.operation_warm_up(step))
        replaced = generator.random(len(row)) < chance
        existence = self.softmaxes.existence
        if replaced.any():  # of decisions that exist now, though they would not have, the options are drawn, too
            row = np.where(existence.of(row[None])[0], row, self.softmaxes.sample_all(self.parameters, 1, generator)[0])
            wide = replaced & self.filters
            row = self._widened(row, wide, generator) if self.method.budget == "hard" else np.where(wide, self.largest, row)
        undecided = replaced & ~self.filters
        exists = existence.possible(row, undecided)
        return Draw(np.where(exists, row, 0), exists & ~replaced, undecided & exists, self._decisions(row, undecided, exists))

    def _widened(self, row: np.ndarray, wide: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """`row` with the largest numbers of filters that the budget still holds with for `wide`, one after the other in random order."""
        for at in generator.permutation(np.flatnonzero(wide)):
            options = self.within.decisions[at].options
            tried = np.repeat(row[None], len(options), axis=0)
            tried[:, at] = sorted(range(len(options)), key=lambda number: options[number], reverse=True)
            kept = self.within.feasible.keeps(self.softmaxes.existence.canonical_(tried.copy()))
            row = tried[np.argmax(kept)] if kept.any() else row
        return row

    def _decisions(self, row: np.ndarray, undecided: np.ndarray, exists: np.ndarray) -> dict[str, Any]:
        return {
            decision.name: torch.full((len(decision.options),), 1 / len(decision.options)) if open_ else decision.options[at]
            for decision, at, open_, there in zip(self.within.decisions, row.tolist(), undecided, exists, strict=True)
            if there
        }

    def spent(self, draw: Draw) -> list[Spent]:
        """What the path takes of each limit; where operations are averaged, their mean, or for a maximum that of their first options."""
        found = []
        for limit in self.within.limits:
            cost = float(limit.cost.batch(draw.row[None].astype(np.int32))[0])
            if draw.undecided.any() and limit.cost.kind == "sum":
                weights = {
                    decision.name: np.full(len(decision.options), 1 / len(decision.options)) if open_ else np.eye(len(decision.options))[at]
                    for decision, at, open_ in zip(self.within.decisions, draw.row.tolist(), draw.undecided, strict=True)
                }
                cost = float(expected(limit.cost, {name: torch.from_numpy(p) for name, p in weights.items()}))
            found.append(Spent(cost, float(max(1, limit.upper))))
        return found

    def learn(self, draw: Draw, quality: float) -> float:
        """The reward of the path, which the policy has learned from: one step uphill along (reward - baseline) * grad log p."""
        reward = Absolute(self.method.beta)(quality, self.spent(draw))
        self.baseline = self.baseline.after(reward, self.method.momentum)
        gradient = (reward - self.baseline.value) * self.gradient(draw)
        self.parameters, self.moments = self.adam.step(self.parameters, self.moments, gradient)
        return reward

    def gradient(self, draw: Draw) -> np.ndarray:
        """(D, O): d log p(the path) / d logits."""
        if np.array_equal(draw.counted, self.softmaxes.existence.of(draw.row[None])[0]):  # nothing was replaced
            return np.asarray(self.policy.gradient(self.parameters, draw.row[None], np.ones(1), 0.0, self.moments.steps))
        return self.policy.partial_gradient(self.parameters, draw.row, draw.counted)

    # --- what was learned --------------------------------------------------------------------------------------------

    def probabilities(self) -> dict[str, np.ndarray]:
        """(O,) for each decision, by name."""
        return self.softmaxes.probabilities(self.parameters)

    def mode(self) -> Architecture:
        """The most likely architecture; with a hard budget, of those within it."""
        return self.policy.mode(self.parameters)

    def entropy(self) -> float:
        """Mean entropy of a decision, each divided by that of the uniform distribution: 1 undecided, 0 decided."""
        shares = [-(p * np.log(np.maximum(p, 1e-300))).sum() / np.log(len(p)) for p in self.probabilities().values() if len(p) > 1]
        return float(np.mean(shares)) if shares else 0.0

    def ratio(self) -> float:
        """Expected cost / limit of the softmaxes, the largest over the limits that are sums; 1 without any."""
        p = {name: torch.from_numpy(one) for name, one in self.probabilities().items()}
        return max(
            (float(expected(limit.cost, p)) / max(1, limit.upper) for limit in self.within.limits if limit.cost.kind == "sum"), default=1.0
        )

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, their names beginning with `name`, and JSON."""
        arrays = {"logits": self.parameters, "first": self.moments.first, "second": self.moments.second}
        return {f"{name}.{key}": torch.from_numpy(array.copy()) for key, array in arrays.items()}, {
            "steps": self.moments.steps, "baseline": [self.baseline.above, self.baseline.below],
        }  # fmt: skip

    def load(self, name: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.parameters, first, second = (tensors[f"{name}.{key}"].cpu().numpy().copy() for key in ("logits", "first", "second"))
        self.moments, self.baseline = Moments(first, second, state["steps"]), Baseline(*state["baseline"])


def filters_of(placement: Placement) -> frozenset[str]:
    """The decisions that TuNAS tags FILTERS: those that say how many channels there are, and nothing of which layers there are."""
    return frozenset(name for item in placement.items for name in scope(*item.shape.channels)) - forks(placement)


def _largest(options: tuple[Any, ...]) -> int:
    return max(range(len(options)), key=lambda at: options[at])
