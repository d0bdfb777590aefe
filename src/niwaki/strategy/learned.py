"""Any `Distribution` as the policy of a policy gradient: the tree-structured one, whose decisions may depend on each other, or one of a user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

import numpy as np

from niwaki.distribution.distribution import Distribution
from niwaki.factor.within import Within
from niwaki.space.architecture import Architecture
from niwaki.space.space import Space
from niwaki.strategy.strategy import SearchSpace, whole


@dataclass(frozen=True)
class Learned:
    """A controller that learns a distribution: `Learned(Tree.init)`, or `Learned(Independent.init)`, which `softmaxes` is quicker at.

    first: the distribution before anything is known, of a space. Within budgets it is the distribution given that they hold, exactly.
    """

    first: Callable[[Space], Distribution]

    def __call__(self, space: SearchSpace) -> LearnedPolicy:
        inside = space if isinstance(space, Within) else None
        return LearnedPolicy(self.first(whole(space)), inside)


class LearnedPolicy:
    """parameters: all those of the distribution, one after the other. The entropy is the distribution's own, of whole architectures."""

    def __init__(self, first: Distribution, inside: Within | None) -> None:
        self.first, self.inside = first, inside
        self._ends = np.cumsum([values.size for values in first.parameters.values()])

    def distribution(self, parameters: np.ndarray) -> Distribution:
        """The distribution that has these parameters."""
        parts = zip(self.first.parameters.items(), np.split(parameters, self._ends[:-1]), strict=True)
        return self.first.with_parameters({name: part.reshape(values.shape) for (name, values), part in parts})

    def initial(self) -> np.ndarray:
        return self._flat(self.first.parameters)

    def sample(self, parameters: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
        now, rng = self.distribution(parameters), Random(int(generator.integers(2**63)))
        drawn = now.sample_many(count, rng) if self.inside is None else now.sample_many_within(count, self.inside, rng)
        return np.array(now.space.indices(drawn), dtype=np.int64).reshape(count, -1)

    def log_prob(self, parameters: np.ndarray, rows: np.ndarray) -> np.ndarray:
        now = self.distribution(parameters)
        different, which = np.unique(rows, axis=0, return_inverse=True)
        each = np.array([now.log_prob(now.space.from_indices(row)) for row in different.tolist()])[which.ravel()]
        return each if self.inside is None else each - now.log_p_feasible(self.inside)[0]

    def gradient(self, parameters: np.ndarray, rows: np.ndarray, weights: np.ndarray, entropy: float, step: int) -> np.ndarray:
        now = self.distribution(parameters)
        different, which = np.unique(rows, axis=0, return_inverse=True)
        gradient = np.zeros_like(parameters)
        for row, weight in zip(different.tolist(), np.bincount(which.ravel(), weights), strict=True):
            if weight:
                gradient += weight * self._flat(now.grad_log_prob(now.space.from_indices(row)))
        if self.inside is not None and (total := float(weights.sum())):
            gradient -= total * self._flat(now.log_p_feasible(self.inside)[1])
        if entropy:
            gradient += entropy * self._flat(now.grad_entropy())
        return gradient

    def mode(self, parameters: np.ndarray) -> Architecture:
        now = self.distribution(parameters)
        return now.mode() if self.inside is None else now.mode_within(self.inside)

    def _flat(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([np.asarray(parts[name], dtype=np.float64).ravel() for name in self.first.parameters])
