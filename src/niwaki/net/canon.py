"""What an architecture computes, as a number: equal for those that differ only in how they are written. And what paths it has.

A tensor's number is a hash of how it is made (hash-consing): of its layer and of the numbers of the tensors that the layer reads. Tensors
are added by adding their numbers, and zeros have the number 0, so sums commute, sums of sums are one sum, an added zero and a sum of one
change nothing; the identity passes the number on; what nothing reads never enters the output's. All rows are numbered at once.

Two conventions, which are also those of NAS-Bench-201's own count of isomorphic cells:
zeros stay zeros through a BatchNorm (its learned shift, a constant, counts as nothing), and two equal layers that read the same tensor count
as equal whether or not they are one layer with one set of weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from niwaki.net.flow import INPUT, decision_flow, open_expressions, parts
from niwaki.net.layer import (
    Activation,
    BatchNorm,
    Cat,
    ChannelShuffle,
    Conv,
    Dropout,
    Flatten,
    GlobalPool,
    Identity,
    Interleave,
    Layer,
    Linear,
    Pool,
    SqueezeExcite,
    Subsample,
    Sum,
    Zero,
)
from niwaki.net.operation import Operation, open_sizes
from niwaki.space.size import Expr, Symbol, both, equal, refs, values

if TYPE_CHECKING:
    from niwaki.net.place import Placed, Placement
    from niwaki.space.space import Decision

MOST_ROWS = 20_000  # combinations of options for which the paths through one part of a network are listed
MOST_PATHS = 256  # different ones through one part
ZERO = np.uint64(0)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)

# layers without a bias: zeros in, zeros out
_KEEPS_ZERO = (BatchNorm, Pool, GlobalPool, SqueezeExcite, Subsample, Interleave, Flatten, ChannelShuffle, Dropout, Zero, Cat)
_STARTS_AT_ZERO = ("relu", "relu6", "leaky_relu", "hswish", "swish", "tanh", "gelu", "identity")


@dataclass(frozen=True)
class Canon:
    """Canonical keys and path features of the architectures of a placed network, for matrices of option numbers at once."""

    placement: Placement = field(repr=False)

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """uint64 (N,): equal where architectures compute the same. rows: (N, decisions), canonical as `Space.indices` gives them."""
        columns = _Columns(self.placement.decisions, rows)
        numbers: dict[int, Any] = {INPUT: _number(("input", self.placement.input_shape))}
        numbers |= {source: _number(self.placement.reads[INPUT - source]) for source in self.placement.entering[1:]}
        with np.errstate(over="ignore"):
            for at, step in enumerate(self._steps):
                numbers[at] = step.number([numbers[source] for source in step.inputs], columns)
                for gone in self._gone.get(at, ()):
                    del numbers[gone]
        return np.broadcast_to(np.asarray(numbers[self.placement.output], dtype=np.uint64), (len(rows),)).copy()

    def paths(self, rows: np.ndarray) -> np.ndarray:
        """float32 (N, F): for each part of the network in which searched branches meet, how many ways lead through it over each sequence
        of layers, and how many of each layer lie on some way. Zeros lead nowhere, and the identity is no layer. Parts that are alike are
        counted once. The layers are weighed as much as the ways: two architectures are as far apart in the ones as in the others, on average.
        """
        return self._looked_up([(names, paths) for names, paths, _ in self._path_tables], rows)

    def layers(self, rows: np.ndarray) -> np.ndarray:
        """float32 (N, G): for the same parts, how many of each layer the output reads, zeros or not: what is left to run where dead code is
        left out, but zeros are computed with as any other numbers."""
        return self._looked_up([(names, layers) for names, _, layers in self._path_tables], rows)

    def _looked_up(self, tables: Sequence[tuple[tuple[str, ...], np.ndarray]], rows: np.ndarray) -> np.ndarray:
        columns = _Columns(self.placement.decisions, rows)
        found = [table[columns.code(names)] for names, table in tables]
        return np.concatenate(found, axis=1) if found else np.zeros((len(rows), 0), dtype=np.float32)

    def flow(self) -> np.ndarray:
        """float32 (D + 2, D + 2): see `decision_flow`."""
        return decision_flow(self.placement)

    @cached_property
    def _steps(self) -> list[_Step]:
        known: dict[Any, Any] = {}

        def told(expr: Expr, function: Callable[[Any], Any]) -> Any:
            if not isinstance(expr, Symbol):
                return function(expr)
            key = (expr, *(function.args if isinstance(function, partial) else (function,)))
            if key not in known:
                known[key] = _Told.of(expr, function)
            return known[key]

        return [_Step.of(item, told) for item in self.placement.items]

    @cached_property
    def _gone(self) -> dict[int, list[int]]:
        """After which item which tensors are not read any more."""
        last = {source: at for at, item in enumerate(self.placement.items) for source in item.inputs}
        gone: dict[int, list[int]] = {}
        for source, at in last.items():
            if source != self.placement.output:
                gone.setdefault(at, []).append(source)
        return gone

    @cached_property
    def _path_tables(self) -> list[tuple[tuple[str, ...], np.ndarray, np.ndarray]]:
        """For each part in which searched branches meet: the decisions in it, and of paths and of layers (combinations of their options, F)
        counts."""
        options = {decision.name: len(decision.options) for decision in self.placement.decisions}
        tables: dict[tuple, tuple[tuple[str, ...], np.ndarray, np.ndarray]] = {}
        seen: set[tuple] = set()
        for start, stop, source, result in parts(self.placement):
            items = self.placement.items[start:stop]
            names = tuple(dict.fromkeys(ref.name for item in items for expr in open_expressions(item) for ref in refs(expr)))
            if len(names) < 2 or prod(options[name] for name in names) > MOST_ROWS or not _branches_meet(items, start):
                continue
            like = tuple((replace(item, path="", inputs=tuple(i - start for i in item.inputs)), item.condition) for item in items)
            if like in seen:
                continue
            seen.add(like)
            paths, layers = _path_table(items, start, source, result, {name: options[name] for name in names}, self.placement.decisions)
            if paths.shape[1] or layers.shape[1]:
                tables.setdefault((names, paths.tobytes(), layers.tobytes()), (names, paths, layers))
        return list(tables.values())


# --- numbers -----------------------------------------------------------------------------------------------------------------


def _number(value: Any) -> np.uint64:
    """64 bits that stand for `value`, the same in every process."""
    return np.frombuffer(hashlib.sha256(repr(value).encode()).digest()[:8], dtype=np.uint64)[0]


def _mixed(number: Any) -> Any:
    """A bijection that scatters 64-bit numbers (splitmix64, Steele et al. 2014), so that sums of them are as good as random."""
    number = number + _GOLDEN
    number = (number ^ (number >> _SHIFTS[0])) * _FACTORS[0]
    number = (number ^ (number >> _SHIFTS[1])) * _FACTORS[1]
    return number ^ (number >> _SHIFTS[2])


@dataclass(frozen=True, eq=False)
class _Told:
    """A function of decisions, written out: its value for each combination of options, the last of `names` fastest."""

    names: tuple[str, ...]
    table: np.ndarray

    @staticmethod
    def of(expr: Expr, function: Callable[[Any], Any]) -> _Told:
        return _Told(tuple(ref.name for ref in refs(expr)), np.array([function(value) for value in values(expr)]))


class _Columns:
    """The option numbers of many architectures, by decision, and what expressions come to in each of them."""

    def __init__(self, decisions: Sequence[Decision], rows: np.ndarray) -> None:
        self.options = {decision.name: len(decision.options) for decision in decisions}
        self.column = {decision.name: np.ascontiguousarray(rows[:, at]) for at, decision in enumerate(decisions)}
        self.count = len(rows)
        self._codes: dict[tuple[str, ...], np.ndarray] = {}
        self._found: dict[int, np.ndarray] = {}  # by the identity of a _Told that the caller keeps

    def code(self, names: tuple[str, ...]) -> np.ndarray:
        """(N,): which combination of the options of `names` is taken, the last name fastest."""
        if names not in self._codes:
            code = np.zeros(self.count, dtype=np.int64)
            for name in names:
                code = code * self.options[name] + self.column[name]
            self._codes[names] = code
        return self._codes[names]

    def each(self, expr: Expr, of: Callable[[Any], Any]) -> Any:
        """`of` each value that `expr` takes, (N,); of a plain value a single one."""
        if not isinstance(expr, Symbol):
            return of(expr)
        told = _Told.of(expr, of)
        return told.table[self.code(told.names)]

    def of(self, told: _Told) -> np.ndarray:
        """(N,): what `told` says of each row."""
        if id(told) not in self._found:
            self._found[id(told)] = told.table[self.code(told.names)]
        return self._found[id(told)]

    def holds(self, condition: Expr) -> Any:
        return self.each(condition, bool)


@dataclass(frozen=True, eq=False)
class _Step:
    """How the number of what one item gives is made, worked out once.

    own: of its layer, as far as that is not left to decisions; more: the rest, to be added. edges: which inputs take part, None where all
    do. widths: of what a Cat reads. keeps_zero: whether zeros in give zeros out. vanishes: where the layer is the identity.
    """

    kind: type[Layer]
    inputs: tuple[int, ...]
    edges: tuple[_Told | None, ...]
    own: np.uint64
    more: tuple[_Told, ...]
    widths: tuple[np.uint64 | _Told, ...]
    keeps_zero: bool | _Told
    vanishes: bool | _Told

    @staticmethod
    def of(item: Placed, told: Callable[[Expr, Callable[[Any], Any]], Any]) -> _Step:
        """told: an expression and a function of its value -> the function's value, or a _Told."""
        layer, own, more = item.layer, _number(type(item.layer).__name__), []
        with np.errstate(over="ignore"):
            if isinstance(layer, Operation):
                own = _number(layer)
                more = [told(size, partial(_field_number, "size")) for size in open_sizes(layer)]
            else:
                for f in fields(layer):
                    if f.name not in ("make", "name"):
                        number = told(getattr(layer, f.name), partial(_field_number, f.name))
                        more += [number] if isinstance(number, _Told) else []
                        own = own if isinstance(number, _Told) else own + number
        edges = tuple(None if edge is True else told(edge, bool) for edge in item.edges)
        widths = tuple(told(shape.width, _width_number) for shape in item.input_shapes) if isinstance(layer, Cat) else ()
        keeps, vanishes = _keeps_zero(layer), _vanishes(item)
        return _Step(type(layer), item.inputs, edges, own, tuple(more), widths, told(*keeps), told(*vanishes))

    def number(self, inputs: Sequence[Any], columns: _Columns) -> Any:
        """The number, (N,) or the same for all; where the item does not exist, anything. Wraps around: call it where overflow is ignored."""
        if self.kind is Sum:
            total: Any = ZERO
            for tensor, edge in zip(inputs, self.edges, strict=True):
                total = total + (tensor if edge is None else np.where(columns.of(edge), tensor, ZERO))
            return total
        if self.kind is Zero:
            return ZERO
        if self.vanishes is True:
            return inputs[0]
        own: Any = self.own
        for more in self.more:
            own = own + columns.of(more)
        read: Any = ZERO
        for at, tensor in enumerate(inputs):
            if self.widths:  # zeros have a width, too, here
                width = self.widths[at]
                tensor = tensor + (columns.of(width) if isinstance(width, _Told) else width)
            read = _mixed(read + tensor)
        result = _mixed(own + read) | np.uint64(1)  # never that of zeros
        if self.keeps_zero is not False:
            zero = inputs[0] == ZERO
            for tensor in inputs[1:]:
                zero = zero & (tensor == ZERO)
            if np.any(zero):
                result = np.where(zero if self.keeps_zero is True else zero & columns.of(self.keeps_zero), ZERO, result)
        return result if self.vanishes is False else np.where(columns.of(self.vanishes), inputs[0], result)


def _field_number(name: str, value: Any) -> np.uint64:
    return _number((name, value))


def _width_number(width: int) -> np.uint64:
    return _number(("width", width))


def _starts_at_zero(kind: str) -> bool:
    return kind in _STARTS_AT_ZERO


def _is_identity(kind: str) -> bool:
    return kind == "identity"


def _keeps_zero(layer: Layer) -> tuple[Expr, Callable[[Any], bool]]:
    """Whether zeros in give zeros out: an expression, and a test of its value."""
    if isinstance(layer, Activation):
        return layer.kind, _starts_at_zero
    return isinstance(layer, _KEEPS_ZERO) or (isinstance(layer, (Conv, Linear)) and not layer.bias), bool


def _vanishes(item: Placed) -> tuple[Expr, Callable[[Any], bool]]:
    """Whether the layer is the identity: an expression, and a test of its value."""
    if isinstance(item.layer, Activation):
        return item.layer.kind, _is_identity
    if isinstance(item.layer, (Subsample, Interleave)):
        return both(*(equal(old, new) for old, new in zip(item.input_shapes[0].spatial, item.shape.spatial, strict=True))), bool
    return isinstance(item.layer, Identity), bool


# --- paths -------------------------------------------------------------------------------------------------------------------


def _branches_meet(items: Sequence[Placed], start: int) -> bool:
    """Whether two tensors that depend on decisions are joined somewhere, not as options of one choice."""
    searched: set[int] = set()
    for at, item in enumerate(items, start):
        carried = [source for source, edge in zip(item.inputs, item.edges, strict=True) if edge is True and source in searched]
        if isinstance(item.layer, (Sum, Cat)) and len(carried) > 1:
            return True
        if open_expressions(item) or any(source in searched for source in item.inputs):
            searched.add(at)
    return False


def _path_table(
    items: Sequence[Placed], start: int, source: int, result: int, options: Mapping[str, int], decisions: Sequence[Decision]
) -> tuple[np.ndarray, np.ndarray]:
    """float32 (combinations of options, F): how many ways lead over each sequence of layers, and how many of each layer lie on one; and, of
    the same rows, how many of each layer are read. No columns if there are too many sequences."""
    size = prod(options.values())
    grid = np.indices(tuple(options.values()), dtype=np.int32).reshape(len(options), size)
    taken = dict(zip(options, grid, strict=True))
    rows = np.stack([taken.get(decision.name, np.zeros(size, dtype=np.int32)) for decision in decisions], axis=1)
    columns = _Columns(decisions, rows)
    ways: dict[int, dict[tuple[int, ...], np.ndarray]] = {source: {(): np.ones(size, dtype=np.float32)}}
    for at, item in enumerate(items, start):
        there = columns.holds(item.condition)
        here: dict[tuple[int, ...], np.ndarray] = {}
        if not isinstance(item.layer, Zero):
            for read, edge in zip(item.inputs, item.edges, strict=True):
                open_way = there & columns.holds(edge)
                for sequence, count in ways.get(read, {}).items():
                    for layers, applies in _layers(item, columns):
                        through = sequence + layers
                        here[through] = here.get(through, np.float32(0)) + count * (open_way & applies)
        ways[at] = {sequence: count for sequence, count in here.items() if count.any()}
        if sum(map(len, ways.values())) > MOST_PATHS * 16 or len(ways[at]) > MOST_PATHS:
            return np.zeros((size, 0), dtype=np.float32), np.zeros((size, 0), dtype=np.float32)
    sequences = [count for _, count in sorted(ways[result].items(), key=lambda pair: len(pair[0]))]
    reached = {at: np.any([count > 0 for count in found.values()], axis=0) for at, found in ways.items() if found}
    paths, on_a_way = _varying(sequences, size), _varying(_layer_counts(items, start, result, reached, columns), size)
    if paths.shape[1] and on_a_way.shape[1]:
        on_a_way *= np.sqrt(paths.var(axis=0).sum() / on_a_way.var(axis=0).sum())
    return np.concatenate([paths, on_a_way], axis=1), _varying(_layer_counts(items, start, result, None, columns), size)


def _layer_counts(
    items: Sequence[Placed], start: int, result: int, reached: Mapping[int, np.ndarray] | None, columns: _Columns
) -> list[np.ndarray]:
    """For each layer (N,), how many of it the output reads; where `reached` tells in which rows the input reaches an item, of those alone."""
    everywhere, nowhere = np.ones(columns.count, dtype=bool), np.zeros(columns.count, dtype=bool)
    needed: dict[int, Any] = {result: everywhere}
    counts: dict[tuple[int, ...], Any] = {}
    for at, item in reversed(list(enumerate(items, start))):
        if isinstance(item.layer, Zero):  # reads nothing, whatever it is given
            continue
        live = needed.get(at, nowhere) & (columns.holds(item.condition) if reached is None else reached.get(at, nowhere))
        for layers, applies in _layers(item, columns):
            if layers:
                counts[layers] = counts.get(layers, np.float32(0)) + (live & applies)
        for read, edge in zip(item.inputs, item.edges, strict=True):
            needed[read] = needed.get(read, False) | (live & columns.holds(edge))
    return [np.asarray(count, dtype=np.float32) for count in counts.values()]


def _varying(columns: Sequence[np.ndarray], size: int) -> np.ndarray:
    """float32 (size, F): the columns that are not the same in all rows, none twice."""
    different = {column.tobytes(): column for column in columns if (column != column[0]).any()}
    return np.stack(list(different.values()), axis=1) if different else np.zeros((size, 0), dtype=np.float32)


def _layers(item: Placed, columns: _Columns) -> list[tuple[tuple[int, ...], Any]]:
    """The layers (one, or none for the identity and for joins) that `item` can be, and in which rows it is that."""
    layer = item.layer
    if isinstance(layer, (Sum, Cat, Identity)) or (isinstance(layer, Activation) and layer.kind == "identity"):
        return [((), True)]
    own: Any = _number(type(layer).__name__)
    with np.errstate(over="ignore"):
        for f in fields(layer):
            if f.name not in ("make", "name"):
                own = own + columns.each(getattr(layer, f.name), partial(_field_number, f.name))
    kinds = np.unique(own)
    return [((int(kind),), own == kind) for kind in kinds]
