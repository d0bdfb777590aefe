"""A feasible set with its decisions in another order, in which tables that link distant decisions keep few of them open at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log, prod

import numpy as np

from niwaki.factor.eliminate import Feasible, joint_existence
from niwaki.factor.factor import Cost, Limit
from niwaki.space.size import refs
from niwaki.space.space import Space

STARTS = 6  # orders that are tried


@dataclass(frozen=True, eq=False)
class Reordered:
    """feasible: over the decisions in another order. column: for each decision in reading order, its column there."""

    feasible: Feasible
    column: tuple[int, ...]

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Option numbers (N, decisions) in the reading order."""
        return rows[:, self.column]


def narrowest(feasible: Feasible, joint: Sequence[tuple[str, ...]]) -> Reordered:
    """`feasible`, able to weigh `joint` decisions together; in the reading order, or a better one of those that were tried."""
    space = feasible.space
    if not joint:
        return Reordered(feasible, tuple(range(len(space))))
    groups = _groups(space, feasible.limits, joint)
    order = min(_orders(space, groups), key=lambda order: _work(space, groups, order))
    turned = Space(tuple(space.decisions[p] for p in order))
    limits = [Limit(Cost(l.cost.name, l.cost.unit, l.cost.factors, turned, l.cost.kind), l.upper) for l in feasible.limits]  # noqa: E741
    return Reordered(Feasible(turned, limits, joint), tuple(int(c) for c in np.argsort(order)))


def open_states(space: Space, limits: Sequence[Limit], joint: Sequence[tuple[str, ...]]) -> float:
    """About how many arcs the elimination has in the best order tried: the work of a pass, and what must not be too many."""
    groups = _groups(space, limits, joint)
    return min(_work(space, groups, order) for order in _orders(space, groups))


def _orders(space: Space, groups: Sequence[frozenset[int]]) -> list[list[int]]:
    starts = range(0, len(space), max(1, len(space) // STARTS))
    return [list(range(len(space))), *(_greedy(space, groups, start) for start in starts)]


def _groups(space: Space, limits: Sequence[Limit], joint: Sequence[tuple[str, ...]]) -> list[frozenset[int]]:
    """Positions of decisions that must be open together at some time."""
    scopes = [*(factor.scope for limit in limits for factor in limit.cost.factors), *(joint_existence(space, scope)[0] for scope in joint)]
    scopes += [(d.name, *(ref.name for ref in refs(d.condition))) for d in space.decisions]
    return list(dict.fromkeys(frozenset(space.position(name) for name in scope) for scope in scopes if len(scope) > 1))


def _greedy(space: Space, groups: Sequence[frozenset[int]], start: int) -> list[int]:
    """An order that begins at `start` (and what its condition asks about) and always goes on with what leaves the fewest states open."""
    asked = [{space.position(ref.name) for ref in refs(d.condition)} for d in space.decisions]
    size = [log(len(d.options) + 1e-9) for d in space.decisions]
    near: list[set[int]] = [set() for _ in space.decisions]
    for group in groups:
        for p in group:
            near[p] |= group - {p}
    order: list[int] = []
    placed: set[int] = set()
    live: set[int] = set()

    def place(p: int) -> None:
        for q in sorted(asked[p] - placed):
            place(q)
        order.append(p)
        placed.add(p)
        live.add(p)
        live.intersection_update({q for q in live if not near[q] <= placed})

    place(start)
    while len(order) < len(near):
        best, choice = (inf, inf, 0), -1
        for p in sorted({q for one in live for q in near[one]} - placed or set(range(len(near))) - placed):
            if asked[p] <= placed:
                after = placed | {p}
                weight = sum(size[q] for q in {*live, p} if not near[q] <= after)
                if (weight, size[p], p) < best:
                    best, choice = (weight, size[p], p), p
        place(choice if choice >= 0 else min(set(range(len(near))) - placed))
    return order


def _work(space: Space, groups: Sequence[frozenset[int]], order: Sequence[int]) -> float:
    """Combinations of open decisions and the next one, added up over the order."""
    at = {p: number for number, p in enumerate(order)}
    last = [max([at[q] for group in groups if p in group for q in group], default=at[p]) for p in order]
    size = [len(space.decisions[p].options) for p in order]
    return sum(float(prod(size[n] for n in range(number) if last[n] >= number)) * size[number] for number in range(len(order)))
