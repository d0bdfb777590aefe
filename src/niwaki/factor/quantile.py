"""Quantiles of a cost over all architectures of a space, with certain bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from niwaki.factor.chain import all_rows
from niwaki.factor.eliminate import COUNT_WORK, LISTED, Binned, Feasible, reduced
from niwaki.factor.factor import Cost, Limit

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
ROUGH_BINS = 384  # of the pass that finds where the quantiles are
PRECISION = 0.011  # of a quantile's value: the distance between its bounds that is aimed at


@dataclass(frozen=True)
class Quantile:
    """The least cost that at least `share` of the architectures do not exceed lies from `lo` to `hi`; `value` is the best estimate."""

    share: float
    value: int
    lo: int
    hi: int


def quantiles(cost: Cost, shares: Sequence[float] = QUANTILES, *, work: int = COUNT_WORK) -> list[Quantile]:
    """The quantiles of `cost` over the architectures of its space, all equally likely."""
    size = cost.space.size
    ranks = [max(1, ceil(share * size)) for share in shares]
    if size * max(1, len(cost.space)) <= LISTED:
        ordered = np.sort(cost.batch(all_rows(cost.space)[0]))
        exact = [int(ordered[rank - 1]) for rank in ranks]
        return [Quantile(share, value, value, value) for share, value in zip(shares, exact, strict=True)]
    if cost.kind == "max":
        return [_of_largest(cost, share, rank) for share, rank in zip(shares, ranks, strict=True)]
    everything = Feasible(cost.space, [Limit(cost, cost.maximum()[0])])
    rough = _Cumulative(everything, cost, cost.maximum()[0], ROUGH_BINS)
    found = {share: rough.quantile(share, rank) for share, rank in zip(shares, ranks, strict=True)}
    wanted = sorted(dict(zip(shares, ranks, strict=True)).items(), reverse=True)
    while wanted:  # from above, in groups of similar cost; each is looked at within a budget that it just keeps
        upper = found[wanted[0][0]].hi
        group = [(share, rank) for share, rank in wanted if found[share].value > upper / 3]
        least = max(1, min(found[share].lo for share, _ in group))
        seen = _Cumulative(everything, cost, upper, ceil(len(everything.stages) * upper / (PRECISION * least)), work)
        found |= {share: seen.quantile(share, rank) for share, rank in group}
        wanted = wanted[max(1, len(group)) :]
    return [found[share] for share in shares]


class _Cumulative:
    """The number of architectures by cost, up to `upper`."""

    def __init__(self, everything: Feasible, cost: Cost, upper: int, bins: int, work: int = COUNT_WORK) -> None:
        stages, slack, (self._unit,) = reduced(*everything.eliminated([Limit(cost, upper)]))
        self._base = cost.minimum()[0]
        self._binned = Binned(stages, slack, min(bins, everything.affordable(stages, slack, work)), "nearest")
        (message,), powers = self._binned.backward([stage.multiplicity for stage in stages], keep=False)
        self._message, self._power = message[0], powers[0]

    def quantile(self, share: float, rank: int) -> Quantile:
        (width,), (under,), (over,) = self._binned.width, self._binned.under, self._binned.over
        target, error = float(np.ldexp(float(rank), -self._power)) if rank < 2**1000 else float(rank >> self._power), self._binned.error
        low = int(np.searchsorted(self._message * (1 + error), target))  # the first cell at which enough may have been counted
        high = int(np.searchsorted(self._message * (1 - error), target))  # ... are certain to have been
        cells = len(self._message) - 1
        lo = self._base + self._unit * max(0, width * min(low, cells) + under)
        hi = self._base + self._unit * (width * min(high, cells) + over)
        value = min(max(self._base + self._unit * width * min(low, cells), lo), hi)
        return Quantile(share, value, lo, hi)


def _of_largest(cost: Cost, share: float, rank: int) -> Quantile:
    """By bisection over the table's entries: a limit on a maximum only closes arcs, so each count is exact."""
    least = cost.minimum()[0]
    entries = np.unique(np.concatenate([factor.table.ravel() for factor in cost.factors]))
    entries = entries[entries >= least]
    low, high = 0, len(entries) - 1
    while low < high:
        middle = (low + high) // 2
        enough = Feasible(cost.space, [Limit(cost, int(entries[middle]))]).count().count >= rank
        low, high = (low, middle) if enough else (middle + 1, high)
    value = int(entries[low])
    return Quantile(share, value, value, value)
