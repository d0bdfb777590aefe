"""The program of an architecture, in canonical form, and how many different ones a network's architectures have.

Two genotypes are one program if the same primitives, with the same sizes, read the same tensors, once everything that does nothing is
left out. A program falls apart at its *joints*, the places where a single tensor is alive, into a string of *atoms*. The network falls
apart in the same way, whatever is chosen, into segments; each segment writes some atoms (none, where all of it is skipped), which depend
on a few decisions. So the programs are the strings that a finite automaton writes, and the different ones are counted by making the
automaton deterministic (subset construction), also where genotypes are far too many to list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from math import prod
from typing import Any

import numpy as np

from niwaki.net.control import Network
from niwaki.net.layer import Activation, Cat, Interleave, Layer, Subsample, Sum, Zero
from niwaki.net.operation import open_sizes, resized
from niwaki.net.place import INPUT, Placed, Placement, kept, place, space_of
from niwaki.space.architecture import Architecture
from niwaki.space.choice import Value
from niwaki.space.size import Expr, Symbol, equal, refs, values
from niwaki.space.space import Space

MOST_ROWS = 1 << 20  # combinations of options on which one segment may depend
MOST_GENOTYPES = 1_000_000  # listed, where the automaton does not answer
MOST_SETS = 200_000  # states of the deterministic automaton
MOST_CODE = 1 << 62
CHUNK = 1 << 16

# a primitive, as its number among `_Layers`, and which tensors it reads: 0 is what enters, i what entry i (from 1) gives
Entry = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class Program:
    """What one architecture computes: primitives, and which tensors they read: 0 is the network's input, i what entry i (from 1) gives.

    output: the tensor that leaves.
    """

    entries: tuple[tuple[Layer, tuple[int, ...]], ...]
    output: int
    input_shape: tuple[int, ...]


def program(network: Network, arch: Mapping[str, Value] | None = None) -> Program:
    """The program of the architecture `arch` (None: of a network without choices)."""
    placement, space = place(network), space_of(network)
    architecture = arch if isinstance(arch, Architecture) else space.architecture(arch or {})
    [row] = space.indices([architecture])
    rows = {decision.name: np.array([index]) for decision, index in zip(space.decisions, row, strict=True)}
    layers = _Layers()
    whole = _Segment(placement, 0, len(placement.items), INPUT, placement.output, layers)
    [(entries, output)] = whole.fragments(whole.columns(rows), np.zeros(1, dtype=np.int64))
    return Program(tuple((layers.found[number], inputs) for number, inputs in entries), output, network.input_shape)


def distinct(network: Network) -> tuple[int | None, str]:
    """The number of different programs, exact, or None and the reason why it is not known."""
    return kept(network, "_distinct", _distinct)


def _distinct(network: Network) -> tuple[int | None, str]:
    placement, space = place(network), space_of(network)
    try:
        return _Automaton(_segments(placement)).strings(), ""
    except _TooLarge as reason:
        if space.size <= MOST_GENOTYPES:
            return _listed(placement, space), ""
        return None, f"{reason}, and {space.size:,} genotypes are more than the {MOST_GENOTYPES:,} that are listed"


class _TooLarge(Exception):
    """The automaton would not fit."""


# --- what a stretch of placed primitives becomes, for many combinations of options at once --------------------------------


class _Layers:
    """Layers by number, so that what is compared a million times are numbers."""

    def __init__(self) -> None:
        self.found: list[Layer] = []
        self._numbers: dict[Layer, int] = {}

    def number(self, layer: Layer) -> int:
        if layer not in self._numbers:
            self._numbers[layer] = len(self.found)
            self.found.append(layer)
        return self._numbers[layer]


class _Segment:
    """The items `start` to `stop`, which read nothing before them but the tensor `source`, and give on nothing but `result`."""

    def __init__(self, placement: Placement, start: int, stop: int, source: int, result: int, layers: _Layers) -> None:
        self.layers = layers
        self.items = placement.items[start:stop]
        self.start, self.source, self.result = start, source, result
        self.symbols: list[list[tuple[str, Expr]]] = [_symbols(item) for item in self.items]
        self.decisions: dict[str, int] = {}  # on which it depends, with their numbers of options
        for _, expr in (pair for pairs in self.symbols for pair in pairs):
            self.decisions.update({ref.name: len(ref.options) for ref in refs(expr)})
        ends = list(accumulate(len(pairs) for pairs in self.symbols))
        self.slices = [slice(end - len(pairs), end) for end, pairs in zip(ends, self.symbols, strict=True)]  # of the columns
        self._settled: dict[tuple[int, ...], _Settled] = {}

    def columns(self, rows: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """For each symbol of each item the position of its value, 0 where the item does not exist. rows: option numbers, (N,) each."""
        found: dict[Expr, np.ndarray] = {}

        def positions(expr: Expr) -> np.ndarray:  # among the different values of `expr`, False and the first being 0
            if expr not in found:
                at: Any = 0
                for ref in refs(expr):
                    at = at * len(ref.options) + rows[ref.name]
                number = {value: n for n, value in enumerate(_options(expr))}
                found[expr] = np.array([number[value] for value in values(expr)], dtype=np.int32)[at]
            return found[expr]

        columns = []
        for pairs in self.symbols:
            exists: np.ndarray | None = None
            for label, expr in pairs:
                column = positions(expr)
                columns.append(column if exists is None else np.where(exists, column, 0))
                if label == "condition":
                    exists = column.astype(bool)
        return columns

    def fragments(self, columns: Sequence[np.ndarray], first: np.ndarray) -> list[tuple[tuple[Entry, ...], int]]:
        """The entries, and which tensor is the result, for those of the rows that `first` numbers."""
        chosen = [column[first] for column in columns]
        matrix = list(zip(*(column.tolist() for column in chosen), strict=True)) if chosen else [()] * len(first)
        exists = np.ones((len(first), len(self.items)), dtype=bool)
        for number, (pairs, own) in enumerate(zip(self.symbols, self.slices, strict=True)):
            if pairs and pairs[0][0] == "condition":
                exists[:, number] = chosen[own.start]
        there = np.split(np.nonzero(exists)[1], np.cumsum(exists.sum(1))[:-1])
        return [self._fragment(row, numbers.tolist()) for row, numbers in zip(matrix, there, strict=True)]

    def _fragment(self, row: tuple[int, ...], numbers: Sequence[int]) -> tuple[tuple[Entry, ...], int]:
        """What the items `numbers`, those that exist, are in one row of positions."""
        now = {self.source: 0}
        entries: list[Entry] = []
        zeros: set[int] = set()  # tensors that are nothing but zeros
        for number in numbers:
            key = (number, *row[self.slices[number]])
            if key not in self._settled:
                self._settled[key] = _settled(self.items[number], self.symbols[number], key[1:], self.layers)
            settled = self._settled[key]
            inputs = tuple([now[source] if source >= INPUT else source for source in settled.sources])  # further inputs are their own
            if settled.kind is Sum and zeros:  # adding zeros changes nothing
                inputs = tuple([i for i in inputs if i not in zeros]) or inputs[:1]
            if settled.kind is None or (len(inputs) == 1 and settled.kind in (Sum, Cat)):
                now[self.start + number] = inputs[0]
                continue
            entries.append((settled.number, inputs))
            now[self.start + number] = len(entries)
            if settled.kind is Zero:
                zeros.add(len(entries))
        return _without_unused(zeros, entries, now[self.result]) if zeros else (tuple(entries), now[self.result])


def _symbols(item: Placed) -> list[tuple[str, Expr]]:
    """What is open about an item, its condition first: what it is, and an expression."""
    found: list[tuple[str, Expr]] = [("condition", item.condition)]
    if isinstance(item.layer, (Subsample, Interleave)):
        found += [("same", same) for same in _same_sizes(item)]
    found += [("size", size) for size in open_sizes(item.layer)]
    found += [("edge", edge) for edge in item.edges]
    return [(label, expr) for label, expr in found if isinstance(expr, Symbol)]


def _options(expr: Expr) -> tuple:
    """The different values of `expr`, False before True."""
    different = tuple(dict.fromkeys(values(expr)))
    return (False, True) if all(isinstance(value, bool) for value in different) else different


@dataclass(frozen=True)
class _Settled:
    """An item with its sizes as numbers. kind: its type, None if it is the identity; sources: the tensors that take part."""

    kind: type[Layer] | None
    number: int
    sources: tuple[int, ...]


def _settled(item: Placed, pairs: Sequence[tuple[str, Expr]], own: Sequence[int], layers: _Layers) -> _Settled:
    taken = {expr: _options(expr)[number] for (_, expr), number in zip(pairs, own, strict=True)}
    layer, sources = settle(item, lambda expr: taken[expr] if isinstance(expr, Symbol) else expr)
    return _Settled(None, -1, sources) if layer is None else _Settled(type(layer), layers.number(layer), sources)


def settle(item: Placed, value: Callable[[Expr], Any]) -> tuple[Layer | None, tuple[int, ...]]:
    """The layer of `item` with its sizes as numbers, None if it is the identity, and the tensors that take part in it.

    value: of the fields, of the edges, and of whether the sizes of a map stay the same.
    """
    sources = tuple([source for source, edge in zip(item.inputs, item.edges, strict=True) if value(edge)])
    layer = resized(item.layer, value)
    if isinstance(layer, Activation) and layer.kind == "identity":
        return None, sources
    if isinstance(layer, (Subsample, Interleave)) and all(value(same) for same in _same_sizes(item)):
        return None, sources
    return layer, sources


def _same_sizes(item: Placed) -> list[Expr]:
    return [equal(old, new) for old, new in zip(item.input_shapes[0].spatial, item.shape.spatial, strict=True)]


def _without_unused(zeros: set[int], entries: Sequence[Entry], output: int) -> tuple[tuple[Entry, ...], int]:
    used = {source for _, inputs in entries for source in inputs} | {output}
    kept = [at for at in range(1, len(entries) + 1) if at in used or at not in zeros]
    now = {0: 0} | {old: new for new, old in enumerate(kept, 1)}
    return tuple((entries[at - 1][0], tuple(now[source] for source in entries[at - 1][1])) for at in kept), now[output]


def _pattern(columns: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of rows given as columns: the number of the first of each kind, and for each row its kind."""
    code, kinds = np.zeros(len(columns[0]), dtype=np.int64), 1
    for column in columns:
        radix = int(column.max()) + 1
        if kinds * radix > MOST_CODE:
            _, code = np.unique(code, return_inverse=True)
            kinds = int(code.max()) + 1
        code, kinds = code * radix + column, kinds * radix
    _, first, kind = np.unique(code, return_index=True, return_inverse=True)
    return first, kind


# --- atoms, segments, the automaton ----------------------------------------------------------------------------------------


def _atoms(entries: tuple[Entry, ...], output: int) -> Iterator[tuple[tuple[Entry, ...], int]]:
    """The program from joint to joint: entries numbered from the tensor that enters the atom, and the tensor that leaves it."""
    last = {output: len(entries) + 1}  # tensor -> the last entry that reads it
    for at, (_, inputs) in enumerate(entries, 1):
        for source in inputs:
            last[source] = max(last.get(source, 0), at)
    alive, entering, start = {0}, 0, 0
    for at in range(1, len(entries) + 1):
        alive = {tensor for tensor in (*alive, at) if last.get(tensor, 0) > at}
        if len(alive) == 1:
            [leaving] = alive
            own = entries[start:at]
            if start:  # else the numbers are right as they are
                own = tuple(
                    [
                        (layer, tuple([0 if source == entering else source - start if source >= 0 else source for source in inputs]))
                        for layer, inputs in own
                    ]
                )
            yield own, 0 if leaving == entering else leaving - start
            entering, start = leaving, at


def joints(placement: Placement) -> dict[int, int]:
    """Where a single tensor is alive whatever is chosen: the item that comes next -> that tensor. Item 0 and the end are among them."""
    items = placement.items
    last = {placement.output: len(items)}
    for at, item in enumerate(items):
        for source in item.inputs:
            last[source] = max(last.get(source, -1), at)
    may_be_zero: dict[int, bool] = dict.fromkeys(
        placement.entering, False
    )  # where zeros could cross a joint, what follows could not tell by itself
    for at, item in enumerate(items):
        passes = isinstance(item.layer, (Sum, Activation, Subsample, Interleave))
        sure = any(edge is True and not may_be_zero[source] for source, edge in zip(item.inputs, item.edges, strict=True))
        may_be_zero[at] = isinstance(item.layer, Zero) or (passes and not sure and any(may_be_zero[source] for source in item.inputs))
    found, alive = {0: INPUT}, {INPUT}
    for at in range(len(items)):
        alive = {tensor for tensor in (*alive, at) if last.get(tensor, -2) > at}
        if at == len(items) - 1 or (len(alive) == 1 and not may_be_zero[next(iter(alive))]):
            [found[at + 1]] = alive
    return found


def _segments(placement: Placement) -> list[_Segment]:
    """The network from joint to joint."""
    layers, found = _Layers(), pairwise(joints(placement).items())
    return [_Segment(placement, start, stop, source, result, layers) for (start, source), (stop, result) in found]


class _Automaton:
    """Writes the programs of a network, token by token, a token being some atoms that nothing can come between.

    A place in it is (segment, the options taken of the decisions that this and later segments still ask about, node of the segment's trie).
    """

    def __init__(self, segments: Sequence[_Segment]) -> None:
        self.segments = segments
        self._atom_numbers: dict[tuple[tuple[Entry, ...], int], int] = {}
        last = {name: at for at, segment in enumerate(segments) for name in segment.decisions}
        first = {name: at for at, segment in reversed(list(enumerate(segments))) for name in segment.decisions}
        # decisions that matter on both sides of each joint
        self.frontiers = [tuple(name for name in first if first[name] < at <= last[name]) for at in range(len(segments) + 1)]
        written = [self._written(at) for at in range(len(segments))]
        begins = {atoms[0] for arcs in written for _, atoms, _ in arcs if atoms}
        tokens: dict[tuple[int, ...], int] = {}
        self.tries: list[dict[tuple[int, ...], _Trie]] = []
        for arcs in written:
            tries: dict[tuple[int, ...], _Trie] = {}
            for before, atoms, after in arcs:
                node = tries.setdefault(before, _Trie())
                for token in _tokens(atoms, begins):
                    node = node.follow(tokens.setdefault(token, len(tokens)))
                node.leads_to.add(after)
            self.tries.append(tries)
        self._closed: dict[Any, frozenset] = {}

    def strings(self) -> int:
        """The number of different strings that lead from the beginning to the end."""
        start = self._closure((0, (), None))
        counts: dict[frozenset, int] = {}
        steps: dict[frozenset, Counter[frozenset]] = {}
        stack = [start]
        while stack:
            here = stack[-1]
            if here in counts:
                stack.pop()
                continue
            if here not in steps:
                if len(steps) >= MOST_SETS:
                    raise _TooLarge(f"the automaton of its programs has more than {MOST_SETS:,} states")
                steps[here] = self._steps(here)
                open_ones = [after for after in steps[here] if after not in counts]
                if open_ones:
                    stack += open_ones
                    continue
            ends = any(place_[0] == len(self.segments) for place_ in here)
            counts[here] = ends + sum(times * counts[after] for after, times in steps[here].items())
            stack.pop()
        return counts[start]

    def _steps(self, here: frozenset) -> Counter[frozenset]:
        """Where the tokens that can come next lead, and how many lead there."""
        after: dict[int, list[frozenset]] = {}
        for at, taken, trie in here:
            if trie is not None:
                for token, child in trie.children.items():
                    after.setdefault(token, []).append(self._closure((at, taken, child)))
        return Counter(sets[0] if len(sets) == 1 else frozenset().union(*sets) for sets in after.values())

    def _closure(self, place_: tuple[int, tuple[int, ...], _Trie | None]) -> frozenset:
        """`place_` with all to which it leads without writing a token. A place at a joint has no node yet."""
        if place_ in self._closed:
            return self._closed[place_]
        at, taken, trie = place_
        if trie is None and at < len(self.segments):
            known = dict(zip(self.frontiers[at], taken, strict=True))
            key = tuple(known[name] for name in self.frontiers[at] if name in self.segments[at].decisions)
            found = self._closure((at, taken, self.tries[at][key]))
        elif trie is None:
            found = frozenset([place_])
        else:
            found = frozenset([place_]) if trie.children else frozenset()
            known = dict(zip(self.frontiers[at], taken, strict=True))
            own = [name for name in self.frontiers[at + 1] if name in self.segments[at].decisions]
            for options in trie.leads_to:
                new = known | dict(zip(own, options, strict=True))
                found |= self._closure((at + 1, tuple(new[name] for name in self.frontiers[at + 1]), None))
        self._closed[place_] = found
        return found

    def _written(self, at: int) -> set[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """What a segment can write: (options taken before it, atoms, options taken after it), of the decisions that it depends on."""
        segment = self.segments[at]
        if (size := prod(segment.decisions.values())) > MOST_ROWS:
            raise _TooLarge(f"{segment.items[0].path} to {segment.items[-1].path} depend together on {size:,} combinations of options")
        grid = np.indices(tuple(segment.decisions.values()), dtype=np.int32).reshape(len(segment.decisions), size)
        rows = dict(zip(segment.decisions, grid, strict=True))
        columns = segment.columns(rows)
        first, kind = _pattern(columns) if columns else (np.zeros(1, dtype=np.int64), np.zeros(size, dtype=np.int64))
        known = self._atom_numbers
        fragments = segment.fragments(columns, first)
        written = [tuple([known.setdefault(atom, len(known)) for atom in _atoms(*fragment)]) for fragment in fragments]
        number = {atoms: at for at, atoms in enumerate(dict.fromkeys(written))}
        different = list(number)
        kind = np.array([number[atoms] for atoms in written])[kind]
        before = [rows[name] for name in self.frontiers[at] if name in rows]
        after = [rows[name] for name in self.frontiers[at + 1] if name in rows]
        arcs, _ = _pattern([kind, *before, *after])
        taken = [column[arcs].tolist() for column in (*before, *after)]
        options = list(zip(*taken, strict=True)) if taken else [()] * len(arcs)
        return {(row[: len(before)], different[kind[arc]], row[len(before) :]) for row, arc in zip(options, arcs, strict=True)}


class _Trie:
    """A node of the tree of what a segment can write from one state; `leads_to`: the options taken where a string ends."""

    __slots__ = ("children", "leads_to")

    def __init__(self) -> None:
        self.children: dict[int, _Trie] = {}
        self.leads_to: set[tuple[int, ...]] = set()

    def follow(self, token: int) -> _Trie:
        return self.children.setdefault(token, _Trie())


def _tokens(atoms: tuple[int, ...], begins: set[int]) -> Iterator[tuple[int, ...]]:
    """`atoms`, cut before each that can begin a segment somewhere: then every joint between segments is a cut."""
    starts = [at for at, atom in enumerate(atoms) if at == 0 or atom in begins]
    for start, stop in pairwise([*starts, len(atoms)]):
        yield atoms[start:stop]


def _listed(placement: Placement, space: Space) -> int:
    """The number of different programs, by listing the architectures."""
    whole = _Segment(placement, 0, len(placement.items), INPUT, placement.output, _Layers())
    found: set[tuple] = set()
    for chunk in _chunks(space.enumerate(), CHUNK):
        table = np.array(space.indices(chunk), dtype=np.int32).T
        rows = {decision.name: column for decision, column in zip(space.decisions, table, strict=True)}
        columns = whole.columns(rows)
        found.update(whole.fragments(columns, _pattern(columns)[0] if columns else np.zeros(1, dtype=np.int64)))
    return len(found)


def _chunks(architectures: Iterable[Architecture], size: int) -> Iterator[list[Architecture]]:
    iterator = iter(architectures)
    while chunk := list(islice(iterator, size)):
        yield chunk
