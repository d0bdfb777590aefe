"""Regularized (aging) evolution: Real et al., "Regularized Evolution for Image Classifier Architecture Search", AAAI 2019."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from niwaki.objective import BEST_ACCURACY, Objective
from niwaki.space.architecture import Architecture
from niwaki.space.choice import BudgetError, SpaceError
from niwaki.strategy.seen import Seen
from niwaki.strategy.strategy import (
    SearchSpace,
    architectures_from_array,
    architectures_to_array,
    check_space,
    fingerprint,
    metrics_from_array,
    metrics_to_array,
    propose,
)
from niwaki.trial import Trial


@dataclass(frozen=True)
class Member:
    """An evaluated architecture that may become a parent."""

    arch: Architecture
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class EvolutionState:
    space: SearchSpace
    population: tuple[Member, ...] = ()  # oldest first
    seen: Seen = field(default_factory=Seen)  # all that was told


@dataclass(frozen=True)
class RegularizedEvolution:
    """Mutations of the best of a random few; the oldest dies, not the worst (Algorithm 1).

    The paper's large runs have a population of 100 and tournaments of 25; the defaults are smaller, for some hundred evaluations.
    Deviations: several proposals may be out at once; no architecture is proposed twice (a mutation that was seen is drawn anew, see
    `unseen`); which of two is better is for the objective to say: feasible first.
    """

    objective: Objective = BEST_ACCURACY
    population_size: int = 50
    tournament_size: int = 10
    name: str = "evolution"

    def __post_init__(self) -> None:
        if not 1 <= self.tournament_size <= self.population_size:
            raise ValueError(
                f"tournament_size={self.tournament_size} and population_size={self.population_size}: a tournament has from 1 member to all"
            )

    def init(self, space: SearchSpace) -> EvolutionState:
        return EvolutionState(space)

    def ask(self, state: EvolutionState, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        def draw(asked: int) -> Architecture:
            if not state.population or len(state.population) + len(pending) + asked < self.population_size:
                return state.space.sample_uniform(rng)
            return mutated(state.space, self._tournament(state.population, rng), rng)

        return propose(count, draw, state.space, state.seen, pending, rng)

    def tell(self, state: EvolutionState, trials: Sequence[Trial]) -> EvolutionState:
        born = tuple(Member(trial.arch, trial.metrics) for trial in trials if trial.status == "ok")
        population = (state.population + born)[-self.population_size :]  # the oldest die (line 20)
        return EvolutionState(state.space, population, state.seen.with_(fingerprint(trial.arch) for trial in trials))

    def _tournament(self, population: Sequence[Member], rng: Random) -> Architecture:
        """The best of some drawn with replacement (lines 11-16)."""
        winner, *others = rng.choices(population, k=self.tournament_size)
        for other in others:
            if self.objective.better(other.metrics, winner.metrics):
                winner = other
        return winner.arch

    def save(self, state: EvolutionState) -> tuple[Any, dict[str, np.ndarray]]:
        names, population = members_to_arrays(state.population)
        return {"space": state.space.hash, "metrics": names}, {"seen": state.seen.to_array(), **population}

    def load(self, space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> EvolutionState:
        check_space(content, space)
        return EvolutionState(space, members_from_arrays(content["metrics"], arrays, space), Seen.from_array(arrays["seen"]))


def members_to_arrays(members: Sequence[Member], name: str = "member") -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of their metrics, and the members as arrays."""
    names, metrics = metrics_to_array([member.metrics for member in members])
    return names, {f"{name}_keys": architectures_to_array([member.arch for member in members]), f"{name}_metrics": metrics}


def members_from_arrays(
    names: Sequence[str], arrays: Mapping[str, np.ndarray], space: SearchSpace, name: str = "member"
) -> tuple[Member, ...]:
    """What `members_to_arrays` wrote."""
    archs = architectures_from_array(arrays[f"{name}_keys"], space)
    return tuple(map(Member, archs, metrics_from_array(names, arrays[f"{name}_metrics"])))


def mutated(space: SearchSpace, parent: Architecture, rng: Random) -> Architecture:
    """A change of one decision of `parent`, or, where it has no neighbour within the budgets, any architecture."""
    try:
        return space.mutate(parent, rng)
    except (SpaceError, BudgetError):
        return space.sample_uniform(rng)
