"""What a strategy is: it proposes architectures and is told how they did. It sees no network, no data and no device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from random import Random
from typing import Any, Protocol, TypeVar

import numpy as np

from niwaki.space.architecture import Architecture
from niwaki.trial import Trial

DRAWS = 100  # before an unseen architecture is looked for by listing
MOST_LISTED = 20_000  # architectures

S = TypeVar("S")  # a strategy's state: a frozen value


class SearchSpace(Protocol):
    """What a strategy sees: a `Space`, or one within budgets."""

    @property
    def hash(self) -> str: ...
    @property
    def size(self) -> int: ...
    def indices(self, architectures: Iterable[Architecture]) -> list[list[int]]: ...
    def from_indices(self, row: Sequence[int]) -> Architecture: ...
    def enumerate(self) -> Iterator[Architecture]: ...
    def sample_uniform(self, rng: Random) -> Architecture: ...
    def mutate(self, arch: Architecture, rng: Random) -> Architecture: ...
    def neighbours(self, arch: Architecture) -> Iterator[Architecture]: ...


class Strategy(Protocol[S]):
    """Hyper-parameters and rules; all that changes is in the state, which `ask` leaves as it is and `tell` replaces.

    The same state, count, rng and pending give the same proposals. Telling trials one by one, in order, is telling them at once.
    `niwaki.testing.strategy.check_strategy` is the contract as a test.
    """

    @property
    def name(self) -> str:
        """The `source` of the trials that come of it."""
        ...

    def init(self, space: SearchSpace) -> S:
        """The state before anything is known."""
        ...

    def ask(self, state: S, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        """`count` new proposals; fewer only where no other architecture can be found. pending: proposed, but not told yet."""
        ...

    def tell(self, state: S, trials: Sequence[Trial]) -> S:
        """The state after these trials, which may have failed."""
        ...

    def save(self, state: S) -> tuple[Any, dict[str, np.ndarray]]:
        """The state as JSON and named arrays."""
        ...

    def load(self, space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> S:
        """The state that `save` was given."""
        ...


def fingerprint(arch: Architecture) -> str:
    """16 hexadecimal digits that stand for the choices of `arch`: what a state remembers of the architectures it has seen."""
    return hashlib.sha256(json.dumps(arch.to_json()["choices"], sort_keys=True).encode()).hexdigest()[:16]


def unseen(draw: Callable[[], Architecture], space: SearchSpace, seen: AbstractSet[str], rng: Random) -> Architecture | None:
    """An architecture from `draw` whose fingerprint is not in `seen`; where draws give none, any other; None if there is none.

    In a space of more than 20,000, "any other" is one in the fewest changes away from what was drawn, among 20,000 visited.
    """
    for _ in range(DRAWS):
        arch = draw()
        if fingerprint(arch) not in seen:
            return arch
    if space.size <= MOST_LISTED:
        fresh = [other for other in space.enumerate() if fingerprint(other) not in seen]
        return fresh[rng.randrange(len(fresh))] if fresh else None
    ring, visited = [arch], {arch}
    while ring and len(visited) < MOST_LISTED:
        ring = list(dict.fromkeys(near for inner in ring for near in space.neighbours(inner) if near not in visited))
        visited.update(ring)
        if fresh := [near for near in ring if fingerprint(near) not in seen]:
            return fresh[rng.randrange(len(fresh))]
    return None
