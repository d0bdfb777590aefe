"""Constraints kept by multipliers that follow what the search spends. A form holds the constants; the multipliers are a state, JSON, that is
handed in and comes back: `state = form.init(limits)`, `form.reward(quality, spent, state)`, `state = form.update(state, observed)`.

Spaces are discrete and their fronts not convex, so a multiplier may swing between two architectures and never settle: what is picked in the
end is the best feasible trial (`Objective.best`), not the last. Multipliers follow the true cost, also where the search's own is relaxed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any, Protocol

import numpy as np

from niwaki.objective.error import ObjectiveError
from niwaki.objective.reward import Form, Spent, tunas_absolute

State = Mapping[str, Any]  # JSON: lists of numbers by name; never changed, only replaced
Observed = Sequence[tuple[float, Sequence[Spent]]]  # quality and what is spent of each limit, for each architecture


class Adaptive(Protocol):
    """A form whose reward depends on what was seen before."""

    def init(self, limits: int) -> State:
        """The state before anything was seen."""
        ...

    def reward(self, quality: float, spent: Sequence[Spent], state: State) -> float: ...

    def update(self, state: State, observed: Observed) -> State:
        """The state after a batch, or a round, in which these were seen; one at least."""
        ...


@dataclass(frozen=True)
class Lagrangian:
    """quality - sum of multiplier * (ratio - 1); multiplier <- [multiplier + rate * g]_+ with g a moving average of ratio - 1.

    two_sided: for costs that are to be met, not only kept: the multiplier may be negative. most: of a multiplier's size.
    """

    rate: float = 0.05
    decay: float = 0.9
    most: float = 10.0
    two_sided: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.rate < math.inf and 0 <= self.decay < 1 and 0 < self.most < math.inf):
            raise ObjectiveError(
                f"a Lagrangian cannot have rate={self.rate}, decay={self.decay}, most={self.most}; rate and most are above 0 and finite, decay is "
                f"from 0 to below 1"
            )

    def init(self, limits: int) -> State:
        return {"multipliers": [0.0] * limits, "excess": None}

    def reward(self, quality: float, spent: Sequence[Spent], state: State) -> float:
        return quality - math.fsum(m * (one.ratio - 1) for m, one in zip(_of(state, "multipliers", spent), spent, strict=True))

    def update(self, state: State, observed: Observed) -> State:
        seen = mean_excess(observed)
        before = state["excess"]
        excess = seen if before is None else [self.decay * b + (1 - self.decay) * s for b, s in zip(before, seen, strict=True)]
        least = -self.most if self.two_sided else 0.0
        moved = [m + self.rate * e for m, e in zip(state["multipliers"], excess, strict=True)]
        return {"multipliers": [min(max(m, least), self.most) for m in moved], "excess": excess}


@dataclass(frozen=True)
class AugmentedLagrangian:
    """quality - 1 / (2 mu) * sum of ([multiplier + mu g]_+^2 - multiplier^2), g = ratio - 1 (Powell, Hestenes, Rockafellar).

    An update ends an outer round: multiplier <- [multiplier + mu g]_+, and mu doubles, up to `most`, where the violation is above
    `tolerance` and fell by less than a quarter. `gradient.constrained` has the same for gradient searches, where it is the recommended form: g is of the expected cost there.
    """

    penalty: float = 1.0
    growth: float = 2.0
    most: float = 1000.0
    needed: float = 0.25
    tolerance: float = 0.01  # of a violation: in a discrete space there may be nothing closer to the limit, and no penalty would help

    def __post_init__(self) -> None:
        if not (
            0 < self.penalty <= self.most < math.inf
            and 1 <= self.growth < math.inf
            and 0 <= self.needed < 1
            and 0 <= self.tolerance < math.inf
        ):
            raise ObjectiveError(
                f"an augmented Lagrangian cannot have penalty={self.penalty}, growth={self.growth}, most={self.most}, needed={self.needed}, "
                f"tolerance={self.tolerance}; the penalty is above 0 and at most `most`, it grows by a factor of at least 1, `needed` is a share, and the "
                f"tolerance is not below 0"
            )

    def init(self, limits: int) -> State:
        return {"multipliers": [0.0] * limits, "penalty": self.penalty, "violation": None}

    def reward(self, quality: float, spent: Sequence[Spent], state: State) -> float:
        mu = state["penalty"]
        terms = (max(0.0, m + mu * (one.ratio - 1)) ** 2 - m**2 for m, one in zip(_of(state, "multipliers", spent), spent, strict=True))
        return quality - math.fsum(terms) / (2 * mu)

    def update(self, state: State, observed: Observed) -> State:
        mu, before, excess = state["penalty"], state["violation"], mean_excess(observed)
        violation = max([0.0, *excess])
        slow = before is not None and violation > self.tolerance and violation > (1 - self.needed) * before
        return {
            "multipliers": [max(0.0, m + mu * e) for m, e in zip(state["multipliers"], excess, strict=True)],
            "penalty": min(mu * self.growth, self.most) if slow else mu,
            "violation": violation,
        }


@dataclass(frozen=True)
class Chance:
    """quality - sum of multiplier * [cost > target]; multiplier <- [multiplier + rate * (share beyond the target - (1 - share))]_+.

    For policies: of what is drawn, at least `share` keeps each limit, P(cost <= target) >= share; the target is then at or above the
    `share`-quantile of the cost of what is drawn (the quantile constraint of Mackey et al. 2018, turned from data to architectures).
    """

    share: float = 0.9
    rate: float = 0.02
    most: float = 10.0

    def __post_init__(self) -> None:
        if not (0 < self.share < 1 and 0 < self.rate < math.inf and 0 < self.most < math.inf):
            raise ObjectiveError(
                f"a chance constraint cannot have share={self.share}, rate={self.rate}, most={self.most}; the share lies between 0 and 1, the others "
                f"are above 0 and finite"
            )

    def init(self, limits: int) -> State:
        return {"multipliers": [0.0] * limits}

    def reward(self, quality: float, spent: Sequence[Spent], state: State) -> float:
        multipliers = _of(state, "multipliers", spent)
        return quality - math.fsum(m for m, one in zip(multipliers, spent, strict=True) if one.cost > one.target)

    def update(self, state: State, observed: Observed) -> State:
        beyond = [sum(one.cost > one.target for one in limit) / len(observed) for limit in zip(*(s for _, s in observed), strict=True)]
        moved = (m + self.rate * (share - (1 - self.share)) for m, share in zip(state["multipliers"], beyond, strict=True))
        return {"multipliers": [min(max(m, 0.0), self.most) for m in moved]}


@dataclass(frozen=True)
class Minimax:
    """`form` of one ratio, the mean of all weighted by how badly each is kept: weight <- weight * exp(rate * g) / sum, g = ratio - 1.

    Exponentiated gradient: the weights learn which device is the worst, as the inner maximum of min over architectures, max over devices.
    """

    form: Form = tunas_absolute
    rate: float = 0.1

    def __post_init__(self) -> None:
        if not callable(self.form):
            raise ObjectiveError(f"a minimax weighs devices for a form without a state, not for {self.form!r}")
        if not 0 < self.rate < math.inf:
            raise ObjectiveError(f"rate={self.rate}: the weights of a minimax follow at a rate above 0")

    def init(self, limits: int) -> State:
        return {"weights": [1 / limits] * limits if limits else []}

    def reward(self, quality: float, spent: Sequence[Spent], state: State) -> float:
        ratio = math.fsum(w * one.ratio for w, one in zip(_of(state, "weights", spent), spent, strict=True))
        return self.form(quality, [Spent(ratio, 1.0)] if spent else [])

    def update(self, state: State, observed: Observed) -> State:
        excess = mean_excess(observed)
        most = max(excess, default=0.0)  # taken out, so that no exponential overflows
        grown = [w * math.exp(self.rate * (e - most)) for w, e in zip(state["weights"], excess, strict=True)]
        return {"weights": [w / math.fsum(grown) for w in grown]}


LEAST = -2.0  # standing of a quality within the limits: one of the worst is no outlier that a squared error would see alone


def standing(quality: np.ndarray, violation: np.ndarray, mean: float, deviation: float) -> np.ndarray:
    """Quality and violation (N,) as one number, larger is better, whatever the unit of the quality: feasible first.

    Within the limits it is by how many `deviation`s the quality is above `mean`, at least `LEAST`; beyond, LEAST - violation / (1 + violation).
    """
    within = np.maximum((quality - mean) / (deviation or 1.0), LEAST)
    return np.where(violation == 0, within, LEAST - violation / (1 + violation))


@dataclass(frozen=True)
class Spread:
    """Mean and squared deviations, summed, of `seen` qualities (Welford)."""

    seen: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def after(self, quality: float) -> Spread:
        mean = self.mean + (quality - self.mean) / (self.seen + 1)
        return Spread(self.seen + 1, mean, self.squares + (quality - self.mean) * (quality - mean))

    def standing(self, quality: float, violation: float) -> float:
        """The `standing` among what was seen; before anything was, of an average quality."""
        mean, deviation = (self.mean, math.sqrt(self.squares / self.seen)) if self.seen else (quality, 0.0)
        return float(standing(np.array(quality), np.array(violation), mean, deviation))


@dataclass(frozen=True)
class FeasibleFirst:
    """The `standing` among all that was seen before: what is beyond a limit is worth less than all that is within. Ours, and the default.

    It needs no constant that knows the unit of the quality, as an absolute reward does. Without limits it is the quality.
    """

    def init(self, limits: int) -> State:
        return asdict(Spread()) if limits else {}

    def reward(self, quality: float, spent: Sequence[Spent], state: State) -> float:
        violation = math.fsum(max(0.0, one.ratio - 1) for one in spent)
        return _spread(state).standing(quality, violation) if spent else quality

    def update(self, state: State, observed: Observed) -> State:
        return asdict(reduce(lambda spread, one: spread.after(one[0]), observed, _spread(state))) if state else state


feasible_first = FeasibleFirst()


def _spread(state: State) -> Spread:
    return Spread(state["seen"], state["mean"], state["squares"])


def mean_excess(observed: Observed) -> list[float]:
    """For each limit the mean of ratio - 1 over the architectures."""
    if not observed:
        raise ObjectiveError("multipliers are updated by what was seen, and nothing was")
    return [math.fsum(one.ratio - 1 for one in limit) / len(observed) for limit in zip(*(spent for _, spent in observed), strict=True)]


def _of(state: State, name: str, spent: Sequence[Spent]) -> Sequence[float]:
    if len(state[name]) != len(spent):
        raise ObjectiveError(f"this state has {name} for {len(state[name])} limits; the objective has {len(spent)}")
    return state[name]
