"""Independent categoricals: one vector of logits per decision. What REINFORCE, TuNAS, TabNAS and the differentiable methods learn."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from random import Random

import numpy as np

from niwaki.distribution.distribution import Arrays, checked
from niwaki.distribution.tree import Tree
from niwaki.factor.factor import index_type
from niwaki.factor.within import Within
from niwaki.space.architecture import Architecture
from niwaki.space.space import Space


class Independent:
    """p(arch) = product over the decisions that exist of softmax(logits)[option]. parameters: "decision" -> logits (O,), 0 at first.

    It is a `Tree` without edges whose potentials are the log-probabilities (then Z = 1), and what is not simpler is asked there; gradients
    come back through the softmax.
    """

    def __init__(self, space: Space, parameters: Mapping[str, np.ndarray], *, like: Tree | None = None) -> None:
        self.space = space
        self._parameters = checked(space, parameters, {decision.name: (len(decision.options),) for decision in space.decisions})
        self._like = like

    @staticmethod
    def init(space: Space) -> Independent:
        """Uniform per choice."""
        return Independent(space, {decision.name: np.zeros(len(decision.options)) for decision in space.decisions})

    @staticmethod
    def of(space: Space, probabilities: Mapping[str, np.ndarray]) -> Independent:
        """The one with these probabilities; 0 becomes 1e-300, for logits are finite."""
        return Independent(space, {name: np.log(np.maximum(p, 1e-300)) for name, p in probabilities.items()})

    def with_parameters(self, parameters: Mapping[str, np.ndarray]) -> Independent:
        return Independent(self.space, parameters, like=self._tree if "_tree" in vars(self) else self._like)

    @property
    def parameters(self) -> Mapping[str, np.ndarray]:
        return self._parameters

    @cached_property
    def probabilities(self) -> Arrays:
        """By decision, (O,): softmax(logits)."""
        return {name: np.exp(log_p) for name, log_p in self._log_p.items()}

    def log_prob(self, arch: Architecture) -> float:
        (row,) = self.space.indices([arch])
        return float(sum(log_p[at] for (name, log_p), at in zip(self._log_p.items(), row, strict=True) if name in arch))

    def grad_log_prob(self, arch: Architecture) -> Arrays:
        gradient = {}
        (row,) = self.space.indices([arch])
        for (name, p), at in zip(self.probabilities.items(), row, strict=True):
            gradient[name] = -p if name in arch else np.zeros_like(p)
            if name in arch:
                gradient[name][at] += 1
        return gradient

    def sample(self, rng: Random) -> Architecture:
        return self.sample_many(1, rng)[0]

    def sample_many(self, count: int, rng: Random) -> list[Architecture]:
        return [self.space.from_indices(row) for row in self.rows(count, np.random.default_rng(rng.getrandbits(128))).tolist()]

    def rows(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Every decision is drawn, and of those that do not exist option 0 is left."""
        rows = np.zeros((count, len(self.space)), dtype=index_type(self.space))
        for column, (below, u) in enumerate(zip(self._below, generator.random((len(self.space), count)), strict=True)):
            rows[:, column] = np.minimum(np.searchsorted(below, u * below[-1], side="right"), len(below) - 1)
            if self.space.decisions[column].condition is not True:
                rows[:, column] *= self.space.existence.at(rows, column)
        return rows

    def entropy(self) -> float:
        return self._tree.entropy()

    def grad_entropy(self) -> Arrays:
        return self._by_logits(self._tree.grad_entropy())

    def marginals(self) -> Arrays:
        return self._tree.marginals()

    def mode(self) -> Architecture:
        return self._tree.mode()

    def best(self, count: int) -> list[tuple[float, Architecture]]:
        return self._tree.best(count)

    def sample_within(self, inside: Within, rng: Random) -> Architecture:
        return self._tree.sample_within(inside, rng)

    def sample_many_within(self, count: int, inside: Within, rng: Random) -> list[Architecture]:
        return self._tree.sample_many_within(count, inside, rng)

    def rows_within(self, count: int, inside: Within, generator: np.random.Generator) -> np.ndarray:
        return self._tree.rows_within(count, inside, generator)

    def log_p_feasible(self, inside: Within) -> tuple[float, Arrays]:
        log_p, slopes = self._tree.log_p_feasible(inside)
        return log_p, self._by_logits(slopes)

    def entropy_within(self, inside: Within) -> float:
        return self._tree.entropy_within(inside)

    def marginals_within(self, inside: Within) -> Arrays:
        return self._tree.marginals_within(inside)

    def mode_within(self, inside: Within) -> Architecture:
        return self._tree.mode_within(inside)

    # ---------------------------------------------------------------- inside

    @cached_property
    def _log_p(self) -> Arrays:
        logs = {}
        for name, logits in self._parameters.items():
            shifted = logits - logits.max()
            logs[name] = shifted - np.log(np.exp(shifted).sum())
        return logs

    @cached_property
    def _below(self) -> list[np.ndarray]:
        return [np.cumsum(p) for p in self.probabilities.values()]

    @cached_property
    def _tree(self) -> Tree:
        return Tree(self.space, self._log_p, like=self._like)

    def _by_logits(self, gradient: Arrays) -> Arrays:
        """A gradient by log-probabilities as one by logits: both potentials and probabilities of a decision move with each of its logits."""
        return {name: slope - self.probabilities[name] * slope.sum() for name, slope in gradient.items()}
