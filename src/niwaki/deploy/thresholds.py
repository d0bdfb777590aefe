"""Which members a cascade runs, in which order, and how sure each must be to be the last: chosen on held-out examples, without any training.

Wang et al. 2022 ("Wisdom of Committees", section 4.2): the outputs of all members on examples that none of them has seen are all that is needed.

points = front(costs, exits_of, Sequences())          the best accuracy for every average cost
min(points, key=by_target(0.98))                      the cheapest that is right so often
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations, product

import numpy as np
from numpy.typing import NDArray

NEVER = 2.0  # a threshold that no confidence reaches: nobody stops there
EXHAUSTIVE = 12  # members, up to which every sequence is tried
STATES = 20_000  # of one sequence, kept at once
EPSILON = 1e-9  # of accuracies and of relative costs: what sums of floats may be off by


class CommitteeError(ValueError):
    """Members that make no committee, or a demand that no committee of them meets. reached: the accuracy that one comes to, where that is too little."""

    def __init__(self, message: str, reached: float = 0.0) -> None:
        super().__init__(message)
        self.reached = reached


@dataclass(frozen=True)
class Rule:
    """members: numbers of the models in the order they run. thresholds: of all but the last: whoever is at least as sure stops there."""

    members: tuple[int, ...]
    thresholds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.members or len(self.thresholds) != len(self.members) - 1:
            raise CommitteeError(f"{len(self.members)} members have a threshold each but the last; given are {len(self.thresholds)}")


@dataclass(frozen=True)
class Point:
    """What a rule comes to on the examples it was chosen on. cost: the average. worst: of an example for which all members run."""

    rule: Rule
    accuracy: float
    cost: float
    worst: float


@dataclass(frozen=True)
class Sequences:
    """Which sequences of members are tried: from cheap to dear, of equals in any order, each member once. (The paper repeats an architecture with
    another seed: that is another member.) longest: members in one (the paper: 4). quantiles: thresholds tried at each exit of three and more
    members; of two members, all that there are. worst: the cost of a whole sequence is at most this. width: of the beam, where there are more
    than 12 members.
    """

    longest: int = 4
    quantiles: int = 24
    worst: float = float("inf")
    width: int = 24

    def __post_init__(self) -> None:
        if self.longest < 1 or self.quantiles < 2 or self.width < 1:
            raise CommitteeError(f"{self}: at least 1 member, 2 quantiles, and a beam of 1")
        if not self.worst > 0:
            raise CommitteeError(f"the worst case cannot be limited to {self.worst}; a limit is above 0")

    def of(self, costs: Sequence[float]) -> Iterator[tuple[int, ...]]:
        """Every sequence of the members, those with the fewest first."""
        by_cost = sorted(range(len(costs)), key=lambda member: costs[member])
        for length in range(1, self.longest + 1):
            for pick in combinations(by_cost, length):
                if sum(costs[member] for member in pick) <= self.worst * (1 + EPSILON):
                    yield from _orders_of_equals(pick, costs)

    def longer(self, sequence: tuple[int, ...], costs: Sequence[float]) -> Iterator[tuple[int, ...]]:
        """`sequence` with one more member."""
        if len(sequence) == self.longest:
            return
        for member in range(len(costs)):
            if member in sequence or sum(costs[one] for one in (*sequence, member)) > self.worst * (1 + EPSILON):
                continue
            for at in range(len(sequence) + 1):
                made = (*sequence[:at], member, *sequence[at:])
                if all(costs[a] <= costs[b] for a, b in pairwise(made)):
                    yield made


def _orders_of_equals(pick: tuple[int, ...], costs: Sequence[float]) -> Iterator[tuple[int, ...]]:
    """The orders in which no member stands before a cheaper one."""
    groups: dict[float, list[int]] = {}
    for member in pick:
        groups.setdefault(costs[member], []).append(member)
    for parts in product(*map(permutations, groups.values())):
        yield tuple(member for part in parts for member in part)


@dataclass(frozen=True, eq=False)
class Exits:
    """One sequence on N examples. sure: (n - 1, N) confidences at the exits before the last; right: (n, N) bool, whether the answer at each exit
    is the label; costs: (n,) of each member."""

    sure: NDArray
    right: NDArray
    costs: NDArray


ExitsOf = Callable[[tuple[int, ...]], Exits]


def points_of(sequence: tuple[int, ...], exits: Exits, quantiles: int, known: Sequence[Point] = ()) -> list[Point]:
    """The Pareto front of accuracy and average cost over the thresholds of one sequence; of three and more members, without what `known` beats.

    Two members: exact, every observed confidence is tried: O(N log N). More: `quantiles` of the confidences at each exit, and "never". What is
    pruned on that grid could not have become part of the front of all sequences: it would be no better if all who are left were answered as well
    as any later exit can, at the price of the next member alone; only where more than `STATES` combinations are still hopeful, the least
    promising go, too.
    """
    total = float(exits.costs.sum())
    count = exits.right.shape[1]
    if len(sequence) == 1:
        return [Point(Rule(sequence, ()), float(exits.right[0].mean()), total, total)]
    correct, spent, thresholds = _two(exits) if len(sequence) == 2 else _more(exits, quantiles, known)
    kept = _pareto(correct, spent)
    return [
        Point(Rule(sequence, tuple(map(float, thresholds[at]))), float(correct[at]) / count, float(spent[at]) / count, total) for at in kept
    ]


def _two(exits: Exits) -> tuple[NDArray, NDArray, NDArray]:
    """(correct, spent, thresholds) for every way to cut the examples by confidence: sums from the surest on."""
    order = np.argsort(-exits.sure[0], kind="stable")
    sure, first, second = exits.sure[0][order], exits.right[0][order], exits.right[1][order]
    stopping = np.arange(1, len(sure) + 1)
    correct = np.cumsum(first) + (second.sum() - np.cumsum(second))
    between = np.append(sure[:-1] > sure[1:], True)  # equals are not torn apart
    # halfway to the next: another machine's last digits change nothing
    below = np.append((sure[:-1] + sure[1:]) / 2, 0.0)
    halfway = np.where(below > np.append(sure[1:], -1.0), below, sure)
    spent = len(sure) * exits.costs[0] + (len(sure) - stopping) * exits.costs[1]
    nobody = (np.array([second.sum()]), np.array([len(sure) * exits.costs.sum()]), np.array([NEVER]))
    found = (correct[between], spent[between], halfway[between])
    correct, spent, thresholds = (np.concatenate([one, other]) for one, other in zip(nobody, found, strict=True))
    return correct, spent, thresholds[:, None]


def _more(exits: Exits, quantiles: int, known: Sequence[Point]) -> tuple[NDArray, NDArray, NDArray]:
    """The same on a grid, for three and more members, exit by exit. States are rows: who is left (S, N), correct, spent, thresholds."""
    n, count = exits.right.shape
    grids = [_grid(sure, quantiles) for sure in exits.sure]
    right = exits.right.astype(np.float32)
    left = np.ones((1, count), dtype=np.float32)
    correct, spent, taken = np.zeros(1), np.full(1, count * exits.costs[0]), np.zeros((1, 0))
    front = (np.array([round(one.accuracy * count) for one in known]), np.array([one.cost * count for one in known]))
    front = _merged(front, (np.array([right[-1].sum()]), np.array([count * exits.costs.sum()])))  # points that are reached for certain
    for at in range(n - 2):
        stops = (exits.sure[at] >= grids[at][:, None]).astype(np.float32)  # (G, N)
        stays = 1 - stops
        gained, going = left @ (stops * right[at]).T, left @ stays.T  # (S, G)
        could = left @ (stays * right[at + 1 :].max(0)).T  # at best
        made_correct, made_spent = (correct[:, None] + gained).ravel(), (spent[:, None] + going * exits.costs[at + 1]).ravel()
        # each state reaches this for certain: all who are left stop at the next exit
        sure_correct = made_correct + (left @ (stays * right[at + 1]).T).ravel()
        front = _merged(front, (sure_correct, made_spent))
        hopeful = ~_dominated(made_correct + could.ravel(), made_spent, front)
        keep = np.flatnonzero(hopeful & (going.ravel() > 0))
        if len(keep) > STATES:
            worth = (made_correct + could.ravel())[keep] / count - made_spent[keep] / (count * exits.costs.sum())
            keep = keep[np.argsort(-worth, kind="stable")[:STATES]]
        state, grid = np.divmod(keep, len(grids[at]))
        left, correct, spent = left[state] * stays[grid], made_correct[keep], made_spent[keep]
        taken = np.column_stack([taken[state], grids[at][grid]])
    stops = (exits.sure[n - 2] >= grids[n - 2][:, None]).astype(np.float32)
    gained = left @ (stops * right[n - 2] + (1 - stops) * right[n - 1]).T
    going = left @ (1 - stops).T
    size = len(grids[n - 2])
    return (
        (correct[:, None] + gained).ravel(),
        (spent[:, None] + going * exits.costs[n - 1]).ravel(),
        np.column_stack([np.repeat(taken, size, axis=0), np.tile(grids[n - 2], len(taken))]),
    )


def _grid(sure: NDArray, quantiles: int) -> NDArray:
    """Thresholds to try, each halfway between two confidences that were observed; and `NEVER`."""
    seen = np.unique(sure)
    if len(seen) <= quantiles:
        cuts = (seen[:-1] + seen[1:]) / 2
    else:
        picks = np.unique(np.searchsorted(seen, np.quantile(sure, np.arange(1, quantiles + 1) / (quantiles + 1))))
        picks = picks[(picks > 0) & (picks < len(seen))]
        cuts = (seen[picks - 1] + seen[picks]) / 2
        cuts = np.where(cuts > seen[picks - 1], cuts, seen[picks])
    return np.append(cuts, NEVER)


def _pareto(correct: NDArray, spent: NDArray) -> NDArray:
    """Places of the points that no other is as good as in both, from the cheapest on."""
    order = np.lexsort((-correct, spent))
    best = np.maximum.accumulate(correct[order])
    new = best > np.append(-np.inf, best[:-1])
    return order[new]


def _merged(front: tuple[NDArray, NDArray], more: tuple[NDArray, NDArray]) -> tuple[NDArray, NDArray]:
    correct, spent = (np.concatenate([a, b]) for a, b in zip(front, more, strict=True))
    kept = _pareto(correct, spent)
    return correct[kept], spent[kept]


def _dominated(correct: NDArray, spent: NDArray, front: tuple[NDArray, NDArray]) -> NDArray:
    """Whether the front has a point at least as right, and cheaper: equal ones stay, for they may be the front's own."""
    at = np.searchsorted(front[1], spent * (1 - EPSILON), side="left")
    reached = np.append(-np.inf, np.maximum.accumulate(front[0]))
    return reached[at] >= correct


def front(costs: Sequence[float], exits_of: ExitsOf, sequences: Sequences, prefers: Callable[[Point], tuple] | None = None) -> list[Point]:
    """The best accuracy for every average cost, from the cheapest on, over all sequences of members and their thresholds.

    With more than 12 members a beam grows sequences by one member at a time, from the single ones: the `width` whose best point is first by
    `prefers` (smaller is better).
    """
    if len(costs) <= EXHAUSTIVE or prefers is None:
        found: list[Point] = []
        for one in sequences.of(costs):
            found = best_of([*found, *points_of(one, exits_of(one), sequences.quantiles, found)])
        return found
    found = []
    level: list[tuple[int, ...]] = [(member,) for member in range(len(costs)) if costs[member] <= sequences.worst * (1 + EPSILON)]
    tried = set(level)
    while level:
        points = {one: points_of(one, exits_of(one), sequences.quantiles, found) for one in level}
        found = best_of([*found, *(point for several in points.values() for point in several)])
        ahead = sorted(level, key=lambda one: min(map(prefers, points[one]), default=(2,)))[: sequences.width]
        grown = [made for one in ahead for made in sequences.longer(one, costs)]
        # with their beginnings: what is pruned of a sequence is no better than what one of these comes to
        parts = dict.fromkeys(made[:length] for made in grown for length in range(1, len(made) + 1))
        level = [one for one in parts if one not in tried]
        tried |= set(level)
    return found


def best_of(points: Iterable[Point]) -> list[Point]:
    """Those that no other is as good as, from the cheapest on; of equals the one with the fewest members."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: (one.cost, -one.accuracy, len(one.rule.members), one.worst)):
        if not kept or point.accuracy > kept[-1].accuracy:
            kept.append(point)
    return kept


def by_target(accuracy: float) -> Callable[[Point], tuple]:
    """Cheapest first among those that are right often enough, then the others, those that are right most often first."""
    return lambda point: (0, point.cost) if point.accuracy >= accuracy - EPSILON else (1, -point.accuracy)


def by_budget(cost: float) -> Callable[[Point], tuple]:
    """Right most often first among those within the budget, then the others, the cheapest first."""
    return lambda point: (0, -point.accuracy, point.cost) if point.cost <= cost else (1, point.cost)
