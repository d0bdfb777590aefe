"""What a distribution over architectures is, for everything that samples, learns or derives architectures from one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Protocol, Self

import numpy as np

from niwaki.factor.within import Within
from niwaki.space.architecture import Architecture
from niwaki.space.space import Space

Arrays = dict[str, np.ndarray]  # float64, named and shaped as the parameters


class DistributionError(ValueError):
    """Distributions whose parameters do not fit their space."""


class Distribution(Protocol):
    """A frozen value: a space and named float64 parameters. `Independent` and `Tree` are the two; either serves wherever one is asked for.

    A gradient is by the parameters, named and shaped as these. A decision that does not exist in an architecture contributes nothing to
    its probability. The last methods are about the distribution *given* that the limits of `inside` are kept, where
    p(arch | inside) = p(arch) / P(inside): exact as the cost algebra is (niwaki.factor), and BudgetError where P(inside) is 0.

    >>> distribution = Tree.init(space)                          # doctest: +SKIP
    >>> arch = distribution.sample(Random(0))                    # doctest: +SKIP
    >>> slope = distribution.grad_log_prob(arch)                 # doctest: +SKIP
    >>> distribution.with_parameters({name: p + 0.1 * slope[name] for name, p in distribution.parameters.items()})  # doctest: +SKIP
    """

    @property
    def space(self) -> Space: ...
    @property
    def parameters(self) -> Mapping[str, np.ndarray]: ...

    def with_parameters(self, parameters: Mapping[str, np.ndarray]) -> Self:
        """The same kind of distribution with other parameters."""
        ...

    def sample(self, rng: Random) -> Architecture: ...

    def sample_many(self, count: int, rng: Random) -> list[Architecture]:
        """Independent draws; quicker than as many calls of `sample`."""
        ...

    def rows(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """(count, decisions): the same as option numbers, 0 where a decision does not exist."""
        ...

    def log_prob(self, arch: Architecture) -> float:
        """log p(arch), natural."""
        ...

    def grad_log_prob(self, arch: Architecture) -> Arrays: ...

    def entropy(self) -> float:
        """Of the whole architecture, in nats."""
        ...

    def grad_entropy(self) -> Arrays: ...

    def marginals(self) -> Arrays:
        """By decision, (options,): the probability that it exists and takes the option. Sums to the probability that it exists."""
        ...

    def mode(self) -> Architecture:
        """The most likely architecture."""
        ...

    def best(self, count: int) -> list[tuple[float, Architecture]]:
        """The `count` most likely architectures with their log p, from the most likely down; all of them where the space has fewer."""
        ...

    # ---------------------------------------------------------------- given the limits

    def sample_within(self, inside: Within, rng: Random) -> Architecture: ...

    def sample_many_within(self, count: int, inside: Within, rng: Random) -> list[Architecture]: ...

    def rows_within(self, count: int, inside: Within, generator: np.random.Generator) -> np.ndarray: ...

    def log_p_feasible(self, inside: Within) -> tuple[float, Arrays]:
        """log P(the limits are kept), and its gradient. The gradient of log p(arch | inside) is `grad_log_prob(arch)` less this one."""
        ...

    def entropy_within(self, inside: Within) -> float: ...

    def marginals_within(self, inside: Within) -> Arrays: ...

    def mode_within(self, inside: Within) -> Architecture: ...


def checked(space: Space, parameters: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]]) -> Arrays:
    """`parameters` as float64 in the order of `shapes`, which they must have exactly; all finite."""
    if missing := [name for name in shapes if name not in parameters]:
        raise DistributionError(f"no parameters are given for {', '.join(map(repr, missing))}")
    if unknown := [name for name in parameters if name not in shapes]:
        known = ", ".join(decision.name for decision in space.decisions)
        raise DistributionError(f"parameters are given for {', '.join(map(repr, unknown))}; the decisions are {known}")
    found = {}
    for name, shape in shapes.items():
        given = np.array(parameters[name], dtype=np.float64)
        if given.shape != tuple(shape):
            raise DistributionError(f"the parameters of {name!r} have the shape {given.shape}, not {tuple(shape)}")
        if not np.isfinite(given).all():
            raise DistributionError(f"the parameters of {name!r} are not all finite: {given}")
        given.flags.writeable = False
        found[name] = given
    return found
