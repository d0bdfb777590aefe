"""What is known while a captured graph is read: the units on every axis, sizes to be rewritten, multiply-adds, and where channels meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from niwaki.adoption.capture import Captured
from niwaki.adoption.flat import layer_of, place_in_code
from niwaki.adoption.groups import Array, Units, fixed
from niwaki.adoption.operators import overload

Arguments = Mapping[str, Any]  # of an operator, by name
Axes = list[Array]  # one array of units per axis of a tensor


class NotUnderstoodError(Exception):
    """A rule that meets a case it does not cover; the operator is opaque then."""


@dataclass(frozen=True)
class Extent:
    """An axis as a factor of a cost: its units, and its positions for a batch of one (not always the length of `units`)."""

    units: Array
    rows: int


@dataclass(frozen=True)
class Product:
    """`coefficient` times the sizes of some axes."""

    coefficient: int
    extents: tuple[Extent, ...]


@dataclass(frozen=True)
class Meeting:
    """`reader` sums over axis `axis` of `value`: the place where a removed channel must count as zero."""

    reader: fx.Node
    value: fx.Node
    axis: int


@dataclass(frozen=True)
class Floor:
    """A statistic that `reader` takes over so many numbers, the product of `extents`, of which there have to be `least`."""

    reader: fx.Node
    extents: tuple[Extent, ...]
    least: int


@dataclass(frozen=True)
class Output:
    """Why units are fixed that an output of the model has. name: its keys and positions in what the model gives, "" where that is one tensor."""

    name: str

    def __str__(self) -> str:
        return f"they are an output ({self.name})" if self.name else "they are the output"


@dataclass
class Reading:
    """Filled node by node, in the order of the graph; the rules (`rules.py`) write to it."""

    captured: Captured
    units: Units = field(default_factory=Units)
    axes: dict[fx.Node, Any] = field(default_factory=dict)  # Axes per tensor, in the structure of what the node gives
    weights: dict[str, Axes] = field(default_factory=dict)  # by the first name of the parameter or buffer
    sizes: dict[fx.Node, dict[str, Any]] = field(default_factory=dict)  # argument -> its value, with an array of units where a size stands
    macs: dict[fx.Node, list[Product]] = field(default_factory=dict)
    meetings: list[Meeting] = field(default_factory=list)
    averages: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)  # operators whose statistics run over axes that may be cut
    floors: list[Floor] = field(default_factory=list)
    uncounted: list[fx.Node] = field(default_factory=list)  # whose multiply-adds no rule counts
    opaque: dict[fx.Node, tuple[str, str]] = field(default_factory=dict)  # what was not understood: its layer, and why

    def of(self, node: fx.Node) -> Axes:
        """The axes of the tensor that a node gives."""
        return self.axes[node]

    def shape(self, node: fx.Node) -> list[int]:
        """Sizes as captured: a symbolic one with the number it had."""
        return [int(size.node.hint) if isinstance(size, torch.SymInt) else int(size) for size in node.meta["val"].shape]

    def fixed_like(self, value: Any) -> Any:
        """Axes that are never cut, in the structure of a node's example value; None where there is no tensor."""
        if isinstance(value, Tensor):
            return [fixed(rows_as_captured(size)) for size in value.shape]
        if isinstance(value, tuple | list):
            return [self.fixed_like(each) for each in value]
        return None

    def weight(self, node: fx.Node) -> Axes:
        """Axes of a parameter or buffer, one set per tensor however often it is read."""
        name = str(node.target)
        if name not in self.weights:
            self.weights[name] = [self.units.fresh(size) for size in node.meta["val"].shape]
        return self.weights[name]

    def rows(self, node: fx.Node) -> list[int]:
        """Sizes for a batch of one."""
        return [rows_for_one(size) for size in node.meta["val"].shape]

    def extents(self, node: fx.Node, axes: Sequence[int] | None = None) -> list[Extent]:
        both = list(zip(self.of(node), self.rows(node), strict=True))
        return [Extent(*both[axis]) for axis in (range(len(both)) if axes is None else axes)]

    def is_fixed(self, axis: Array) -> bool:
        return self.units.is_fixed(axis)

    def freeze(self, *axes: Array) -> None:
        for axis in axes:
            self.units.freeze(axis)

    def join(self, a: Array, b: Array) -> None:
        self.units.join(a, b)

    def tie_along(self, table: Array, keep: int) -> None:
        """Units that differ only along the axes of `table` other than `keep` become one."""
        lines = np.moveaxis(table, keep, 0).reshape(table.shape[keep], -1)
        for other in lines.T[1:]:
            self.join(lines[:, 0], other)

    def join_broadcast(self, operands: Sequence[Axes]) -> Axes:
        """Axes of a pointwise operator on several tensors: joined where they meet, right-aligned; an axis of one position meets nothing."""
        rank = max(map(len, operands))
        found: Axes = []
        for axis in range(-rank, 0):
            here = [axes[axis] for axes in operands if len(axes) >= -axis]
            wide = [units for units in here if len(units) > 1] or here[:1]
            for one, other in pairwise(wide):
                self.join(one, other)
            found.append(wide[0])
        return found

    def tensors_in(self, node: fx.Node) -> list[fx.Node]:
        """What a node is given that has axes."""
        return [value for value in node.all_input_nodes if self.axes.get(value) is not None]

    def meet(self, reader: fx.Node, value: Any, axis: int) -> None:
        """`reader` sums over this axis of `value`."""
        if isinstance(value, fx.Node) and not self.is_fixed(self.of(value)[axis]):
            self.meetings.append(Meeting(reader, value, axis % len(self.of(value))))

    def spread(self, node: fx.Node, value: fx.Node, dims: Sequence[int], *, correction: int = 0) -> None:
        """`node` takes a variance along `dims` of `value`, divided by the count less `correction`: of a single number it would be none, or 0 always."""
        self.averages[node] = tuple(dims)
        self.floors.append(Floor(node, tuple(self.extents(value, dims)), max(2, correction + 1)))

    def count(self, node: fx.Node, coefficient: int, extents: Sequence[Extent]) -> None:
        self.macs.setdefault(node, []).append(Product(coefficient, tuple(extents)))

    def give_up(self, node: fx.Node, why: str) -> Any:
        """Freeze whatever a node touches, and say so if there was anything to freeze."""
        touched = False
        for value in node.all_input_nodes:
            for axis in pytree.tree_leaves(self.axes.get(value)):
                if axis is not None and not self.is_fixed(axis):
                    self.units.freeze(axis)
                    touched = True
        for noted in (self.sizes, self.macs, self.averages):
            noted.pop(node, None)
        self.meetings = [meeting for meeting in self.meetings if meeting.reader is not node]
        self.floors = [floor for floor in self.floors if floor.reader is not node]
        self.uncounted.append(node)
        if touched:
            operator = str(overload(node) or getattr(node.target, "__name__", node.target))
            where = " ".join(filter(None, (layer_of(node), operator, f"({place_in_code(node)})")))
            layer = layer_of(node) or " ".join(filter(None, ("forward", place_in_code(node))))
            self.opaque[node] = layer, f"{where}: {why}; the channels it touches stay as they are"
        return self.fixed_like(node.meta.get("val"))

    def every_axis(self) -> Iterator[Array]:
        """All arrays of units that anything was said about."""
        yield from (axis for axes in self.axes.values() for axis in pytree.tree_leaves(axes) if axis is not None)
        for arguments in self.sizes.values():
            yield from (value for value in pytree.tree_leaves(arguments) if isinstance(value, np.ndarray))
        for products in self.macs.values():
            yield from (extent.units for product in products for extent in product.extents)


Rule = Callable[[Reading, fx.Node, Arguments], Any]  # joins and freezes units, gives the axes of what a node gives


def rows_as_captured(size: Any) -> int:
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def rows_for_one(size: Any) -> int:
    """A size with the batch set to one."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    return _of_one(size.node.expr)


@lru_cache(maxsize=4096)
def _of_one(expression: Any) -> int:
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def elements(shape: Sequence[int]) -> int:
    return prod(shape)
