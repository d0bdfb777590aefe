"""IRL topology guidance after IRLAS (Guo et al., CVPR 2019, arXiv 1812.05285): a learned score of how much a topology is like an expert's.

Parts: feature counts of topologies, additive over decisions, so that their expectation under a distribution and the best response to any
weights are exact; apprenticeship learning (Abbeel & Ng, ICML 2004) of the weights, by projection or by the largest margin; the score as a
metric that is added to the accuracy in any ask/tell search (`guided`), or to the loss of a gradient search (`expected_score`).

No code of the paper was released, and its text was not at hand: the layout of the features is ours, and this is guidance after IRLAS, not
a reproduction of its figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niwaki.distribution.tree import Tree
from niwaki.space.architecture import Architecture
from niwaki.space.choice import SpaceError
from niwaki.space.space import Decision, Space
from niwaki.zoo.nasbench import EDGES_201, OPERATIONS_201

PUBLISHED = {"cifar10 error": "2.60 %", "imagenet top-1": "75.28 %"}  # abstract; needs their training
WEIGHT = 0.5  # lambda: the paper's is about .3 to 1 with the score scaled to [0, 1]
MARGIN = 1e-6  # apprenticeship ends where the expert is matched this well
SCALED_BY = 1000  # random architectures that the score is scaled by

Evaluate = Callable[[Architecture], Mapping[str, float]]


@dataclass(frozen=True)
class FeatureCounts:
    """mu(arch) = sum over the decisions that exist, in reading order, of discount^t * tables[name][option] (K,).

    tables: by decision name (O, K) float64; decisions without one count nothing. t numbers the decisions with a table. discount: gamma; 1 on
    short cells.
    """

    space: Space
    tables: Mapping[str, np.ndarray]
    discount: float = 1.0

    def __post_init__(self) -> None:
        tables = {}
        for t, decision in enumerate(d for d in self.space if d.name in self.tables):
            table = np.asarray(self.tables[decision.name], dtype=np.float64)
            if table.ndim != 2 or len(table) != len(decision.options):
                raise SpaceError(f"the features of {decision.name!r} have the shape {table.shape}, not ({len(decision.options)}, K)")
            tables[decision.name] = self.discount**t * table
        if unknown := sorted(self.tables.keys() - tables.keys()):
            raise SpaceError(f"features are given for {', '.join(map(repr, unknown))}, which are no decisions of the space")
        if len({table.shape[1] for table in tables.values()}) != 1:
            raise SpaceError("all decisions have as many features; here: " + ", ".join(f"{k} {v.shape[1]}" for k, v in tables.items()))
        object.__setattr__(self, "tables", tables)

    @property
    def size(self) -> int:
        """K."""
        return next(iter(self.tables.values())).shape[1]

    def __call__(self, arch: Architecture) -> np.ndarray:
        """mu(arch), (K,)."""
        taken = (self.tables[name][self.space[name].options.index(option)] for name, option in arch.items() if name in self.tables)
        return sum(taken, np.zeros(self.size))

    def mean(self) -> np.ndarray:
        """(K,): of the random policy, which takes all architectures alike."""
        marginals = Tree.init(self.space, ()).marginals()
        return sum((marginals[name] @ table for name, table in self.tables.items()), np.zeros(self.size))

    def best(self, weights: np.ndarray) -> Architecture:
        """The architecture with the largest weights . mu: what an agent trained on that reward converges to, found exactly."""
        scores = {d.name: self.tables[d.name] @ weights if d.name in self.tables else np.zeros(len(d.options)) for d in self.space}
        return Tree(self.space, scores).mode()


@dataclass(frozen=True)
class Learned:
    """weights: (K,) of norm 1. margins: before each step, how far the expert was ahead of what the agent had found (t_i)."""

    weights: np.ndarray
    margins: tuple[float, ...]


def by_projection(features: FeatureCounts, expert: np.ndarray, *, start: np.ndarray | None = None, iterations: int = 30) -> Learned:
    """Apprenticeship learning without a quadratic program (Abbeel & Ng, section 3.1).

    expert: mu of the expert, or the mean of several. start: mu^(0), by default of the random policy. Ends where the margin is below 1e-6,
    or after `iterations` best responses.
    """
    mixed = features.mean() if start is None else np.asarray(start, dtype=np.float64)
    margins, weights = [float(np.linalg.norm(expert - mixed))], expert - mixed
    for _ in range(iterations):
        if margins[-1] <= MARGIN:
            break
        step = features(features.best(expert - mixed)) - mixed
        if (length := float(step @ step)) == 0:
            break
        mixed = mixed + np.clip(float(step @ (expert - mixed)) / length, 0.0, 1.0) * step
        margins.append(float(np.linalg.norm(expert - mixed)))
        if margins[-1] > MARGIN:
            weights = expert - mixed
    return Learned(_unit(weights), tuple(margins))


def by_margin(features: FeatureCounts, expert: np.ndarray, *, start: np.ndarray | None = None, iterations: int = 30) -> Learned:
    """max t subject to w . expert >= w . mu^(j) + t for all j, |w| <= 1: the max-margin form (Abbeel & Ng, Eq. 11).

    Its solution is the shortest vector in the convex hull of expert - mu^(j), over its length, which is the margin.
    """
    found = [features.mean() if start is None else np.asarray(start, dtype=np.float64)]
    margins: list[float] = []
    weights = expert - found[0]
    for _ in range(iterations + 1):
        shortest = shortest_in_hull(expert - np.array(found))
        margins.append(float(np.linalg.norm(shortest)))
        if margins[-1] <= MARGIN:
            break
        weights = shortest
        response = features(features.best(weights))
        if any(np.array_equal(response, other) for other in found):
            break
        found.append(response)
    return Learned(_unit(weights), tuple(margins))


def shortest_in_hull(points: np.ndarray, *, tolerance: float = 1e-12) -> np.ndarray:
    """(K,): the point of the convex hull of `points` (N, K) that is nearest to 0 (Wolfe, "Finding the nearest point in a polytope", 1976)."""
    corral = [int(np.argmin((points**2).sum(1)))]
    weights = np.ones(1)
    x = points[corral[0]]
    for _ in range(100 * len(points)):
        nearest = int(np.argmin(points @ x))
        if nearest in corral or x @ x - points[nearest] @ x <= tolerance * max(1.0, float((points**2).sum(1).max())):
            return x
        corral, weights = [*corral, nearest], np.append(weights, 0.0)
        while True:
            affine = _affine_minimum(points[corral])
            if (affine > tolerance).all():
                weights = affine
                break
            outside = affine <= tolerance
            with np.errstate(divide="ignore", invalid="ignore"):
                steps = np.where(outside & (weights > affine), weights / (weights - affine), np.inf)
            weights = weights + min(1.0, float(steps.min())) * (affine - weights)
            kept = weights > tolerance
            corral = [index for index, keep in zip(corral, kept, strict=True) if keep]
            weights = weights[kept] / weights[kept].sum()
            if len(corral) == 1:
                break
        x = weights @ points[corral]
    return x


def _affine_minimum(points: np.ndarray) -> np.ndarray:
    """Weights, of sum 1, of the point nearest to 0 in the affine hull."""
    count = len(points)
    system = np.zeros((count + 1, count + 1))
    system[0, 1:] = system[1:, 0] = 1
    system[1:, 1:] = points @ points.T
    return np.linalg.lstsq(system, np.eye(count + 1)[0], rcond=None)[0][1:]


def _unit(weights: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(weights))
    return weights / length if length else weights


@dataclass(frozen=True)
class Topology:
    """The mirror stimuli function F(arch) = w . mu(arch), scaled so that random architectures lie in [0, 1]: low is 0 and high is 1."""

    features: FeatureCounts
    weights: np.ndarray
    low: float
    high: float

    def __call__(self, arch: Architecture) -> float:
        return (float(self.weights @ self.features(arch)) - self.low) / (self.high - self.low)

    def tables(self) -> dict[str, np.ndarray]:
        """By decision (O,): what each option adds to the scaled score, apart from the constant."""
        return {name: table @ self.weights / (self.high - self.low) for name, table in self.features.tables.items()}

    def expected_score(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """E[F], a scalar, exact and differentiable, for decisions that are independent and always exist. probabilities: by name (O,)."""
        device = next(iter(probabilities.values())).device
        total = torch.tensor(-self.low / (self.high - self.low), dtype=torch.float64, device=device)
        for name, table in self.tables().items():
            total = total + probabilities[name].double() @ torch.from_numpy(table).to(device)
        return total


def topology(
    features: FeatureCounts, experts: Sequence[Architecture], rng: Random, *, learn: Callable[..., Learned] = by_projection
) -> Topology:
    """F learned from `experts` (several: the mean of their feature counts), scaled by 1,000 random architectures drawn from `rng`."""
    if not experts:
        raise SpaceError("topology guidance needs at least one expert")
    weights = learn(features, np.mean([features(expert) for expert in experts], axis=0)).weights
    scores = [float(weights @ features(features.space.sample_uniform(rng))) for _ in range(SCALED_BY)]
    if min(scores) == max(scores):
        raise SpaceError("the features do not tell architectures of this space apart, so that no topology is like the expert's")
    return Topology(features, weights, min(scores), max(scores))


def guided(evaluate: Evaluate, score: Topology, *, weight: float = WEIGHT, metric: str = "accuracy", scale: float = 1.0) -> Evaluate:
    """`evaluate` with two further metrics: "topology", F, and "guided" = metric / scale + weight * F, which is what a search then maximizes.

    scale: 100 where the metric is in percent.
    """

    def metrics(arch: Architecture) -> dict[str, float]:
        found = dict(evaluate(arch))
        found["topology"] = score(arch)
        return {**found, "guided": found[metric] / scale + weight * found["topology"]}

    return metrics


# --- spaces with their features and experts ----------------------------------------------------------------------------------------


def tiny_cells() -> tuple[FeatureCounts, Architecture]:
    """4,536 cells of 4 nodes, each one of conv3, conv1, identity of an earlier node, or the sum of two; features; a residual chain as expert.

    Node i reads nodes 0 (the input) to i-1. Twelve features of a step: which of the four operations it is, how far back it reads, and for sums
    whether the first reads the node before and how far back the second reads. Distances are relative, so that a pattern may stand anywhere,
    and each is a feature of its own: with their sums instead, the expert is a mixture of a chain of convolutions and one of sums, and no
    weights tell it from those.
    """
    nodes = 4
    decisions, tables = [], {}
    for i in range(1, nodes + 1):
        options: list[tuple[Any, ...]] = [(op, p) for op in ("conv3", "conv1", "identity") for p in range(i)]
        options += [("add", b, a) for a, b in combinations(range(i), 2)]
        decision = Decision(f"node{i}", tuple(options))
        decisions.append(decision)
        tables[decision.name] = np.array([_tiny_features(option, i, nodes) for option in options])
    space = Space(tuple(decisions))
    expert = {"node1": ("conv3", 0), "node2": ("conv3", 1), "node3": ("add", 2, 0), "node4": ("conv3", 3)}
    return FeatureCounts(space, tables), space.architecture(expert)


def _tiny_features(option: tuple[Any, ...], i: int, nodes: int) -> list[float]:
    op, first, *second = option
    kinds = [float(op == kind) for kind in ("conv3", "conv1", "identity", "add")]
    back = [float(op != "add" and i - first == distance) for distance in range(1, nodes + 1)]
    of_second = [float(op == "add" and i - second[0] == distance) for distance in range(2, nodes + 1)]
    return [*kinds, *back, *of_second, float(op == "add" and first == i - 1)]


def nasbench201_cells(space: Space) -> tuple[FeatureCounts, Architecture]:
    """Features of NAS-Bench-201's cells, and the residual cell as expert: two 3x3 convolutions in a row, with a skip around them.

    A feature for each operation at each distance between the nodes that its edge joins: relative, as a pattern may stand anywhere.
    """
    names = [f"edge{a}{b}" for a, b in EDGES_201]
    tables = {}
    for name, (a, b) in zip(names, EDGES_201, strict=True):
        table = np.zeros((len(OPERATIONS_201), 3 * len(OPERATIONS_201)))
        for number in range(len(OPERATIONS_201)):
            table[number, 3 * number + (b - a - 1)] = 1
        tables[name] = table
    taken = dict.fromkeys(names, "none") | {"edge01": "nor_conv_3x3", "edge13": "nor_conv_3x3", "edge03": "skip_connect"}
    return FeatureCounts(space, tables), space.architecture(taken)
