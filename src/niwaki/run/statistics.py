"""What comparisons of search methods are made of: exact random search, bootstrap intervals, rank correlation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000


def expected_pick(selected_by: Sequence[float], values: Sequence[float], draws: int) -> float:
    """Mean value of what random search picks: of `draws` different candidates, the one that is largest in `selected_by`. Exact.

    With candidates in ascending order of `selected_by`, number i of N (from 1) is picked with probability C(i-1, n-1) / C(N, n). Of equal
    candidates each is as likely.

    >>> expected_pick([1, 2, 3], [10, 20, 60], 2)  # the best of two: 2 of 3 pairs hold the last
    46.666666666666664
    """
    count = len(values)
    if len(selected_by) != count or not 1 <= draws <= count:
        raise ValueError(
            f"{draws} draws of {count} candidates, selected by {len(selected_by)} figures: 1 to as many draws as candidates, a figure for each"
        )
    levels, level = np.unique(np.asarray(selected_by), return_inverse=True)
    value, upto, total = np.asarray(values, dtype=np.float64), 0, 0.0
    for at in range(len(levels)):
        equal = value[level == at]
        ways = comb(upto + len(equal), draws) - comb(upto, draws)  # sets of candidates whose largest is one of these
        total += float(equal.mean()) * (ways / comb(count, draws))
        upto += len(equal)
    return total


def expected_picks(selected_by: ArrayLike, values: ArrayLike, most: int) -> np.ndarray:
    """(most,): `expected_pick` for 1, 2, ... `most` draws, in floating point: the curve of random search, exact where a simulation is noisy.

    >>> expected_picks([1, 2, 3], [10, 20, 60], 3).round(6).tolist()
    [30.0, 46.666667, 60.0]
    """
    by, value = np.asarray(selected_by, dtype=np.float64), np.asarray(values, dtype=np.float64)
    count = len(value)
    if len(by) != count or not 1 <= most <= count:
        raise ValueError(f"{most} draws of {count} candidates, selected by {len(by)} figures: 1 to as many draws as candidates")
    _, level = np.unique(by, return_inverse=True)
    upto = np.concatenate([[0], np.cumsum(np.bincount(level))])  # how many candidates are at most as good as each level
    means = np.bincount(level, weights=value) / np.diff(upto)
    # share[i]: of the sets of n candidates, those that lie within the first upto[i]: C(upto, n) / C(count, n), one factor more for each n
    share, found = np.ones(len(upto)), np.empty(most)
    for n in range(most):
        share *= np.maximum(upto - n, 0) / (count - n)
        found[n] = np.diff(share) @ means
    return found


@dataclass(frozen=True)
class Interval:
    """A mean with a 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean of `values`, one for each seed, with its percentile interval over resamples of the seeds."""
    if not values:
        raise ValueError("an interval needs at least one value")
    given = np.asarray(values, dtype=np.float64)
    picked = np.random.default_rng(seed).integers(len(given), size=(RESAMPLES, len(given)))
    low, high = np.quantile(given[picked].mean(axis=1), (0.025, 0.975))
    return Interval(float(given.mean()), float(low), float(high))


def bootstrap_curve(curves: ArrayLike, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % percentile interval of the mean of `curves`, (seeds, points), at every point: low and high, (points,).

    Whole seeds are resampled, the same for all points: the points of a curve depend on each other.
    """
    given = np.asarray(curves, dtype=np.float64)
    count = len(given)
    picked = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    shares = np.zeros((RESAMPLES, count))
    np.add.at(shares, (np.arange(RESAMPLES)[:, None], picked), 1.0 / count)
    low, high = np.quantile(shares @ given, (0.025, 0.975), axis=0)
    return low, high


def ranks(values: ArrayLike) -> np.ndarray:
    """(N,): rank of each value, 1 the largest; equal values share the mean of their ranks."""
    given = np.asarray(values, dtype=np.float64)
    better = (given[None, :] > given[:, None]).sum(axis=1)
    equal = (given[None, :] == given[:, None]).sum(axis=1)
    return better + (equal + 1) / 2


def spearman(a: ArrayLike, b: ArrayLike) -> float | None:
    """Rank correlation; None where one of the two never changes."""
    first, second = ranks(a), ranks(b)
    if first.std() == 0 or second.std() == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])
