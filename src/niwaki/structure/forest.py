"""Forests: the heaviest one, how far weights are from being one (the circuit rank), and dependence that data show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

Edge = tuple[int, int]

# chi-square quantiles 0.95 by degrees of freedom (Abramowitz and Stegun, table 26.8); beyond them Wilson and Hilferty's cube
_CHI_SQUARE_95 = {1: 3.841, 2: 5.991, 3: 7.815, 4: 9.488, 5: 11.070, 6: 12.592, 7: 14.067, 8: 15.507, 9: 16.919, 10: 18.307}


def all_pairs(count: int) -> list[Edge]:
    """(i, j) with i < j of `count` variables, in order."""
    return list(combinations(range(count), 2))


def maximum_forest(count: int, edges: Sequence[Edge], weights: Iterable[float], *, above: float | None = None) -> list[int]:
    """Which of `edges` are in the heaviest spanning forest of `count` variables (Kruskal 1956): ascending numbers of edges.

    Of equal weights the earlier edge is preferred, so that a tie never flickers. above: edges of at most this weight are left out.
    """
    weights = list(weights)
    root = list(range(count))

    def top(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    taken = []
    for number in sorted(range(len(edges)), key=lambda e: (-weights[e], e)):
        if above is not None and weights[number] <= above:
            break
        a, b = top(edges[number][0]), top(edges[number][1])
        if a != b:
            root[a] = b
            taken.append(number)
    return sorted(taken)


def circuit_rank(count: int, edges: Sequence[Edge], weights: Sequence[float]) -> float:
    """R = the sum of all weights less that of the heaviest forest (Meshi et al. 2013): 0 iff the edges of positive weight are a forest.

    With weights 0 and 1 it is the number of edges that must go until a forest is left, |E| - |V| + components. weights: >= 0.

    >>> circuit_rank(3, [(0, 1), (1, 2), (0, 2)], [1.0, 1.0, 1.0])
    1.0
    """
    taken = set(maximum_forest(count, edges, weights))
    return float(sum(weight for number, weight in enumerate(weights) if number not in taken))


def joint_counts(first: np.ndarray, second: np.ndarray, shape: tuple[int, int], weights: np.ndarray | None = None) -> np.ndarray:
    """(options of the first, of the second): the total weight of the rows in which the two take these options."""
    return np.bincount(first * shape[1] + second, weights=weights, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)


def mutual_information(counts: np.ndarray, *, smoothing: float = 0.0) -> float:
    """Of two variables with these joint counts, in nats, after `smoothing` was added to every count."""
    joint = counts + smoothing
    joint = joint / joint.sum()
    product = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    there = joint > 0
    return float((joint[there] * np.log(joint[there] / product[there])).sum())


def independent_by_g_test(counts: np.ndarray) -> bool:
    """Whether these joint counts are what independent variables would show in 95 of 100 cases: 2 N MI below the chi-square quantile."""
    free = (int((counts.sum(axis=1) > 0).sum()) - 1) * (int((counts.sum(axis=0) > 0).sum()) - 1)
    return free <= 0 or 2 * counts.sum() * mutual_information(counts) < chi_square_95(free)


def chi_square_95(free: int) -> float:
    """The 0.95 quantile of the chi-square distribution with `free` degrees of freedom."""
    return _CHI_SQUARE_95.get(free) or free * (1 - 2 / (9 * free) + 1.644854 * (2 / (9 * free)) ** 0.5) ** 3


def chow_liu(labels: np.ndarray, options: int) -> list[Edge]:
    """The tree of the largest total mutual information (Chow and Liu 1968), which is the likeliest one. labels: (N, variables)."""
    edges = all_pairs(labels.shape[1])
    information = [mutual_information(joint_counts(labels[:, i], labels[:, j], (options, options))) for i, j in edges]
    return [edges[e] for e in maximum_forest(labels.shape[1], edges, information)]
