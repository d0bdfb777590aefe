"""A Gaussian process over architectures as points, and how much better than the best so far each candidate may be expected to be.

The kernel is a Matern kernel of a distance that is mixed from two: in the options taken, and in what they make together: the paths, or the
counts of things (see `Features`). What is mixed, the length and the noise are taken from a small grid: those that explain the trials best by
marginal likelihood, averaged. So accuracy comes to be explained by paths, and latency by counts, without being told which is which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product as grid
from statistics import NormalDist

import numpy as np

from niwaki.space.rows import Features

MIXTURES = (0.0, 0.25, 0.5, 0.75, 1.0)  # part of the squared distance that is of the options taken; the rest is of paths or counts
LENGTHS = (0.5, 1.0, 2.0, 4.0)  # in units of the root mean square distance between two random architectures
LINEARS = (0.0, 0.5)  # variance of what is linear in the features, where that of the rest is 1
NOISES = (1e-3, 1e-2, 1e-1)  # variance of what the kernel cannot explain, as a part of the variance that it explains
JITTER = 1e-6
LEAST_VARIANCE = 1e-6  # in single precision
SQRT3 = math.sqrt(3.0)


@dataclass(frozen=True)
class Points:
    """Architectures in blocks of features, scaled so that in each the mean squared distance between two of the space is 1."""

    blocks: Features  # float32 (N, ...) each

    def __len__(self) -> int:
        return len(self.blocks.choices)

    @cached_property
    def squares(self) -> tuple[np.ndarray, ...]:
        """(N,): squared lengths in each block."""
        return tuple((block * block).sum(axis=1) for block in self.blocks)

    @property
    def structures(self) -> tuple[str, ...]:
        """Of the paths and the counts what there is."""
        return tuple(name for name in ("paths", "counts") if getattr(self.blocks, name).shape[1])

    def at(self, places: np.ndarray) -> Points:
        return Points(Features(*(block[places] for block in self.blocks)))

    def and_(self, others: Points) -> Points:
        return Points(Features(*(np.concatenate(both) for both in zip(self.blocks, others.blocks, strict=True))))

    @property
    def among(self) -> Relation:
        """Of the points among themselves, in double precision."""
        exact = Points(Features(*(block.astype(np.float64) for block in self.blocks)))
        return exact.to(exact)

    def to(self, others: Points) -> Relation:
        """Of N points to M others."""
        return Relation(self, others)


class Relation:
    """How N points lie to M others in each block of their features, worked out where it is asked for."""

    def __init__(self, points: Points, others: Points) -> None:
        self._points, self._others = points, others
        self._found: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def of(self, block: str) -> tuple[np.ndarray, np.ndarray]:
        """(N, M) each: squared distances, and products."""
        if block not in self._found:
            at = Features._fields.index(block)
            product = self._points.blocks[at] @ self._others.blocks[at].T
            squared = product * np.float32(-2)
            squared += self._points.squares[at][:, None]
            squared += self._others.squares[at]
            self._found[block] = np.maximum(squared, 0, out=squared), product
        return self._found[block]


@dataclass(frozen=True)
class Scale:
    """Where the features of a space lie, from a sample of it."""

    centres: tuple[np.ndarray, ...]
    spreads: tuple[np.ndarray, ...]

    @staticmethod
    def of(features: Features) -> Scale:
        centres = tuple(block.mean(axis=0) for block in features)
        spreads = []
        for block, centre in zip(features, centres, strict=True):
            spread = math.sqrt(2 * float(((block - centre) ** 2).sum(axis=1).mean())) if block.size else 0.0
            spreads.append(np.float32(1 / spread if spread > 0 else 0.0))
        return Scale(centres, tuple(spreads))  # type: ignore[arg-type]

    def __call__(self, features: Features) -> Points:
        return Points(Features(*((block - c) * s for block, c, s in zip(features, self.centres, self.spreads, strict=True))))


def matern32(squared: np.ndarray, length: float) -> np.ndarray:
    """(1 + x) exp(-x) with x = sqrt(3) distance / length (Rasmussen & Williams 2006, Eq. 4.17)."""
    x = np.sqrt(squared)
    x *= SQRT3 / length
    falling = np.exp(-x)
    x += 1
    x *= falling
    return x


def _mixed(first: np.ndarray, second: np.ndarray, part: float) -> np.ndarray:
    """part * first + (1 - part) * second"""
    mixed = first - second
    mixed *= part
    mixed += second
    return mixed


@dataclass(frozen=True)
class Setting:
    """One setting of the kernel: a Matern kernel of the distance, over `length`, and `linear` times the product: what bends and what leans.

    Squared distance and product are `mixture` times those of the choices and 1 - mixture times those of `structure`: of the paths, or of the
    counts. noise: on the diagonal. weight: of this setting among those that are averaged.
    """

    mixture: float
    structure: str
    length: float
    linear: float
    noise: float
    weight: float = 1.0

    def kernel(self, relation: Relation) -> np.ndarray:
        """(N, M)"""
        if self.mixture == 1:
            squared, product = relation.of("choices")
        elif self.mixture == 0:
            squared, product = relation.of(self.structure)
        else:
            (squared, product), (other, other_product) = relation.of("choices"), relation.of(self.structure)
            squared = _mixed(squared, other, self.mixture)
            product = _mixed(product, other_product, self.mixture) if self.linear else product
        kernel = matern32(squared, self.length)
        if self.linear:
            kernel += (2 * self.linear) * product  # the mean square of a scaled point is 1 / 2
        return kernel

    def variance(self, points: Points) -> np.ndarray:
        """(N,): the kernel of each point with itself."""
        choices, structure = points.squares[0], points.squares[Features._fields.index(self.structure)]
        return 1 + 2 * self.linear * (self.mixture * choices + (1 - self.mixture) * structure)


def settings_of(points: Points, targets: np.ndarray, most: int) -> tuple[Setting, ...]:
    """The `most` settings of the grid under which the targets (n,) are likeliest, weighed by their likelihood.

    Mean and amplitude are at their maximum for each: mean = 1'K^-1 y / 1'K^-1 1, amplitude = r'K^-1 r / n. One eigendecomposition serves
    all noises.
    """
    count, relation = len(targets), points.among
    right = np.stack([targets, np.ones(count)], axis=1)
    found: list[tuple[float, Setting]] = []
    mixtures = [(mixture, block) for block in points.structures for mixture in MIXTURES if mixture < 1] + [(1.0, "counts")]
    for (mixture, structure), length, linear in grid(mixtures, LENGTHS, LINEARS):
        values, vectors = np.linalg.eigh(Setting(mixture, structure, length, linear, 0.0).kernel(relation))
        y, one = (vectors.T @ right).T
        for noise in NOISES:
            spectrum = np.maximum(values, 0) + noise
            mean = (one / spectrum @ y) / (one / spectrum @ one)
            amplitude = ((y - mean * one) ** 2 / spectrum).sum() / count
            likelihood = -0.5 * (np.log(spectrum).sum() + count * math.log(amplitude + 1e-12))
            found.append((float(likelihood), Setting(mixture, structure, length, linear, noise)))
    found.sort(key=lambda one: -one[0])
    best = found[:most]
    weights = np.exp(np.array([likelihood for likelihood, _ in best]) - best[0][0])
    weights /= weights.sum()
    return tuple(replace(setting, weight=float(weight)) for (_, setting), weight in zip(best, weights, strict=True))


def usual(points: Points) -> Setting:
    """What is taken where nothing tells settings apart."""
    mixture, structure = (0.5, points.structures[0]) if points.structures else (1.0, "counts")
    return Setting(mixture, structure, 1.0, 0.0, NOISES[1])


class Model:
    """One setting, conditioned on the `targets` (n,) of what was told."""

    def __init__(self, setting: Setting, told: Relation, targets: np.ndarray) -> None:
        """told: of what was told among itself."""
        self.setting = setting
        count = len(targets)
        kernel = setting.kernel(told) + (setting.noise + JITTER) * np.eye(count)
        inverse = np.linalg.inv(np.linalg.cholesky(kernel))
        y, one = inverse @ targets, inverse @ np.ones(count)
        self.mean = float(one @ y / (one @ one))  # generalised least squares
        residual = y - self.mean * one
        self.amplitude = float(residual @ residual / count) + 1e-12
        self.inverse, self.residual = inverse.astype(np.float32), residual.astype(np.float32)

    def __call__(self, points: Points, relation: Relation) -> Belief:
        """relation: of what was told to `points`."""
        half = self.inverse @ self.setting.kernel(relation)
        left = np.maximum(self.setting.variance(points) - np.einsum("ij,ij->j", half, half), LEAST_VARIANCE)
        return Belief(self.setting, self.amplitude, points, half, self.mean + self.residual @ half, left)


@dataclass
class Belief:
    """What one setting says of N points: the mean of their targets, and how much is left of the variance, as a part of the amplitude.

    half: (n, N), inverse Cholesky factor times kernel; the sum of its squares is what was learned of the variance.
    """

    setting: Setting
    amplitude: float
    points: Points
    half: np.ndarray
    mean: np.ndarray
    left: np.ndarray

    @property
    def deviation(self) -> np.ndarray:
        """(N,): without the noise."""
        return np.sqrt(self.amplitude * self.left)

    @property
    def spread(self) -> np.ndarray:
        """(N,): the deviation of what would be told, noise and all."""
        return np.sqrt(self.amplitude * (self.left + self.setting.noise))

    def at(self, places: np.ndarray, points: Points) -> Belief:
        """points: those at `places`, which several beliefs share."""
        return Belief(self.setting, self.amplitude, points, self.half[:, places], self.mean[places], self.left[places])

    def and_(self, more: Belief, points: Points) -> Belief:
        """What the same model says of more points. points: these and those."""
        joined = (
            np.concatenate([mine, theirs], axis=-1)
            for mine, theirs in ((self.half, more.half), (self.mean, more.mean), (self.left, more.left))
        )
        return Belief(self.setting, self.amplitude, points, *joined)

    def assume_(self, place: int) -> None:
        """Takes the target at point number `place` to come out at its mean: what is out should not be asked for again, nor its like."""
        own = self.half[:, place]
        point = self.points.at(np.array([place]))
        covariance = self.setting.kernel(point.to(self.points))[0] - own @ self.half
        spread = math.sqrt(max(float(self.setting.variance(point)[0]) + self.setting.noise - float(own @ own), LEAST_VARIANCE))
        learned = (covariance / spread).astype(self.half.dtype)
        self.half = np.concatenate([self.half, learned[None]])
        self.left = np.maximum(self.left - learned**2, LEAST_VARIANCE)


def normal_scores(values: np.ndarray) -> np.ndarray:
    """(n,): the ranks of `values` as quantiles of the normal distribution; equal values have the mean of their ranks."""
    _, place, times = np.unique(values, return_inverse=True, return_counts=True)
    rank = np.cumsum(times) - (times + 1) / 2  # from 0
    quantile = NormalDist().inv_cdf
    scores = np.array([quantile((r + 0.5) / len(values)) for r in rank])
    return scores[place]


def normal_scores_among(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """(n,): the normal scores of the values that are `kept`, bool (n,), among themselves; of the others what lies between, in proportion.

    So what cannot be taken does not press together the scores of what can. What is better than all that is kept comes up to half a unit
    above them, at half the way from their median to their best once more; what is worse is half a unit below.
    """
    among = np.sort(values[kept])
    scores = normal_scores(among)
    beyond = among[-1] + ((among[-1] - float(np.median(among))) / 2 or 1.0)
    places, heights = np.append(among, beyond), np.append(scores, scores[-1] + 0.5)
    return np.interp(values, places, heights, left=scores[0] - 0.5)


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """P(Z <= x), within 7.5e-8 (Abramowitz & Stegun 1964, 26.2.17)."""
    t = 1 / (1 + 0.2316419 * np.abs(x))
    tail = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = tail * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return np.where(x >= 0, 1 - tail, tail)


def expected_improvement(mean: np.ndarray, deviation: np.ndarray, best: float) -> np.ndarray:
    """E[max(0, Y - best)] of a normal Y (Jones et al. 1998, Eq. 15)."""
    z = (mean - best) / deviation
    return deviation * (z * normal_cdf(z) + np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))


def standard_scores(values: np.ndarray) -> np.ndarray:
    """(n,): `values` with the mean 0 and the deviation 1 of the better half of them; what is far below is drawn in to 3 below its median."""
    middle = float(np.median(values))
    better = values[values >= middle]
    spread = float(np.sqrt(((better - middle) ** 2).mean())) or 1.0
    return np.maximum((values - middle) / spread, -3.0)


def expected_hypervolume_improvement(
    means: tuple[np.ndarray, np.ndarray], deviations: tuple[np.ndarray, np.ndarray], told: np.ndarray
) -> np.ndarray:
    """(N,): by how much independent normal Y1, Y2, both to be large, may be expected to enlarge what `told` (n, 2) dominates.

    Above a reference 10 % of the told range below the least of the front. Negated, both are to be small; with h(z) the least second value of
    the front at a first value up to z, it is the integral of P(Y1 <= z) E[(h(z) - Y2)+] over z: a sum over the steps of the front, as
    E[(z - Y1)+] is the integral of P(Y1 <= z) (Emmerich et al. 2011 have the closed form).
    """
    small = -told[np.argsort(-told[:, 0], kind="stable")]
    front = small[small[:, 1] < np.minimum.accumulate(np.concatenate([[np.inf], small[:-1, 1]]))]
    reference = small.max(axis=0) + 0.1 * np.ptp(small, axis=0)
    edges = np.concatenate([front[:, 0], [reference[0]]])
    heights = np.concatenate([[reference[1]], front[:, 1]])
    total, before = np.zeros(len(means[0])), np.zeros(len(means[0]))
    for edge, height in zip(edges, heights, strict=True):
        up_to = expected_improvement(means[0], deviations[0], -edge)  # E[(edge - (-Y1))+]
        total = total + (up_to - before) * expected_improvement(means[1], deviations[1], -height)
        before = up_to
    return total
