"""The architectures that a strategy was told of, as a value that grows in time of what is added."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


class Seen:
    """A frozen set of fingerprints, in the order in which they came.

    `with_` gives a larger set and leaves this one as it is. The two share one dictionary, fingerprint -> place, of which each set sees
    the places below its own length: a search of n trials copies nothing n times. Only a set that is made larger twice is copied.
    """

    __slots__ = ("_length", "_places")

    def __init__(self, fingerprints: Iterable[str] = ()) -> None:
        self._places = {fingerprint: place for place, fingerprint in enumerate(dict.fromkeys(fingerprints))}
        self._length = len(self._places)

    def with_(self, fingerprints: Iterable[str]) -> Seen:
        """This set and `fingerprints`."""
        larger = Seen.__new__(Seen)
        places = self._places if len(self._places) == self._length else {name: place for place, name in enumerate(self)}
        for fingerprint in fingerprints:
            places.setdefault(fingerprint, len(places))
        larger._places, larger._length = places, len(places)
        return larger

    def __contains__(self, fingerprint: object) -> bool:
        return self._places.get(fingerprint, self._length) < self._length  # type: ignore[call-overload]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        return islice(self._places, self._length)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Seen) and self._length == other._length and all(name in other for name in self)

    __hash__ = None  # type: ignore[assignment]

    def to_array(self) -> np.ndarray:
        """uint64 (N,)."""
        return np.array([int(name, 16) for name in self], dtype=np.uint64)

    @staticmethod
    def from_array(array: np.ndarray) -> Seen:
        """The set that `to_array` wrote."""
        return Seen(f"{int(number):016x}" for number in array)


class Log(Generic[T]):
    """A frozen sequence that only grows, by the same means: those that grew from one another share one list."""

    __slots__ = ("_items", "_length")

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._items = list(items)
        self._length = len(self._items)

    def with_(self, items: Iterable[T]) -> Log[T]:
        """This sequence and `items`."""
        longer: Log[T] = Log.__new__(Log)
        shared = self._items if len(self._items) == self._length else list(self)
        shared.extend(items)
        longer._items, longer._length = shared, len(shared)
        return longer

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        return islice(self._items, self._length)
