"""The part of a space that is listed, row by row: where a benchmark has measured a sample of a space that is too large to be measured."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from random import Random
from typing import Any

import numpy as np

from niwaki.space.architecture import Architecture
from niwaki.space.choice import SpaceError
from niwaki.space.part import Part
from niwaki.space.space import Space

NEAR = 16  # of the other rows, at least, are an architecture's neighbours


def places(space: Space | Listed, rows: np.ndarray) -> dict[bytes, int]:
    """The number of each row by its architecture's key. rows: (N, decisions) option numbers, canonical."""
    return {row.tobytes(): at for at, row in enumerate(np.ascontiguousarray(rows, dtype=f"u{space.key_bytes}"))}


class Listed(Part):
    """The architectures of `space` with the option numbers `rows`, with the interface of a `Space`. Its architectures are the space's own.

    rows: (N, decisions), canonical as `Space.indices` gives them, none twice. Few of a random sample differ in one decision, so the
    neighbours of an architecture are the NEAR rows, and those as near as the last of them, that differ from it in the fewest.
    """

    def __init__(self, space: Space, rows: np.ndarray) -> None:
        if rows.ndim != 2 or rows.shape[1] != len(space) or not len(rows):
            raise SpaceError(f"a list of architectures is (N, {len(space)}) option numbers, N at least 1, not {rows.shape}")
        super().__init__(space)
        self.rows = rows

    def to_json(self) -> dict[str, Any]:
        return {**self.space.to_json(), "listed": len(self.rows)}

    # ---------------------------------------------------------------- what is listed

    @property
    def size(self) -> int:
        return len(self.rows)

    def __contains__(self, arch: object) -> bool:
        return isinstance(arch, Architecture) and arch.space == self.hash and arch.key in self._places

    def holds(self, rows: np.ndarray) -> np.ndarray:
        """bool (N,): which canonical rows are listed."""
        return np.array([row in self._row_places for row in map(bytes, np.ascontiguousarray(rows, dtype=np.int32))], dtype=bool)

    def sample(self, rng: Random) -> Architecture:
        return self.sample_uniform(rng)

    def sample_uniform(self, rng: Random) -> Architecture:
        """An architecture drawn so that all that are listed are equally likely."""
        return self._at(rng.randrange(len(self.rows)))

    def sample_many(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """(count, decisions): option numbers of independent uniform draws."""
        return self.rows[generator.integers(len(self.rows), size=count)]

    def enumerate(self, after: Architecture | None = None) -> Iterator[Architecture]:
        """All that are listed, in the order of the list. after: only those that come later than it."""
        return map(self._at, range(0 if after is None else self._places[self._kept(after).key] + 1, len(self.rows)))

    def neighbours(self, arch: Architecture) -> Iterator[Architecture]:
        return map(self._at, self._near(arch).tolist())

    def mutate(self, arch: Architecture, rng: Random) -> Architecture:
        """One of the neighbours, each as likely."""
        near = self._near(arch)
        if not len(near):
            raise SpaceError("only one architecture is listed, so it has no neighbour")
        return self._at(int(near[rng.randrange(len(near))]))

    def cross(self, first: Architecture, second: Architecture, rng: Random) -> Architecture:
        """What is nearest to a uniform crossover, as `Space.cross` draws it; of several as near, each as likely."""
        return self.nearest(self.space.cross(first, second, rng), rng)

    def nearest(self, arch: Architecture, rng: Random) -> Architecture:
        """What differs from `arch`, any architecture of the whole space, in the fewest decisions; of several as near, each as likely."""
        apart = self._apart(arch)
        near = np.flatnonzero(apart == apart.min())
        return self._at(int(near[rng.randrange(len(near))]))

    # ---------------------------------------------------------------- inside

    @cached_property
    def _places(self) -> dict[bytes, int]:
        return places(self.space, self.rows)

    def _apart(self, arch: Architecture) -> np.ndarray:
        """(N,): in how many decisions each row differs from `arch`."""
        return (self.rows != np.array(self.space.indices([arch])[0])).sum(axis=1)

    @cached_property
    def _row_places(self) -> dict[bytes, int]:
        return {bytes(row): place for place, row in enumerate(np.ascontiguousarray(self.rows, dtype=np.int32))}

    def _at(self, place: int) -> Architecture:
        return self.space.from_indices(self.rows[place].tolist())

    def _near(self, arch: Architecture) -> np.ndarray:
        """The places of the neighbours, nearest first, in the order of the list where they are as near."""
        apart = self._apart(arch)
        others = np.flatnonzero(apart)
        if len(others) > NEAR:
            others = others[apart[others] <= np.partition(apart[others], NEAR - 1)[NEAR - 1]]
        return others[np.argsort(apart[others], kind="stable")]

    def _kept(self, arch: Architecture) -> Architecture:
        if arch not in self:
            raise SpaceError(f"the architecture {dict(arch)} is not among the {len(self.rows):,} that are listed")
        return arch
