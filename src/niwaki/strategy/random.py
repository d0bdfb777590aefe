"""Random search: the baseline that every method is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np

from niwaki.space.architecture import Architecture
from niwaki.strategy.strategy import SearchSpace, fingerprint, unseen
from niwaki.trial import Trial


@dataclass(frozen=True)
class RandomState:
    space: SearchSpace
    seen: frozenset[str] = frozenset()  # fingerprints


@dataclass(frozen=True)
class RandomSearch:
    """Architectures drawn uniformly from those of the space (within its budgets, where it has some), none twice."""

    name: str = "random"

    def init(self, space: SearchSpace) -> RandomState:
        return RandomState(space)

    def ask(self, state: RandomState, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        asked: list[Architecture] = []
        seen = set(state.seen | {fingerprint(arch) for arch in pending})
        for _ in range(count):
            arch = unseen(lambda: state.space.sample_uniform(rng), state.space, seen, rng)
            if arch is None:
                break
            asked.append(arch)
            seen.add(fingerprint(arch))
        return asked

    def tell(self, state: RandomState, trials: Sequence[Trial]) -> RandomState:
        return replace(state, seen=state.seen | {fingerprint(trial.arch) for trial in trials})

    def save(self, state: RandomState) -> tuple[Any, dict[str, np.ndarray]]:
        return {"seen": sorted(state.seen)}, {}

    def load(self, space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> RandomState:
        return RandomState(space, frozenset(content["seen"]))
