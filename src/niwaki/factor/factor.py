"""Costs as sums (or maxima) of small integer tables over few decisions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

import numpy as np

from niwaki.factor.chain import Chain
from niwaki.space.architecture import Architecture
from niwaki.space.size import Expr, Op, Ref, Symbol, equal, refs, values
from niwaki.space.space import Space

LARGEST_TABLE = 16_000_000  # entries
SMALL_TABLE = 1 << 16  # entries; a sum of sizes is only taken apart where its table would be larger
LARGEST_COST = 1 << 61  # leaves room for differences of two costs in int64
GATHER_ROWS = 8_192  # architectures costed at a time, so that their indices and sums stay in the cache


class CostError(ValueError):
    """Costs that cannot be tabulated, or that do not belong to a space."""


@dataclass(frozen=True, eq=False)
class Factor:
    """One term of a cost: `table[i, j]` where the first decision of `scope` takes option i and the second option j; any number of axes."""

    scope: tuple[str, ...]
    table: np.ndarray  # int64

    def __post_init__(self) -> None:
        if self.table.dtype != np.int64 or self.table.ndim != len(self.scope) or len(set(self.scope)) < len(self.scope):
            given = f"{self.table.dtype} of {self.table.shape}"
            raise CostError(f"a factor over {self.scope} needs an int64 table of {len(self.scope)} axes, not {given}")


def factor_of(path: str, condition: Expr, exprs: Sequence[Expr]) -> Factor:
    """The product of `exprs` where `condition` holds and 0 elsewhere, as one table over all decisions that occur.

    path: the layer that costs this much, for the message when the table would be too large.
    """
    parts = (condition, *exprs)
    decisions = _decisions(parts)
    entries = prod(len(ref.options) for ref in decisions)
    if entries > LARGEST_TABLE:
        listed = ", ".join(f"{ref.name} ({len(ref.options)})" for ref in decisions)
        raise CostError(
            f"the cost of {path} depends on {len(decisions)} choices at once, a table of {entries:,} entries where at most "
            f"{LARGEST_TABLE:,} are held: {listed}; tie some of them by a name, or give them fewer options"
        )
    names = tuple(ref.name for ref in decisions)
    tables = [(np.array(_whole(path, part), dtype=object), refs(part)) for part in parts]
    largest = prod(max(abs(int(entry)) for entry in table.flat) for table, _ in tables)
    if largest > LARGEST_COST:
        raise CostError(f"the cost of {path} reaches {largest:,}, more than the {LARGEST_COST:,} that 64-bit counts can hold safely")
    total = np.ones([len(ref.options) for ref in decisions], dtype=np.int64)
    for table, scope in tables:
        own = table.astype(np.int64).reshape([len(ref.options) for ref in scope])
        total *= aligned(own, [ref.name for ref in scope], names)
    return Factor(names, total)


def factors_of(path: str, condition: Expr, exprs: Sequence[Expr]) -> tuple[Factor, ...]:
    """Factors whose sum is the product of `exprs` where `condition` holds: one if it is small, else sums of sizes stay sums of tables."""
    if prod(len(ref.options) for ref in _decisions((condition, *exprs))) <= SMALL_TABLE:
        return (factor_of(path, condition, exprs),)
    for number, expr in enumerate(exprs):
        if addends := _addends(expr):
            rest = [*exprs[:number], *exprs[number + 1 :]]
            return tuple(factor for addend in addends for factor in factors_of(path, condition, (*addend, *rest)))
    return (factor_of(path, condition, exprs),)


@dataclass(frozen=True, eq=False)
class Cost:
    """What an architecture costs: the sum of its factors' entries ("sum"), or the largest of them ("max", such as peak memory).

    Factors of equal scope are merged when the cost is made, and so is one whose scope lies within another's.
    A decision that does not exist counts as its first option; factors carry the condition of their layer and are 0 there.
    """

    name: str
    unit: str
    factors: tuple[Factor, ...]
    space: Space
    kind: Literal["sum", "max"] = "sum"

    def __post_init__(self) -> None:
        for factor in self.factors:
            shape = tuple(len(self.space[name].options) for name in factor.scope)
            if factor.table.shape != shape:
                raise CostError(f"a factor of {self.name} over {factor.scope} has a table of {factor.table.shape}, not of {shape}")
        if self.kind == "sum" and sum(_largest(factor) for factor in self.factors) > LARGEST_COST:
            raise CostError(f"the {self.name} of this space can exceed {LARGEST_COST:,}, the most that 64-bit counts can hold safely")
        if self.kind not in ("sum", "max"):
            raise CostError(f"a cost is a 'sum' or a 'max' of its factors, not a {self.kind!r}")
        object.__setattr__(self, "factors", merged(self.factors, self.space, np.add if self.kind == "sum" else np.maximum))

    def __call__(self, arch: Architecture) -> int:
        """The cost of one architecture, exact."""
        (numbers,) = self.space.indices([arch])
        entries = [
            table.item(sum([numbers[position] * stride for position, stride in steps]))  # faster than arrays of one
            for steps, table in self._steps
        ]
        return sum(entries) if self.kind == "sum" else max(entries)

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """int64 (N,): the cost of every row of option numbers (N, decisions), canonical as `Space.indices` and `all_rows` give them.

        Rows of the smallest integers that hold them (`index_type`) are costed fastest.
        """
        if indices.ndim != 2 or indices.shape[1] != len(self.space):
            raise CostError(f"{self.name} is counted on rows of {len(self.space)} option numbers, not on an array of {indices.shape}")
        combine = np.add if self.kind == "sum" else np.maximum
        total = np.empty(len(indices), dtype=np.int64)
        block = min(GATHER_ROWS, len(indices))
        numbers = np.empty((indices.shape[1], block), dtype=np.int32)  # (decisions, block): the numbers of one decision lie together
        place, step, entry = np.empty(block, dtype=np.int32), np.empty(block, dtype=np.int32), np.empty(block, dtype=np.int64)
        for start in range(0, len(indices), GATHER_ROWS):
            out = total[start : start + GATHER_ROWS]
            rows, at, by, got = numbers[:, : len(out)], place[: len(out)], step[: len(out)], entry[: len(out)]
            rows[...] = indices[start : start + GATHER_ROWS].T
            for factor, (positions, strides, table) in enumerate(self._flat):
                if not positions:
                    at.fill(0)
                for axis, (position, stride) in enumerate(zip(positions, strides, strict=True)):
                    steps = np.multiply(rows[position], stride, out=by if axis else at) if stride != 1 or not axis else rows[position]
                    if axis:
                        np.add(at, steps, out=at)
                np.take(table, at, out=got, mode="clip")  # "raise" would copy through a buffer; the strides keep `at` inside the table
                combine(out, got, out=out) if factor else np.copyto(out, got)
        return total

    def minimum(self) -> tuple[int, Architecture]:
        """The smallest cost in the space and an architecture that has it."""
        return self._extremes[0]

    def maximum(self) -> tuple[int, Architecture]:
        """The largest cost in the space and an architecture that has it."""
        return self._extremes[1]

    @cached_property
    def _flat(self) -> list[tuple[list[int], list[np.int32], np.ndarray]]:
        """Per factor: positions of its scope, strides into its raveled table, that table."""
        if not self.factors:
            return [([], [], np.zeros(1, dtype=np.int64))]
        flat = []
        for factor in self.factors:
            strides = [np.int32(step // 8) for step in factor.table.strides]
            flat.append(([self.space.position(name) for name in factor.scope], strides, factor.table.ravel()))
        return flat

    @cached_property
    def _steps(self) -> list[tuple[tuple[tuple[int, int], ...], np.ndarray]]:
        """`_flat` for one architecture: (position, stride) of each axis, and the table."""
        return [(tuple(zip(positions, map(int, strides), strict=True)), table) for positions, strides, table in self._flat]

    @cached_property
    def _extremes(self) -> tuple[tuple[int, Architecture], ...]:
        combine = np.add if self.kind == "sum" else np.maximum
        chain = chain_of(self.space, [self])
        charges = chain.charged(self.factors, combine)
        # the largest is the least of what is negated; negated, a maximum is a minimum
        rows = chain.cheapest(charges, combine), chain.cheapest([-part for part in charges], np.add if self.kind == "sum" else np.minimum)
        return tuple((int(self.batch(row[None])[0]), self.space.from_indices(row.tolist())) for row in rows)


@dataclass(frozen=True, eq=False)
class Limit:
    """A budget: `cost` may be at most `upper`."""

    cost: Cost
    upper: int

    def __str__(self) -> str:
        return f"{self.cost.name} <= {self.upper:,} {self.cost.unit}".rstrip()


def index_type(space: Space) -> type[np.signedinteger]:
    """The smallest integer type that holds every option number of `space`."""
    most = max((len(decision.options) for decision in space.decisions), default=1) - 1
    return np.int8 if most <= 127 else np.int16 if most <= 32_767 else np.int32


def merged(factors: Iterable[Factor], space: Space, combine: np.ufunc = np.add) -> tuple[Factor, ...]:
    """`factors` in the order of the space, with equal and enclosed scopes combined into one table."""
    tables: dict[tuple[str, ...], np.ndarray] = {}
    for factor in factors:
        scope = tuple(sorted(factor.scope, key=space.position))
        table = aligned(factor.table, factor.scope, scope)
        tables[scope] = combine(tables[scope], table) if scope in tables else table
    kept: dict[tuple[str, ...], np.ndarray] = {}
    for scope in sorted(tables, key=len, reverse=True):
        home = min((other for other in kept if set(scope) <= set(other)), key=lambda other: kept[other].size, default=None)
        if home is None:
            kept[scope] = tables[scope]
        else:
            kept[home] = combine(kept[home], aligned(tables[scope], scope, home))
    ordered = sorted(kept, key=lambda scope: [space.position(name) for name in scope])
    return tuple(Factor(scope, np.array(kept[scope], order="C")) for scope in ordered)


def multilinear(cost: Cost) -> tuple[Factor, ...]:
    """Factors whose mean is table x probabilities, summed, for independent decisions: right also where some of these may not exist.

    Where a decision does not exist it counts as its first option, with certainty: those entries move to a factor without it.
    """
    space, todo, done = cost.space, list(cost.factors), []
    while todo:
        factor = todo.pop()
        split: set[str] = set()
        while optional := [name for name in factor.scope if name not in split and space[name].condition is not True]:
            name = max(optional, key=space.position)  # a condition is about earlier decisions, which may be optional in turn
            split.add(name)
            condition = space[name].condition
            asked = tuple(ref.name for ref in refs(condition))
            scope = tuple(sorted({*factor.scope, *asked}, key=space.position))
            shape = [len(space[other].options) for other in scope]
            if prod(shape) > LARGEST_TABLE:
                listed = ", ".join(scope)
                raise CostError(f"the mean {cost.name} depends on {len(scope)} choices at once, {prod(shape):,} entries: {listed}")
            whole = np.array(values(condition) if asked else [bool(condition)], dtype=np.int64)
            exists = aligned(whole.reshape([len(space[other].options) for other in asked]), asked, scope)
            table = np.broadcast_to(aligned(factor.table, factor.scope, scope), shape)
            axis = scope.index(name)
            missing = Factor((*scope[:axis], *scope[axis + 1 :]), (table * (1 - exists)).take(0, axis=axis))
            if missing.table.any():
                todo.append(missing)
            factor = Factor(scope, table * exists)
        if factor.table.any():
            done.append(factor)
    return merged(done, space)


def aligned(table: np.ndarray, scope: Sequence[str], wider: Sequence[str]) -> np.ndarray:
    """`table` over `scope` with its axes in the order of `wider`, of length 1 where `scope` has none."""
    table = table.transpose([scope.index(name) for name in wider if name in scope])
    lengths = iter(table.shape)
    return table.reshape([next(lengths) if name in scope else 1 for name in wider])


def chain_of(space: Space, costs: Sequence[Cost], scopes: Iterable[Sequence[str]] = ()) -> Chain:
    """The stages of `space` along which all `costs` can be added up, and the decisions of each of `scopes` are told apart together."""
    largest = [factor.scope for cost in costs if cost.kind == "max" for factor in cost.factors]
    return Chain(space, [*largest, *scopes], [cost.factors for cost in costs if cost.kind == "sum"])


def _decisions(exprs: Iterable[Expr]) -> list[Ref]:
    return list(dict.fromkeys(ref for expr in exprs for ref in refs(expr)))


def _whole(path: str, expr: Expr) -> list[int]:
    """The values of `expr` as integers."""
    entries = values(expr) if isinstance(expr, Symbol) else (expr,)
    for entry in entries:
        if not isinstance(entry, (bool, int, float, np.integer)) or entry != int(entry):
            raise CostError(f"the cost of {path} has a size that is not a whole number: {entry!r}")
    return [int(entry) for entry in entries]


def _addends(expr: Expr) -> list[tuple[Expr, ...]]:
    """Products whose sum is `expr`, if it is a sum, a difference, a product or a selection of sizes; else nothing."""
    if not isinstance(expr, Op):
        return []
    if expr.function == "+":
        return [addend for arg in expr.args for addend in (_addends(arg) if isinstance(arg, Op) and arg.function in "+-" else [(arg,)])]
    if expr.function == "-":
        return [(expr.args[0],), (-1, expr.args[1])]
    if expr.function == "*":
        return [expr.args]
    if expr.function == "select":
        index, *choices = expr.args
        return [(equal(index, number), choice) for number, choice in enumerate(choices)]
    return []


def _largest(factor: Factor) -> int:
    return int(np.abs(factor.table).max(initial=0))
