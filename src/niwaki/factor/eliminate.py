"""How many architectures keep a budget, how likely one does, which is the best of them, and drawing them: by elimination along the space.

Work is done in *slack*. With V(state) the least that can still follow, an arc spends `cost + V(after) - V(before)` >= 0 of the slack
`budget - V(start)`, exactly. Only the slack is binned, so the resolution lies where the budget bites:

- Rounded down, what seems to fit includes all that fits: a superset, for drawing (the exact cost is then checked), for the bound of A*, and
  to see which arcs hardly matter to a count.
- Rounded to the nearest bin, the slack truly spent differs from the binned by the roundings along a path, and the least and the largest sum
  of those is known exactly: the one message, read where the budget would lie at either end, brackets the count.
- A budget whose slack has no more values than there are bins, in units of a common divisor of all that is spent, is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from math import ceil, floor, inf, log
from typing import Any

import numpy as np

from niwaki.factor.chain import UNREACHABLE, Chain, all_rows, through
from niwaki.factor.factor import Cost, CostError, Limit, aligned, chain_of
from niwaki.factor.message import Grid, Moves, meet, pull, scaled_
from niwaki.space.choice import BudgetError, Value
from niwaki.space.size import refs, values
from niwaki.space.space import Space

COARSE_BINS = (192, 24)  # per budget in the first pass, for one and for two budgets
FEWEST_BINS, MOST_BINS = (256, 16), (1 << 20, 1 << 8)
COUNT_WORK = 1_800_000_000  # arcs times cells of a counting pass, a third of a nanosecond each
GRADIENT_WORK = 120_000_000  # of each of three passes
STATE_WORK = 16  # what a cell of a message costs beside its arcs, in arcs
MOST_CELLS = 20_000_000  # of all messages held at once
GAP = 0.008  # relative distance of a count's bounds that is aimed at
LISTED = 20_000_000  # option numbers; a space with fewer is counted by listing it
WEIGHED = 2_000_000  # option numbers; in a space with fewer probabilities are added up over the list

Probabilities = Mapping[str, np.ndarray]  # decision -> float64 (options,)
# The same, and weights of two or more decisions together, by their names: an architecture weighs the product of the entries it takes, of
# each table whose decisions all exist in it. Where no such joint table is given, these are probabilities.
Weights = Mapping[Any, np.ndarray]


@dataclass(frozen=True)
class Count:
    """How many architectures keep the limits: certainly at least `lo` and at most `hi`, `count` by the best estimate, of `size` in all."""

    count: int
    lo: int
    hi: int
    size: int

    @property
    def share(self) -> float:
        return float(Fraction(self.count, self.size))

    @property
    def exact(self) -> bool:
        return self.lo == self.hi


@dataclass(frozen=True)
class Probability:
    """P(the limits are kept), certainly from `lo` to `hi`. Kept as natural logarithms: the probability may be less than a float can say."""

    log: float
    log_lo: float
    log_hi: float

    @property
    def value(self) -> float:
        return float(np.exp(self.log))

    @property
    def lo(self) -> float:
        return float(np.exp(self.log_lo))

    @property
    def hi(self) -> float:
        return float(np.exp(self.log_hi))


class Feasible:
    """The architectures of a space that keep all `limits`. Made once for many questions; raises BudgetError if a limit cannot be kept.

    Two additive limits at most are in the elimination; of more, the two that fewest architectures keep, and the others are checked
    on what is drawn. Limits on a maximum only close arcs.

    joint: names of decisions (two or more) for which `Weights` may hold a table together.
    """

    def __init__(self, space: Space, limits: Sequence[Limit], joint: Sequence[tuple[str, ...]] = ()) -> None:
        self.space, self.limits, self.joint = space, tuple(limits), {tuple(scope): joint_existence(space, scope) for scope in joint}
        for limit in self.limits:
            if limit.cost.space is not space and limit.cost.space.hash != space.hash:
                raise CostError(f"{limit.cost.name} belongs to the space {limit.cost.space.hash}, but limits the space {space.hash}")
            if limit.cost.minimum()[0] > limit.upper:
                least, arch = limit.cost.minimum()
                raise BudgetError(
                    f"no architecture has {limit}: the least is {least:,} {limit.cost.unit}".rstrip()
                    + f", with {', '.join(f'{name} = {option!r}' for name, option in arch.items())}",
                    arch,
                )
        biting = [limit for limit in self.limits if limit.cost.maximum()[0] > limit.upper]
        summed = [limit for limit in biting if limit.cost.kind == "sum"]
        self.chain = _chain(
            space, tuple(dict.fromkeys(limit.cost for limit in self.limits)), tuple(wide for wide, _ in self.joint.values())
        )
        self._closed = [np.zeros(len(stage.source), dtype=bool) for stage in self.chain.stages]
        for limit in biting:
            if limit.cost.kind == "max":
                charges = self.chain.charged(limit.cost.factors, np.maximum)
                self._closed = [closed | (charge > limit.upper) for closed, charge in zip(self._closed, charges, strict=True)]
        if len(summed) > 2:
            summed.sort(key=lambda limit: Feasible(space, [limit]).count(work=COUNT_WORK // 20).count)
        self.binned, self.checked = summed[:2], summed[2:]
        self.stages, self.slack, _ = reduced(*self.eliminated(self.binned))

    # ---------------------------------------------------------------- counting

    def count(self, *, work: int = COUNT_WORK) -> Count:
        """How many architectures keep the limits. Exact for small spaces, and where the slack has few enough values."""
        size = self.space.size
        if size * max(1, len(self.space)) <= LISTED:
            found = int(self.keeps(all_rows(self.space)[0]).sum())
            return Count(found, found, found, size)
        return self.count_by_elimination(work=work)

    def count_by_elimination(self, *, work: int = COUNT_WORK) -> Count:
        """`count`, never by listing the space."""
        size = self.space.size
        bracket = self._bracket([stage.multiplicity for stage in self.stages], work)
        middle, lo, hi = bracket.whole(bracket.value), bracket.whole(bracket.lo, -1), min(size, bracket.whole(bracket.hi, 1))
        if self.checked:  # of more than two limits, only that no more than these keep them all is certain
            lo = 0
        return Count(min(max(middle, lo), hi), lo, hi, size)

    def probability(self, probabilities: Probabilities | None = None, *, work: int = COUNT_WORK) -> Probability:
        """P(the limits are kept) if every decision that exists is drawn by `probabilities` (by default its options are equally likely)."""
        if self._list is None:
            return self.probability_by_elimination(probabilities, work=work)
        total = float(self._chances(self.checked_probabilities(probabilities)).sum())
        found = min(0.0, log(total)) if total else -inf
        return Probability(found, found, found)

    def probability_by_elimination(self, probabilities: Probabilities | None = None, *, work: int = COUNT_WORK) -> Probability:
        """`probability`, never by listing the space. Of more than two additive limits only an upper bound is certain."""
        bracket = self._bracket(self.weights(self.checked_probabilities(probabilities)), work)
        logs = [bracket.log(amount) for amount in (bracket.value, bracket.lo, bracket.hi)]
        return Probability(min(0.0, logs[0]), -inf if self.checked else min(0.0, logs[1]), min(0.0, logs[2]))

    def log_probability(self, probabilities: Probabilities, *, work: int = GRADIENT_WORK) -> tuple[float, dict[str, np.ndarray]]:
        """log P(the limits are kept) and its gradient by every probability, as if these were free numbers; right also at 0 and 1.

        Raises BudgetError where P is 0, for its logarithm has no gradient.
        """
        found, gradient = self.log_total(probabilities, work=work)
        return min(0.0, found), gradient

    def log_total(self, weights: Weights, *, work: int = GRADIENT_WORK) -> tuple[float, dict[Any, np.ndarray]]:
        """log of the total weight of the architectures that keep the limits, and its gradient by every entry of `weights`.

        Raises BudgetError where that is 0, for its logarithm has no gradient.
        """
        if self._list is None:
            return self.log_total_by_elimination(weights, work=work)
        given = self.checked_probabilities(weights)
        total = float(self._chances(given).sum())
        if not total:
            raise self._without_gradient()
        gradient = {}
        for key, there, at in self._listed(given):
            others = self._chances(given, without=key)[there]
            gradient[key] = np.bincount(at[there], weights=others, minlength=given[key].size).reshape(given[key].shape) / total
        return log(total), gradient

    def log_probability_by_elimination(
        self, probabilities: Probabilities, *, work: int = GRADIENT_WORK
    ) -> tuple[float, dict[str, np.ndarray]]:
        """`log_probability`, never by listing the space; of more than two additive limits only the two that are binned count."""
        found, gradient = self.log_total_by_elimination(probabilities, work=work)
        return min(0.0, found), gradient

    def log_total_by_elimination(self, given: Weights, *, work: int = GRADIENT_WORK) -> tuple[float, dict[Any, np.ndarray]]:
        """`log_total`, never by listing the space; of more than two additive limits only the two that are binned count."""
        given = self.checked_probabilities(given)
        weights = self.weights(given)
        stages, slack, which = self.stages, self.slack, [np.arange(len(stage.source)) for stage in self.stages]
        slopes: list[np.ndarray] = [np.zeros(0)] * len(stages)
        bins = self.affordable(stages, slack, work, kept=True)
        if not _exact(slack, bins):  # a coarse pass finds the arcs that hardly matter; their slopes are taken from it
            coarse = Binned(stages, slack, COARSE_BINS[len(slack) - 1], "down")
            total, slopes = coarse.slopes(weights)
            which = [np.flatnonzero(w * s > 1e-5 * GAP * 1e-1 / len(stages)) for w, s in zip(weights, slopes, strict=True)]
            if total > -inf and all(len(part) for part in which):
                stages, slack, _ = reduced([stage.kept(part) for stage, part in zip(stages, which, strict=True)], slack)
                bins = self.affordable(stages, slack, work, kept=True)
        total, fine = Binned(stages, slack, bins, "middle").slopes([w[part] for w, part in zip(weights, which, strict=True)])
        if total == -inf:
            raise self._without_gradient()
        for slope, part, refined in zip(slopes, which, fine, strict=True):
            if len(slope):
                slope[part] = refined
        return total, self._by_option(given, slopes if len(slopes[0]) else fine)

    def keeps(self, rows: np.ndarray) -> np.ndarray:
        """bool (N,): which rows of option numbers keep all limits, by their exact costs."""
        kept = np.ones(len(rows), dtype=bool)
        for limit in self.limits:
            kept[kept] = limit.cost.batch(rows[kept]) <= limit.upper
        return kept

    # ---------------------------------------------------------------- inside

    @cached_property
    def _list(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Option numbers and existence of every architecture that keeps the limits, if the space is small."""
        if self.space.size * max(1, len(self.space)) > WEIGHED:
            return None
        rows, exists = all_rows(self.space)
        kept = self.keeps(rows)
        return rows[kept], exists[kept]

    def _listed(self, weights: Weights) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
        """For each table of `weights`: its key, whether its decisions exist, and which of its entries is taken, by kept architecture (N,)."""
        assert self._list is not None
        rows, exists = self._list
        for key, table in weights.items():
            columns = [self.space.position(name) for name in _scope(key)]
            there = np.asarray(exists[:, columns].all(axis=1))
            yield key, there, np.ravel_multi_index(tuple(rows[:, columns].T), table.shape)

    def _chances(self, weights: Weights, without: Any = None) -> np.ndarray:
        """(kept architectures,): the product of the entries they take, those of the table of the key `without` left out."""
        assert self._list is not None
        chances = np.ones(len(self._list[0]))
        for key, there, at in self._listed(weights):
            if key != without:
                chances *= np.where(there, weights[key].ravel()[at], 1.0)
        return chances

    def _without_gradient(self) -> BudgetError:
        return BudgetError(f"under the given probabilities no architecture has {self.text()}, so log P has no gradient")

    def text(self) -> str:
        return " and ".join(str(limit) for limit in self.limits) or "no limit"

    def eliminated(self, limits: Sequence[Limit]) -> tuple[list[Arcs], list[int]]:
        """The arcs of each stage that some path within the limits may take, with what they spend of each limit's slack; and the slack."""
        chain, stages = self.chain, self.chain.stages
        keep = [~closed for closed in self._closed]
        spends: list[list[np.ndarray]] = []
        slack = []
        for limit in limits:
            charges = [np.where(closed, UNREACHABLE, c) for closed, c in zip(self._closed, chain.charged(limit.cost.factors), strict=True)]
            after = chain.to_finish(charges)
            slack.append(limit.upper - int(after[0][0]))
            if slack[-1] < 0:
                raise BudgetError(f"no architecture has {self.text()} at once, though each of them can be kept alone")
            ends = zip(stages, charges, after[:-1], after[1:], strict=True)
            spends.append([through(charge, v[stage.target], np.add) - u[stage.source] for stage, charge, u, v in ends])
            before = np.zeros(1, dtype=np.int64)
            for number, (stage, spend) in enumerate(zip(stages, spends[-1], strict=True)):
                arrived = before[stage.source] + np.minimum(spend, UNREACHABLE // 4)
                keep[number] &= arrived <= slack[-1]
                before = np.full(stage.targets, UNREACHABLE // 4)
                np.minimum.at(before, stage.target, arrived)
        if not limits:  # nothing is spent of no slack
            after = chain.to_finish([np.where(closed, UNREACHABLE, 0) for closed in self._closed])
            if after[0][0]:
                raise BudgetError(f"no architecture has {self.text()} at once, though each of them can be kept alone")
            spends, slack = [[np.zeros(len(stage.source), dtype=np.int64) for stage in stages]], [0]
        arcs = []
        for number, stage in enumerate(stages):
            raw = np.flatnonzero(keep[number])
            spend = np.stack([part[number][raw] for part in spends], axis=1)
            arcs.append(_arcs(raw, stage.source[raw], stage.target[raw], spend, len(stage.states), stage.targets))
        return arcs, slack

    def affordable(self, stages: Sequence[Arcs], slack: Sequence[int], work: int, *, kept: bool = False) -> int:
        """Bins per budget so that a pass costs about `work` and, where messages are kept, they fit in memory."""
        cells = work / sum(len(stage.source) + STATE_WORK * stage.states for stage in stages)
        states = [stage.states for stage in stages]
        cells = min(cells, MOST_CELLS / (sum(states) if kept else max(states)))
        budgets = len(slack) - 1
        bins = cells if budgets == 0 else (cells / 2) ** 0.5
        return int(min(MOST_BINS[budgets], max(FEWEST_BINS[budgets], bins)))

    def _bracket(self, weights: list[np.ndarray], work: int) -> _Bracket:
        """The total weight of what keeps the binned limits, with bounds. weights: (A,) per stage."""
        stages, slack, budgets = self.stages, self.slack, len(self.slack) - 1
        bins = self.affordable(stages, slack, work)
        if _exact(slack, bins):
            return Binned(stages, slack, bins, "nearest").bracket(weights)
        coarse = Binned(stages, slack, COARSE_BINS[budgets], "down")
        seen = coarse.contributions(weights)
        if not seen.total:
            return _Bracket(0.0, 0.0, 0.0, 0, 0.0)
        dropped, which = 0.0, []
        for part in seen.shares:
            order = np.argsort(part)
            below = np.cumsum(part[order])
            least = int(np.searchsorted(below, GAP / 10 / len(stages)))
            dropped += float(below[least - 1]) if least else 0.0
            which.append(np.sort(order[least:]))
        stages, slack, _ = reduced([stage.kept(part) for stage, part in zip(stages, which, strict=True)], slack)
        bins = self.affordable(stages, slack, work)
        if not _exact(slack, bins):  # no finer than the gap asks for: every stage rounds by a bin at most, from end to end
            bins = min(bins, max(FEWEST_BINS[budgets], ceil(seen.steepness * len(stages) / (GAP / 1.4))))
        fine = Binned(stages, slack, bins, "nearest").bracket([w[part] for w, part in zip(weights, which, strict=True)])
        return fine.widened(dropped * seen.total, seen.power)

    def checked_probabilities(self, probabilities: Weights | None) -> dict[Any, np.ndarray]:
        if probabilities is None:
            return even(self.space)
        checked = {}
        for key in dict.fromkeys((*(decision.name for decision in self.space.decisions), *probabilities)):
            if key not in probabilities:
                raise CostError(f"no probabilities are given for {key!r}, which has {len(self.space[key].options)} options")
            if key not in self.joint and len(_scope(key)) > 1:
                known = ", ".join(map(repr, self.joint)) or "none"
                raise CostError(
                    f"weights are given for {key!r} together, which this elimination does not hold together; it does for {known}"
                )
            given = np.asarray(probabilities[key], dtype=np.float64)
            shape = tuple(len(self.space[name].options) for name in _scope(key))
            if given.shape != shape or not (given >= 0).all() or not np.isfinite(given).all():
                count = " x ".join(map(str, shape))
                raise CostError(f"the probabilities of {key!r} must be {count} numbers >= 0, not {given}")
            checked[key] = given
        return checked

    def read(self, weights: Weights, number: int, raw: np.ndarray | None = None) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
        """For each table of `weights` that is complete with the stage `number`: its key, and for the chain's arcs `raw`, (R,), by default
        those that are kept, whether its decisions exist and which of its entries is taken."""
        stage = self.chain.stages[number]
        raw = self.stages[number].raw if raw is None else raw
        for key, table in weights.items():
            scope, wide = _scope(key), self.joint[key][0] if key in self.joint else _scope(key)
            positions = [self.space.position(name) for name in wide]
            if not stage.start <= max(positions) < stage.stop:
                continue
            columns = {name: column[raw] for name, column in zip(wide, stage.columns(positions), strict=True)}
            there = self.joint[key][1][tuple(columns.values())] if key in self.joint else stage.exists[raw, positions[0] - stage.start]
            yield key, there, np.ravel_multi_index(tuple(columns[name] for name in scope), table.shape)

    def raw_weights(self, weights: Weights, number: int) -> np.ndarray:
        """(arcs of the stage as the chain has them that are kept,): the weight, or probability, of taking the arc in its state."""
        weight = np.ones(len(self.stages[number].raw))
        for key, there, at in self.read(weights, number):
            weight *= np.where(there, weights[key].ravel()[at], 1.0)
        return weight

    def weights(self, weights: Weights) -> list[np.ndarray]:
        return [
            np.bincount(arcs.group, weights=self.raw_weights(weights, number), minlength=len(arcs.source))
            for number, arcs in enumerate(self.stages)
        ]

    def _by_option(self, weights: Weights, slopes: Sequence[np.ndarray]) -> dict[Any, np.ndarray]:
        """The gradient by every entry of `weights`, from the slopes by the weights of arcs."""
        gradient = {}
        for number, (arcs, slope) in enumerate(zip(self.stages, slopes, strict=True)):
            read = list(self.read(weights, number))
            taken = [np.where(there, weights[key].ravel()[at], 1.0) for key, there, at in read]
            for own, (key, there, at) in enumerate(read):
                others = slope[arcs.group]
                for other, factor in enumerate(taken):
                    if other != own:
                        others = others * factor
                table = np.bincount(at[there], weights=others[there], minlength=weights[key].size)
                gradient[key] = table.reshape(weights[key].shape)
        return gradient


def _scope(key: Any) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else tuple(key)


def joint_existence(space: Space, scope: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The decisions of `scope` and those that their conditions ask about, in the order of the space, and for every combination of these
    whether all of `scope` exist: bool, one axis each."""
    asked = [ref.name for name in scope for ref in refs(space[name].condition)]
    wide = tuple(sorted({*scope, *asked}, key=space.position))
    exists = np.ones([len(space[name].options) for name in wide], dtype=bool)
    for name in scope:
        condition = space[name].condition
        names = [ref.name for ref in refs(condition)]
        table = np.array(values(condition) if names else [bool(condition)], dtype=bool)
        table = table.reshape([len(space[other].options) for other in names])
        exists &= aligned(table, names, wide)
    return wide, exists


# -------------------------------------------------------------------- arcs and bins


def even(space: Space) -> dict[str, np.ndarray]:
    """By decision: the same probability for every option."""
    return {decision.name: np.full(len(decision.options), 1 / len(decision.options)) for decision in space.decisions}


def certain(space: Space, taken: Mapping[str, Value]) -> dict[str, np.ndarray]:
    """By decision of `taken`: all probability for the option that is taken there."""
    return {name: np.array([float(one == option) for one in space[name].options]) for name, option in taken.items()}


@dataclass(frozen=True, eq=False)
class Arcs:
    """Arcs of one stage that some path within every budget may take; those of the same states and the same spends are one. A of them."""

    source: np.ndarray  # (A,) ascending
    target: np.ndarray  # (A,)
    spend: np.ndarray  # (A, budgets) int64
    states: int
    targets: int
    raw: np.ndarray  # (R,) the arcs of the chain's stage
    group: np.ndarray  # (R,) which of the A each of them is

    @cached_property
    def multiplicity(self) -> np.ndarray:
        return np.bincount(self.group, minlength=len(self.source)).astype(np.float64)

    def kept(self, which: np.ndarray) -> Arcs:
        """Some of them, without the way back to the chain's arcs."""
        none = np.zeros(0, dtype=np.int64)
        return Arcs(self.source[which], self.target[which], self.spend[which], self.states, self.targets, none, none)


def _arcs(raw: np.ndarray, source: np.ndarray, target: np.ndarray, spend: np.ndarray, states: int, targets: int) -> Arcs:
    pair = source * targets + target
    order = np.lexsort((*spend.T, pair))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(pair[order]) != 0) | (np.diff(spend[order], axis=0) != 0).any(axis=1)
    group = np.empty(len(order), dtype=np.int64)
    group[order] = np.cumsum(new) - 1
    first = order[new]
    return Arcs(source[first], target[first], spend[first], states, targets, raw, group)


def reduced(stages: Sequence[Arcs], slack: Sequence[int]) -> tuple[list[Arcs], list[int], list[int]]:
    """Spends and slack in units of the common divisor of all spends, and these units, per budget."""
    unit = np.gcd.reduce([np.gcd.reduce(arcs.spend, axis=0) for arcs in stages if len(arcs.spend)] or [np.ones(len(slack), dtype=np.int64)])
    unit = np.where(unit == 0, 1, unit)
    whole = [int(by) for by in unit]
    return [replace(arcs, spend=arcs.spend // unit) for arcs in stages], [s // by for s, by in zip(slack, whole, strict=True)], whole


def _exact(slack: Sequence[int], bins: int) -> bool:
    return all(units < bins for units in slack)


@dataclass(frozen=True)
class _Bracket:
    """A total between `lo` and `hi`, all times 2^power; `error` is the relative error of the floating-point sums in them."""

    value: float
    lo: float
    hi: float
    power: int
    error: float

    def widened(self, more: float, power: int) -> _Bracket:
        """With `more` * 2^power that may have been missed."""
        missed = float(np.ldexp(more, power - self.power))
        return _Bracket(min(self.value + missed / 2, self.hi + missed), self.lo, self.hi + missed, self.power, self.error)

    def whole(self, amount: float, side: int = 0) -> int:
        """`amount` as an integer; rounded towards `side` with the error of the sums, unless these were exact."""
        exact = Fraction(amount) * Fraction(2) ** self.power
        if exact.denominator == 1 and exact < 2**53 and self.lo == self.hi:
            return int(exact)
        slanted = exact * (1 + side * Fraction(self.error))
        return ceil(slanted) if side > 0 else floor(slanted) if side < 0 else round(slanted)

    def log(self, amount: float) -> float:
        return log(amount) + self.power * log(2) if amount > 0 else -inf


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a coarse pass, which counts a superset, shows."""

    shares: list[np.ndarray]  # (A,) per stage: at most this part of the total goes through the arc
    total: float  # times 2^power
    power: int
    steepness: float  # d log(total) / d log(slack)


class Binned:
    """Arcs with spends in bins of slack.

    rounding: "down" (a superset fits), "nearest" (enough cells that nothing that fits is lost), "middle" (nearest, and exactly the
    cells up to the best estimate of where the budget lies).
    """

    def __init__(self, stages: Sequence[Arcs], slack: Sequence[int], bins: int, rounding: str) -> None:
        self.slack = slack
        self.width = [1 if units < bins else -(-(units + 1) // bins) for units in slack]
        width = np.array(self.width, dtype=np.int64)
        binned = [arcs.spend // width if rounding == "down" else (2 * arcs.spend + width) // (2 * width) for arcs in stages]
        budgets = range(len(slack))
        self.under = self.over = [0] * len(slack)  # what a path truly spends beyond its bins lies between these, in units
        self.middle = [max(0.0, units / w - 0.5 + 0.5 / w) for units, w in zip(slack, self.width, strict=True)]
        if rounding == "nearest" and not self.exact:
            beyond = [arcs.spend - width * part for arcs, part in zip(stages, binned, strict=True)]
            self.under = [_least_along(stages, [part[:, b] for part in beyond]) for b in budgets]
            self.over = [-_least_along(stages, [-part[:, b] for part in beyond]) for b in budgets]
            self.top = [max(0, (slack[b] - self.under[b]) // self.width[b]) for b in budgets]
        else:
            self.top = [round(m) for m in self.middle] if rounding == "middle" else [slack[b] // self.width[b] for b in budgets]
        self.grid = Grid(tuple(top + 1 for top in self.top))
        self.stages = []
        for arcs, part in zip(stages, binned, strict=True):
            fits = np.flatnonzero((part <= np.array(self.top)).all(axis=1))
            self.stages.append(Bundles.of(arcs, fits, self.grid.shift(part[fits])))

    @property
    def exact(self) -> bool:
        return all(width == 1 for width in self.width)

    @property
    def error(self) -> float:
        """Relative error of a total: all terms are positive, so that of a sum is at most its number of terms times 2^-53."""
        terms = sum(np.diff(part.moves.bounds()).max(initial=0) + 4 for part in self.stages)
        return float(terms) * 2.0**-52

    def cell(self, bins: Sequence[int]) -> int:
        """Where so many bins of slack lie on the flat axis."""
        return self.grid.none + sum(step * min(at, top) for step, at, top in zip(self.grid.strides, bins, self.top, strict=True))

    def backward(self, weights: Sequence[np.ndarray], *, keep: bool = True) -> tuple[list[np.ndarray], list[int]]:
        """For each cut (only the first, if not `keep`), the weight of finishing within every amount of slack: (states, cells) * 2^power."""
        messages, powers = [self.grid.full(1.0, 0.0, np.float64)], [0]
        for part, weight in zip(reversed(self.stages), reversed(weights), strict=True):
            message, power = scaled_(pull(messages[-1], part.moves, part.total(weight), self.grid))
            messages = [*messages, message] if keep else [message]
            powers.append(powers[-1] + power)
        return messages[::-1], powers[::-1]

    def forward(self, weights: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
        """For each cut, the weight of arriving with every amount of slack spent: (states, cells) * 2^power."""
        messages, powers = [self.grid.start()], [0]
        for part, weight in zip(self.stages, weights, strict=True):
            turned, order = part.turned()
            message, power = scaled_(pull(messages[-1], turned, part.total(weight)[order], self.grid))
            messages.append(message)
            powers.append(powers[-1] + power)
        return messages, powers

    def bracket(self, weights: Sequence[np.ndarray]) -> _Bracket:
        """The total weight of what fits, read from one message at both ends."""
        (message,), powers = self.backward(weights, keep=False)
        total, power = message[0], powers[0]
        ends = []
        for extreme in (self.over, self.under):
            bins = [(units - by) // w for units, by, w in zip(self.slack, extreme, self.width, strict=True)]
            ends.append(float(total[self.cell(bins)]) if min(bins) >= 0 else 0.0)
        if len(self.slack) == 1:
            low = floor(self.middle[0])
            there, after = total[self.cell([low])], total[self.cell([low + 1])]
            value = float(there + (after - there) * (self.middle[0] - low))
        else:
            value = float(total[self.cell([round(m) for m in self.middle])])
        return _Bracket(min(max(value, ends[0]), ends[1]), ends[0], ends[1], power, self.error)

    def contributions(self, weights: Sequence[np.ndarray]) -> _Seen:
        """Which part of the total goes through each arc, and how steeply the total rises with the slack."""
        left, powers = self.backward(weights)
        shares = [slope * weight for slope, weight in zip(self._slopes(left, powers, weights), weights, strict=True)]
        return _Seen(shares, float(left[0][0, -1]), powers[0], self.steepness(left[0]))

    def slopes(self, weights: Sequence[np.ndarray]) -> tuple[float, list[np.ndarray]]:
        """log(total) and its slope by each arc's weight, (A,) per stage."""
        left, powers = self.backward(weights)
        total = float(left[0][0, -1])
        return (log(total) + powers[0] * log(2) if total else -inf), self._slopes(left, powers, weights)

    def _slopes(self, left: Sequence[np.ndarray], left_power: Sequence[int], weights: Sequence[np.ndarray]) -> list[np.ndarray]:
        spent, spent_power = self.forward(weights)
        total, slopes = float(left[0][0, -1]), []
        for number, (part, weight) in enumerate(zip(self.stages, weights, strict=True)):
            slope = np.zeros(len(weight))
            if total:
                by_bundle = meet(spent[number], left[number + 1], part.moves, self.grid) / total
                slope[part.fits] = np.ldexp(by_bundle, spent_power[number] + left_power[number + 1] - left_power[0])[part.group]
            slopes.append(slope)
        return slopes

    def steepness(self, first: np.ndarray) -> float:
        """d log(total) / d log(slack) at the budgets, roughly and at least 1, from the message (1, cells) of the first cut."""
        total, steepness = float(first[0, -1]), 0.0
        for budget, top in enumerate(self.top):
            step = max(1, top // 12)
            before = float(first[0, self.cell([t - step if b == budget else t for b, t in enumerate(self.top)])]) if top else 0.0
            steepness += log(total / before) * top / step if before > 0 else 1.0
        return max(1.0, steepness)


@dataclass(frozen=True, eq=False)
class Bundles:
    """The arcs of one stage that fit, those of the same states and bins as one. M bundles."""

    moves: Moves  # (M,), from the state before the stage
    fits: np.ndarray  # (F,) arcs
    group: np.ndarray  # (F,) the bundle of each

    @staticmethod
    def of(arcs: Arcs, fits: np.ndarray, shift: np.ndarray) -> Bundles:
        source, target = arcs.source[fits], arcs.target[fits]
        code = (source * (int(shift.max(initial=0)) + 1) + shift) * arcs.targets + target
        _, first, group = np.unique(code, return_index=True, return_inverse=True)
        return Bundles(Moves(source[first], target[first], shift[first], arcs.states, arcs.targets), fits, group)

    def total(self, weight: np.ndarray) -> np.ndarray:
        """(M,): the weights of the arcs, (A,), added up."""
        return np.bincount(self.group, weights=weight[self.fits], minlength=len(self.moves.home))

    def of_raw(self, group: np.ndarray) -> np.ndarray:
        """(R,): the bundle of each of the chain's arcs behind them, given the arc (R,) that each of those is; -1 if it does not fit."""
        bundle = np.full(group.max(initial=-1) + 1, -1)
        bundle[self.fits] = self.group
        return bundle[group]

    def turned(self) -> tuple[Moves, np.ndarray]:
        """The moves seen from the state after the stage, and the order of the bundles in them."""
        order = np.lexsort((self.moves.shift, self.moves.away))
        moves = self.moves
        return Moves(moves.away[order], moves.home[order], moves.shift[order], moves.aways, moves.homes), order


def _least_along(stages: Sequence[Arcs], amounts: Sequence[np.ndarray]) -> int:
    """The least sum of `amounts` (A,) along a path through the stages; 0 if there is none."""
    least = np.zeros(1, dtype=np.int64)
    for arcs, amount in zip(reversed(stages), reversed(amounts), strict=True):
        here = np.full(arcs.states, UNREACHABLE // 4)
        np.minimum.at(here, arcs.source, np.minimum(amount + least[arcs.target], UNREACHABLE // 4))
        least = here
    return int(least[0]) if least[0] < UNREACHABLE // 8 else 0


@lru_cache(maxsize=8)
def _chain(space: Space, costs: tuple[Cost, ...], joint: tuple[tuple[str, ...], ...]) -> Chain:
    return chain_of(space, costs, joint)
