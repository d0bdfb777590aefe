"""A space that holds its budgets: everything drawn, moved to or listed keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from random import Random
from typing import Any

import numpy as np

from niwaki.factor.draw import Sampler
from niwaki.factor.eliminate import Count, Feasible, Probabilities, Probability
from niwaki.factor.factor import Limit
from niwaki.factor.mode import most_likely
from niwaki.space.architecture import Architecture
from niwaki.space.choice import BudgetError
from niwaki.space.part import Part
from niwaki.space.space import Space

TRIES = 64  # draws that may be over a limit, before those within are counted or listed instead


def within(space: Space, limits: Sequence[Limit]) -> Within:
    """The architectures of `space` that keep all `limits`; BudgetError, with the minimum, if a limit cannot be kept."""
    return Within(space, limits)


class Within(Part):
    """The part of a space that keeps `limits`, with the interface of a `Space`. Its architectures are the space's own."""

    def __init__(self, space: Space, limits: Sequence[Limit]) -> None:
        super().__init__(space)
        self.limits = tuple(limits)
        self.feasible = Feasible(space, self.limits)

    def to_json(self) -> dict[str, Any]:
        return {**self.space.to_json(), "limits": [{"cost": limit.cost.name, "upper": limit.upper} for limit in self.limits]}

    # ---------------------------------------------------------------- within the budgets

    def __contains__(self, arch: object) -> bool:
        return isinstance(arch, Architecture) and arch.space == self.space.hash and self._keeps(arch)

    def keeps(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """bool (N,): which of them keep every limit, by exact cost."""
        rows = np.array(self.space.indices(architectures), dtype=np.int32).reshape(len(architectures), len(self.space))
        return self.feasible.keeps(rows)

    def holds(self, rows: np.ndarray) -> np.ndarray:
        """bool (N,): the same of canonical rows of option numbers."""
        return self.feasible.keeps(np.asarray(rows, dtype=np.int32).reshape(len(rows), len(self.space)))

    @cached_property
    def count(self) -> Count:
        """How many architectures there are, with bounds."""
        return self.feasible.count()

    @property
    def size(self) -> int:
        """How many architectures there are, by the best estimate; `count` has the bounds."""
        return self.count.count

    def probability(self, probabilities: Probabilities | None = None) -> Probability:
        """P(all limits are kept) when decisions are drawn by `probabilities`, by default uniformly per choice."""
        return self.feasible.probability(probabilities)

    def mode(self, probabilities: Probabilities) -> Architecture:
        """The most likely architecture."""
        return most_likely(self.feasible, probabilities)

    def sample(self, rng: Random) -> Architecture:
        """An architecture drawn as `Space.sample` draws, choice by choice, given that it keeps the limits."""
        return self._drawn(self._per_choice, rng)

    def sample_uniform(self, rng: Random) -> Architecture:
        """An architecture drawn so that all are equally likely."""
        for _ in range(TRIES):  # where the limits leave much of the space, this is faster than to draw within them, and as even
            if self._keeps(arch := self.space.sample_uniform(rng)):
                return arch
        return self._drawn(self._uniform, rng)

    def sample_many(self, count: int, generator: np.random.Generator, probabilities: Probabilities | None = None) -> np.ndarray:
        """(count, decisions): option numbers of independent draws, uniform or by `probabilities`, given that the limits are kept."""
        sampler = self._uniform if probabilities is None else Sampler(self.feasible, probabilities)
        return sampler.draw(count, generator)

    def enumerate(self, after: Architecture | None = None) -> Iterator[Architecture]:
        """All architectures, in the order of `Space.enumerate`. after: only those that come later than it."""
        feasible, (bounds, spends) = self.feasible, self._arcs
        first = None if after is None else self.space.indices([after])[0]

        def follow(number: int, state: int, left: np.ndarray, taken: list[np.ndarray], bound: list[int] | None) -> Iterator[Architecture]:
            """bound: `first`, as long as what was taken is its beginning."""
            if number == len(bounds):
                row = np.concatenate(taken)
                if bound is None and (not feasible.checked or feasible.keeps(row[None])[0]):
                    yield self.space.from_indices(row.tolist())
                return
            stage = feasible.chain.stages[number]
            low, high = bounds[number][state], bounds[number][state + 1]
            for arc in low + np.flatnonzero((spends[number][low:high] <= left).all(axis=1)):
                here = None
                if bound is not None:
                    options, limit = stage.options[arc].tolist(), bound[stage.start : stage.stop]
                    if options < limit:
                        continue
                    here = bound if options == limit else None
                yield from follow(number + 1, stage.target[arc], left - spends[number][arc], [*taken, stage.options[arc]], here)

        yield from follow(0, 0, np.array(feasible.slack, dtype=np.int64), [], first)

    def neighbours(self, arch: Architecture) -> Iterator[Architecture]:
        """Those neighbours in the space that keep the limits."""
        near = list(self.space.neighbours(arch))
        if near:
            yield from (other for other, kept in zip(near, self.keeps(near), strict=True) if kept)

    def mutate(self, arch: Architecture, rng: Random) -> Architecture:
        """A change of one decision, as `Space.mutate` draws it, given that the limits are kept."""
        for _ in range(TRIES):
            if (changed := self.space.mutate(arch, rng)) in self:
                return changed
        near = list(self.neighbours(arch))
        if not near:
            raise BudgetError(f"no change of one decision of this architecture gives one that has {self.feasible.text()}", arch)
        return near[rng.randrange(len(near))]

    def cross(self, first: Architecture, second: Architecture, rng: Random) -> Architecture:
        """A crossover, as `Space.cross` draws it, given that the limits are kept; `first`, where none of 64 keeps them."""
        for _ in range(TRIES):
            if (child := self.space.cross(first, second, rng)) in self:
                return child
        return first

    # ---------------------------------------------------------------- inside

    def _keeps(self, arch: Architecture) -> bool:
        return all(limit.cost(arch) <= limit.upper for limit in self.limits)

    @cached_property
    def _arcs(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """For each stage where the arcs of a state begin, and (arcs, limits) what they spend."""
        feasible = self.feasible
        bounds = [np.searchsorted(stage.source, np.arange(len(stage.states) + 1)) for stage in feasible.chain.stages]
        spends = []
        for arcs, stage in zip(feasible.stages, feasible.chain.stages, strict=True):
            spend = np.full((len(stage.source), arcs.spend.shape[1]), np.iinfo(np.int64).max)
            spend[arcs.raw] = arcs.spend[arcs.group]
            spends.append(spend)
        return bounds, spends

    @cached_property
    def _uniform(self) -> Sampler:
        return Sampler(self.feasible)

    @cached_property
    def _per_choice(self) -> Sampler:
        return Sampler(self.feasible, self.feasible.checked_probabilities(None))

    def _drawn(self, sampler: Sampler, rng: Random) -> Architecture:
        return self.space.from_indices(sampler.draw(1, np.random.default_rng(rng.getrandbits(128)))[0].tolist())

    def _kept(self, arch: Architecture) -> Architecture:
        for limit in self.limits:
            if (spent := limit.cost(arch)) > limit.upper:
                raise BudgetError(f"this architecture has {limit.cost.name} {spent:,}, but the limit is {limit}", arch)
        return arch
