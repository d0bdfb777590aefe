"""ADMM: the relaxed architecture and a discrete one within the budgets are drawn together (Boyd et al. 2011, scaled form, section 3.1.1).

    a <- argmin loss(a) + rho/2 ||a - z + u||^2        by the search's own gradient steps, with `penalty` in its loss
    z <- the architecture within the budgets that is nearest to a + u        exact, by the cost algebra
    u <- u + a - z

a: a probability for every option of every decision; z: one-hot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niwaki.factor.factor import CostError
from niwaki.factor.within import Within
from niwaki.space.architecture import Architecture

LARGEST_EXPONENT = 300.0


def nearest(space: Within, values: Mapping[str, np.ndarray]) -> Architecture:
    """The architecture within the budgets whose one-hot form is nearest to `values` (name -> (O,)), exactly: a multiple-choice knapsack.

    A decision that does not exist counts as zeros. ||z - v||^2 is ||v||^2 plus 1 - 2 v[option] for each decision that exists, so it is least
    where the sum of 2 v[option] - 1 is largest: the most likely architecture where the weights of options are the exponentials of that.
    """
    scores = {}
    for decision in space.decisions:
        given = np.asarray(values.get(decision.name, ()), dtype=np.float64)
        if given.shape != (len(decision.options),) or not np.isfinite(given).all():
            raise CostError(f"the nearest architecture needs {len(decision.options)} finite numbers for {decision.name!r}, not {given}")
        scores[decision.name] = 2 * given - 1
    most = max((float(np.abs(score).max()) for score in scores.values()), default=0.0)
    scale = min(1.0, LARGEST_EXPONENT / most) if most > 0 else 1.0
    return space.mode({name: np.exp(score * scale) for name, score in scores.items()})


@dataclass(frozen=True)
class AdmmState:
    """z: the architecture. u: name -> (O,), what a and z differed by, summed. rho: the weight of the penalty."""

    z: Architecture
    u: Mapping[str, np.ndarray]
    rho: float


@dataclass(frozen=True)
class Admm:
    """rho: of the first round; it doubles where ||a - z|| is more than `balance` times rho ||z - z before||, and halves where it is the other
    way round (Boyd et al., section 3.4.1)."""

    rho: float = 1e-2
    balance: float = 10.0
    growth: float = 2.0

    def __post_init__(self) -> None:
        if not (0 < self.rho < np.inf and self.balance >= 1 and self.growth >= 1):
            raise ValueError(f"rho={self.rho}, balance={self.balance}, growth={self.growth}: rho is above 0, the other two are at least 1")

    def init(self, space: Within, probabilities: Mapping[str, np.ndarray]) -> AdmmState:
        return AdmmState(nearest(space, probabilities), {d.name: np.zeros(len(d.options)) for d in space.decisions}, self.rho)

    def penalty(self, space: Within, state: AdmmState, probabilities: Mapping[str, Tensor]) -> Tensor:
        """rho/2 ||a - z + u||^2, a scalar, differentiable in the probabilities."""
        z, terms = one_hot(space, state.z), []
        for decision in space.decisions:
            a = probabilities[decision.name]
            terms.append(((a - torch.from_numpy(z[decision.name] - state.u[decision.name]).to(a)) ** 2).sum())
        return state.rho / 2 * torch.stack(terms).sum()

    def update(self, space: Within, state: AdmmState, probabilities: Mapping[str, np.ndarray]) -> AdmmState:
        """The end of a round: z, u and rho anew."""
        before = one_hot(space, state.z)
        found = nearest(space, {name: probabilities[name] + u for name, u in state.u.items()})
        z = one_hot(space, found)
        u = {name: state.u[name] + probabilities[name] - z[name] for name in z}
        primal = np.sqrt(sum(float(((probabilities[name] - z[name]) ** 2).sum()) for name in z))
        dual = state.rho * np.sqrt(sum(float(((z[name] - before[name]) ** 2).sum()) for name in z))
        factor = self.growth if primal > self.balance * dual else 1 / self.growth if dual > self.balance * primal else 1.0
        return AdmmState(found, {name: part / factor for name, part in u.items()}, state.rho * factor)

    def save(self, state: AdmmState) -> tuple[Any, dict[str, np.ndarray]]:
        """The state as JSON and named arrays."""
        return {"z": state.z.to_json(), "rho": state.rho}, dict(state.u)

    def load(self, space: Within, content: Any, arrays: Mapping[str, np.ndarray]) -> AdmmState:
        """The state that `save` was given."""
        return AdmmState(
            Architecture.from_json(content["z"], space.space), {d.name: arrays[d.name] for d in space.decisions}, content["rho"]
        )


def one_hot(space: Within, arch: Architecture) -> dict[str, np.ndarray]:
    """1 at the option taken, and zeros for a decision that does not exist: name -> (O,)."""
    rows = {decision.name: np.zeros(len(decision.options)) for decision in space.decisions}
    for name, option in arch.items():
        rows[name][space[name].options.index(option)] = 1.0
    return rows
