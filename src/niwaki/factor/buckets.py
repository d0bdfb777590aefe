"""Sums and maxima of exp(a sum of small real tables) over all architectures: bucket elimination (Dechter 1999) in logarithms.

`Chain` goes through a space in its reading order, because a budget is spent along it. Without a budget the order is free, and a good one
makes everything linear for tables on the edges of a forest. A decision that may not exist has one more option, "absent", last, which
tables that know nothing of it treat as weight 1; tables of its condition leave exactly one of the two possible.

Tables may be complex: with potentials theta + ih d and a tiny h, the imaginary part of a marginal, divided by h, is its derivative along d,
exact to rounding because nothing is subtracted (the complex step of Squire and Trapp 1998). Entropies and covariances are read so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush
from math import prod

import numpy as np

from niwaki.factor.factor import CostError, index_type
from niwaki.space.size import refs, values
from niwaki.space.space import Space

MOST_ENTRIES = 4_000_000  # of one bucket
STEP = 1e-100  # of complex derivatives; small enough that its square vanishes, for any potentials


@dataclass(frozen=True, eq=False)
class Bucket:
    """What is summed out together. clique: its decision first, then those it still meets, in the order in which they go; parent: the
    bucket of the first of these; tables: (number, its axes in the order of the clique, its shape there)."""

    clique: tuple[int, ...]
    parent: int | None
    tables: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]


class Buckets:
    """The elimination of `space` for tables over `scopes` (names of decisions), worked out once for tables of any content."""

    def __init__(self, space: Space, scopes: Sequence[Sequence[str]]) -> None:
        self.space, self.scopes = space, tuple(tuple(scope) for scope in scopes)
        self.optional = [decision.condition is not True for decision in space.decisions]
        self.sizes = [len(d.options) + optional for d, optional in zip(space.decisions, self.optional, strict=True)]
        asked = [tuple(space.position(ref.name) for ref in refs(d.condition)) for d in space.decisions]
        own = [tuple(space.position(name) for name in scope) for scope in self.scopes]
        conditions = [(*asked[p], p) for p in range(len(space)) if self.optional[p]]
        self._existence = [self._exists(scope) for scope in conditions]
        self._positions = [*own, *conditions]
        self.order, cliques = _eliminated(self._positions, self.sizes)
        step = {position: number for number, position in enumerate(self.order)}
        for clique in cliques:
            if (entries := prod(self.sizes[p] for p in clique)) > MOST_ENTRIES:
                listed = ", ".join(f"{space.decisions[p].name} ({self.sizes[p]})" for p in clique)
                raise CostError(
                    f"{len(clique)} decisions depend on each other at once, {entries:,} combinations: {listed}; use fewer edges"
                )
        homes = [min((step[p] for p in scope), default=-1) for scope in self._positions]
        self._home = homes
        self.buckets: list[Bucket] = []
        for number, clique in enumerate(cliques):
            ordered = tuple(sorted(clique, key=step.__getitem__))
            tables = []
            for at, scope in enumerate(self._positions):
                if homes[at] == number:
                    axes = tuple(scope.index(p) for p in ordered if p in scope)
                    tables.append((at, axes, tuple(self.sizes[p] if p in scope else 1 for p in ordered)))
            self.buckets.append(Bucket(ordered, step[ordered[1]] if len(ordered) > 1 else None, tuple(tables)))

    # ---------------------------------------------------------------- tables

    def silent(self, number: int, table: np.ndarray) -> np.ndarray:
        """`table` over the options of scope `number`, with 0 wherever one of its decisions is absent."""
        return np.pad(table, [(0, int(self.optional[p])) for p in self._positions[number]])

    def as_first(self, number: int, table: np.ndarray) -> np.ndarray:
        """`table` over the options of scope `number`; what is absent counts as its first option, as costs have it."""
        for axis, position in enumerate(self._positions[number]):
            if self.optional[position]:
                table = np.concatenate((table, table.take([0], axis=axis)), axis=axis)
        return table

    # ---------------------------------------------------------------- sums

    def log_total(self, tables: Sequence[np.ndarray]) -> float:
        """log of the sum over all architectures of exp(the sum of the tables' entries). tables: one per scope, over options and absence."""
        return float(self._up(tables)[1].real)

    def marginals(self, tables: Sequence[np.ndarray], *, along: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
        """For each scope, the probability of every combination, where an architecture is as likely as exp(its sum): the gradient of
        `log_total`. along: tables of a direction; then the derivative of these probabilities along it, instead."""
        if along is not None:
            tables = [table + 1j * STEP * direction for table, direction in zip(tables, along, strict=True)]
        conditional, _ = self._up(tables)
        joint: list[np.ndarray] = [np.zeros(0)] * len(self.buckets)
        found: list[np.ndarray] = [np.zeros(0)] * len(self.scopes)
        for number in reversed(range(len(self.buckets))):
            bucket, chance = self.buckets[number], conditional[number]
            if bucket.parent is not None:
                chance = chance * _summed(joint[bucket.parent], self.buckets[bucket.parent].clique, bucket.clique[1:])
            joint[number] = chance
            for at, axes, _ in bucket.tables:
                if at < len(self.scopes):
                    marginal = _summed(chance, bucket.clique, [self._positions[at][a] for a in axes])
                    found[at] = marginal.transpose(np.argsort(axes))
        for at, scope in enumerate(self._positions[: len(self.scopes)]):
            if not scope:
                found[at] = np.ones(())
        return [marginal.imag / STEP if along is not None else marginal.real for marginal in found]

    def draw(self, tables: Sequence[np.ndarray], count: int, generator: np.random.Generator) -> np.ndarray:
        """(count, decisions): option numbers of independent architectures, each as likely as exp(its sum); 0 where a decision is absent."""
        conditional, _ = self._up(tables)
        taken: dict[int, np.ndarray] = {}
        for bucket, chance in zip(reversed(self.buckets), reversed(conditional), strict=True):
            below = np.cumsum(chance[(slice(None), *(taken[p] for p in bucket.clique[1:]))], axis=0)
            below = np.broadcast_to(below if below.ndim == 2 else below[:, None], (len(below), count))
            u = generator.random(count) * below[-1]
            taken[bucket.clique[0]] = np.minimum((u >= below).sum(axis=0), len(below) - 1)
        return self._rows(np.stack([taken[p] for p in range(len(self.sizes))], axis=1) if taken else np.zeros((count, 0), dtype=np.int64))

    # ---------------------------------------------------------------- maxima

    def best(self, tables: Sequence[np.ndarray]) -> Iterator[tuple[float, np.ndarray]]:
        """All architectures from the largest sum down: (sum, option numbers (decisions,)).

        What an option loses against the best one, given those before it, is known exactly, and an architecture's sum is the largest less
        all these losses: so the next best is found by going back to the cheapest option not followed yet (best first, an exact bound).
        """
        totals = self._totals(tables, np.max)
        most = float(sum(total.max(axis=0) for bucket, total in zip(self.buckets, totals, strict=True) if bucket.parent is None))
        most += self._constant(tables).real
        with np.errstate(invalid="ignore"):  # where nothing is possible, which no way leads to
            losses = [total.max(axis=0, keepdims=True) - total for total in totals][::-1]
        backwards = self.buckets[::-1]
        heap: list[tuple[float, int, tuple[int, ...]]] = [(0.0, 0, ())]
        made = 0
        while heap:
            lost, _, prefix = heappop(heap)
            options = list(prefix)
            taken = {bucket.clique[0]: option for bucket, option in zip(backwards, prefix, strict=False)}
            for bucket, loss in zip(backwards[len(prefix) :], losses[len(prefix) :], strict=True):
                own = loss[(slice(None), *(taken[p] for p in bucket.clique[1:]))]
                first = int(np.argmin(own))
                for other in np.flatnonzero(np.isfinite(own)):
                    if other != first:
                        made += 1
                        heappush(heap, (lost + float(own[other]), made, (*options, int(other))))
                options.append(first)
                taken[bucket.clique[0]] = first
            yield most - lost, self._rows(np.array([[taken[p] for p in range(len(self.sizes))]], dtype=np.int64).reshape(1, -1))[0]

    # ---------------------------------------------------------------- inside

    def _exists(self, scope: tuple[int, ...]) -> np.ndarray:
        """0 where the last of `scope` exists and is not absent, or does not and is; -inf elsewhere. The others are what it depends on."""
        *asked, position = scope
        decision = self.space.decisions[position]
        whole = np.array(values(decision.condition) if asked else [bool(decision.condition)], dtype=bool)
        there = whole.reshape([len(self.space.decisions[p].options) for p in asked])
        for axis, p in enumerate(
            asked
        ):  # a condition says of itself what it is where another decision is absent, as if that took its first
            if self.optional[p]:
                there = np.concatenate((there, there.take([0], axis=axis)), axis=axis)
        options = np.arange(self.sizes[position]) < len(decision.options)
        return np.where(there[..., None] == options, 0.0, -np.inf)

    def _rows(self, taken: np.ndarray) -> np.ndarray:
        absent = np.array([size - 1 if optional else -1 for size, optional in zip(self.sizes, self.optional, strict=True)])
        return np.where(taken == absent, 0, taken).astype(index_type(self.space))

    def _constant(self, tables: Sequence[np.ndarray]) -> complex:
        return complex(sum(complex(tables[at]) for at, scope in enumerate(self.scopes) if not scope))

    def _totals(self, tables: Sequence[np.ndarray], collect: np.ufunc | object) -> list[np.ndarray]:
        """For each bucket its tables and the messages into it, added up over its clique; messages are made by `collect` (or logsumexp)."""
        every = [*tables, *self._existence]
        totals: list[np.ndarray] = [np.zeros([self.sizes[p] for p in bucket.clique]) for bucket in self.buckets]
        for bucket, start in zip(self.buckets, range(len(totals)), strict=True):
            total = totals[start]
            for at, axes, shape in bucket.tables:
                total = total + every[at].transpose(axes).reshape(shape)
            totals[start] = total
            if bucket.parent is not None:
                message = total.max(axis=0) if collect is np.max else _logsumexp(total)
                wide = [self.sizes[p] if p in bucket.clique else 1 for p in self.buckets[bucket.parent].clique]
                totals[bucket.parent] = totals[bucket.parent] + message.reshape(wide)
        return totals

    def _up(self, tables: Sequence[np.ndarray]) -> tuple[list[np.ndarray], complex]:
        """For each bucket the probability of its decision given the rest of its clique; and the log of the total."""
        whole, conditional = self._constant(tables), []
        for bucket, total in zip(self.buckets, self._totals(tables, None), strict=True):
            log = _logsumexp(total)
            if bucket.parent is None:
                whole += complex(log)
            conditional.append(np.exp(total - np.where(np.isneginf(log.real), 0, log)))
        return conditional, whole

    @cached_property
    def entries(self) -> int:
        """Of all buckets together: what one pass costs."""
        return sum(prod(self.sizes[p] for p in bucket.clique) for bucket in self.buckets)


def _logsumexp(total: np.ndarray) -> np.ndarray:
    """Over the first axis; -inf where all is."""
    top = total.real.max(axis=0)
    top = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(total - top).sum(axis=0)) + top)


def _summed(joint: np.ndarray, clique: Sequence[int], kept: Sequence[int]) -> np.ndarray:
    """`joint` over `clique`, summed over all but `kept`, which are in the order of the clique."""
    return np.asarray(joint.sum(axis=tuple(axis for axis, p in enumerate(clique) if p not in kept)))


def _eliminated(scopes: Sequence[Sequence[int]], sizes: Sequence[int]) -> tuple[list[int], list[set[int]]]:
    """An order of all variables, always the one that then meets the fewest combinations (on a forest: leaves first), and their cliques."""
    near: list[set[int]] = [set() for _ in sizes]
    for scope in scopes:
        for p in scope:
            near[p].update(q for q in scope if q != p)

    def weight(p: int) -> int:
        return sizes[p] * prod(sizes[q] for q in near[p])

    heap = [(weight(p), p) for p in range(len(sizes))]
    heapify(heap)
    order: list[int] = []
    cliques: list[set[int]] = []
    gone: set[int] = set()
    while heap:
        known, p = heappop(heap)
        if p in gone or known != weight(p):
            continue
        order.append(p)
        cliques.append({p, *near[p]})
        gone.add(p)
        for q in near[p]:
            near[q] |= near[p]
            near[q] -= {p, q}
            heappush(heap, (weight(q), q))
    return order, cliques
