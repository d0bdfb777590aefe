"""The best labels of many examples at once: max-product on a forest, or over all label sets of the fully connected graph.

An example's score of labels y is the sum of unary[i, y_i] and, over edges (i, j), of pair[e, y_i, y_j].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from niwaki.structure.forest import Edge, all_pairs

MOST_STATES = 1 << 20  # label sets of the full graph
BLOCK = 4_000_000  # of the full graph's scores at a time


def forest_argmax(unary: np.ndarray, pair: np.ndarray, edges: Sequence[Edge]) -> np.ndarray:
    """(N, n) labels of the largest score, exact, in O(n k^2) for each example. unary: (N, n, k); pair: (N or 1, edges, k, k)."""
    rows, labels = np.arange(len(unary)), unary.shape[1]
    steps = _leaves_first(labels, tuple(edges))
    belief = [unary[:, i] for i in range(labels)]
    choice = {}
    for child, parent, edge, turned in steps:
        table = pair[:, edge].swapaxes(1, 2) if turned else pair[:, edge]  # (N, k of the child, k of the parent)
        reach = belief[child][:, :, None] + table
        choice[child] = reach.argmax(axis=1)  # (N, k of the parent)
        belief[parent] = belief[parent] + np.take_along_axis(reach, choice[child][:, None], axis=1)[:, 0]
    found = np.empty((len(unary), labels), dtype=np.int64)
    children = {child for child, _, _, _ in steps}
    for i in range(labels):
        if i not in children:
            found[:, i] = belief[i].argmax(axis=1)
    for child, parent, _, _ in reversed(steps):
        found[:, child] = choice[child][rows, found[:, parent]]
    return found


def full_argmax(unary: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """(N, n) labels of the largest score when all pairs have an edge, exact, over all k^n label sets. pair: (N or 1, pairs, k, k).

    The labels are cut in two halves: a score is one number for each half and a product of the two (k^(n/2) x k^(n/2)).
    """
    states = _states(unary.shape[1], unary.shape[2])
    found = np.empty(unary.shape[:2], dtype=np.int64)
    block = max(1, BLOCK // (len(states.left) * len(states.right)))
    for start in range(0, len(unary), block):
        part = slice(start, start + block)
        here = pair[part] if len(pair) > 1 else pair
        flat, shape = unary[part].reshape(len(unary[part]), -1), (len(here), -1)
        left = flat[:, : states.cut] @ states.left_one.T + here[:, states.left_pairs].reshape(shape) @ states.left_two.T
        right = flat[:, states.cut :] @ states.right_one.T + here[:, states.right_pairs].reshape(shape) @ states.right_two.T
        across = here[:, states.across].transpose(0, 1, 3, 2, 4).reshape(len(here), states.cut, flat.shape[1] - states.cut)
        scores = states.left_one @ across @ states.right_one.T + left[:, :, None]
        scores += right[:, None, :]
        best = scores.reshape(len(scores), -1).argmax(axis=1)
        first, second = np.divmod(best, len(states.right))
        found[part] = np.concatenate((states.left[first], states.right[second]), axis=1)
    return found


class _States(NamedTuple):
    left: np.ndarray  # (k^h, h) labels
    right: np.ndarray
    left_one: np.ndarray  # (k^h, h k) the same, one-hot
    right_one: np.ndarray
    left_two: np.ndarray  # (k^h, pairs k k) pairs of them, one-hot
    right_two: np.ndarray
    left_pairs: np.ndarray  # numbers of the pairs within a half
    right_pairs: np.ndarray
    across: np.ndarray  # (h, n - h) numbers of the pairs between the halves
    cut: int  # h k


@lru_cache(maxsize=8)
def _states(labels: int, options: int) -> _States:
    if options**labels > MOST_STATES:
        raise ValueError(f"{labels} labels of {options} options are {options**labels:,} label sets, more than the {MOST_STATES:,} compared")
    half = labels // 2
    left, right = (np.array(list(product(range(options), repeat=n)), dtype=np.int64).reshape(options**n, n) for n in (half, labels - half))
    number = {edge: e for e, edge in enumerate(all_pairs(labels))}
    inside = [list(combinations(range(start, stop), 2)) for start, stop in ((0, half), (half, labels))]
    return _States(
        left, right, _one_hot(left, options), _one_hot(right, options),
        _two_hot(left, inside[0], 0, options), _two_hot(right, inside[1], half, options),
        np.array([number[pair] for pair in inside[0]], dtype=np.int64), np.array([number[pair] for pair in inside[1]], dtype=np.int64),
        np.array([[number[i, j] for j in range(half, labels)] for i in range(half)], dtype=np.int64).reshape(half, labels - half),
        half * options,
    )  # fmt: skip


def _one_hot(labels: np.ndarray, options: int) -> np.ndarray:
    return np.eye(options)[labels].reshape(len(labels), -1)


def _two_hot(labels: np.ndarray, pairs: Sequence[Edge], start: int, options: int) -> np.ndarray:
    """(states, pairs k k): of each pair the one combination of options that a state takes."""
    columns = [np.eye(options**2)[labels[:, i - start] * options + labels[:, j - start]] for i, j in pairs]
    return np.concatenate(columns, axis=1) if columns else np.zeros((len(labels), 0))


@lru_cache(maxsize=256)
def _leaves_first(labels: int, edges: tuple[Edge, ...]) -> list[tuple[int, int, int, bool]]:
    """(child, parent, edge, whether the edge's first end is the parent), each child before its parent; the smallest label is the root."""
    near: list[list[tuple[int, int]]] = [[] for _ in range(labels)]
    for e, (i, j) in enumerate(edges):
        near[i].append((j, e))
        near[j].append((i, e))
    steps, seen = [], [False] * labels
    for root in range(labels):
        if seen[root]:
            continue
        seen[root], stack = True, [root]
        while stack:
            parent = stack.pop()
            for child, e in near[parent]:
                if not seen[child]:
                    seen[child] = True
                    steps.append((child, parent, e, edges[e][0] == parent))
                    stack.append(child)
    if len(steps) != len(edges):
        raise ValueError(f"{len(edges)} edges over {labels} labels are no forest: {edges}")
    return steps[::-1]
