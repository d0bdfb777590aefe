"""Which channels change together: a union-find over single channels, and afterwards the runs and groups that they form.

While a graph is read, an axis is an array with the number of a unit for every position, and an operator's rule is the operation itself on
such arrays: concatenation concatenates them, a slice slices them, a sum joins them. Unit 0 stands for positions that are never cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niwaki.adoption.axes import Axis, Run

Array = NDArray[np.int64]
ALONE = "they change together, as one unit, of which the last always stays"
UNREAD = "no learned layer makes them, or none sums over them"
DISORDER = "they lie in another order in one place than in another"


@lru_cache(maxsize=4096)
def fixed(size: int) -> Array:
    """An axis that is never cut; one object per size, and not to be written to."""
    axis = np.zeros(size, np.int64)
    axis.setflags(write=False)
    return axis


class Units:
    """A union-find over units. The root of a set is its smallest number: the unit that was made first. `find` gives 0 once it is fixed.

    reason: whoever freezes or joins says here why; `reasons` tells it again. A set keeps the reason that it was fixed by first.
    """

    def __init__(self) -> None:
        self._count = 1
        self._parent = np.arange(1024)  # longer than needed; a unit that is not yet made is its own
        self._fixed: dict[int, Any] = {0: None}  # by root
        self._is_fixed = self._parent == 0  # the same, by root
        self.reason: Any = None

    def fresh(self, count: int) -> Array:
        """Units that nothing is known of yet; a single one is fixed at once, because the last unit of a group always stays."""
        if count < 2:
            return fixed(count)
        first, self._count = self._count, self._count + count
        if self._count > (room := len(self._parent)):
            self._parent = np.append(self._parent, np.arange(room, 2 * self._count))
            self._is_fixed = np.append(self._is_fixed, np.zeros(len(self._parent) - room, bool))
        return np.arange(first, self._count)

    def _roots(self, axis: Array) -> Array:
        found = self._parent[axis]
        while ((above := self._parent[found]) != found).any():
            found = above
        self._parent[axis] = found  # the next way is shorter
        return found

    def find(self, axis: Array) -> Array:
        """The axis with every unit replaced by its root."""
        found = self._roots(axis)
        found[self._is_fixed[found]] = 0
        return found

    def is_fixed(self, axis: Array) -> bool:
        return bool(self._is_fixed[self._roots(axis)].all())

    def share(self, a: Array, b: Array) -> bool:
        """Whether some unit of one axis is one of the other, fixed or not."""
        return bool(np.isin(self._roots(a[a != 0]), self._roots(b[b != 0])).any())

    def join(self, a: Array, b: Array) -> None:
        """Position by position, the units of two axes become one."""
        if a.shape != b.shape:
            raise ValueError(f"axes of {len(a)} and {len(b)} positions are joined")
        while True:
            one, other = self._roots(a), self._roots(b)
            apart = (one != other) & (a != 0) & (b != 0)
            if not apart.any():
                break
            high = np.maximum(one, other)[apart]
            np.minimum.at(self._parent, high, np.minimum(one, other)[apart])  # of several, the smallest; the others come next time
            merged = np.unique(high[self._is_fixed[high]])
            for old, new in zip(merged.tolist(), self._roots(merged).tolist(), strict=True):
                self._fix(new, self._fixed.pop(old))
                self._is_fixed[old] = False
        self.freeze(np.maximum(a, b)[(a == 0) | (b == 0)])

    def _fix(self, root: int, reason: Any) -> None:
        self._fixed.setdefault(root, reason)
        self._is_fixed[root] = True

    def freeze(self, axis: Array) -> None:
        found = self._roots(axis)
        for root in dict.fromkeys(found[~self._is_fixed[found]].tolist()):
            self._fix(root, self.reason)

    def settle(self, axis: Array) -> None:
        """Freezes an axis for a reason that stands before all others."""
        self.freeze(axis)
        self._fixed |= dict.fromkeys(self._roots(axis[axis != 0]).tolist(), self.reason)

    def reasons(self, axis: Array) -> list[Any]:
        """Why the units of an axis are fixed, each reason once; None for those that always were."""
        return list(dict.fromkeys(self._fixed[root] for root in self._roots(axis).tolist() if root in self._fixed))

    def roots(self) -> Array:
        """The root of every unit, by its number; 0 for those that are fixed."""
        return self.find(np.arange(self._count))


@dataclass(frozen=True)
class Partition:
    """Units of a read graph, sorted into groups: `runs(axis)` is the axis as runs over the groups numbered 0, 1, ..."""

    sizes: tuple[int, ...]  # units of each group
    runs: Callable[[Array], Axis]


def partition(units: Units, axes: Iterable[Array], *, weights: Iterable[Array], read: Iterable[Array]) -> Partition:
    """Groups: units that occur on the same axes equally often, and in the same order everywhere.

    Where that order differs, or units of two groups lie interleaved, no run can be written down and the groups involved are fixed. So is
    a group of one unit, one that lies on no axis of a weight (copies of one value), or one that nobody sums over (positions that are
    never read). Fixing merges neighbouring positions, so the sorting starts again until nothing is fixed any more.
    """
    kept = {id(axis): axis for axis in axes}
    on_weights, where_read = (_lying_on(len(units.roots()), some) for some in (weights, read))
    while True:
        root = units.roots()
        distinct = {found.tobytes(): found for axis in kept.values() for found in [root[axis]] if found.any()}
        members, group_of = _sorted_into_groups(root, list(distinct.values()))
        useful = set(group_of[root[on_weights]].tolist()) & set(group_of[root[where_read]].tolist())
        parsed = {}
        broken = {
            group: ALONE if len(inside) == 1 else UNREAD for group, inside in enumerate(members) if len(inside) == 1 or group not in useful
        }
        for key, found in distinct.items():
            runs = _runs(found, members, group_of)
            if isinstance(runs, int):
                broken.setdefault(runs, DISORDER)
            else:
                parsed[key] = runs
        if not broken:
            break
        for group, units.reason in broken.items():
            units.freeze(members[group])

    def runs_of(axis: Array) -> Axis:
        found = root[axis]
        if not found.any():
            return (Run(None, len(axis)),) if len(axis) else ()
        return parsed[found.tobytes()]

    return Partition(tuple(len(inside) for inside in members), runs_of)


def _lying_on(count: int, axes: Iterable[Array]) -> Array:
    """Which of `count` units lie on some of the axes; the fixed one does."""
    found = np.zeros(count, bool)
    found[0] = True
    for axis in axes:
        found[axis] = True
    return np.flatnonzero(found)


def _sorted_into_groups(root: Array, axes: Sequence[Array]) -> tuple[list[Array], Array]:
    """Members of each group, smallest first, and the group of every unit (-1: fixed)."""
    signature = np.zeros(len(root), np.uint64)
    seen = np.zeros(len(root), bool)
    with np.errstate(over="ignore"):
        for number, axis in enumerate(axes):
            counts = np.bincount(axis)
            found = np.flatnonzero(counts)
            times, which = np.unique(counts[found], return_inverse=True)
            mark = np.array([hash((number, count)) & 0xFFFFFFFFFFFFFFFF for count in times.tolist()], np.uint64)[which]
            signature[found] = signature[found] * np.uint64(6364136223846793005) + mark  # the mixing constant of Knuth's MMIX generator
            seen[found] = True
    seen[0] = False
    present = np.flatnonzero(seen)
    group_of = np.full(len(root), -1, np.int64)
    _, first, which = np.unique(signature[present], return_index=True, return_inverse=True)
    group_of[present] = np.argsort(np.argsort(first))[which]  # numbered in the order of their first units
    order = present[np.argsort(group_of[present], kind="stable")]
    members = np.split(order, np.cumsum(np.bincount(group_of[present]))[:-1]) if len(present) else []
    return members, group_of


def _runs(axis: Array, members: Sequence[Array], group_of: Array) -> Axis | int:
    """The axis as runs named by group number, or the group whose units do not lie as a run."""
    runs: list[Run] = []
    changes = np.flatnonzero(np.diff(axis)) + 1
    ends = np.append(changes, len(axis))
    at = 0
    while at < len(axis):
        side_by_side = int(ends[np.searchsorted(ends, at, side="right")]) - at
        if axis[at] == 0:
            runs.append(Run(None, side_by_side))
            at += side_by_side
            continue
        group = int(group_of[axis[at]])
        pattern = np.repeat(members[group], side_by_side)
        outer = 0
        while np.array_equal(axis[at : at + len(pattern)], pattern):
            outer, at = outer + 1, at + len(pattern)
        if not outer:
            return group
        runs.append(Run(str(group), len(members[group]), side_by_side, outer))
    return tuple(runs)
