"""A space cut into stages, so that whatever adds up along it can be computed stage by stage.

Going through the decisions in order, only those matter later that some table or condition still asks about: the *frontier*.
A *state* is one combination of options of the frontier, a *stage* the decisions between two cuts taken all at once, and an
*arc* one way to take them from one state. Cuts are chosen so that there are as few arcs as possible: in a chain of blocks the
operator and the expansion of a block disappear inside its stage and the states are the widths between blocks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from niwaki.space.choice import SpaceError
from niwaki.space.size import refs, values
from niwaki.space.space import Space

if TYPE_CHECKING:
    from niwaki.factor.factor import Factor

MOST_ARCS = 8_000_000  # in one stage
MANY_ARCS = 1_000_000  # in all: with more, it is worth while to see which states are alike
STAGE_OVERHEAD = 64  # arcs that one more stage must save to be worth it
UNREACHABLE = np.int64(1 << 62)


@dataclass(frozen=True, eq=False)
class Stage:
    """Decisions `start` to `stop` taken at once. A arcs, sorted by `source`; D = stop - start decisions; S states before and T after."""

    start: int
    stop: int
    options: np.ndarray  # (A, D) int32, option numbers; 0 where the decision does not exist
    exists: np.ndarray  # (A, D) bool
    source: np.ndarray  # (A,) state before
    target: np.ndarray  # (A,) state after
    frontier: tuple[int, ...]  # positions of the decisions that make up a state before this stage
    states: np.ndarray  # (S, len(frontier)) int32, their option numbers
    targets: int  # T

    def columns(self, positions: Sequence[int]) -> list[np.ndarray]:
        """For each position its option number on every arc, (A,)."""
        at = {position: axis for axis, position in enumerate(self.frontier)}
        return [self.options[:, p - self.start] if p >= self.start else self.states[self.source, at[p]] for p in positions]


class Chain:
    """The stages of `space`, for tables over `scopes` (names of decisions) and for sums of factors.

    Where the frontiers of a space have too many combinations, states that no sum and no condition can tell apart any more are one: a layer that
    reads twenty maps side by side costs by their total width, of which there are few, and not by the twenty widths.
    """

    def __init__(self, space: Space, scopes: Iterable[Sequence[str]], sums: Sequence[Sequence[Factor]] = ()) -> None:
        """sums: the factors of each cost that is a sum."""
        self.space = space
        told = {tuple(space.position(name) for name in scope) for scope in scopes}
        told |= {(position, *(space.position(ref.name) for ref in refs(d.condition))) for position, d in enumerate(space.decisions)}
        summed = {tuple(space.position(name) for name in factor.scope) for factors in sums for factor in factors}
        frontiers, apart = _frontiers(space, told | summed), _frontiers(space, told)
        cuts, arcs = _cuts(space, frontiers)
        signatures = None
        if arcs > MANY_ARCS and (sums or arcs == float("inf")):
            # one decision at a time: states that have become alike are one before the next decision multiplies them
            cuts, signatures = [(at, at + 1) for at in range(len(space.decisions))], Signatures(space, sums)
        self.is_merged = signatures is not None
        self.stages: list[Stage] = []
        states = np.zeros((1, 0), dtype=np.int32)
        for start, stop in cuts:
            if len(states) * prod(len(decision.options) for decision in space.decisions[start:stop]) > MOST_ARCS:
                raise _too_many(space, [*frontiers[start], start], len(states) * len(space.decisions[start].options))
            rows = {position: states[:, axis] for axis, position in enumerate(frontiers[start])}
            origin, options, exists = _expanded(space, rows, len(states), start, stop)
            code = np.zeros(len(origin), dtype=np.int64)
            for position in frontiers[stop] if signatures is None else apart[stop]:
                code = code * len(space.decisions[position].options) + rows[position]
            if signatures is None:
                _, first, target = np.unique(code, return_index=True, return_inverse=True)
            else:
                first, target = signatures.classes(rows, code, stop)
            self.stages.append(Stage(start, stop, options, exists, origin, target, frontiers[start], states, len(first)))
            states = np.stack([rows[p][first] for p in frontiers[stop]], axis=1) if frontiers[stop] else np.zeros((1, 0), dtype=np.int32)

    def charged(self, factors: Sequence[Factor], combine: np.ufunc = np.add) -> list[np.ndarray]:
        """For each stage, int64 (A,): what each arc costs. A factor is charged where the last decision of its scope is taken."""
        charges = [np.zeros(len(stage.source), dtype=np.int64) for stage in self.stages]
        for factor in factors:
            positions = [self.space.position(name) for name in factor.scope]
            number = next(n for n, stage in enumerate(self.stages) if max(positions, default=-1) < stage.stop)
            entries = factor.table[tuple(self.stages[number].columns(positions))] if positions else factor.table
            charges[number] = combine(charges[number], entries)
        return charges

    def to_finish(self, charges: Sequence[np.ndarray], combine: np.ufunc = np.add) -> list[np.ndarray]:
        """For each cut, int64 (states,): the least that the stages from there on can cost; `UNREACHABLE` where no arc leads to the end.

        An arc that must not be used is charged `UNREACHABLE`.
        """
        neutral = 0 if combine is np.add else -UNREACHABLE if combine is np.maximum else UNREACHABLE
        potentials = [np.array([neutral], dtype=np.int64)]
        for stage, charge in zip(reversed(self.stages), reversed(charges), strict=True):
            potentials.append(_least(through(charge, potentials[-1][stage.target], combine), stage.source, len(stage.states)))
        return potentials[::-1]

    def cheapest(self, charges: Sequence[np.ndarray], combine: np.ufunc = np.add) -> np.ndarray:
        """int32 (decisions,): option numbers of an architecture whose combined charge is least."""
        state, row = 0, []
        for stage, charge, after in zip(self.stages, charges, self.to_finish(charges, combine)[1:], strict=True):
            arcs = np.flatnonzero(stage.source == state)
            arc = arcs[np.argmin(through(charge[arcs], after[stage.target[arcs]], combine))]
            row.append(stage.options[arc])
            state = stage.target[arc]
        return np.concatenate(row) if row else np.zeros(0, dtype=np.int32)


class Signatures:
    """Tells which partial architectures are alike for all that is still to come, for the costs that are sums.

    Two are if, for every set of later decisions, what factors charge for these together is the same function of them. Functions are compared by
    two random linear forms, modulo 2^64: different ones are taken for equal with a chance of about 2^-128 a pair.
    """

    def __init__(self, space: Space, sums: Sequence[Sequence[Factor]]) -> None:
        self._generator = np.random.default_rng(0)
        self._numbers: dict[tuple[int, ...], np.ndarray] = {}
        self._options = [len(decision.options) for decision in space.decisions]
        self._factors: list[tuple[int, tuple[int, ...], np.ndarray]] = []  # number of the sum, positions, table
        for number, factors in enumerate(sums):
            unit = np.gcd.reduce([np.gcd.reduce(factor.table, axis=None) for factor in factors] or [np.int64(1)]) or 1
            for factor in factors:
                positions = [space.position(name) for name in factor.scope]
                order = np.argsort(positions)
                self._factors.append((number, tuple(sorted(positions)), (factor.table // unit).transpose(order)))

    def classes(self, rows: Mapping[int, np.ndarray], code: np.ndarray, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The first of each class of the partial architectures `rows` of the decisions before `stop`, and the class of each, (N,).

        code: (N,) ints, by which they are told apart in any case.
        """
        marks = code.astype(np.uint64)[:, None] * self._drawn(())
        for past, table in self._pending(stop).items():
            marks += table[tuple(rows[position] for position in past)]
        order = np.lexsort(marks.T)
        new = np.ones(len(order), dtype=bool)
        new[1:] = (np.diff(marks[order], axis=0) != 0).any(axis=1)
        target = np.empty(len(order), dtype=np.int64)
        target[order] = np.cumsum(new) - 1
        return order[new], target

    def _pending(self, stop: int) -> dict[tuple[int, ...], np.ndarray]:
        """By the decisions before `stop` that they depend on: the forms of all that later decisions will be charged with them, (..., 2)."""
        found: dict[tuple[int, ...], np.ndarray] = {}
        for number, positions, table in self._factors:
            past = bisect_left(positions, stop)
            if 0 < past < len(positions):
                before, shape = positions[:past], table.shape[:past]
                form = table.reshape(prod(shape), -1).astype(np.uint64) @ self._drawn((number, *positions[past:]))
                found[before] = found.get(before, np.uint64(0)) + form.reshape(*shape, 2)
        return found

    def _drawn(self, key: tuple[int, ...]) -> np.ndarray:
        """(combinations, 2): coefficients for the number of a sum and later decisions."""
        if key not in self._numbers:
            combinations = prod(self._options[position] for position in key[1:])
            self._numbers[key] = self._generator.integers(0, 1 << 64, (combinations, 2), dtype=np.uint64)
        return self._numbers[key]


def all_rows(space: Space) -> tuple[np.ndarray, np.ndarray]:
    """Option numbers, int32 (size, decisions), of every architecture in the order of `Space.enumerate`, and which decisions exist in it."""
    if space.size > MOST_ARCS:
        raise SpaceError(f"a space of {space.size:,} architectures is not listed at once; at most {MOST_ARCS:,} are")
    return _expanded(space, {}, 1, 0, len(space.decisions))[1:]


def through(charge: np.ndarray, potential: np.ndarray, combine: np.ufunc) -> np.ndarray:
    """What an arc and the rest after it cost together; `UNREACHABLE` if either is."""
    if combine is not np.add:
        return combine(charge, potential)
    closed = (charge >= UNREACHABLE) | (potential >= UNREACHABLE)
    return np.where(closed, UNREACHABLE, np.where(closed, 0, charge) + np.where(closed, 0, potential))


def _least(amounts: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    least = np.full(groups, UNREACHABLE)
    np.minimum.at(least, group, amounts)
    return least


def _expanded(space: Space, rows: dict[int, np.ndarray], count: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Origin (A,), options (A, D) and existence (A, D) of every way to take decisions `start` to `stop` from `count` states.

    rows: position -> option number in each state; on return, in each way, for the decisions taken, too.
    """
    origin = np.arange(count)
    exists: list[np.ndarray] = []
    for position in range(start, stop):
        decision = space.decisions[position]
        asked = [space.position(ref.name) for ref in refs(decision.condition)]
        if asked:
            table = np.array(values(decision.condition), dtype=bool).reshape([len(space.decisions[p].options) for p in asked])
            there = table[tuple(rows[p] for p in asked)]
        else:
            there = np.full(len(origin), bool(decision.condition))
        ways = np.where(there, len(decision.options), 1)
        copies = np.repeat(np.arange(len(origin)), ways)
        for other in rows:
            rows[other] = rows[other][copies]
        rows[position] = (np.arange(len(copies)) - np.repeat(np.cumsum(ways) - ways, ways)).astype(np.int32)
        origin, exists = origin[copies], [column[copies] for column in [*exists, there]]
    if start == stop:
        return origin, np.zeros((count, 0), dtype=np.int32), np.zeros((count, 0), dtype=bool)
    return origin, np.stack([rows[p] for p in range(start, stop)], axis=1), np.stack(exists, axis=1)


def _frontiers(space: Space, groups: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    """For each cut, the positions before it that some group has together with one behind it."""
    count = len(space.decisions)
    last = list(range(count))
    for group in groups:
        for position in group:
            last[position] = max(last[position], *group)
    return [tuple(p for p in range(cut) if last[p] >= cut) for cut in range(count + 1)]


def _too_many(space: Space, together: Sequence[int], combinations: int) -> SpaceError:
    listed = ", ".join(f"{space.decisions[p].name} ({len(space.decisions[p].options)})" for p in together)
    return SpaceError(
        f"at {space.decisions[together[-1]].name!r} the costs depend on {len(together)} choices at once, "
        f"{combinations:,} combinations where at most {MOST_ARCS:,} are held: {listed}; "
        f"tie some of them by a name, or give them fewer options"
    )


def _cuts(space: Space, frontiers: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, int]], float]:
    """The stages as (start, stop), of the fewest arcs in all, a shortest path over the cuts; and how many, infinite where a stage has too many."""
    count = len(space.decisions)
    if count == 0:
        return [(0, 0)], 1
    options = [len(decision.options) for decision in space.decisions]
    states = [prod(options[p] for p in frontier) for frontier in frontiers]
    best: list[tuple[float, int]] = [(0, 0)] + [(float("inf"), 0)] * count
    for stop in range(1, count + 1):
        ways = 1
        for start in reversed(range(stop)):
            ways *= options[start]
            if ways > MOST_ARCS:
                break
            if states[start] * ways <= MOST_ARCS:
                best[stop] = min(best[stop], (best[start][0] + states[start] * ways + STAGE_OVERHEAD, start))
    cuts, stop = [], count if best[count][0] < float("inf") else 0
    while stop:
        cuts.append((best[stop][1], stop))
        stop = best[stop][1]
    return cuts[::-1], best[count][0]
