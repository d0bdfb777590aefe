"""Axes of weights and activations as runs of units that live and die together, and which positions a smaller axis keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from niwaki.space.choice import SpaceError
from niwaki.space.size import Expr, Symbol, largest


@dataclass(frozen=True)
class Run:
    """Consecutive positions of one axis: `outer` times, `units` units of `inner` positions that lie side by side.

    units: a number, for positions that are never cut, or how many units of a group are alive, an expression of choices; the first ones
    are. inner: of a flattened map H x W, of a head its width. outer: stacked queries, keys and values are 3 times the same heads.
    """

    units: Expr
    inner: int = 1
    outer: int = 1

    def __post_init__(self) -> None:
        if not all(isinstance(size, int) and size >= 1 for size in (self.inner, self.outer)):
            raise SpaceError(f"a run of an axis has inner={self.inner!r} and outer={self.outer!r}; both are whole numbers of at least 1")
        if not isinstance(self.units, (int, Symbol)) or (isinstance(self.units, int) and self.units < 0):
            raise SpaceError(f"a run of an axis has units={self.units!r}; they are a number or an expression of choices")

    @property
    def size(self) -> Expr:
        return self.inner * self.outer * self.units


Axis = tuple[Run, ...]  # what is concatenated has several runs


def axis(*sizes: Expr) -> Axis:
    """Runs of one position per unit, side by side: `axis(3)`, `axis(width)`, `axis(left, right)`."""
    return tuple(Run(size) for size in sizes)


def size_of(runs: Axis) -> Expr:
    """How many positions an axis has: the sum of its runs, left as a sum."""
    total: Expr = 0
    for run in runs:
        total = total + run.size
    return total


def most(expr: Expr) -> int:
    """The largest value of sums and products of sizes, each at its largest; never by listing combinations."""
    function = getattr(expr, "function", None)
    if function == "+":
        left, right = expr.args
        return most(left) + most(right)
    if function == "*":
        left, right = expr.args
        return most(left) * most(right)
    return largest(expr)


def length(runs: Axis) -> int:
    """The most positions an axis can have."""
    return sum(run.inner * run.outer * most(run.units) for run in runs)


def positions(full: Axis, now: Axis) -> slice | tuple[int, ...]:
    """Which positions of the longest axis `full` are used when its runs have at most the units `now`: the first units of every run.

    >>> positions((Run(4, outer=2), Run(3)), (Run(1, outer=2), Run(2)))
    (0, 4, 8, 9)
    >>> positions((Run(4, inner=2),), (Run(3, inner=2),))
    slice(0, 6, None)
    """
    found: list[int] = []
    start = 0
    for run, cut in zip(full, now, strict=True):
        whole, kept = most(run.units) * run.inner, most(cut.units) * run.inner
        for _ in range(run.outer):
            found += range(start, start + kept)
            start += whole
    return slice(0, len(found)) if _is_prefix(found) else tuple(found)


def unit_numbers(runs: Axis) -> tuple[int, ...]:
    """For each position of an axis, the number of its unit among those of all runs at their largest, side by side."""
    found: list[int] = []
    start = 0
    for run in runs:
        units = most(run.units)
        found += [start + unit for unit in range(units) for _ in range(run.inner)] * run.outer
        start += units
    return tuple(found)


def _is_prefix(found: Sequence[int]) -> bool:
    return not found or (found[0] == 0 and all(after == before + 1 for before, after in pairwise(found)))
