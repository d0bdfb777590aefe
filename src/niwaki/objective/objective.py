"""What a search is to reach: a metric to maximize, limits to keep, and how the two become one reward for searches that need one.

>>> from niwaki.objective import Absolute, macs, parse_budget
>>> Objective("accuracy", subject_to=parse_budget("macs<=5e6 and params<=1M")).feasible({"accuracy": 0.9, "macs": 4e6, "params": 2e6})
False
>>> Objective("-rmse", [macs <= 100], form=Absolute(beta=-0.1)).reward({"rmse": 0.5, "macs": 200})
-0.6
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from niwaki.objective.dual import Adaptive, State, feasible_first
from niwaki.objective.error import ObjectiveError
from niwaki.objective.limit import Constraint, Joint
from niwaki.objective.reward import Form, Spent
from niwaki.trial import Trial

NO_STATE: State = {}  # of the forms that need none


def value_of(metrics: Mapping[str, float], name: str) -> float:
    """The metric `name`, larger is better: "accuracy" as it is, "-latency_ms", which is to be small, negated.

    >>> value_of({"rmse": 0.5}, "-rmse")
    -0.5
    """
    plain = name.removeprefix("-")
    if plain not in metrics:
        raise ObjectiveError(f"the objective maximizes {name!r}; a trial has {', '.join(metrics) or 'no metrics'}")
    return -metrics[plain] if plain != name else metrics[name]


@dataclass(frozen=True)
class Objective:
    """Make the metric `maximize` as large as the limits in `subject_to` allow: feasible first, then best, then cheapest.

    maximize: a metric, or "-metric" for one that is to be small: "-rmse", "-latency_ms". form: how quality and costs become one reward, for
    searches that need one (reward.py, dual.py, or a function of one's own; by default what is within the limits is worth more than all else); `better` and `best` never look at it. toward: the limits that the
    reward trades against quality, where they are others than `subject_to`: the mean over devices, say, with a cap for each in `subject_to`.
    """

    maximize: str = "accuracy"
    subject_to: tuple[Constraint | Joint, ...] = ()
    form: Form | Adaptive = feasible_first
    toward: tuple[Constraint | Joint, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "subject_to", tuple(self.subject_to))
        object.__setattr__(self, "toward", tuple(self.toward))
        if not isinstance(self.maximize, str) or not self.maximize.removeprefix("-"):
            raise ObjectiveError(
                f'an objective maximizes a metric, such as "accuracy", or "-rmse" for one that is to be small, not {self.maximize!r}'
            )

    def quality(self, metrics: Mapping[str, float]) -> float:
        """Larger is better."""
        return value_of(metrics, self.maximize)

    def check(self, metrics: Mapping[str, float]) -> None:
        """Raises ObjectiveError where a metric is missing that is asked for."""
        self._rank(metrics)
        self._seen(metrics)

    def feasible(self, metrics: Mapping[str, float]) -> bool:
        """Whether all limits hold."""
        return all(limit.cost(metrics) <= limit.target for limit in self.subject_to)

    def violation(self, metrics: Mapping[str, float]) -> float:
        """By how much the limits are exceeded: the sum over limits of max(0, spent / limit - 1)."""
        return sum(self.violations(metrics))

    def violations(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """The same for each limit."""
        return tuple(max(0.0, limit.ratio(metrics) - 1) for limit in self.subject_to)

    def init(self) -> State:
        """The state of the reward before anything was seen: JSON, empty for the forms that need none."""
        return NO_STATE if callable(self.form) else self.form.init(len(self.toward or self.subject_to))

    def reward(self, metrics: Mapping[str, float], state: State = NO_STATE) -> float:
        """Quality and costs as one finite number. state: what `init` and `update` gave."""
        quality, spent = self._seen(metrics)
        if callable(self.form):
            reward = self.form(quality, spent)
        elif state or not self.init():
            reward = self.form.reward(quality, spent, state)
        else:
            raise ObjectiveError(
                f"{type(self.form).__name__} rewards by what was seen before; hand in the state that `init` and `update` give"
            )
        if not math.isfinite(reward):
            raise ObjectiveError(f"the reward of {listed(metrics)} is {reward}; a reward is a finite number")
        return reward

    def update(self, state: State, observed: Sequence[Mapping[str, float]]) -> State:
        """The state of the reward after the metrics of a batch (or an outer round) of trials; as it was where the form needs none."""
        return state if callable(self.form) or not observed else self.form.update(state, [self._seen(metrics) for metrics in observed])

    def better(self, a: Mapping[str, float], b: Mapping[str, float]) -> bool:
        """Whether metrics `a` are better: feasible first, then quality, then cost; of two infeasible ones, the smaller violation."""
        return self._rank(a) > self._rank(b)

    def best(self, trials: Sequence[Trial]) -> Trial:
        """The best trial among those that are ok; the earliest of equals. There must be a feasible one."""
        candidates = [trial for trial in trials if trial.status == "ok"]
        feasible = [trial for trial in candidates if self.feasible(trial.metrics)]
        if not feasible:
            raise ObjectiveError(self._none_of(trials, candidates))
        return max(feasible, key=lambda trial: self._rank(trial.metrics))

    def _seen(self, metrics: Mapping[str, float]) -> tuple[float, list[Spent]]:
        return self.quality(metrics), [Spent(limit.cost(metrics), limit.target) for limit in self.toward or self.subject_to]

    def _rank(self, metrics: Mapping[str, float]) -> tuple[Any, ...]:
        """Larger is better; a tuple of the same length and kinds for any metrics."""
        return -self.violation(metrics), self.quality(metrics), *(-limit.ratio(metrics) for limit in self.subject_to)

    def _none_of(self, trials: Sequence[Trial], candidates: Sequence[Trial]) -> str:
        """What there is instead of a feasible trial: the closest, and the limits that bind."""
        text = f"none of {len(trials)} trials is within {' and '.join(map(str, self.subject_to)) or 'the search'}"
        if not candidates:
            return text
        closest = max(candidates, key=lambda trial: self._rank(trial.metrics))
        text += f"; the closest, trial {closest.number}, has {listed(closest.metrics)}"
        never = [limit for limit in self.subject_to if all(limit.cost(trial.metrics) > limit.target for trial in candidates)]
        if never:
            return f"{text}; {' and '.join(map(str, never))} {'is' if len(never) == 1 else 'are'} kept by none of them"
        over = [limit for limit in self.subject_to if limit.cost(closest.metrics) > limit.target]
        return f"{text}, over {' and '.join(map(str, over))}: each limit is kept by some, but not all by one"


BEST_ACCURACY = Objective("accuracy")


def listed(metrics: Mapping[str, float]) -> str:
    """A trial's metrics, for a message."""
    return ", ".join(f"{name} = {value:g}" for name, value in metrics.items()) or "no metrics"
