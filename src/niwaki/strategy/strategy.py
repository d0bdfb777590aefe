"""What a strategy is: it proposes architectures and is told how they did. It sees no network, no data and no device."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from random import Random
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from niwaki.factor.within import Within
from niwaki.space.architecture import Architecture
from niwaki.space.choice import SpaceError, Value
from niwaki.space.part import Part
from niwaki.space.rows import Features
from niwaki.space.space import Decision, Space
from niwaki.trial import Trial

DRAWS = 100  # before an unseen architecture is looked for by listing
MOST_LISTED = 20_000  # architectures

S = TypeVar("S")  # a strategy's state: a frozen value

T = TypeVar("T")


class SearchSpace(Protocol):
    """What a strategy sees: a `Space`, or one within budgets."""

    def __hash__(self) -> int: ...
    @property
    def hash(self) -> str: ...
    @property
    def size(self) -> int: ...
    def indices(self, architectures: Iterable[Architecture]) -> list[list[int]]: ...
    def active(self, choices: Mapping[str, Value]) -> tuple[str, ...]: ...
    def from_indices(self, row: Sequence[int]) -> Architecture: ...
    def from_key(self, key: bytes) -> Architecture: ...
    def enumerate(self, after: Architecture | None = None) -> Iterator[Architecture]: ...
    def sample_uniform(self, rng: Random) -> Architecture: ...
    def mutate(self, arch: Architecture, rng: Random) -> Architecture: ...
    def cross(self, first: Architecture, second: Architecture, rng: Random) -> Architecture: ...
    def neighbours(self, arch: Architecture) -> Iterator[Architecture]: ...

    # architectures as rows of option numbers, for strategies that look at many at once
    @property
    def decisions(self) -> tuple[Decision, ...]: ...
    def canonical_rows(self, rows: np.ndarray) -> np.ndarray: ...
    def canonical_keys(self, rows: np.ndarray) -> np.ndarray: ...
    def holds(self, rows: np.ndarray) -> np.ndarray: ...
    def sample_many(self, count: int, generator: np.random.Generator) -> np.ndarray: ...
    def features(self, rows: np.ndarray) -> Features: ...
    def existing(self, rows: np.ndarray) -> np.ndarray: ...
    def flow(self) -> np.ndarray: ...
    def depends_on(self, position: int) -> tuple[int, ...]: ...
    def exists_given(self, position: int, options: tuple[int, ...]) -> bool: ...


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
    return blake2b(arch.key, digest_size=8).hexdigest()


def unseen(draw: Callable[[], Architecture], space: SearchSpace, seen: Container[str], rng: Random) -> Architecture | None:
    """An architecture from `draw` whose fingerprint is not in `seen`; where 100 draws give none, any other; None only if there is none.

    In a space of at most 20,000, "any other" is drawn evenly from those that are left; in a larger one it is the next after what was drawn
    last, in the order of `enumerate`.
    """
    for _ in range(DRAWS):
        arch = draw()
        if fingerprint(arch) not in seen:
            return arch
    if space.size <= MOST_LISTED:
        left = [other for other, print_ in _listed(space) if print_ not in seen]
        return left[rng.randrange(len(left))] if left else None
    # at most as many are seen in a row as were ever told or are pending, and one more is the answer
    later = (other for other in space.enumerate(arch) if fingerprint(other) not in seen)
    return next(later, None) or next((other for other in space.enumerate() if fingerprint(other) not in seen), None)


def propose(
    count: int,
    draw: Callable[[int], Architecture],
    space: SearchSpace,
    seen: Container[str],
    pending: Sequence[Architecture],
    rng: Random,
) -> list[Architecture]:
    """`count` architectures from `draw`, called with the number of those drawn so far: none seen, none pending, none twice; see `unseen`.

    Fewer only where no others are left.
    """
    asked: list[Architecture] = []
    taken = _Both(seen, {fingerprint(arch) for arch in pending})
    while len(asked) < count:
        arch = unseen(lambda: draw(len(asked)), space, taken, rng)
        if arch is None:
            break
        asked.append(arch)
        taken.out.add(fingerprint(arch))
    return asked


class _Both:
    """What is in either of two sets, without a copy of the large one."""

    __slots__ = ("out", "seen")

    def __init__(self, seen: Container[str], out: set[str]) -> None:
        self.seen, self.out = seen, out

    def __contains__(self, fingerprint: object) -> bool:
        return fingerprint in self.out or fingerprint in self.seen


def whole(space: SearchSpace) -> Space:
    """The `Space` that `space` is, or is the part of that keeps budgets."""
    inside = space.space if isinstance(space, Within) else space
    if not isinstance(inside, Space):
        raise SpaceError(f"this needs the decisions of a Space, or of one within budgets, not a {type(space).__name__}")
    return inside


class Itself(Generic[T]):
    """An object as the key of a cache: it itself, where `==` may leave something out, as that of spaces does what is known of architectures."""

    __slots__ = ("it",)

    def __init__(self, it: T) -> None:
        self.it = it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and self.it is other.it

    def __hash__(self) -> int:
        return id(self.it)


@lru_cache(maxsize=4)
def _listed(space: SearchSpace) -> tuple[tuple[Architecture, str], ...]:
    """All architectures of a small space, with their fingerprints; kept, because a search that comes to its end needs them again and again."""
    return tuple((arch, fingerprint(arch)) for arch in space.enumerate())


def architectures_to_array(architectures: Sequence[Architecture]) -> np.ndarray:
    """uint8 (N, bytes of a key): the keys of architectures, for `save`."""
    width = len(architectures[0].key) if architectures else 0
    return np.frombuffer(b"".join(arch.key for arch in architectures), dtype=np.uint8).reshape(len(architectures), width)


def origin(space: SearchSpace) -> SearchSpace:
    """The space that `space` is, or is any part of: what was told lies in it, for a user may tell of what is over a budget, or in no list."""
    return space.space if isinstance(space, Part) else space


def architectures_from_array(array: np.ndarray, space: SearchSpace) -> list[Architecture]:
    """The architectures that `architectures_to_array` wrote, checked against the space that `space` is a part of."""
    return [origin(space).from_key(row.tobytes()) for row in np.ascontiguousarray(array)]


def metrics_to_array(metrics: Sequence[Mapping[str, float]]) -> tuple[list[str], np.ndarray]:
    """The names of all metrics, and float64 (N, names): their values, NaN where one has no such metric; for `save`."""
    names = sorted({name for one in metrics for name in one})
    return names, np.array([[one.get(name, math.nan) for name in names] for one in metrics], dtype=np.float64).reshape(
        len(metrics), len(names)
    )


def metrics_from_array(names: Sequence[str], array: np.ndarray) -> list[dict[str, float]]:
    """What `metrics_to_array` wrote."""
    return [{name: value for name, value in zip(names, row, strict=True) if not math.isnan(value)} for row in array.tolist()]


def check_space(content: Mapping[str, Any], space: SearchSpace) -> None:
    """Refuses a saved state, which names its space under "space", of another space."""
    if (of := content["space"]) != space.hash:
        raise SpaceError(f"the state of this search belongs to the space {of}, but is read for the space {space.hash}")
