"""The most likely architecture that keeps the budgets, exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any

import numpy as np

from niwaki.factor.eliminate import Arcs, Binned, Feasible, Weights
from niwaki.factor.message import pull_largest
from niwaki.space.architecture import Architecture
from niwaki.space.choice import BudgetError

MODE_WORK = 60_000_000  # arcs times cells of the pass that gives the bound
MOST_BINS = (4_096, 96)  # a finer bound no longer saves steps
MOST_NODES = 2_000_000
FINEST = 2.0**36  # log-probabilities are multiples of 1 / FINEST, so that sums are exact and ties are ties
LEAST_LOG = -1e4  # stands for log 0: an option of probability 0 is taken only where nothing else keeps the budgets
IMPOSSIBLE = -(1 << 62)


def most_likely(feasible: Feasible, probabilities: Weights) -> Architecture:
    """The most likely architecture that keeps all limits, up to 1e-10 in the logarithm of its probability.

    A* over the stages with exact slack. The bound is the most that can follow when spends are rounded down (a superset), so it never
    falls short. Among equally promising ones the furthest is followed first; one that is no likelier and has no more slack left than
    another in the same state is dropped.
    """
    given = feasible.checked_probabilities(probabilities)
    logs = {name: np.rint(np.where(p > 0, np.log(np.where(p > 0, p, 1)), LEAST_LOG) * FINEST).astype(np.int64) for name, p in given.items()}
    # limits that the elimination does not bin still have exact slack, and prune as soon as it cannot suffice
    stages, slack = feasible.stages, feasible.slack
    if feasible.checked:
        stages, slack = feasible.eliminated([*feasible.binned, *feasible.checked])
    steps = [_Steps.of(feasible, number, arcs, logs) for number, arcs in enumerate(stages)]
    return _search(feasible, steps, slack)


@dataclass(frozen=True, eq=False)
class _Steps:
    """The arcs of one stage that may be part of a most likely architecture."""

    arcs: Arcs  # A of them
    gain: np.ndarray  # (A,) int64, the largest log-probability of an arc of this kind
    raw: np.ndarray  # (A,) the chain's arc that has it

    @staticmethod
    def of(feasible: Feasible, number: int, arcs: Arcs, logs: dict[Any, np.ndarray]) -> _Steps:
        gain = np.zeros(len(arcs.raw), dtype=np.int64)
        for key, there, at in feasible.read(logs, number, arcs.raw):
            gain += np.where(there, logs[key].ravel()[at], 0)
        order = np.lexsort((-gain, arcs.group))
        best = order[np.searchsorted(arcs.group[order], np.arange(len(arcs.source)))]
        kept = _undominated(arcs, gain[best])
        return _Steps(arcs.kept(kept), gain[best][kept], arcs.raw[best][kept])


def _undominated(arcs: Arcs, gain: np.ndarray) -> np.ndarray:
    """Which arcs are not both costlier and less likely than another between the same states (told for one budget only)."""
    if arcs.spend.shape[1] > 1 or not len(gain):
        return np.arange(len(gain))
    order = np.lexsort((-gain, arcs.spend[:, 0], arcs.target, arcs.source))
    pair = arcs.source[order] * arcs.targets + arcs.target[order]
    group = np.cumsum(np.diff(pair, prepend=pair[0]) != 0)
    # lifted so that the running maximum starts anew with each pair of states; of equals the first and cheapest stays
    lifted = np.unique(gain[order], return_inverse=True)[1] + group * len(gain)
    kept = np.ones(len(gain), dtype=bool)
    kept[1:] = lifted[1:] > np.maximum.accumulate(lifted)[:-1]
    return np.sort(order[kept])


def _search(feasible: Feasible, steps: list[_Steps], slack: list[int]) -> Architecture:
    binned_arcs = [replace(step.arcs, spend=step.arcs.spend[:, :2]) for step in steps]
    bins = min(MOST_BINS[len(slack[:2]) - 1], feasible.affordable(binned_arcs, slack[:2], MODE_WORK, kept=True))
    binned = Binned(binned_arcs, slack[:2], bins, "down")
    grid = binned.grid
    bounds = [grid.full(0, IMPOSSIBLE, np.int64)]
    for part, step in zip(reversed(binned.stages), reversed(steps), strict=True):
        gain = np.full(len(part.moves.home), IMPOSSIBLE, dtype=np.int64)
        np.maximum.at(gain, part.group, step.gain[part.fits])
        bounds.append(pull_largest(bounds[-1], part.moves, gain, grid, IMPOSSIBLE))
    bounds.reverse()
    width, strides = np.array(binned.width), np.array(grid.strides)
    firsts = [np.searchsorted(step.arcs.source, np.arange(step.arcs.states + 1)) for step in steps]

    best_left: list[dict[int, list[tuple[int, np.ndarray]]]] = [{} for _ in range(len(steps) + 1)]
    heap: list[tuple[int, int, int, _Node, int]] = []
    made = 0

    def expand(stage: int, state: int, left: np.ndarray, gained: int, path: tuple | None) -> None:
        """Put the best arc from here on the heap; each arc brings the next best when it is taken off."""
        nonlocal made
        step, low, high = steps[stage], firsts[stage][state], firsts[stage][state + 1]
        rest = left - step.arcs.spend[low:high]  # (arcs, budgets)
        fits = np.flatnonzero((rest >= 0).all(axis=1))
        target = step.arcs.target[low + fits]
        cells = grid.none + (rest[fits, :2] // width) @ strides
        promise = gained + step.gain[low + fits] + bounds[stage + 1][target, cells]
        alive = bounds[stage + 1][target, cells] > IMPOSSIBLE // 2
        order = np.argsort(-promise[alive], kind="stable")
        fits, promise = fits[alive][order], promise[alive][order]
        if len(fits):
            node = _Node(stage, gained, path, rest[fits], low + fits, promise)
            made += 1
            heappush(heap, (-int(promise[0]), -stage, made, node, 0))

    expand(0, 0, np.array(slack, dtype=np.int64), 0, None)
    while heap:
        _, _, _, node, at = heappop(heap)
        if at + 1 < len(node.arcs):
            made += 1
            heappush(heap, (-int(node.promise[at + 1]), -node.stage, made, node, at + 1))
        if made > MOST_NODES:
            raise BudgetError(f"the most likely architecture with {feasible.text()} was not found within {MOST_NODES:,} steps")
        step, arc, left = steps[node.stage], node.arcs[at], node.left[at]
        gained, state, path = node.gained + int(step.gain[arc]), int(step.arcs.target[arc]), (node.path, int(step.raw[arc]))
        if node.stage + 1 == len(steps):
            return _architecture(feasible, path)
        known = best_left[node.stage + 1].setdefault(state, [])
        if any(other >= gained and (rest >= left).all() for other, rest in known):
            continue
        known.append((gained, left))
        expand(node.stage + 1, state, left, gained, path)
    raise BudgetError(f"no architecture has {feasible.text()}; this is certain")


@dataclass(frozen=True, eq=False)
class _Node:
    """A partial architecture and the arcs that may continue it, the most promising first."""

    stage: int
    gained: int
    path: tuple | None
    left: np.ndarray  # (arcs, budgets) slack after each arc
    arcs: np.ndarray
    promise: np.ndarray


def _architecture(feasible: Feasible, path: tuple | None) -> Architecture:
    taken = []
    while path is not None:
        path, raw = path
        taken.append(raw)
    rows = [stage.options[raw] for stage, raw in zip(feasible.chain.stages, reversed(taken), strict=True)]
    return feasible.space.from_indices(np.concatenate(rows).tolist() if rows else [])
