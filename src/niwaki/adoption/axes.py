"""What the axes of a user's own network are made of: runs of channels that live and die together, and costs that are polynomials in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import prod


class AdoptionError(ValueError):
    """A model that cannot be read, or a cut that its groups do not allow."""


@dataclass(frozen=True)
class Run:
    """Consecutive positions of one axis that live and die by the units of one group: `outer` times (every unit, `inner` positions of it).

    Position p of the run belongs to unit `(p // inner) % units`. A run without a group is never cut.
    """

    group: str | None
    units: int  # of the group, in the owner's model
    inner: int = 1  # positions of a unit that lie side by side: a flattened map, a head's dimensions, the r * r of a pixel shuffle
    outer: int = 1  # how often the pattern repeats: grouped convolutions, queries, keys and values in one weight

    def __post_init__(self) -> None:
        if min(self.units, self.inner, self.outer) < 1:
            raise AdoptionError(f"a run has at least one unit, inner and outer position; given {self}")

    @property
    def length(self) -> int:
        """Positions in the owner's model."""
        return self.units * self.inner * self.outer


Axis = tuple[Run, ...]  # concatenation: more runs


@dataclass(frozen=True)
class Group:
    """Units that may be removed one by one, each from every axis that carries it; named after the layer that makes them first."""

    name: str
    units: int
    members: tuple[tuple[str, int], ...] = ()  # (weight, axis) pairs that carry it, first producer first
    least: int = 1  # of its units stay: two, where a variance or a normalisation runs over them alone

    def __post_init__(self) -> None:
        if self.units < 2:
            raise AdoptionError(f"group {self.name!r} has {self.units} unit; at least one stays, so there would be nothing to choose")
        if not 1 <= self.least < self.units:
            raise AdoptionError(f"group {self.name!r} keeps at least {self.least} of {self.units} units; it is 1 to {self.units - 1}")


@dataclass(frozen=True)
class Size:
    """The number of positions that are alive on an axis, where an operator is given a number: a view's shape, a slice's end."""

    axis: Axis


Linear = tuple[tuple[str | None, int], ...]  # sum of int * units alive; None stands for 1


@dataclass(frozen=True)
class Term:
    """`coefficient` times a product, over a few axes, of their sizes."""

    coefficient: int
    sizes: tuple[Linear, ...] = field(default=())


def length(axis: Axis) -> int:
    """Positions of an axis in the owner's model."""
    return sum(run.length for run in axis)


def groups_of(axis: Axis) -> tuple[str, ...]:
    """Groups that an axis carries, each once, in order."""
    return tuple(dict.fromkeys(run.group for run in axis if run.group is not None))


def linear(axis: Axis) -> Linear:
    """Size of an axis as a sum over groups, constants last.

    >>> linear((Run("conv1", 8), Run(None, 3), Run("conv1", 8, inner=2)))
    (('conv1', 3), (None, 3))
    """
    total: dict[str | None, int] = {}
    for run in axis:
        per_unit = run.inner * run.outer
        total[run.group] = total.get(run.group, 0) + (run.length if run.group is None else per_unit)
    constant = total.pop(None, 0)
    return (*total.items(), *([(None, constant)] if constant or not total else []))


def value(size: Linear, alive: Mapping[str, int]) -> int:
    """The sum, with `alive` units of each group."""
    return sum(factor * (1 if group is None else alive[group]) for group, factor in size)


def alive_length(axis: Axis, alive: Mapping[str, int]) -> int:
    """Positions that are left when `alive` units of each group are."""
    return value(linear(axis), alive)


def total(terms: Sequence[Term], alive: Mapping[str, int]) -> int:
    """A cost, exact."""
    return sum(term.coefficient * prod(value(size, alive) for size in term.sizes) for term in terms)


def positions(axis: Axis, keep: Mapping[str, Sequence[int]]) -> list[int]:
    """Positions of an axis that are left when the units `keep[group]` of each group are.

    >>> positions((Run("a", 3, inner=2), Run(None, 1), Run("b", 2, outer=2)), {"a": [0, 2], "b": [1]})
    [0, 1, 4, 5, 6, 8, 10]
    """
    found, start = [], 0
    for run in axis:
        units = range(run.units) if run.group is None else keep[run.group]
        for repeat in range(run.outer):
            base = start + repeat * run.units * run.inner
            found.append([base + unit * run.inner + i for unit in units for i in range(run.inner)])
        start += run.length
    return list(chain.from_iterable(found))
