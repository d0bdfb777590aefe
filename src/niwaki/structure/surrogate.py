"""A tree-structured regression: numbers explained by options and pairs of options, on the tree that CRANK's penalty leaves.

r ~ sum_i w_i . e(option i) + sum over edges w_ij . e(option i) e(option j): the max-margin predictor's features with the labels as inputs,
squared error for its hinge, and the same mu R(w), by CCCP. The convex problems are solved by FISTA (Beck and Teboulle 2009).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from niwaki.structure.crank import ZERO, simplex
from niwaki.structure.forest import Edge, all_pairs, circuit_rank, maximum_forest

SETTLED = 1e-5  # relative change of the weights at which a convex problem is solved


@dataclass(frozen=True, eq=False)
class Features:
    """Columns for decisions and pairs of them. unary: the columns of each decision; pair: of each pair."""

    matrix: np.ndarray  # (N, columns)
    unary: tuple[slice, ...]
    pair: tuple[slice, ...]
    edges: tuple[Edge, ...]


def features(rows: np.ndarray, exists: np.ndarray, options: Sequence[int], edges: Sequence[Edge]) -> Features:
    """rows: (N, decisions) option numbers; exists: bool, the same shape: what does not exist has features 0."""
    own = _own(rows, exists, options)
    blocks = [*own, *((own[i][:, :, None] * own[j][:, None, :]).reshape(len(rows), -1) for i, j in edges)]
    ends = np.cumsum([0, *(block.shape[1] for block in blocks)]).tolist()
    slices = [slice(start, end) for start, end in itertools.pairwise(ends)]
    matrix = np.concatenate(blocks, axis=1) if blocks else np.zeros((len(rows), 0))
    return Features(matrix, tuple(slices[: len(options)]), tuple(slices[len(options) :]), tuple(edges))


def _own(rows: np.ndarray, exists: np.ndarray, options: Sequence[int]) -> list[np.ndarray]:
    """Of each decision, (N, options - 1): the corner of the option taken."""
    return [_corners(count)[rows[:, i]] * exists[:, i, None] for i, count in enumerate(options)]


def _corners(options: int) -> np.ndarray:
    return simplex(options) if options > 1 else np.zeros((1, 0))


def crank_tree(
    rows: np.ndarray,
    exists: np.ndarray,
    options: Sequence[int],
    rewards: np.ndarray,
    *,
    l2: float = 0.01,
    mu: float = 1e-3,
    growth: float = 3.0,
    prices: int = 8,
    steps: int = 3,
    iterations: int = 60,
    columns: int = 1_500,
) -> list[Edge]:
    """The edges that CRANK's penalty leaves of all pairs, as mu rises from `mu`; the strongest first, only those that still carry weight.

    rewards: (N,), any scale. l2: in units of the rewards' variance, as mu is. columns: of pairs, so many at most are looked at, those of the
    pairs of the largest norm when mu is 0 (screening, ours: 50 decisions of 10 options have a hundred thousand).
    """
    centred = rewards - rewards.mean()
    target, count = centred / (centred.std() or 1.0), len(rows)
    parts, every = _own(rows, exists, options), all_pairs(len(options))
    # ridge, mu = 0, in the examples' coordinates: the kernel of all pairs is half of (sum_i k_i)^2 - sum_i k_i^2
    kernels = [one @ one.T for one in parts]
    single = sum(kernels, np.zeros((count, count)))
    kernel = single + (single**2 - sum((one**2 for one in kernels), np.zeros((count, count)))) / 2
    weight = np.linalg.solve(kernel + count * l2 * np.eye(count), target)
    strength = [float(np.linalg.norm((parts[i] * weight[:, None]).T @ parts[j])) for i, j in every]
    kept: list[int] = []
    held = 0
    for e in sorted(range(len(every)), key=lambda e: (-strength[e], e)):
        held += parts[every[e][0]].shape[1] * parts[every[e][1]].shape[1]
        if held > columns and kept:
            break
        kept.append(e)
    data = features(rows, exists, options, [every[e] for e in sorted(kept)])
    x = data.matrix
    w = x.T @ weight
    lipschitz = float(np.linalg.eigvalsh(x @ x.T if x.shape[1] > count else x.T @ x)[-1]) / count + l2 if x.size else 1.0

    def norms(w: np.ndarray) -> np.ndarray:
        return np.array([float(np.linalg.norm(w[part])) for part in data.pair])

    for _ in range(prices):
        known = None
        for _ in range(steps):
            own = norms(w)
            tree = maximum_forest(len(options), data.edges, own.tolist())
            if tree == known:
                break
            known, lean = tree, np.zeros_like(w)
            for e in tree:
                if own[e] > ZERO:
                    lean[data.pair[e]] = mu * w[data.pair[e]] / own[e]
            w = _group_lasso(x, target, w, l2, mu, lean, data.pair, lipschitz, iterations)
        own = norms(w)
        if circuit_rank(len(options), data.edges, own.tolist()) <= 1e-3 * max(own.sum(), ZERO):
            break
        mu *= growth
    own = norms(w)
    tree = maximum_forest(len(options), data.edges, own.tolist(), above=1e-3 * float(own.max(initial=0.0)))
    return [data.edges[e] for e in sorted(tree, key=lambda e: (-own[e], e))]


def worth_having(
    edges: Sequence[Edge], rows: np.ndarray, exists: np.ndarray, options: Sequence[int], rewards: np.ndarray, l2: float
) -> list[Edge]:
    """As many of `edges`, from the first, as predict best: 0, 1, 2, 4, ... or all, by N log(error) + 2 m log(pairs) for m edges.

    The error is the exact leave-one-out error of the ridge regression; the second term (that of the extended BIC, Chen and Chen 2008) pays for
    having picked the edges, out of all pairs, on the same rows: without it an additive reward is given edges that chance made.
    """
    centred = rewards - rewards.mean()
    target, count = centred / (centred.std() or 1.0), len(rows)
    parts = _own(rows, exists, options)
    kernels = [one @ one.T for one in parts]
    counts = sorted({0, len(edges), *(2**power for power in range(len(edges).bit_length()) if 2**power < len(edges))})

    def error(number: int) -> float:
        kernel = sum((kernels[i] * kernels[j] for i, j in edges[:number]), sum(kernels, np.zeros((count, count))))
        inverse = np.linalg.inv(kernel + count * l2 * np.eye(count))
        left_out = float((((inverse @ target) / np.diag(inverse)) ** 2).mean())  # each row predicted by all the others
        return count * float(np.log(max(left_out, 1e-300))) + 2 * number * float(np.log(max(1, len(options) * (len(options) - 1) // 2)))

    return list(edges[: min(counts, key=lambda number: (error(number), number))])


def _group_lasso(
    x: np.ndarray, target: np.ndarray, w: np.ndarray, l2: float, mu: float, lean: np.ndarray, groups: Sequence[slice],
    lipschitz: float, iterations: int,
) -> np.ndarray:  # fmt: skip
    """min over w of 1/(2N) ||x w - target||^2 + l2/2 ||w||^2 - lean . w + mu sum_g ||w_g||, from `w`."""
    starts = np.array([part.start for part in groups], dtype=np.int64)
    lengths = np.array([part.stop - part.start for part in groups], dtype=np.int64)
    first = int(starts[0]) if len(starts) else len(w)
    filled = lengths > 0
    point, momentum = w.copy(), 1.0
    for _ in range(iterations):
        slope = x.T @ (x @ point - target) / len(target) + l2 * point - lean
        new = point - slope / lipschitz
        if filled.any():
            own = np.sqrt(np.add.reduceat(new[first:] ** 2, starts[filled] - first))
            new[first:] *= np.repeat(np.maximum(0.0, 1 - mu / lipschitz / np.maximum(own, ZERO)), lengths[filled])
        after = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        point = new + (momentum - 1) / after * (new - w)
        settled = np.linalg.norm(new - w) <= SETTLED * np.linalg.norm(new)
        w, momentum = new, after
        if settled:
            break
    return w


@dataclass(frozen=True, eq=False)
class Ridge:
    """The Bayesian linear model on given edges: w ~ N(mean, noise * factor @ factor.T); scale and shift of the numbers it explains."""

    features: Features  # of the rows it was fitted on
    mean: np.ndarray
    factor: np.ndarray
    noise: float
    options: tuple[int, ...]

    @staticmethod
    def fitted(
        rows: np.ndarray, exists: np.ndarray, options: Sequence[int], rewards: np.ndarray, edges: Sequence[Edge], l2: float
    ) -> Ridge:
        data = features(rows, exists, options, edges)
        centred = rewards - rewards.mean()
        target = centred / (centred.std() or 1.0)
        precision = data.matrix.T @ data.matrix + l2 * len(rows) * np.eye(data.matrix.shape[1])
        covariance = np.linalg.inv(precision)
        mean = covariance @ (data.matrix.T @ target)
        residual = float(((target - data.matrix @ mean) ** 2).sum())
        freedom = max(1.0, len(rows) - float(np.trace(covariance @ data.matrix.T @ data.matrix)))
        return Ridge(data, mean, np.linalg.cholesky((covariance + covariance.T) / 2), residual / freedom, tuple(options))

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """(columns,): weights as likely as the data leave them (for Thompson sampling)."""
        return self.mean + self.noise**0.5 * self.factor @ generator.standard_normal(len(self.mean))

    def tables(self, w: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The weights as tables: (O_i,) of each decision, (O_i, O_j) of each edge."""
        corners = [_corners(count) for count in self.options]
        unary = [corners[i] @ w[part] for i, part in enumerate(self.features.unary)]
        pair = []
        for (i, j), part in zip(self.features.edges, self.features.pair, strict=True):
            pair.append(corners[i] @ w[part].reshape(corners[i].shape[1], corners[j].shape[1]) @ corners[j].T)
        return unary, pair
