"""Wall time of a run against its limit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from niwaki.factor.eliminate import even
from niwaki.factor.within import Within
from niwaki.run.folder import Folder
from niwaki.run.search import Search
from niwaki.space.choice import BudgetError

SHIPPING_S = 20.0  # kept free of a time limit for each network: for test, export and report
TRAINING = 0.25  # of a time limit, at least, is kept free for the final training
DRAWN = 64  # networks of a budget, for what one of them costs


def working_seconds(minutes: float, budgets: int) -> float:
    """What of a time limit is there for search and training; the rest is kept free for test, export and report of each network."""
    return 60 * minutes - min(SHIPPING_S * budgets, 30 * minutes)


class Clock:
    """Wall time of a run over all its processes, against its limit. Each phase may take its share of it, as the plan expects the phases."""

    def __init__(self, folder: Folder, search: Search, spaces: Sequence[Within]) -> None:
        self.folder = folder
        self.limit_s = None if search.minutes is None else working_seconds(search.minutes, len(search.budgets))
        self.expected: dict[str, float] = folder.plan.get("expected_s", {})  # by phase, in their order
        self._weights = [1.0] * len(spaces)
        if self.limit_s is not None and len(spaces) > 1:  # a network of a larger budget takes longer to train
            with suppress(BudgetError):  # of two limits at once nothing may be drawn
                drawn = [space.sample_many(DRAWN, np.random.default_rng(0), even(space.space)) for space in spaces]
                self._weights = [float(search.costs["macs"].batch(rows).mean()) for rows in drawn]

    @property
    def kept_s(self) -> float:
        """Seconds of the limit that are kept free for the final training: the share that the plan expects it to take, or a quarter."""
        if self.limit_s is None or not self.expected:
            return 0.0
        return self.limit_s * max(TRAINING, list(self.expected.values())[-1] / max(1e-9, sum(self.expected.values())))

    def past(self) -> bool:
        """Whether what is not the final training takes its time from now on."""
        return self.limit_s is not None and self.folder.elapsed() > self.limit_s - self.kept_s

    def part(self, at: int) -> float:
        """The share of a phase that trains networks for which all budgets up to number `at` have a claim."""
        return sum(self._weights[: at + 1]) / sum(self._weights)

    def over(self, phase: str, part: float = 1.0, *, next_s: float = 0.0) -> bool:
        """Whether the time for everything up to `part` of `phase` has passed. What was not needed before is there for the later phases.

        next_s: what the next piece of work takes, as far as is known; it is not begun where it would outlast all phases, or take from
        the last of them, the final training, what is kept free for it.
        """
        if self.limit_s is None:
            return False
        phases = list(self.expected)
        if self.folder.elapsed() + next_s > self.limit_s - (self.kept_s if phase in phases[:-1] else 0.0):
            return True
        if phase not in phases:
            return False
        before = sum(self.expected[name] for name in phases[: phases.index(phase)])
        share = (before + part * self.expected[phase]) / max(1e-9, sum(self.expected.values()))
        return self.folder.elapsed() > share * self.limit_s
