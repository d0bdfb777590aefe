"""NSGA-II: Deb, Pratap, Agarwal, Meyarivan, "A Fast and Elitist Multiobjective Genetic Algorithm", IEEE Trans. Evol. Comp. 6(2), 2002."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np

from niwaki.objective import BEST_ACCURACY, Objective
from niwaki.space.architecture import Architecture
from niwaki.strategy.evolution import Member, members_from_arrays, members_to_arrays, mutated
from niwaki.strategy.seen import Seen
from niwaki.strategy.strategy import SearchSpace, check_space, fingerprint, propose
from niwaki.trial import Trial


def dominates(points: np.ndarray, violations: np.ndarray) -> np.ndarray:
    """bool (N, N): whether i dominates j under constraints (Definition 1): less violation; or both feasible, nowhere worse, somewhere better.

    points: (N, M), all to be large; violations: (N,), 0 where feasible.
    """
    nowhere_worse = (points[:, None] >= points[None]).all(axis=2)
    better = (points[:, None] > points[None]).any(axis=2)
    feasible = violations == 0
    return (violations[:, None] < violations[None]) | (feasible[:, None] & feasible[None] & nowhere_worse & better)


def ranks(dominated_by: np.ndarray) -> np.ndarray:
    """int (N,): the number of the front that each belongs to, 0 is the best (III-A). dominated_by: (N, N), i dominates j."""
    rank, left, front = np.zeros(len(dominated_by), dtype=np.int64), np.ones(len(dominated_by), dtype=bool), 0
    while left.any():
        first = left & ~dominated_by[left].any(axis=0)
        rank[first] = front
        left &= ~first
        front += 1
    return rank


def crowding(points: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """float (N,): how far the neighbours within the front are apart, relative to the front's range, summed over objectives (III-B)."""
    distance = np.zeros(len(points))
    for front in range(int(rank.max(initial=-1)) + 1):
        here = np.flatnonzero(rank == front)
        for values in points[here].T:
            order = here[np.argsort(values, kind="stable")]
            sorted_ = np.sort(values)
            distance[order[[0, -1]]] = np.inf
            if (extent := sorted_[-1] - sorted_[0]) > 0:
                distance[order[1:-1]] += (sorted_[2:] - sorted_[:-2]) / extent
    return distance


@dataclass(frozen=True)
class Parent:
    """A member that survived. rank: of its front, 0 is the best; crowding: larger where it is lonely."""

    member: Member
    rank: int
    crowding: float

    def better(self, other: Parent) -> bool:
        """The crowded-comparison operator."""
        return (self.rank, -self.crowding) < (other.rank, -other.crowding)


@dataclass(frozen=True)
class NSGA2State:
    space: SearchSpace
    parents: tuple[Parent, ...] = ()
    born: tuple[Member, ...] = ()  # of the generation that is being evaluated
    seen: Seen = field(default_factory=Seen)  # all that was told


@dataclass(frozen=True)
class NSGA2:
    """Generations of which the best fronts survive, and of the last front that fits in part, those that are lonely.

    objectives: one for each thing to be large; `Objective("-macs")` is a cost to be small. The limits of all of them are constraints. Parents
    win tournaments of two; children are crossed with probability `crossover` (the paper's 0.9), uniformly, as decisions have no order that
    one-point crossover could keep together, and mutated in each decision with probability 1/decisions (the paper's). A generation is
    `population_size` trials with metrics; proposals may be out while it is closed. Nothing is proposed twice.
    """

    objectives: tuple[Objective, ...] = (BEST_ACCURACY, Objective("-macs"))
    population_size: int = 50
    crossover: float = 0.9
    name: str = "nsga2"

    def __post_init__(self) -> None:
        object.__setattr__(self, "objectives", tuple(self.objectives))
        if not self.objectives or self.population_size < 2 or not 0 <= self.crossover <= 1:
            raise ValueError(
                f"{len(self.objectives)} objectives, population_size={self.population_size}, crossover={self.crossover}: NSGA-II needs at "
                f"least 1 objective, 2 in its population, and a probability"
            )

    def init(self, space: SearchSpace) -> NSGA2State:
        return NSGA2State(space)

    def ask(self, state: NSGA2State, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        def draw(_: int) -> Architecture:
            return self._child(state, rng) if state.parents else state.space.sample_uniform(rng)

        return propose(count, draw, state.space, state.seen, pending, rng)

    def tell(self, state: NSGA2State, trials: Sequence[Trial]) -> NSGA2State:
        parents, born = state.parents, state.born
        for trial in trials:
            if trial.status == "ok":
                born = (*born, Member(trial.arch, trial.metrics))
            if len(born) == self.population_size:
                parents, born = self._survivors([*(parent.member for parent in parents), *born]), ()
        return NSGA2State(state.space, parents, born, state.seen.with_(fingerprint(trial.arch) for trial in trials))

    def _child(self, state: NSGA2State, rng: Random) -> Architecture:
        first, second = _winner(state.parents, rng), _winner(state.parents, rng)
        child = state.space.cross(first, second, rng) if rng.random() < self.crossover else first
        for _ in child:
            if rng.random() * len(child) < 1:
                child = mutated(state.space, child, rng)
        return child

    def _survivors(self, members: Sequence[Member]) -> tuple[Parent, ...]:
        """The best `population_size` (III-C), best first; of equals, the earlier."""
        points = np.array([self._point(member.metrics) for member in members])
        rank = ranks(dominates(points, np.array([self._violation(member.metrics) for member in members])))
        lonely = crowding(points, rank)
        best = np.lexsort((-lonely, rank))[: self.population_size]
        # which of a front that fits in part survive changes who is crowded by whom
        kept = crowding(points[best], rank[best])
        return tuple(Parent(members[place], int(rank[place]), float(apart)) for place, apart in zip(best, kept, strict=True))

    def _point(self, metrics: Mapping[str, float]) -> list[float]:
        return [objective.quality(metrics) for objective in self.objectives]

    def _violation(self, metrics: Mapping[str, float]) -> float:
        limits = [limit for at, one in enumerate(self.objectives) for limit in one.subject_to if not _limited(limit, self.objectives[:at])]
        return replace(self.objectives[0], subject_to=tuple(limits)).violation(metrics)

    def save(self, state: NSGA2State) -> tuple[Any, dict[str, np.ndarray]]:
        parents, parent_arrays = members_to_arrays([parent.member for parent in state.parents], "parent")
        born, born_arrays = members_to_arrays(state.born, "born")
        content = {"space": state.space.hash, "parent_metrics": parents, "born_metrics": born}
        standing = {
            "parent_rank": np.array([parent.rank for parent in state.parents], dtype=np.int64),
            "parent_crowding": np.array([parent.crowding for parent in state.parents], dtype=np.float64),
        }
        return content, {"seen": state.seen.to_array(), **parent_arrays, **standing, **born_arrays}

    def load(self, space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> NSGA2State:
        check_space(content, space)
        members = members_from_arrays(content["parent_metrics"], arrays, space, "parent")
        parents = map(Parent, members, arrays["parent_rank"].tolist(), arrays["parent_crowding"].tolist())
        born = members_from_arrays(content["born_metrics"], arrays, space, "born")
        return NSGA2State(space, tuple(parents), born, Seen.from_array(arrays["seen"]))


def _winner(parents: Sequence[Parent], rng: Random) -> Architecture:
    """The better of two; at a draw, the one drawn first."""
    one, other = rng.choice(parents), rng.choice(parents)
    return other.member.arch if other.better(one) else one.member.arch


def _limited(limit: Any, objectives: Sequence[Objective]) -> bool:
    return any(limit in objective.subject_to for objective in objectives)
