"""CRANK: a tree over the labels, learned together with a max-margin predictor (Meshi, Eban, Elidan, Globerson, UAI 2013).

score(x, y) = sum_i w_i . x e(y_i) + sum over edges w_ij . f(x) e(y_i) e(y_j), where e(option) are the corners of a regular simplex of radius
1 (for two options -1 and +1): edge tables are centred, so that nothing that a unary could say makes ||w_ij|| large.

    J(w) = lambda/2 ||w||^2 + 1/M sum_m max_y [score(x_m, y) + Hamming(y, y_m) - score(x_m, y_m)] + mu R(w)
    R(w) = sum_e ||w_e|| - max over spanning trees of the sum of ||w_e|| over their edges   (circuit rank)

R is a difference of convex functions. CCCP replaces the maximum by its tangent at the last w and solves what is left, which is convex, by
block-coordinate Frank-Wolfe (Lacoste-Julien et al. 2013). The group lasso sum_e mu ||w_e|| = sum_e max over ||v_e|| <= mu of v_e . w_e joins
the dual exactly as one more block per edge, solved in closed form; that the paper used this solver is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from niwaki.structure.forest import Edge, all_pairs, chow_liu, circuit_rank, maximum_forest
from niwaki.structure.inference import forest_argmax, full_argmax

ZERO = 1e-12  # a norm of rounding errors has no direction
BATCH = 4  # examples whose labels are looked for at the same w; each of them then takes its own exact step


@dataclass(frozen=True, eq=False)
class Examples:
    """x: (M, D) features, with a constant among them where a bias is wanted; y: (M, n) labels 0..options-1; f: (M, F) features of edges,
    by default the constant 1 (edges do not look at x)."""

    x: np.ndarray
    y: np.ndarray
    options: int = 2
    f: np.ndarray | None = None

    def __post_init__(self) -> None:
        x, y = np.asarray(self.x, dtype=np.float64), np.asarray(self.y, dtype=np.int64)
        f = np.ones((len(x), 1)) if self.f is None else np.asarray(self.f, dtype=np.float64)
        if x.ndim != 2 or y.ndim != 2 or f.ndim != 2 or not len(x) == len(y) == len(f):
            raise ValueError(f"examples need x (M, D), y (M, n) and f (M, F), not {x.shape}, {y.shape} and {f.shape}")
        if len(x) == 0 or not np.isfinite(x).all() or not np.isfinite(f).all():
            raise ValueError(f"examples need at least one row and finite features; x is {x.shape}")
        if y.min() < 0 or y.max() >= self.options:
            raise ValueError(f"labels are 0 to {self.options - 1}, not {y.min()} to {y.max()}")
        for name, value in (("x", x), ("y", y), ("f", f)):
            object.__setattr__(self, name, value)

    def part(self, rows: np.ndarray) -> Examples:
        assert self.f is not None
        return Examples(self.x[rows], self.y[rows], self.options, self.f[rows])


@dataclass(frozen=True, eq=False)
class Predictor:
    """unary: (D, n, k-1); edges: pairs of labels; pair: (edges, F, k-1, k-1). Exact labels: linear in n where the edges are a forest."""

    unary: np.ndarray
    edges: tuple[Edge, ...]
    pair: np.ndarray

    @property
    def options(self) -> int:
        return self.unary.shape[2] + 1

    def predict(self, x: np.ndarray, f: np.ndarray | None = None) -> np.ndarray:
        """(N, n) labels. x: (N, D); f: (N, F), left out where edges do not look at the example."""
        return _argmax(*self.scores(x, f), self.edges)

    def scores(self, x: np.ndarray, f: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(N, n, k) of every option, and (N or 1, edges, k, k) of every pair of options of an edge."""
        corners = simplex(self.options)
        unary = np.tensordot(x, self.unary, 1) @ corners.T
        if f is None or (f.shape[1] == 1 and bool((f == 1).all())):
            return unary, corners @ self.pair[None, :, 0] @ corners.T
        pair = np.tensordot(f, self.pair, (1, 1))
        return unary, corners @ pair @ corners.T

    @property
    def norms(self) -> np.ndarray:
        """(edges,) ||w_e||."""
        return np.sqrt((self.pair**2).sum(axis=(1, 2, 3)))


def simplex(options: int) -> np.ndarray:
    """(k, k-1): the corners of a regular simplex of radius 1 about 0."""
    centred = np.eye(options) - 1 / options
    basis = np.linalg.svd(centred)[2][: options - 1]
    corners = centred @ basis.T
    corners = corners / np.linalg.norm(corners[0])
    return corners * (-1.0 if corners[0, 0] > 0 else 1.0)  # two options are -1 and +1


@dataclass(frozen=True)
class CrankSettings:
    """l2: lambda. mu: first price of non-tree-ness, times `growth` until at most `rest` of the edges' norm is outside a tree.
    passes: at most, over the examples, in one convex problem; `tolerance` of its duality gap. Within the CCCP, whose problems are only
    steps on the way and go on from each other, both are looser."""

    l2: float = 0.01
    mu: float = 1e-3
    growth: float = 3.0
    rest: float = 1e-3
    steps: int = 5  # CCCP steps at one mu, at most
    prices: int = 12  # values of mu, at most
    passes: int = 60
    tolerance: float = 1e-3
    step_passes: int = 10
    step_tolerance: float = 1e-2
    decrease: float = 1e-4  # relative, of J, below which a CCCP has ended once its tree no longer changes


@dataclass(frozen=True, eq=False)
class Learned:
    """predictor: on the tree. path: for each convex problem (mu, J, R, edges of the tree); full: the predictor on all pairs, where mu was 0."""

    predictor: Predictor
    path: tuple[tuple[float, float, float, tuple[Edge, ...]], ...]
    full: Predictor


def fit_on(examples: Examples, edges: Sequence[Edge], settings: CrankSettings, rng: np.random.Generator) -> Predictor:
    """The max-margin predictor with the edges given: none, a forest, or all pairs."""
    solver = Solver(examples, edges, settings.l2)
    solver.run(rng, passes=settings.passes, tolerance=settings.tolerance)
    return solver.predictor


def fit_chow_liu(examples: Examples, settings: CrankSettings, rng: np.random.Generator) -> Predictor:
    """The predictor on the Chow-Liu tree of the labels, which never saw x: the baseline."""
    return fit_on(examples, chow_liu(examples.y, examples.options), settings, rng)


def fit_crank(examples: Examples, settings: CrankSettings, rng: np.random.Generator) -> Learned:
    """The tree by CCCP under a rising mu from the full solution, then the predictor anew on this tree with mu = 0."""
    count = examples.y.shape[1]
    solver = Solver(examples, all_pairs(count), settings.l2)
    solver.run(rng, passes=settings.passes, tolerance=settings.tolerance)
    full, path, mu = solver.predictor, [], settings.mu
    tree = maximum_forest(count, solver.edges, full.norms)
    for _ in range(settings.prices):
        solver.mu = mu
        for record in cccp(solver, settings, rng):
            path.append((mu, *record))
        tree = maximum_forest(count, solver.edges, solver.predictor.norms)
        if solver.rank <= settings.rest * max(solver.predictor.norms.sum(), 1e-12):
            break
        mu *= settings.growth
    predictor = fit_on(examples, [solver.edges[e] for e in tree], settings, rng)
    return Learned(predictor, tuple(path), full)


def cccp(solver: Solver, settings: CrankSettings, rng: np.random.Generator) -> list[tuple[float, float, tuple[Edge, ...]]]:
    """(J, R, tree) at the start and after each step at one mu; J never rises: a step that an inexact solution made worse is taken back."""
    count = solver.examples.y.shape[1]
    records, known = [], None
    for _ in range(settings.steps + 1):
        norms, value = solver.predictor.norms, solver.objective
        tree = maximum_forest(count, solver.edges, norms)
        records.append((value, solver.rank, tuple(solver.edges[e] for e in tree)))
        if len(records) > 1 and tree == known and records[-2][0] - value < settings.decrease * abs(value):
            break
        if len(records) > settings.steps:
            break
        known, before = tree, solver.state()
        # tangent of the tree's sum: its edges are free along the direction that they have
        u = np.zeros_like(solver.pair)
        for e in tree:
            if norms[e] > ZERO:
                u[e] = solver.pair[e] / norms[e]
        solver.lean(u)
        solver.run(rng, passes=settings.step_passes, tolerance=settings.step_tolerance)
        if solver.objective > value:
            solver.restore(before)
            break
    return records


class Solver:
    """min over w of lambda/2 ||w||^2 + mean structured hinge + mu (sum_e ||w_e|| - u_e . w_e), by block-coordinate Frank-Wolfe.

    w = sum_m w_m + (mu u - v) / lambda. The part of example m is x_m (outer) a[m] for the unaries and f_m (outer) b[m] for the edges, so that
    only (n, k-1) and (edges, k-1, k-1) numbers are kept for each example.
    """

    def __init__(self, examples: Examples, edges: Sequence[Edge], l2: float) -> None:
        assert examples.f is not None
        self.examples, self.edges, self.l2, self.mu = examples, tuple(edges), l2, 0.0
        (m, d), n, k = examples.x.shape, examples.y.shape[1], examples.options - 1
        self.corners = simplex(examples.options)
        self.unary, self.pair = np.zeros((d, n, k)), np.zeros((len(self.edges), examples.f.shape[1], k, k))
        self.a, self.b, self.loss = np.zeros((m, n, k)), np.zeros((m, len(self.edges), k, k)), np.zeros(m)
        self.u, self.v = np.zeros_like(self.pair), np.zeros_like(self.pair)
        self.gaps: list[float] = []
        self._ends = np.array(self.edges, dtype=np.int64).reshape(-1, 2)
        self._x2, self._f2 = (examples.x**2).sum(axis=1), (examples.f**2).sum(axis=1)

    @property
    def predictor(self) -> Predictor:
        return Predictor(self.unary.copy(), self.edges, self.pair.copy())

    def run(self, rng: np.random.Generator, *, passes: int, tolerance: float) -> float:
        """Passes until the duality gap is at most `tolerance`, or so many; returns the gap."""
        gap = self.gap()
        self.gaps.append(gap)
        for number in range(passes):
            if gap <= tolerance:
                break
            order = rng.permutation(len(self.loss))
            for start in range(0, len(order), BATCH):
                self._steps(order[start : start + BATCH])
                self._prices()
            if number % 2 or number == passes - 1:
                gap = self.gap()
                self.gaps.append(gap)
        return gap

    def gap(self) -> float:
        """Primal less dual objective, exact: the sum of the gaps of all blocks."""
        rows = np.arange(len(self.loss))
        a, b, loss = self._corner(rows)
        scores, links = self._along(rows)
        own = self.l2 * (((self.a - a) * scores).sum() + ((self.b - b) * links).sum()) - self.loss.sum() + loss.sum()
        return float(own + self.mu * self.predictor.norms.sum() - (self.v * self.pair).sum())

    @property
    def hinge(self) -> float:
        """The mean over examples of max_y [score(y) + Hamming] - score(y_m)."""
        rows = np.arange(len(self.loss))
        a, b, loss = self._corner(rows)
        scores, links = self._along(rows)
        return float(loss.sum() - self.l2 * ((a * scores).sum() + (b * links).sum()))

    @property
    def rank(self) -> float:
        """R(w)."""
        return circuit_rank(self.examples.y.shape[1], self.edges, self.predictor.norms.tolist())

    @property
    def objective(self) -> float:
        """J(w)."""
        return self.l2 / 2 * float((self.unary**2).sum() + (self.pair**2).sum()) + self.hinge + self.mu * self.rank

    def lean(self, u: np.ndarray) -> None:
        """Takes another u, at the present mu; w follows, the dual's blocks stay."""
        self.u, self.v = u, _within_ball(self.v, self.mu)
        assert self.examples.f is not None
        own = np.moveaxis(np.tensordot(self.examples.f, self.b, (0, 0)), 0, 1)  # (edges, F, k-1, k-1)
        self.pair = own + (self.mu * u - self.v) / self.l2
        self._prices()

    def state(self) -> tuple[np.ndarray, ...]:
        return tuple(array.copy() for array in (self.unary, self.pair, self.a, self.b, self.loss, self.u, self.v))

    def restore(self, state: tuple[np.ndarray, ...]) -> None:
        self.unary, self.pair, self.a, self.b, self.loss, self.u, self.v = (array.copy() for array in state)

    # ---------------------------------------------------------------- blocks

    def _steps(self, rows: np.ndarray) -> None:
        """One step for each example of `rows`, towards the labels that were worst at the w before all of them; exact line searches."""
        corner_a, corner_b, corner_loss = self._corner(rows)
        x, f, l2 = self.examples.x, self.examples.f, self.l2
        assert f is not None
        single = f.shape[1] == 1
        for at, m in enumerate(rows):
            da, db = corner_a[at] - self.a[m], corner_b[at] - self.b[m]
            length = self._x2[m] * (da * da).sum() + self._f2[m] * (db * db).sum()
            if length <= 0:
                continue
            scores = np.tensordot(x[m], self.unary, 1)
            links = self.pair[:, 0] * f[m, 0] if single else np.tensordot(f[m], self.pair, (0, 1))
            gap = -l2 * ((da * scores).sum() + (db * links).sum()) - self.loss[m] + corner_loss[at]
            step = min(1.0, max(0.0, gap / (l2 * length)))
            if step:
                self.a[m] += step * da
                self.b[m] += step * db
                self.loss[m] += step * (corner_loss[at] - self.loss[m])
                self.unary += x[m][:, None, None] * (step * da)
                self.pair += f[m][None, :, None, None] * (step * db)[:, None]

    def _prices(self) -> None:
        """The blocks v_e, all at once, for no two of them meet: v_e = the nearest point of the ball to lambda w_e + v_e."""
        if self.mu and len(self.edges):
            v = _within_ball(self.l2 * self.pair + self.v, self.mu)
            self.pair -= (v - self.v) / self.l2
            self.v = v

    def _corner(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each example, the corner of its block that is worst at w: a (N, n, k-1), b (N, edges, k-1, k-1) and loss (N,), / (lambda M)."""
        examples = self.examples
        assert examples.f is not None
        unary, pair = Predictor(self.unary, self.edges, self.pair).scores(examples.x[rows], examples.f[rows])
        truth = examples.y[rows]
        wrong = np.arange(examples.options) != truth[:, :, None]
        worst = _argmax(unary + wrong, pair, self.edges)
        scale = 1 / (self.l2 * len(self.loss))
        true, found = self.corners[truth], self.corners[worst]
        i, j = self._ends.T
        b = true[:, i, :, None] * true[:, j, None, :] - found[:, i, :, None] * found[:, j, None, :]
        return (true - found) * scale, b * scale, (worst != truth).sum(axis=1) / len(self.loss)

    def _along(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """w in the coordinates of a and b, for each example."""
        assert self.examples.f is not None
        return np.tensordot(self.examples.x[rows], self.unary, 1), np.tensordot(self.examples.f[rows], self.pair, (1, 1))


def _argmax(unary: np.ndarray, pair: np.ndarray, edges: Sequence[Edge]) -> np.ndarray:
    if not edges:
        return unary.argmax(axis=2)
    if len(edges) == unary.shape[1] * (unary.shape[1] - 1) // 2 and len(edges) >= unary.shape[1]:
        return full_argmax(unary, pair)
    return forest_argmax(unary, pair, edges)


def _within_ball(v: np.ndarray, radius: float) -> np.ndarray:
    norms = np.sqrt((v**2).sum(axis=(1, 2, 3), keepdims=True))
    return v * np.minimum(1.0, radius / np.maximum(norms, 1e-300))


def standardised(x: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """`x` and the others with the mean 0 and the deviation 1 of `x`, over the root of their number, so that a row of `x` has a length of
    about 1; and a constant 1 as the last feature: beside shorter rows lambda would hardly let a bias be, beside longer ones it would be free."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    scale = np.where(deviation > 0, deviation, 1) * x.shape[1] ** 0.5
    return [np.concatenate(((part - mean) / scale, np.ones((len(part), 1))), axis=1) for part in (x, *others)]


def best_l2(examples: Examples, held_out: Examples, grid: Sequence[float], fit, settings: CrankSettings, seed: int) -> float:
    """The lambda of `grid` whose predictor gets most label sets of `held_out` right; of equals, the one with fewest wrong labels."""

    def judged(l2: float) -> tuple[float, float]:
        predictor = fit(examples, replace(settings, l2=l2), np.random.default_rng(seed))
        found = predictor.predict(held_out.x, held_out.f)
        return float((found == held_out.y).all(axis=1).mean()), -float((found != held_out.y).mean())

    return max(grid, key=judged)
