"""Sizes as expressions of decisions: `4 * width`, `round8(expand * in_channels)`, `width == 16`.

An expression is a plain value, or a tree of `Op` over choices. `place` replaces each choice by a `Ref`, the decision it
became; from then on an expression is a function of a few decisions, its `scope`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil, floor, prod
from typing import Any


class Symbol:
    """Base of what may stand in an expression in place of a number; arithmetic gives an expression again."""

    def __add__(self, other: Any) -> Any:
        return op("+", self, other)

    def __radd__(self, other: Any) -> Any:
        return op("+", other, self)

    def __sub__(self, other: Any) -> Any:
        return op("-", self, other)

    def __rsub__(self, other: Any) -> Any:
        return op("-", other, self)

    def __mul__(self, other: Any) -> Any:
        return op("*", self, other)

    def __rmul__(self, other: Any) -> Any:
        return op("*", other, self)

    def __floordiv__(self, other: Any) -> Any:
        return op("//", self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return op("//", other, self)

    def __truediv__(self, other: Any) -> Any:
        return op("/", self, other)

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} has no truth value before its choices are decided; use OneOf, or the functions of niwaki.space.size")


@dataclass(frozen=True)
class Ref(Symbol):
    """A decision inside an expression; its value is the option taken. `place` puts these where choices stood."""

    name: str
    options: tuple


@dataclass(frozen=True)
class InChannels(Symbol):
    """The number of channels (or features) that enter the layer in whose description it stands."""


in_channels = InChannels()


@dataclass(frozen=True)
class Table(Symbol):
    """A function of decisions written out: `values` has one entry per combination of options, the last decision fastest.

    `canonical` makes these; it leaves out decisions that change nothing, so equal functions are equal tables.
    """

    refs: tuple[Ref, ...]
    values: tuple


@dataclass(frozen=True)
class Op(Symbol):
    """A function of expressions; made by `op`, which folds constants."""

    function: str
    args: tuple


Expr = Any  # int | float | bool | str | tuple | Symbol


def _round8(value: float) -> int:
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.95 * value else rounded


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "/": operator.truediv,
    ">": operator.gt,
    "==": operator.eq,
    "max": max,
    "min": min,
    "int": int,
    "floor": floor,
    "ceil": ceil,
    "round8": _round8,
    "item": lambda value, index: value[index],
    "in": lambda value, values: value in values,
    "not": operator.not_,
    "and": lambda *values: all(values),
    "or": lambda *values: any(values),
    "select": lambda index, *values: values[index],
    "position": lambda value, values: values.index(value),
    "table": lambda value: value,
}


def op(function: str, *args: Expr) -> Expr:
    """`function` of `args`: a plain value if all of them are plain, else an expression, with neutral elements dropped."""
    if function in ("and", "or"):
        absorbing = function == "or"
        flat = [part for arg in args for part in (arg.args if isinstance(arg, Op) and arg.function == function else (arg,))]
        if any(arg is absorbing for arg in flat):
            return absorbing
        kept = tuple(arg for arg in flat if isinstance(arg, Symbol))
        return (not absorbing) if not kept else kept[0] if len(kept) == 1 else Op(function, kept)
    if not any(isinstance(arg, Symbol) for arg in args):
        return FUNCTIONS[function](*args)
    if function == "*" and any(not isinstance(arg, Symbol) and arg == 1 for arg in args):
        return next(arg for arg in args if isinstance(arg, Symbol))
    if function == "+" and any(not isinstance(arg, Symbol) and arg == 0 for arg in args):
        return next(arg for arg in args if isinstance(arg, Symbol))
    if function == "select" and not isinstance(args[0], Symbol):
        return args[1 + args[0]]
    return Op(function, tuple(args))


def round8(value: Expr) -> Expr:
    """The nearest multiple of 8, halves up, at least 8, and 8 more if that lost over 5 % (MobileNetV2's rule).

    >>> round8(12), round8(27), round8(20.9)
    (16, 32, 24)
    """
    return op("round8", value)


def round_to(value: Expr, base: int = 8) -> Expr:
    """The nearest multiple of `base`, halves up, at least `base` (TuNAS, MobileDets).

    >>> round_to(12), round_to(18), round_to(1), round_to(80, 32)
    (16, 16, 8, 96)
    """
    return maximum(base, base * op("floor", value / base + 0.5))


def make_divisible(value: Expr, base: int = 8) -> Expr:
    """`round_to`, and one multiple more where that lost over 10 % (MobileNetV3).

    >>> make_divisible(12), make_divisible(18), make_divisible(26)
    (16, 24, 24)
    """
    rounded = round_to(value, base)
    return rounded + base * op(">", 0.9 * value, rounded)


def maximum(*values: Expr) -> Expr:
    return op("max", *values)


def minimum(*values: Expr) -> Expr:
    return op("min", *values)


def equal(left: Expr, right: Expr) -> Expr:
    return op("==", left, right)


def both(*conditions: Expr) -> Expr:
    """True where all conditions hold."""
    return op("and", *conditions)


def either(*conditions: Expr) -> Expr:
    """True where any condition holds."""
    return op("or", *conditions)


def opposite(condition: Expr) -> Expr:
    return op("not", condition)


def taken(decision: Expr, options: tuple) -> Expr:
    """True where `decision` takes one of `options`."""
    return op("in", decision, tuple(options))


def substitute(expr: Expr, leaf: Callable[[Symbol], Expr]) -> Expr:
    """`expr` with every leaf symbol (anything that is not an `Op`) replaced by `leaf(symbol)`, constants folded."""
    if isinstance(expr, Op):
        return op(expr.function, *(substitute(arg, leaf) for arg in expr.args))
    return leaf(expr) if isinstance(expr, Symbol) else expr


def leaves(expr: Expr) -> Iterator[Symbol]:
    """The leaf symbols of `expr`, left to right, with repetitions."""
    if isinstance(expr, Op):
        for arg in expr.args:
            yield from leaves(arg)
    elif isinstance(expr, Symbol):
        yield expr


def refs(expr: Expr) -> tuple[Ref, ...]:
    """The decisions that `expr` depends on, in order of first appearance."""
    found: dict[Ref, None] = {}
    for leaf in leaves(expr):
        found.update(dict.fromkeys(leaf.refs if isinstance(leaf, Table) else (leaf,) if isinstance(leaf, Ref) else ()))
    return tuple(found)


def scope(*exprs: Expr) -> tuple[str, ...]:
    """The names of the decisions that any of `exprs` depends on, in order of first appearance."""
    return tuple(dict.fromkeys(ref.name for expr in exprs for ref in refs(expr)))


def evaluate(expr: Expr, decisions: Mapping[str, Any]) -> Any:
    """The value of `expr` when each decision in its scope takes the option that `decisions` gives by name."""
    if isinstance(expr, Ref):
        return decisions[expr.name]
    if isinstance(expr, Op):
        return FUNCTIONS[expr.function](*(evaluate(arg, decisions) for arg in expr.args))
    if isinstance(expr, Table):
        at = 0
        for ref in expr.refs:
            at = at * len(ref.options) + ref.options.index(decisions[ref.name])
        return expr.values[at]
    return expr


def values(expr: Expr) -> tuple:
    """All values of `expr`, one for each combination of options of its scope, the last decision fastest (C order)."""
    if isinstance(expr, Table):  # not from the cache: a table of 0 and 1 equals one of False and True
        return expr.values
    if isinstance(expr, Ref):
        return expr.options
    return _values(expr) if isinstance(expr, Op) else (expr,)


@lru_cache(maxsize=100_000)
def _values(expr: Op) -> tuple:
    decisions = refs(expr)
    columns = []
    for arg in expr.args:
        own = values(arg) if isinstance(arg, Symbol) else (arg,)
        columns.append([own[at] for at in _positions(refs(arg), decisions)])
    return tuple(map(FUNCTIONS[expr.function], *columns))


def _positions(own: tuple[Ref, ...], decisions: Sequence[Ref]) -> list[int]:
    """Where among the values over `own`, in C order, that of each combination of options of `decisions` stands, in C order too."""
    strides, step = {}, 1
    for ref in reversed(own):
        strides[ref], step = step, step * len(ref.options)
    found = [0]
    for ref in decisions:
        steps = range(0, len(ref.options) * strides[ref], strides[ref]) if ref in strides else (0,) * len(ref.options)
        found = [at + move for at in found for move in steps]
    return found


def largest(expr: Expr) -> Any:
    """The largest value that `expr` can take."""
    return max(values(expr)) if isinstance(expr, Symbol) else expr


def smallest(expr: Expr) -> Any:
    """The smallest value that `expr` can take."""
    return min(values(expr)) if isinstance(expr, Symbol) else expr


def canonical(expr: Expr) -> Expr:
    """`expr` as a constant, or as the `Table` of the decisions that it really depends on, in the order of their names.

    >>> k = Ref("k", (3, 5))
    >>> canonical(k // k), canonical(k * 2)
    (1, Table(refs=(Ref(name='k', options=(3, 5)),), values=(6, 10)))
    """
    if not isinstance(expr, Symbol) or isinstance(expr, Table):
        return expr
    decisions, entries = list(refs(expr)), values(expr)
    axis = 0
    while axis < len(decisions):
        options = len(decisions[axis].options)
        inner = prod(len(ref.options) for ref in decisions[axis + 1 :])
        blocks = [entries[at : at + inner] for at in range(0, len(entries), inner)]  # `options` of them for each outer combination
        if all(blocks[at : at + options] == [blocks[at]] * options for at in range(0, len(blocks), options)):
            entries = tuple(entry for block in blocks[::options] for entry in block)
            del decisions[axis]
        else:
            axis += 1
    if not decisions:
        return entries[0]
    order = sorted(range(len(decisions)), key=lambda axis: decisions[axis].name)
    if order != list(range(len(decisions))):
        found = tuple(decisions)
        decisions = [found[axis] for axis in order]
        entries = tuple([entries[at] for at in _positions(found, decisions)])
    return Table(tuple(decisions), entries)


def narrow(expr: Expr, decided: Mapping[str, Any]) -> Expr:
    """`expr` when some decisions have taken the options in `decided`: a constant, or a Table of the decisions that are still open."""
    if not any(ref.name in decided for ref in refs(expr)):
        return expr
    if all(ref.name in decided for ref in refs(expr)):
        return evaluate(expr, decided)
    table = canonical(expr)
    if not isinstance(table, Table):
        return table
    left = tuple(ref for ref in table.refs if ref.name not in decided)
    entries = (
        evaluate(table, {**decided, **dict(zip((ref.name for ref in left), options, strict=True))})
        for options in product(*(ref.options for ref in left))
    )
    return canonical(Op("table", (Table(left, tuple(entries)),)))
