"""How data flow between what is decided: the graph that graph models read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from niwaki.net.operation import open_sizes
from niwaki.space.size import Expr, Symbol, refs

if TYPE_CHECKING:
    from niwaki.net.place import Placed, Placement

INPUT = -1  # as in `place`


def decision_flow(placement: Placement) -> np.ndarray:
    """float32 (D + 2, D + 2): [i, j] = 1 where what decision i - 1 decides about is read, with nothing else decided between, by what j - 1 does.

    0 is the input of the network and D + 1 its output. A part that is there several times, with the same decisions, is gone through once:
    in a network of equal cells this is the graph of a cell.
    """
    number = {decision.name: at for at, decision in enumerate(placement.decisions, 1)}
    flow = np.zeros((len(number) + 2, len(number) + 2), dtype=np.float32)
    sources: dict[int, set[int]] = {source: {0} for source in placement.entering}
    known: dict[frozenset[int], set[int]] = {}
    for start, stop, _, leaving in parts(placement):
        own = [{number[ref.name] for expr in open_expressions(item) for ref in refs(expr)} for item in placement.items[start:stop]]
        if (decided := frozenset().union(*own)) in known:
            sources[leaving] = known[decided]
            continue
        for at, (item, mine) in enumerate(zip(placement.items[start:stop], own, strict=True), start):
            incoming = set().union(*(sources[source] for source in item.inputs))
            if mine:
                flow[np.ix_(sorted(incoming), sorted(mine))] = 1
            sources[at] = mine or incoming
        if decided:
            known[decided] = sources[leaving]
    flow[sorted(sources[placement.output]), -1] = 1
    np.fill_diagonal(flow, 0)
    return flow


def parts(placement: Placement) -> Iterator[tuple[int, int, int, int]]:
    """(first item, end, tensor that enters, tensor that leaves) of each stretch from one place where a single tensor is alive to the next."""
    last = {placement.output: len(placement.items)}
    for at, item in enumerate(placement.items):
        for source in item.inputs:
            last[source] = max(last.get(source, at), at)
    alive, start, entering = {INPUT}, 0, INPUT
    for at in range(len(placement.items)):
        alive = {tensor for tensor in (*alive, at) if last.get(tensor, -2) > at}
        if len(alive) == 1:
            [leaving] = alive
            yield start, at + 1, entering, leaving
            start, entering = at + 1, leaving


def open_expressions(item: Placed) -> list[Expr]:
    """All that is left to decisions about an item."""
    return [expr for expr in (item.condition, *item.edges, *open_sizes(item.layer)) if isinstance(expr, Symbol)]
