"""Random search: the baseline that every method is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from niwaki.space.architecture import Architecture
from niwaki.strategy.seen import Seen
from niwaki.strategy.strategy import SearchSpace, check_space, fingerprint, propose
from niwaki.trial import Trial


@dataclass(frozen=True)
class RandomState:
    space: SearchSpace
    seen: Seen = field(default_factory=Seen)  # all that was told


@dataclass(frozen=True)
class RandomSearch:
    """Architectures drawn uniformly from those of the space (within its budgets, where it has some), none twice."""

    name: str = "random"

    def init(self, space: SearchSpace) -> RandomState:
        return RandomState(space)

    def ask(self, state: RandomState, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        return propose(count, lambda _: state.space.sample_uniform(rng), state.space, state.seen, pending, rng)

    def tell(self, state: RandomState, trials: Sequence[Trial]) -> RandomState:
        return RandomState(state.space, state.seen.with_(fingerprint(trial.arch) for trial in trials))

    def save(self, state: RandomState) -> tuple[Any, dict[str, np.ndarray]]:
        return {"space": state.space.hash}, {"seen": state.seen.to_array()}

    def load(self, space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> RandomState:
        check_space(content, space)
        return RandomState(space, Seen.from_array(arrays["seen"]))
