"""Some of the architectures of a space: what is as the space has it, whatever says which architectures they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from niwaki.space.architecture import Architecture
from niwaki.space.choice import Value
from niwaki.space.rows import Features
from niwaki.space.space import Decision, Space


class Part(ABC):
    """An interface: a part of `space`, with the interface of a `Space`. Its architectures are the space's own."""

    def __init__(self, space: Space) -> None:
        self.space = space

    @abstractmethod
    def _kept(self, arch: Architecture) -> Architecture:
        """`arch`, or an error if it is not in this part."""

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return self.space.decisions

    @property
    def hash(self) -> str:
        return self.space.hash

    def __len__(self) -> int:
        return len(self.space)

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.space)

    def __getitem__(self, name: str) -> Decision:
        return self.space[name]

    def position(self, name: str) -> int:
        return self.space.position(name)

    def active(self, choices: Mapping[str, Value]) -> tuple[str, ...]:
        return self.space.active(choices)

    def indices(self, architectures: Iterable[Architecture]) -> list[list[int]]:
        return self.space.indices(architectures)

    @property
    def key_bytes(self) -> int:
        return self.space.key_bytes

    def key(self, arch: Architecture) -> bytes:
        return self.space.key(arch)

    def canonical_rows(self, rows: np.ndarray) -> np.ndarray:
        return self.space.canonical_rows(rows)

    def existing(self, rows: np.ndarray) -> np.ndarray:
        return self.space.existing(rows)

    def flow(self) -> np.ndarray:
        return self.space.flow()

    def depends_on(self, position: int) -> tuple[int, ...]:
        return self.space.depends_on(position)

    def exists_given(self, position: int, options: tuple[int, ...]) -> bool:
        return self.space.exists_given(position, options)

    def canonical_keys(self, rows: np.ndarray) -> np.ndarray:
        return self.space.canonical_keys(rows)

    def features(self, rows: np.ndarray) -> Features:
        return self.space.features(rows)

    def from_key(self, key: bytes) -> Architecture:
        return self._kept(self.space.from_key(key))

    def from_indices(self, row: Sequence[int]) -> Architecture:
        return self._kept(self.space.from_indices(row))

    def architecture(self, choices: Mapping[str, Value]) -> Architecture:
        """The architecture that takes `choices`; an error if it is not in this part."""
        return self._kept(self.space.architecture(choices))
