"""What comparisons of search methods are made of: exact random search, bootstrap intervals over seeds, rank correlations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000
NORMAL = NormalDist()


def expected_pick(selected_by: ArrayLike, values: ArrayLike, draws: int) -> float:
    """Mean value of what random search picks: of `draws` different candidates, the one that is largest in `selected_by`. Exact.

    >>> round(expected_pick([1, 2, 3], [10, 20, 60], 2), 6)  # the best of two: 2 of 3 pairs hold the last
    46.666667
    """
    return float(expected_picks(selected_by, values, draws)[-1])


def expected_picks(selected_by: ArrayLike, values: ArrayLike, most: int) -> np.ndarray:
    """(most,): `expected_pick` for 1, 2, ... `most` draws: the curve of random search, exact where a simulation is noisy.

    With candidates in ascending order of `selected_by`, number i of N (from 1) is picked with probability C(i-1, n-1) / C(N, n). Of equal
    candidates each is as likely.

    >>> expected_picks([1, 2, 3], [10, 20, 60], 3).round(6).tolist()
    [30.0, 46.666667, 60.0]
    """
    by, value = np.asarray(selected_by, dtype=np.float64), np.asarray(values, dtype=np.float64)
    count = len(value)
    if len(by) != count or not 1 <= most <= count:
        raise ValueError(
            f"{most} draws of {count} candidates, selected by {len(by)} figures: 1 to as many draws as candidates, a figure for each"
        )
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

    def text(self, digits: int = 2, *, scale: float = 1.0, unit: str = "", sign: bool = False) -> str:
        """
        >>> Interval(0.123, 0.1, 0.15).text(1, scale=100, unit=" %")
        '12.3 % [10.0, 15.0]'
        >>> Interval(0.5, -0.25, 1).text(sign=True)
        '+0.50 [-0.25, +1.00]'
        """
        mean, low, high = (f"{scale * value:{'+' if sign else ''}.{digits}f}" for value in (self.mean, self.low, self.high))
        return f"{mean}{unit} [{low}, {high}]"


def bootstrap(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean of `values`, one for each seed, with its percentile interval over resamples of the seeds."""
    if not values:
        raise ValueError("an interval needs at least one value")
    given = np.asarray(values, dtype=np.float64)
    picked = np.random.default_rng(seed).integers(len(given), size=(RESAMPLES, len(given)))
    low, high = np.quantile(given[picked].mean(axis=1), (0.025, 0.975))
    return Interval(float(given.mean()), float(low), float(high))


def bootstrap_of(statistic: Callable[[np.ndarray], float], count: int, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """`statistic(places)` of all places 0 to count - 1, with its percentile interval over resamples of them: for what is no mean, as the
    ratio of two means is, or a correlation; paired where one statistic reads several columns at the same places."""
    picked = np.random.default_rng(seed).integers(count, size=(resamples, count))
    low, high = np.quantile([statistic(places) for places in picked], (0.025, 0.975))
    return Interval(float(statistic(np.arange(count))), float(low), float(high))


def share_of(hits: int, of: int) -> Interval:
    """A share with its 95 % interval (Wilson, "Probable Inference", JASA 1927), which 0 and all hits have, too.

    >>> share_of(9, 10).text()
    '0.90 [0.60, 0.98]'
    """
    z = NORMAL.inv_cdf(0.975)
    share = hits / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    apart = z / (1 + z * z / of) * float(np.sqrt(share * (1 - share) / of + z * z / (4 * of * of)))
    return Interval(share, middle - apart, middle + apart)


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


def bootstrap_bca(values: Sequence[float], *, seed: int = 0) -> Interval:
    """As `bootstrap`, bias-corrected and accelerated (Efron 1987): better where few values are skewed, as regrets are."""
    given = np.asarray(values, dtype=np.float64)
    if given.min(initial=np.inf) == given.max(initial=-np.inf):
        return bootstrap(values, seed=seed)  # there is nothing to correct
    picked = np.random.default_rng(seed).integers(len(given), size=(RESAMPLES, len(given)))
    means, mean = np.sort(given[picked].mean(axis=1)), float(given.mean())
    below = (np.searchsorted(means, mean, "left") + np.searchsorted(means, mean, "right")) / (2 * RESAMPLES)
    bias = NORMAL.inv_cdf(min(max(float(below), 1 / RESAMPLES), 1 - 1 / RESAMPLES))
    left_out = (given.sum() - given) / (len(given) - 1)
    apart = left_out.mean() - left_out
    acceleration = float((apart**3).sum() / (6 * (apart**2).sum() ** 1.5))
    shares = []
    for share in (0.025, 0.975):
        z = bias + NORMAL.inv_cdf(share)
        shares.append(NORMAL.cdf(bias + z / (1 - acceleration * z)))
    low, high = np.quantile(means, shares)
    return Interval(mean, float(low), float(high))


def ranks(values: ArrayLike) -> np.ndarray:
    """(N,): rank of each value, 1 the largest; equal values share the mean of their ranks."""
    given = np.asarray(values, dtype=np.float64)
    _, level, counts = np.unique(-given, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[level]


def spearman(a: ArrayLike, b: ArrayLike) -> float | None:
    """Rank correlation; None where one of the two never changes."""
    first, second = ranks(a), ranks(b)
    if first.std() == 0 or second.std() == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def kendall(a: ArrayLike, b: ArrayLike) -> float | None:
    """Kendall's tau-b, which allows for ties; None where one of the two never changes. O(N log N) (Knight 1966)."""
    first, second = (np.unique(np.asarray(x, dtype=np.float64), return_inverse=True)[1] for x in (a, b))
    order = np.lexsort((second, first))
    swaps, _ = _inversions(second[order])
    pairs = len(first) * (len(first) - 1) / 2
    tied_a, tied_b = _tied(first), _tied(second)
    if tied_a == pairs or tied_b == pairs:
        return None
    tied_both = _tied(first * (second.max() + 1) + second)
    return float((pairs - tied_a - tied_b + tied_both - 2 * swaps) / np.sqrt((pairs - tied_a) * (pairs - tied_b)))


def kendall_resampled(a: ArrayLike, b: ArrayLike, counts: np.ndarray) -> np.ndarray:
    """(R,): `kendall` of each of R resamples of the N candidates; 0 where it is None. counts: (R, N), how often a resample has each."""
    given = [np.asarray(x, dtype=np.float64) for x in (a, b)]
    if not all(np.isfinite(x).all() for x in given):
        raise ValueError("candidates are compared by finite numbers; where a score is infinite, take its ranks")
    signs = [np.sign(x[:, None] - x[None, :]) for x in given]
    weights = counts.astype(np.float64)
    agreeing, apart_a, apart_b = (
        ((weights @ pairs) * weights).sum(axis=1) for pairs in (signs[0] * signs[1], signs[0] ** 2, signs[1] ** 2)
    )
    apart = np.sqrt(apart_a * apart_b)
    return np.divide(agreeing, apart, out=np.zeros(len(weights)), where=apart > 0)


def _inversions(values: np.ndarray) -> tuple[int, np.ndarray]:
    """How many pairs are in the wrong order, the first the larger; and `values` sorted. By merging, as in Knight's method."""
    if len(values) <= 64:
        return int(np.triu(values[:, None] > values).sum()), np.sort(values)
    (below, left), (above, right) = (_inversions(half) for half in np.array_split(values, 2))
    across = len(left) * len(right) - int(np.searchsorted(left, right, "right").sum())
    return below + above + across, np.sort(np.concatenate([left, right]), kind="stable")  # of two sorted runs: a merge


def _tied(values: np.ndarray) -> float:
    """How many pairs are equal."""
    _, counts = np.unique(values, return_counts=True)
    return float((counts * (counts - 1) / 2).sum())


def kendall_sparse(scores: ArrayLike, truth: ArrayLike, *, to: float = 0.1) -> float | None:
    """`kendall` after rounding `truth` to multiples of `to`: differences that training again would undo do not count."""
    return kendall(scores, np.round(np.asarray(truth, dtype=np.float64) / to))


def kendall_top(scores: ArrayLike, truth: ArrayLike, share: float) -> float | None:
    """`kendall` among the best `share` of the candidates by `truth`, at least two: where it is decided what a search finds."""
    best = np.argsort(-np.asarray(truth, dtype=np.float64), kind="stable")[: max(2, round(share * len(np.asarray(truth))))]
    return kendall(np.asarray(scores)[best], np.asarray(truth)[best])


def kendall_error(count: int) -> float:
    """The standard error of tau over `count` candidates whose true tau is 0: sqrt(2 (2n + 5) / (9 n (n - 1)))."""
    return float(np.sqrt(2 * (2 * count + 5) / (9 * count * (count - 1))))


def precision_at(scores: ArrayLike, truth: ArrayLike, count: int) -> float:
    """Share of the `count` best by `truth` among the `count` best by `scores`; of equals, those that stand first."""
    best = [set(np.argsort(-np.asarray(x, dtype=np.float64), kind="stable")[:count].tolist()) for x in (scores, truth)]
    return len(best[0] & best[1]) / count


def regret_of_best(scores: ArrayLike, truth: ArrayLike) -> float:
    """By how much the candidate with the best score falls short of the best by `truth`; of equals by score, on average."""
    score, value = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    return float(value.max() - value[score == score.max()].mean())


def correlation_interval(
    statistic: Callable[[ArrayLike, ArrayLike], float | None], a: ArrayLike, b: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> Interval | None:
    """A correlation with its percentile interval over resamples of the candidates; None where it is none, or in a resample is none."""
    first, second = np.asarray(a), np.asarray(b)
    generator = np.random.default_rng(seed)
    picks = (generator.integers(len(first), size=len(first)) for _ in range(resamples))
    found = [statistic(first[pick], second[pick]) for pick in picks]
    whole = statistic(first, second)
    if whole is None or None in found:
        return None
    low, high = np.quantile(np.array(found, dtype=np.float64), (0.025, 0.975))
    return Interval(whole, float(low), float(high))
