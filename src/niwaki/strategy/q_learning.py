"""Tabular Q-learning over decisions, one after the other: the agent of BlockQNN (Zhong et al., CVPR 2018), on which IRLAS was built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from random import Random
from typing import Any, NamedTuple

import numpy as np

from niwaki.objective import BEST_ACCURACY, Objective, Spread
from niwaki.space.architecture import Architecture
from niwaki.strategy.seen import Log, Seen
from niwaki.strategy.strategy import SearchSpace, architectures_from_array, architectures_to_array, check_space, fingerprint, propose
from niwaki.trial import Trial

# epsilon, and for how many of BlockQNN's 178 iterations of 64 blocks; most of them at 1
SCHEDULE = ((1.0, 95), (0.9, 7), (0.8, 7), (0.7, 7), (0.6, 10), (0.5, 10), (0.4, 10), (0.3, 10), (0.2, 10), (0.1, 12))
PUBLISHED_EVALUATIONS = 178 * 64
TRIES = 100  # walks over the budget, before one is drawn within it


class Walk(NamedTuple):
    arch: Architecture
    quality: float
    violation: float


@dataclass(frozen=True)
class QState:
    space: SearchSpace
    table: np.ndarray  # (1 + T, T), T options of all decisions together: [0] from the beginning, [1 + i] after option i was taken last
    memory: Log[Walk] = field(default_factory=Log)
    seen: Seen = field(default_factory=Seen)
    spread: Spread = field(default_factory=Spread)  # of the qualities in `memory`


@dataclass(frozen=True)
class QLearning:
    """Epsilon-greedy walks through the decisions; what is known of a walk is which option was taken last.

    shaped: the reward at the end is dealt to all steps alike, r_t = r_T / T, which is BlockQNN's (Eq. 4); else it comes at the end alone.
    replay: past walks that are learned from again with each new one (BlockQNN replays 128 for 64 new ones). evaluations: over how many the
    published schedule of epsilon goes. Deviations: a walk to an architecture that was seen is taken again; under limits the reward is the
    `standing` among all walks so far, feasible first.
    """

    objective: Objective = BEST_ACCURACY
    rate: float = 0.01
    discount: float = 1.0
    shaped: bool = True
    replay: int = 2
    evaluations: int = PUBLISHED_EVALUATIONS
    name: str = "q-learning"

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1 or not 0 <= self.discount <= 1 or self.replay < 0 or self.evaluations < 1:
            raise ValueError(
                f"rate={self.rate}, discount={self.discount}, replay={self.replay}, evaluations={self.evaluations}: a rate above 0 and at most "
                f"1, a discount from 0 to 1, at least 0 replays and 1 evaluation"
            )

    def epsilon(self, told: int) -> float:
        """How often a step is random, after so many trials."""
        done = told / self.evaluations * sum(length for _, length in SCHEDULE)
        for epsilon, length in SCHEDULE:
            if done < length:
                return epsilon
            done -= length
        return SCHEDULE[-1][0]

    def init(self, space: SearchSpace) -> QState:
        count = sum(len(decision.options) for decision in space.decisions)
        return QState(space, np.zeros((1 + count, count)))

    def ask(self, state: QState, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        epsilon = self.epsilon(len(state.seen))
        return propose(count, lambda asked: self._walk(state, epsilon, rng), state.space, state.seen, pending, rng)

    def greedy(self, state: QState) -> Architecture:
        """The walk of the largest values; where it is over the budget, another."""
        return self._walk(state, 0.0, Random(0))

    def tell(self, state: QState, trials: Sequence[Trial]) -> QState:
        if not trials:
            return state
        table, memory = state.table.copy(), list(state.memory)
        seen, spread, fresh = state.seen, state.spread, list[Walk]()
        for trial in trials:
            seen = seen.with_([fingerprint(trial.arch)])
            if trial.status != "ok":
                continue
            fresh.append(Walk(trial.arch, self.objective.quality(trial.metrics), self.objective.violation(trial.metrics)))
            memory.append(fresh[-1])
            spread = spread.after(fresh[-1].quality)
            again = Random(f"replay/{len(memory)}")  # which walks are replayed follows from how many there were
            for walk in (memory[-1], *(again.choice(memory) for _ in range(self.replay))):
                self.learn_(table, steps_of(state.space, walk.arch), self._reward(walk, spread))
        return replace(state, table=table, memory=state.memory.with_(fresh), seen=seen, spread=spread)

    def _reward(self, walk: Walk, spread: Spread) -> float:
        return spread.standing(walk.quality, walk.violation) if self.objective.subject_to else walk.quality

    def learn_(self, table: np.ndarray, steps: Sequence[tuple[int, int, slice]], reward: float) -> None:
        """Q(s, a) <- (1 - rate) Q(s, a) + rate (r + discount max Q(s', .)) along a walk, in place, the last step first.

        steps: (row, column, columns of the next decision) of each; see `steps_of`.
        """
        for at in reversed(range(len(steps))):
            row, column, following = steps[at]
            last = at == len(steps) - 1
            ahead = 0.0 if last else self.discount * float(table[1 + column, following].max())
            now = reward / len(steps) if self.shaped else reward if last else 0.0
            table[row, column] += self.rate * (now + ahead - table[row, column])

    def _walk(self, state: QState, epsilon: float, rng: Random) -> Architecture:
        for _ in range(TRIES):  # within the budget
            row = self._steps(state, epsilon, rng)
            if state.space.holds(np.array([row], dtype=np.int32))[0]:
                return state.space.from_indices(row)
        return state.space.sample_uniform(rng)

    def _steps(self, state: QState, epsilon: float, rng: Random) -> list[int]:
        space, taken = state.space, list[int]()
        row = first = 0
        for position, decision in enumerate(space.decisions):
            options, index = len(decision.options), 0
            if space.exists_given(position, tuple(taken[parent] for parent in space.depends_on(position))):
                values = state.table[row, first : first + options]
                index = rng.randrange(options) if rng.random() < epsilon else _largest(values, rng)
                row = 1 + first + index
            taken.append(index)
            first += options
        return taken

    def save(self, state: QState) -> tuple[Any, dict[str, np.ndarray]]:
        walks = list(state.memory)
        arrays = {
            "table": state.table,
            "seen": state.seen.to_array(),
            "walks": architectures_to_array([walk.arch for walk in walks]),
            "told": np.array([walk[1:] for walk in walks], dtype=np.float64).reshape(-1, 2),
        }
        return {"space": state.space.hash}, arrays

    def load(self, space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> QState:
        check_space(content, space)
        walks = [
            Walk(arch, *told) for arch, told in zip(architectures_from_array(arrays["walks"], space), arrays["told"].tolist(), strict=True)
        ]
        spread = reduce(lambda spread, walk: spread.after(walk.quality), walks, Spread())
        return QState(space, arrays["table"], Log(walks), Seen.from_array(arrays["seen"]), spread)


def steps_of(space: SearchSpace, arch: Architecture) -> list[tuple[int, int, slice]]:
    """Of the walk to `arch`: row and column in the table of each decision that exists, and the columns of the one after it."""
    [indices] = space.indices([arch])
    found, row, first = list[tuple[int, int, int]](), 0, 0
    for decision, index in zip(space.decisions, indices, strict=True):
        if decision.name in arch:
            found.append((row, first + index, first))
            row = 1 + first + index
        first += len(decision.options)
    counts = {first: len(space.decisions[at].options) for at, first in enumerate(_firsts(space))}
    after = [slice(start, start + counts[start]) for _, _, start in found[1:]] + [slice(0, 0)]
    return [(row, column, following) for (row, column, _), following in zip(found, after, strict=True)]


def _firsts(space: SearchSpace) -> list[int]:
    firsts, first = [], 0
    for decision in space.decisions:
        firsts.append(first)
        first += len(decision.options)
    return firsts


def _largest(values: np.ndarray, rng: Random) -> int:
    """The position of the largest; of equals, one drawn."""
    best = np.flatnonzero(values == values.max())
    return int(best[rng.randrange(len(best))]) if len(best) > 1 else int(best[0])
