"""Expected cost and P(within the budgets) as functions that torch can differentiate."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from niwaki.factor.eliminate import Feasible
from niwaki.factor.factor import Cost, CostError, multilinear


def expected(cost: Cost, probabilities: Mapping[str, Tensor]) -> Tensor:
    """E[cost], a float64 scalar, if every decision that exists is drawn by `probabilities` (name -> (O,)); exact and differentiable.

    Linear in the probabilities of each decision: where they do not sum to 1, nothing is normalised.
    """
    if cost.kind != "sum":
        raise CostError(f"{cost.name} is a maximum of its factors, and the mean of a maximum is no sum of small tables")
    names, tables = _tables(cost)
    for name in names:
        if name not in probabilities or probabilities[name].shape != (len(cost.space[name].options),):
            given = tuple(probabilities[name].shape) if name in probabilities else "nothing"
            options = len(cost.space[name].options)
            raise CostError(f"the expected {cost.name} needs {options} probabilities of {name!r}, but was given {given}")
    if not names:
        return torch.tensor(float(sum(table for _, table in tables)), dtype=torch.float64)
    return _Contraction.apply(tables, [len(probabilities[name]) for name in names], torch.cat([probabilities[name] for name in names]))


def log_probability_within(feasible: Feasible, probabilities: Mapping[str, Tensor]) -> Tensor:
    """log P(all limits are kept), a float64 scalar, if every decision is drawn by `probabilities` (name -> (O,)); differentiable."""
    names = [decision.name for decision in feasible.space.decisions]
    if missing := [name for name in names if name not in probabilities]:
        raise CostError(f"no probabilities are given for {', '.join(map(repr, missing))}")
    return _LogProbability.apply(feasible, names, *(probabilities[name] for name in names))


def probability_within(feasible: Feasible, probabilities: Mapping[str, Tensor]) -> Tensor:
    """P(all limits are kept), a float64 scalar; differentiable. BudgetError where it is 0."""
    return log_probability_within(feasible, probabilities).exp()


@lru_cache(maxsize=32)
def _tables(cost: Cost) -> tuple[list[str], list[tuple[tuple[int, ...], np.ndarray]]]:
    """The decisions that occur, and for each factor which of them its axes are, and its entries as float64."""
    factors = multilinear(cost)
    names = list(dict.fromkeys(name for factor in factors for name in factor.scope))
    return names, [(tuple(names.index(name) for name in factor.scope), factor.table.astype(np.float64)) for factor in factors]


class _Contraction(torch.autograd.Function):
    """The sum over factors of table x probabilities. Value and gradient come from one sweep in numpy: most tables are so small that
    the calls of a general tape would cost more than the sums."""

    @staticmethod
    def forward(ctx, tables, sizes, probabilities):
        flat = probabilities.detach().to("cpu", torch.float64).numpy()
        slope = np.zeros_like(flat)
        ends = np.cumsum([0, *sizes]).tolist()
        given, slopes = ([of[start:end] for start, end in pairwise(ends)] for of in (flat, slope))
        total = 0.0
        for axes, table in tables:
            # left[k]: the table with its first k axes summed out, (options of axis k, all later ones)
            left = [table]
            for axis in axes:
                left.append(given[axis] @ left[-1].reshape(sizes[axis], -1))
            total += float(left[-1].reshape(()))
            after = None  # the probabilities of all later axes multiplied out
            for part, axis in zip(left[-2::-1], reversed(axes), strict=True):
                slopes[axis] += part if after is None else part.reshape(sizes[axis], -1) @ after
                if axis != axes[0]:
                    after = given[axis] if after is None else np.multiply.outer(given[axis], after).ravel()
        ctx.slope = torch.from_numpy(slope).to(probabilities)
        return torch.tensor(total, dtype=torch.float64, device=probabilities.device)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return None, None, gradient.to(ctx.slope.dtype) * ctx.slope


class _LogProbability(torch.autograd.Function):
    @staticmethod
    def forward(ctx, feasible, names, *probabilities):
        given = {name: p.detach().to("cpu", torch.float64).numpy() for name, p in zip(names, probabilities, strict=True)}
        value, gradient = feasible.log_probability(given)
        ctx.slopes = [torch.from_numpy(gradient[name]).to(p) for name, p in zip(names, probabilities, strict=True)]
        return torch.tensor(value, dtype=torch.float64, device=probabilities[0].device if probabilities else None)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return None, None, *(gradient.to(slope.dtype) * slope for slope in ctx.slopes)
