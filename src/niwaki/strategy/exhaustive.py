"""Every architecture of a space, one after the other: for spaces small enough to know all about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any

import numpy as np

from niwaki.space.architecture import Architecture
from niwaki.strategy.seen import Seen
from niwaki.strategy.strategy import SearchSpace, architectures_from_array, architectures_to_array, check_space, fingerprint
from niwaki.trial import Trial


@dataclass(frozen=True)
class ExhaustiveState:
    space: SearchSpace
    last: Architecture | None = None  # up to which, in the order of the space, all have been told
    seen: Seen = field(default_factory=Seen)  # all that was told


@dataclass(frozen=True)
class Exhaustive:
    """All architectures of the space (within its budgets, where it has some) in the order of `Space.enumerate`, the last decision fastest."""

    name: str = "exhaustive"

    def init(self, space: SearchSpace) -> ExhaustiveState:
        return ExhaustiveState(space)

    def ask(self, state: ExhaustiveState, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        out = set(pending)
        later = state.space.enumerate(state.last)
        return list(islice((arch for arch in later if arch not in out and fingerprint(arch) not in state.seen), count))

    def tell(self, state: ExhaustiveState, trials: Sequence[Trial]) -> ExhaustiveState:
        seen, last = state.seen.with_(fingerprint(trial.arch) for trial in trials), state.last
        for arch in state.space.enumerate(last):
            if fingerprint(arch) not in seen:
                break
            last = arch
        return ExhaustiveState(state.space, last, seen)

    def save(self, state: ExhaustiveState) -> tuple[Any, dict[str, np.ndarray]]:
        last = [] if state.last is None else [state.last]
        return {"space": state.space.hash}, {"last": architectures_to_array(last), "seen": state.seen.to_array()}

    def load(self, space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> ExhaustiveState:
        check_space(content, space)
        last = architectures_from_array(arrays["last"], space)
        return ExhaustiveState(space, last[0] if last else None, Seen.from_array(arrays["seen"]))
