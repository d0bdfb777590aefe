"""Regularized (aging) evolution: Real et al., "Regularized Evolution for Image Classifier Architecture Search", AAAI 2019."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

import numpy as np

from niwaki.objective import Objective
from niwaki.space.architecture import Architecture, tupled
from niwaki.space.choice import BudgetError, SpaceError
from niwaki.strategy.strategy import SearchSpace, fingerprint, unseen
from niwaki.trial import Trial

BEST_ACCURACY = Objective("accuracy")


@dataclass(frozen=True)
class Member:
    """An evaluated architecture that may become a parent."""

    arch: Architecture
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class EvolutionState:
    space: SearchSpace
    population: tuple[Member, ...] = ()  # oldest first
    seen: frozenset[str] = frozenset()  # fingerprints of all that was told


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
        asked: list[Architecture] = []
        seen = set(state.seen | {fingerprint(arch) for arch in pending})
        for _ in range(count):
            founding = len(state.population) + len(pending) + len(asked) < self.population_size or not state.population
            if founding:
                arch = unseen(lambda: state.space.sample_uniform(rng), state.space, seen, rng)
            else:
                parent = self._tournament(state.population, rng)
                arch = unseen(partial(_mutated, state.space, parent, rng), state.space, seen, rng)
            if arch is None:
                break
            asked.append(arch)
            seen.add(fingerprint(arch))
        return asked

    def tell(self, state: EvolutionState, trials: Sequence[Trial]) -> EvolutionState:
        born = tuple(Member(trial.arch, trial.metrics) for trial in trials if trial.status == "ok")
        population = (state.population + born)[-self.population_size :]  # the oldest die (line 20)
        return replace(state, population=population, seen=state.seen | {fingerprint(trial.arch) for trial in trials})

    def _tournament(self, population: Sequence[Member], rng: Random) -> Architecture:
        """The best of some drawn with replacement (lines 11-16)."""
        winner, *others = rng.choices(population, k=self.tournament_size)
        for other in others:
            if self.objective.better(other.metrics, winner.metrics):
                winner = other
        return winner.arch

    def save(self, state: EvolutionState) -> tuple[Any, dict[str, np.ndarray]]:
        population = [{"arch": member.arch.to_json(), "metrics": dict(member.metrics)} for member in state.population]
        return {"population": population, "seen": sorted(state.seen)}, {}

    def load(self, space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> EvolutionState:
        population = []
        for member in content["population"]:
            if (of := member["arch"]["space"]) != space.hash:
                raise SpaceError(f"the state of this search belongs to the space {of}, but is read for the space {space.hash}")
            choices = {name: tupled(option) for name, option in member["arch"]["choices"].items()}
            population.append(Member(Architecture(space.hash, choices), member["metrics"]))
        return EvolutionState(space, tuple(population), frozenset(content["seen"]))


def _mutated(space: SearchSpace, parent: Architecture, rng: Random) -> Architecture:
    try:
        return space.mutate(parent, rng)
    except (SpaceError, BudgetError):  # within its budgets the parent has no neighbour
        return space.sample_uniform(rng)
