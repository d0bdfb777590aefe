"""Any `Distribution` as a policy that PolicyGradient learns: trees wherever independent softmaxes are, within budgets or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from niwaki.distribution.distribution import Distribution
from niwaki.distribution.tree import Edge, Tree
from niwaki.factor.within import Within
from niwaki.space.architecture import Architecture
from niwaki.space.choice import SpaceError
from niwaki.space.space import Space
from niwaki.strategy.strategy import SearchSpace


class DistributionPolicy:
    """The policy p(architecture), or p(architecture | budgets) where the space has some, of the distributions that `start` begins.

    parameters: those of the distribution, one after another. Budgets are kept exactly: P(V) and its gradient come from the cost algebra. The
    entropy is that of the distribution without the budgets.
    """

    def __init__(self, space: SearchSpace, start: Callable[[Space], Distribution]) -> None:
        self.inside = space if isinstance(space, Within) else None
        whole = space.space if isinstance(space, Within) else space
        if not isinstance(whole, Space):
            raise SpaceError(f"a policy needs a Space, or one within budgets, not a {type(space).__name__}")
        self.space, self.start = whole, start(whole)
        self._names = list(self.start.parameters)
        self._ends = np.cumsum([0, *(table.size for table in self.start.parameters.values())]).tolist()

    def initial(self) -> np.ndarray:
        return self._flat(self.start.parameters)

    def at(self, parameters: np.ndarray) -> Distribution:
        """The distribution with these parameters."""
        shapes = [table.shape for table in self.start.parameters.values()]
        parts = [parameters[a:b].reshape(shape) for a, b, shape in zip(self._ends, self._ends[1:], shapes, strict=False)]
        return self.start.with_parameters(dict(zip(self._names, parts, strict=True)))

    def sample(self, parameters: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
        distribution = self.at(parameters)
        if self.inside is not None:
            return distribution.rows_within(count, self.inside, generator).astype(np.int64)
        return distribution.rows(count, generator).astype(np.int64)

    def log_prob(self, parameters: np.ndarray, rows: np.ndarray) -> np.ndarray:
        distribution = self.at(parameters)
        given = distribution.log_p_feasible(self.inside)[0] if self.inside is not None else 0.0
        return np.array([distribution.log_prob(self.space.from_indices(row)) for row in rows.tolist()]) - given

    def gradient(self, parameters: np.ndarray, rows: np.ndarray, weights: np.ndarray, entropy: float, step: int) -> np.ndarray:
        distribution, total = self.at(parameters), float(weights.sum())
        found = np.zeros_like(parameters)
        for row, weight in zip(rows.tolist(), weights.tolist(), strict=True):
            if weight:
                found += weight * self._flat(distribution.grad_log_prob(self.space.from_indices(row)))
        if self.inside is not None and total:
            found -= total * self._flat(distribution.log_p_feasible(self.inside)[1])
        return found + entropy * self._flat(distribution.grad_entropy()) if entropy else found

    def mode(self, parameters: np.ndarray) -> Architecture:
        distribution = self.at(parameters)
        return distribution.mode() if self.inside is None else distribution.mode_within(self.inside)

    def _flat(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([np.ravel(arrays[name]) for name in self._names]) if self._names else np.zeros(0)


def trees(space: SearchSpace) -> DistributionPolicy:
    """A tree whose edges join each decision with the one before it in reading order: `PolicyGradient(controller=trees)`."""
    return DistributionPolicy(space, Tree.init)


def trees_on(edges: Sequence[Edge]) -> Callable[[SearchSpace], DistributionPolicy]:
    """The same on edges that are known, or were learned (`chow_liu_tree`, `CrankSearch`)."""
    return lambda space: DistributionPolicy(space, lambda whole: Tree.init(whole, edges))
