"""Whether differences between search methods are more than chance, when all were run with the same seeds.

Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, 2006; Benavoli, Corani, Mangili, "Should We Really Use
Post-Hoc Tests Based on Mean-Ranks?", JMLR 17, 2016. A seed is a block: the methods' results of one seed are compared with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import erfc, exp, pi, sqrt

import numpy as np
from numpy.typing import ArrayLike

from niwaki.run.statistics import NORMAL, ranks

MOST_EXACT = 200  # differences of which the distribution of the signed ranks is listed; with more it is as good as normal


def wilcoxon(first: ArrayLike, second: ArrayLike) -> float:
    """p of Wilcoxon's signed-rank test, two-sided, for values that are paired by their place. 1 where all pairs are equal.

    Exact, also with ties, given the ranks: equal pairs are left out, and equal differences share the mean of their ranks. Of 5 pairs the
    smallest possible p is 0.0625.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    difference = difference[difference != 0]
    if not len(difference):
        return 1.0
    doubled = np.rint(2 * ranks(-np.abs(difference))).astype(np.int64)  # twice the rank is whole: 2 the smallest
    total = int(doubled.sum())
    positive = int(doubled[difference > 0].sum())
    least = min(positive, total - positive)
    if len(difference) > MOST_EXACT:
        deviation = sqrt(float((doubled**2).sum()) / 4)
        return min(1.0, 2 * NORMAL.cdf((least - total / 2 + 1) / deviation))  # + 1: half a step of the ranks, for continuity
    chance = np.zeros(total + 1)  # of each sum, when every sign is as likely
    chance[0] = 1.0
    for rank in doubled.tolist():
        chance *= 0.5
        chance[rank:] += chance[: total + 1 - rank].copy()
    return min(1.0, 2 * float(chance[: least + 1].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests at once, adjusted so that with chance 1 - alpha none below alpha is a mistake (Holm 1979)."""
    adjusted, reached = [0.0] * len(p_values), 0.0
    for step, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        reached = max(reached, min(1.0, (len(p_values) - step) * p_values[at]))
        adjusted[at] = reached
    return adjusted


def cliffs_delta(first: ArrayLike, second: ArrayLike) -> float:
    """P(a value of `first` is larger) - P(it is smaller), over all pairs: 1 where all are larger, 0 where neither tends to be."""
    a, b = np.asarray(first, dtype=np.float64), np.sort(np.asarray(second, dtype=np.float64))
    larger = np.searchsorted(b, a, "left").sum()
    smaller = (len(b) - np.searchsorted(b, a, "right")).sum()
    return float((larger - smaller) / (len(a) * len(b)))


def mean_ranks(table: ArrayLike) -> np.ndarray:
    """(methods,): over the rows of `table` (seeds, methods), the mean rank of each method; 1 is the smallest value."""
    return np.mean([ranks(-np.asarray(row, dtype=np.float64)) for row in np.asarray(table)], axis=0)


def friedman(table: ArrayLike) -> float:
    """p of Friedman's test that all methods rank alike in the rows of `table` (seeds, methods); corrected for ties. 1 where all are equal."""
    given = np.asarray(table, dtype=np.float64)
    blocks, methods = given.shape
    ranked = np.array([ranks(row) for row in given])
    ties = sum(float((counts**3 - counts).sum()) for counts in (np.unique(row, return_counts=True)[1] for row in given))
    spread = 1 - ties / (blocks * methods * (methods**2 - 1))
    if spread == 0:
        return 1.0
    sums = ranked.sum(axis=0)
    statistic = (12 / (blocks * methods * (methods + 1)) * float((sums**2).sum()) - 3 * blocks * (methods + 1)) / spread
    return chi_squared_tail(statistic, methods - 1)


def chi_squared_tail(value: float, freedom: int) -> float:
    """P(a chi-squared variable of `freedom` degrees is larger than `value`)."""
    half = max(value, 0.0) / 2
    if freedom % 2:
        tail, term, first = erfc(sqrt(half)), sqrt(half / pi) * 2 * exp(-half), 3
    else:
        tail, term, first = exp(-half), half * exp(-half), 4
    for degrees in range(first, freedom + 1, 2):
        tail += term
        term *= half / (degrees / 2)
    return tail


def critical_difference(methods: int, blocks: int, *, alpha: float = 0.05) -> float:
    """By how much two mean ranks must differ to be told apart by Nemenyi's test (Demsar, section 3.2.2)."""
    return studentized_range(1 - alpha, methods) / sqrt(2) * sqrt(methods * (methods + 1) / (6 * blocks))


def studentized_range(share: float, count: int) -> float:
    """The value that the range of `count` standard normal numbers stays below with this chance."""
    z = np.linspace(-8, 8, 4001)
    density = np.exp(-(z**2) / 2) / sqrt(2 * pi)
    below = np.array([NORMAL.cdf(value) for value in z])
    step = z[1] - z[0]

    def chance(width: float) -> float:
        return float(count * step * (density * np.maximum(below - np.interp(z - width, z, below, left=0.0), 0) ** (count - 1)).sum())

    low, high = 0.0, 16.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if chance(middle) < share else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Comparison:
    """Two methods. p: of Wilcoxon's test, adjusted by Holm's for all pairs; delta: Cliff's, above 0 where `first` has the larger values."""

    first: str
    second: str
    p: float
    delta: float


def compare(values: dict[str, Sequence[float]]) -> list[Comparison]:
    """All pairs of methods. values: method -> one for each seed, the same seeds in the same order."""
    pairs = list(combinations(values, 2))
    adjusted = holm([wilcoxon(values[a], values[b]) for a, b in pairs])
    return [Comparison(a, b, p, cliffs_delta(values[a], values[b])) for (a, b), p in zip(pairs, adjusted, strict=True)]


def alike(order: Sequence[str], comparisons: Sequence[Comparison], *, alpha: float = 0.05) -> list[tuple[str, ...]]:
    """Runs of methods in `order`, each as long as it can be, of which no two are told apart: what a critical-difference picture joins."""
    apart = {frozenset((one.first, one.second)) for one in comparisons if one.p < alpha}
    runs: list[tuple[str, ...]] = []
    for start in range(len(order)):
        end = start + 1
        while end < len(order) and all(frozenset((order[end], other)) not in apart for other in order[start:end]):
            end += 1
        if end - start > 1 and not (runs and set(order[start:end]) <= set(runs[-1])):
            runs.append(tuple(order[start:end]))
    return runs
