"""The candidates among which a model-based strategy chooses: all architectures where they can be listed, else a pool built around the best."""

from __future__ import annotations

from functools import cached_property
from random import Random

import numpy as np

from niwaki.strategy.strategy import MOST_LISTED, SearchSpace
from niwaki.strategy.surrogate import Points, Scale

SCALE_DRAWS = 512  # architectures on which features are scaled, where they are not listed
PARENTS = 12  # of the best told, from which others are made
CHILDREN = 40  # of each
DRAWN = 256  # at random
MOST_NEAR = 1500  # neighbours that are looked at once, of all parents together


class Ground:
    """A space as rows of option numbers and as points. Everything here follows from the space alone, and is worked out when first needed."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._known_keys: dict[bytes, np.uint64] = {}

    @cached_property
    def rows(self) -> np.ndarray | None:
        """int32 (N, decisions): all architectures, in their order; None where there are more than 20,000."""
        if self.space.size > MOST_LISTED:
            return None
        rows = self.space.indices(self.space.enumerate())
        return np.array(rows, dtype=np.int32).reshape(len(rows), len(self.space.decisions))

    @cached_property
    def places(self) -> dict[bytes, int]:
        """The place in `rows` of each of them."""
        assert self.rows is not None
        return {row.tobytes(): place for place, row in enumerate(self.rows)}

    @cached_property
    def keys(self) -> np.ndarray:
        """uint64 (N,): the canonical key of each of `rows`."""
        assert self.rows is not None
        return self.space.canonical_keys(self.rows)

    @cached_property
    def scale(self) -> Scale:
        rows = self.rows
        if rows is None:
            rows = self.space.sample_many(SCALE_DRAWS, np.random.default_rng(0))
        return Scale.of(self.space.features(rows))

    @cached_property
    def listed_points(self) -> Points:
        assert self.rows is not None
        return self.scale(self.space.features(self.rows))

    def points(self, rows: np.ndarray) -> Points:
        """Architectures as points, scaled."""
        places = None if self.rows is None else self.places_of(rows)
        if places is None or (places < 0).any():
            return self.scale(self.space.features(rows))
        return self.listed_points.at(places)

    def places_of(self, rows: np.ndarray) -> np.ndarray:
        """int64 (N,): the places in `self.rows`; -1 for what is not listed: a user may tell of what is over the budget."""
        return np.array([self.places.get(row.tobytes(), -1) for row in np.ascontiguousarray(rows, dtype=np.int32)], dtype=np.int64)

    def keys_of(self, rows: np.ndarray) -> np.ndarray:
        """uint64 (N,): canonical keys, each worked out once."""
        written = [row.tobytes() for row in np.ascontiguousarray(rows, dtype=np.int32)]
        new = [at for at, row in enumerate(written) if row not in self._known_keys]
        if new:
            self._known_keys.update(zip((written[at] for at in new), self.space.canonical_keys(rows[new]), strict=True))
        return np.array([self._known_keys[row] for row in written], dtype=np.uint64)

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """int32 (count, decisions): at random."""
        if self.rows is not None:
            return self.rows[generator.integers(len(self.rows), size=count)]
        return self.space.sample_many(count, generator).astype(np.int32)

    def pool(self, best: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """int32 (N, decisions): different architectures at random, changes of one decision or a few of the `best` (their first is the very
        best), and crosses of two of them."""
        best = best[:PARENTS]
        parts = [best[:0], self.draw(DRAWN, generator)]
        if len(best):
            parents = np.repeat(best, CHILDREN, axis=0)
            mates = best[generator.integers(len(best), size=len(parents))]
            crossed = np.where(generator.random(parents.shape) < 0.5, parents, mates)
            parts += [
                self._changed(parents, generator),
                self._changed(np.where(generator.random((len(parents), 1)) < 0.5, crossed, parents), generator),
            ]
            parts.append(self._near(best[:1], generator))
        rows = np.unique(np.concatenate(parts), axis=0)
        return rows[self.space.holds(rows)]

    def near(self, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """int32 (N, decisions): different architectures in which one decision of one of `rows` is another; some, where there are many."""
        found = np.unique(self._near(rows, generator), axis=0)
        return found[self.space.holds(found)]

    @cached_property
    def _options(self) -> np.ndarray:
        return np.array([len(decision.options) for decision in self.space.decisions], dtype=np.int32)

    def _near(self, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        total = int(self._options.sum())
        which = np.arange(len(rows) * total)
        if len(which) > MOST_NEAR:
            which = np.unique(generator.integers(len(which), size=MOST_NEAR))
        which, option = which % len(rows), which // len(rows)
        position = np.searchsorted(np.cumsum(self._options), option, side="right")
        changed = rows[which]
        changed[np.arange(len(which)), position] = option - (np.cumsum(self._options) - self._options)[position]
        other = (changed != rows[which]).any(axis=1)
        return self.space.canonical_rows(changed[other]) if other.any() else rows[:0]

    def _changed(self, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Each row with one decision drawn anew, and each other decision with a small chance."""
        size = rows.shape
        drawn = np.floor(generator.random(size) * self._options).astype(np.int32)
        chance = generator.choice(np.array([0.0, 1.0, 3.0]), size=(size[0], 1)) / max(1, size[1])
        which = generator.random(size) < chance
        if size[1]:
            which[np.arange(size[0]), generator.integers(size[1], size=size[0])] = True
        return self.space.canonical_rows(np.where(which, drawn, rows))


def generator_of(rng: Random) -> np.random.Generator:
    return np.random.default_rng(rng.getrandbits(128))
