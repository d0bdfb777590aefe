"""Pairwise potentials on a forest over decisions: the richest family in which everything stays exact and linear in the decisions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from random import Random
from weakref import WeakKeyDictionary

import numpy as np

from niwaki.distribution.distribution import Arrays, DistributionError, checked
from niwaki.factor.buckets import Buckets
from niwaki.factor.draw import Sampler
from niwaki.factor.factor import Cost, CostError
from niwaki.factor.mode import most_likely
from niwaki.factor.reorder import Reordered, narrowest
from niwaki.factor.within import Within
from niwaki.space.architecture import Architecture
from niwaki.space.space import Space

BETWEEN = " ~ "  # of the two names in the name of an edge's parameters

Edge = tuple[str, str]


class Tree:
    """p(arch) = exp(sum of th_i(option i) over decisions that exist + sum of th_ij(option i, option j) over edges whose ends exist) / Z.

    parameters: "i" -> (O_i,), and for each edge "i ~ j" -> (O_i, O_j). The edges have no cycle. Z, marginals, entropy, mode, the k best and
    draws take one pass over the decisions, O(n k^2) where all of them exist always. Without edges and with log-probabilities as th it is
    `Independent`. In a space with conditions all zeros are the uniform distribution over architectures.

    Within limits the tables of the edges are further factors of the cost algebra, with the decisions in an order in which few of them are
    open at once (the method's tree-knapsack in O(n k^2 B^2) convolves branches; going through the decisions one by one needs no convolution
    and takes O(n k^w B) with w - 1 decisions open, 1 on a chain).
    """

    def __init__(self, space: Space, parameters: Mapping[str, np.ndarray], *, like: Tree | None = None) -> None:
        edges = edges_of(space, parameters)
        known: _Structure | None = None if like is None else like._structure
        self._structure: _Structure = known if known and known.edges == edges and known.space is space else _Structure(space, edges)
        self._parameters = checked(space, parameters, self._structure.shapes)

    @staticmethod
    def init(space: Space, edges: Sequence[Edge] | None = None) -> Tree:
        """All potentials 0. edges: by default each decision with the one before it in reading order."""
        if edges is None:
            names = [decision.name for decision in space.decisions]
            edges = list(pairwise(names))
        structure = _Structure(space, tuple(edges))
        return Tree(space, {name: np.zeros(shape) for name, shape in structure.shapes.items()})

    def with_parameters(self, parameters: Mapping[str, np.ndarray]) -> Tree:
        """Other parameters; also other edges, where their names say so."""
        return Tree(self.space, parameters, like=self)

    @property
    def space(self) -> Space:
        return self._structure.space

    @property
    def edges(self) -> tuple[Edge, ...]:
        return self._structure.edges

    @property
    def parameters(self) -> Mapping[str, np.ndarray]:
        return self._parameters

    # ---------------------------------------------------------------- exact inference

    @cached_property
    def log_partition(self) -> float:
        return self._structure.buckets.log_total(self._tables)

    def log_prob(self, arch: Architecture) -> float:
        return self.score(arch) - self.log_partition

    def score(self, arch: Architecture) -> float:
        """log p(arch) + log Z: the sum of the potentials that `arch` takes."""
        return float(sum(self._parameters[name][at] for name, at in self._taken(arch)))

    def grad_log_prob(self, arch: Architecture) -> Arrays:
        gradient = {name: -chance for name, chance in self._expected.items()}
        for name, at in self._taken(arch):
            gradient[name][at] += 1
        return gradient

    def sample(self, rng: Random) -> Architecture:
        return self.sample_many(1, rng)[0]

    def sample_many(self, count: int, rng: Random) -> list[Architecture]:
        return [self.space.from_indices(row) for row in self.rows(count, np.random.default_rng(rng.getrandbits(128))).tolist()]

    def rows(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """(count, decisions): option numbers of independent draws."""
        return self._structure.buckets.draw(self._tables, count, generator)

    def entropy(self) -> float:
        return self.log_partition - sum(float((self._parameters[name] * chance).sum()) for name, chance in self._expected.items())

    def grad_entropy(self) -> Arrays:
        """-Cov(the sum of all potentials, each of them), since H = log Z - E[sum] and the gradient of log Z is the mean."""
        along = self._structure.buckets.marginals(self._tables, along=self._tables)
        return {name: -slope for name, slope in self._structure.named(along).items()}

    def marginals(self) -> Arrays:
        return {decision.name: self._expected[decision.name].copy() for decision in self.space.decisions}

    def pair_marginals(self) -> dict[Edge, np.ndarray]:
        """By edge, (O_i, O_j): the probability that both ends exist and take these options."""
        return {edge: self._expected[BETWEEN.join(edge)].copy() for edge in self.edges}

    def mode(self) -> Architecture:
        return self.best(1)[0][1]

    def best(self, count: int) -> list[tuple[float, Architecture]]:
        return [(log_p, arch) for (log_p, arch), _ in zip(self.ranked(), range(count), strict=False)]

    def ranked(self) -> Iterator[tuple[float, Architecture]]:
        """All architectures with their log p, from the most likely down."""
        for score, row in self._structure.buckets.best(self._tables):
            yield score - self.log_partition, self.space.from_indices(row.tolist())

    def on(self, edges: Sequence[Edge]) -> Tree:
        """The tree on other edges with the marginals that these edges and all decisions have here (moment matching; see `from_marginals`)."""
        joint, least = {}, 1e-12  # a combination that hardly ever occurs keeps a finite potential
        for edge in edges:
            buckets = Buckets(self.space, [*self._structure.scopes, edge])
            chance = buckets.marginals([*self._tables, np.zeros([buckets.sizes[self.space.position(name)] for name in edge])])[-1]
            joint[edge] = np.maximum(chance[tuple(slice(len(self.space[name].options)) for name in edge)], least)
        return from_marginals(self.space, {name: np.maximum(p, least) for name, p in self.marginals().items()}, joint)

    # ---------------------------------------------------------------- with a cost

    def mode_priced(self, cost: Cost, price: float) -> Architecture:
        """The architecture of the largest log p(arch) - price * cost(arch)."""
        buckets, tables, charges = self._charged(cost)
        _, row = next(buckets.best([*tables, *(-price * charge for charge in charges)]))
        return self.space.from_indices(row.tolist())

    def expected_cost(self, cost: Cost) -> tuple[float, Arrays]:
        """E[cost(arch)] and its gradient, the covariance of the cost with each potential."""
        buckets, tables, charges = self._charged(cost)
        silent = [np.zeros_like(charge) for charge in charges]
        chances = buckets.marginals([*tables, *silent])
        mean = sum(float((charge * chance).sum()) for charge, chance in zip(charges, chances[len(tables) :], strict=True))
        along = buckets.marginals([*tables, *silent], along=[*(np.zeros_like(table) for table in tables), *charges])
        return mean, self._structure.named(along[: len(tables)])

    def _charged(self, cost: Cost) -> tuple[Buckets, list[np.ndarray], list[np.ndarray]]:
        if cost.kind != "sum":
            raise CostError(f"{cost.name} is a maximum of its factors, which no sum of small tables says")
        buckets = Buckets(self.space, [*self._structure.scopes, *(factor.scope for factor in cost.factors)])
        start = len(self._structure.scopes)
        return buckets, self._tables, [buckets.as_first(start + n, f.table.astype(np.float64)) for n, f in enumerate(cost.factors)]

    # ---------------------------------------------------------------- given the limits

    def sample_within(self, inside: Within, rng: Random) -> Architecture:
        return self.sample_many_within(1, inside, rng)[0]

    def sample_many_within(self, count: int, inside: Within, rng: Random) -> list[Architecture]:
        return [
            self.space.from_indices(row) for row in self.rows_within(count, inside, np.random.default_rng(rng.getrandbits(128))).tolist()
        ]

    def rows_within(self, count: int, inside: Within, generator: np.random.Generator) -> np.ndarray:
        """(count, decisions): option numbers of independent draws given that the limits are kept."""
        reordered = self._structure.within(inside)
        if inside not in self._samplers:
            self._samplers[inside] = Sampler(reordered.feasible, self._weights)
        return reordered.rows(self._samplers[inside].draw(count, generator))

    def log_p_feasible(self, inside: Within) -> tuple[float, Arrays]:
        log_total, chances = self._given(inside)
        return min(0.0, log_total - self.log_partition), {name: chances[name] - self._expected[name] for name in chances}

    def entropy_within(self, inside: Within) -> float:
        log_total, chances = self._given(inside)
        return log_total - sum(float((self._parameters[name] * chance).sum()) for name, chance in chances.items())

    def marginals_within(self, inside: Within) -> Arrays:
        chances = self._given(inside)[1]
        return {decision.name: chances[decision.name] for decision in self.space.decisions}

    def mode_within(self, inside: Within) -> Architecture:
        found = most_likely(self._structure.within(inside).feasible, self._weights)
        return self.space.architecture(dict(found))

    # ---------------------------------------------------------------- inside

    def _given(self, inside: Within) -> tuple[float, Arrays]:
        """log of the total weight of what keeps the limits, and the probability, given that, of what each potential is about."""
        log_total, slopes = self._structure.within(inside).feasible.log_total(self._weights)
        return log_total, {name: self._weights[key] * slopes[key] for name, key in self._structure.keys.items()}

    def _taken(self, arch: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The names of the potentials that `arch` takes, and their places."""
        (row,) = self.space.indices([arch])
        for name, scope, positions in zip(self._structure.shapes, self._structure.scopes, self._structure.positions, strict=True):
            if all(one in arch for one in scope):
                yield name, tuple(row[p] for p in positions)

    @cached_property
    def _tables(self) -> list[np.ndarray]:
        return [self._structure.buckets.silent(number, table) for number, table in enumerate(self._parameters.values())]

    @cached_property
    def _expected(self) -> Arrays:
        return self._structure.named(self._structure.buckets.marginals(self._tables))

    @cached_property
    def _weights(self) -> dict[str | Edge, np.ndarray]:
        return {key: np.exp(self._parameters[name]) for name, key in self._structure.keys.items()}

    @cached_property
    def _samplers(self) -> WeakKeyDictionary[Within, Sampler]:
        return WeakKeyDictionary()


class _Structure:
    """What the edges alone decide; shared by all trees that have them, however often their parameters change."""

    def __init__(self, space: Space, edges: tuple[Edge, ...]) -> None:
        self.space, self.edges = space, edges
        self.scopes: list[tuple[str, ...]] = [*((decision.name,) for decision in space.decisions), *edges]
        self.positions = [tuple(space.position(name) for name in scope) for scope in self.scopes]
        _require_forest(space, edges)
        self.shapes = {BETWEEN.join(scope): tuple(len(space[name].options) for name in scope) for scope in self.scopes}
        self.keys: dict[str, str | Edge] = {BETWEEN.join(scope): scope[0] if len(scope) == 1 else scope for scope in self.scopes}  # type: ignore[misc]
        self._within: WeakKeyDictionary[Within, Reordered] = WeakKeyDictionary()

    @cached_property
    def buckets(self) -> Buckets:
        return Buckets(self.space, self.scopes)

    def named(self, tables: Sequence[np.ndarray]) -> Arrays:
        """Tables over options and absence by name, without the part where a decision is absent."""
        return {
            name: table[tuple(slice(length) for length in shape)].copy()
            for (name, shape), table in zip(self.shapes.items(), tables, strict=True)
        }

    def within(self, inside: Within) -> Reordered:
        if inside.space is not self.space and inside.space.hash != self.space.hash:
            raise DistributionError(f"the distribution is over the space {self.space.hash}, but the limits are on the space {inside.hash}")
        if inside not in self._within:
            self._within[inside] = narrowest(inside.feasible, self.edges)
        return self._within[inside]


def from_marginals(space: Space, single: Mapping[str, np.ndarray], joint: Mapping[Edge, np.ndarray]) -> Tree:
    """The tree with these marginals, or weights that are proportional to them: of each decision given that it exists, (O_i,), and of each edge
    given that both ends do, (O_i, O_j); all above 0.

    th_i = log p_i and th_ij = log p_ij / (p_i p_j), where the p_i and p_j of the latter are p_ij's own. This is the tree of the greatest
    likelihood where of each edge one end exists whenever the other does; elsewhere its marginals may differ from those given.
    """
    parameters = {name: np.log(weight / weight.sum()) for name, weight in single.items()}
    for edge, weight in joint.items():
        p = weight / weight.sum()
        parameters[BETWEEN.join(edge)] = np.log(p / (p.sum(axis=1, keepdims=True) * p.sum(axis=0)))
    return Tree(space, parameters)


def edges_of(space: Space, names: Mapping[str, object]) -> tuple[Edge, ...]:
    """The edges that parameters of these names have."""
    edges = []
    for name in names:
        first, between, second = name.partition(BETWEEN)
        if between:
            edges.append((first, second))
    return tuple(edges)


def _require_forest(space: Space, edges: Sequence[Edge]) -> None:
    root = {decision.name: decision.name for decision in space.decisions}

    def top(name: str) -> str:
        while root[name] != name:
            root[name] = root[root[name]]
            name = root[name]
        return name

    for first, second in edges:
        space.position(first), space.position(second)
        if (a := top(first)) == (b := top(second)):
            raise DistributionError(f"the edge {first}{BETWEEN}{second} closes a cycle; the edges of a tree have none: {edges}")
        root[a] = b
