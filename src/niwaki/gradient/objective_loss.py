"""An `Objective` as a loss that torch can differentiate: the form, the limits and the state are the same values that reward trials.

The loss that is to be small stands for the quality (quality = -loss), expected costs for the costs. What `objective.update` is told stays the
true cost of architectures: relaxed costs move the weights, true ones the multipliers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from niwaki.objective.devices import CVaR, Mean, SmoothWorst, Worst
from niwaki.objective.dual import AugmentedLagrangian, Lagrangian, Minimax, State
from niwaki.objective.error import ObjectiveError
from niwaki.objective.limit import Constraint, Joint
from niwaki.objective.objective import NO_STATE, Objective
from niwaki.objective.reward import Absolute, Hinge, Linear, Logarithm, LossProduct

POSSIBLE = "tunas-absolute, hinge, linear, logarithm, fbnet-product, lagrangian, augmented-lagrangian, minimax"


def objective_loss(objective: Objective, loss: Tensor, costs: Mapping[str, Tensor], state: State = NO_STATE) -> Tensor:
    """`loss` and the expected costs as one scalar. costs: by metric, scalars, in the unit of the limit. state: as of `Objective.reward`.

    Without limits it is the loss. ObjectiveError for forms whose pull nothing can follow downhill: a rejection, and a product of a quality.
    """
    limits = objective.toward or objective.subject_to
    if not limits:
        return loss
    spent = torch.stack([cost_of(limit, costs) for limit in limits])
    target = torch.tensor([limit.target for limit in limits], dtype=spent.dtype, device=spent.device)
    return _loss(objective.form, loss, spent, target, state).to(loss.dtype)


def cost_of(limit: Constraint | Joint, costs: Mapping[str, Tensor]) -> Tensor:
    """What is spent of a limit, as `limit.cost` says for numbers: a scalar, differentiable in `costs`."""
    if isinstance(limit, Joint):
        return across_of(limit.across, torch.stack([cost_of(one, costs) / one.target for one in limit.limits]))
    deviation = f"{limit.metric} std"
    if missing := [name for name in (limit.metric, *[deviation] * (limit.margin > 0)) if name not in costs]:
        raise ObjectiveError(f"the limit {limit} needs the cost {missing[0]!r}; there are {', '.join(costs) or 'none'}")
    cost = costs[limit.metric]
    return cost + limit.margin * costs[deviation] if limit.margin else cost


@singledispatch
def across_of(across: Any, ratios: Tensor) -> Tensor:
    """Ratios (H,) of devices as one, as `across` says for numbers."""
    raise ObjectiveError(f"{across!r} is no way over devices that can be differentiated; there are Mean, Worst, SmoothWorst and CVaR")


@across_of.register
def _(across: Mean, ratios: Tensor) -> Tensor:
    if across.weights is None:
        return ratios.mean()
    if len(across.weights) != len(ratios):
        raise ObjectiveError(f"there are {len(across.weights)} weights for {len(ratios)} devices; each needs one")
    weights = torch.tensor(across.weights, dtype=ratios.dtype, device=ratios.device)
    return (weights * ratios).sum() / weights.sum()


@across_of.register
def _(across: Worst, ratios: Tensor) -> Tensor:
    return ratios.max()


@across_of.register
def _(across: SmoothWorst, ratios: Tensor) -> Tensor:
    count = torch.tensor(float(len(ratios)), dtype=ratios.dtype, device=ratios.device)
    return across.temperature * (torch.logsumexp(ratios / across.temperature, 0) - count.log())


@across_of.register
def _(across: CVaR, ratios: Tensor) -> Tensor:
    tail = (1 - across.level) * len(ratios)
    shares = (tail - torch.arange(len(ratios), dtype=ratios.dtype, device=ratios.device)).clamp(0, 1)  # of the worst, the next, ...
    return (shares * ratios.sort(descending=True).values).sum() / tail


@singledispatch
def _loss(form: Any, loss: Tensor, spent: Tensor, target: Tensor, state: State) -> Tensor:
    """spent, target: (J,)."""
    raise ObjectiveError(f"{form!r} gives a gradient search nothing to follow; there are {POSSIBLE}")


@_loss.register
def _(form: Absolute, loss: Tensor, spent: Tensor, target: Tensor, state: State) -> Tensor:
    return loss - form.beta * (spent / target - 1).abs().sum()


@_loss.register
def _(form: Hinge, loss: Tensor, spent: Tensor, target: Tensor, state: State) -> Tensor:
    return loss - form.beta * torch.relu(spent / target - 1).sum()


@_loss.register
def _(form: Linear, loss: Tensor, spent: Tensor, target: Tensor, state: State) -> Tensor:
    return loss + (torch.as_tensor(form.price, dtype=spent.dtype, device=spent.device) * spent).sum()


@_loss.register
def _(form: Logarithm, loss: Tensor, spent: Tensor, target: Tensor, state: State) -> Tensor:
    return loss + form.weight * torch.log(spent / target).sum()


@_loss.register
def _(form: LossProduct, loss: Tensor, spent: Tensor, target: Tensor, state: State) -> Tensor:
    return loss * form.alpha * (torch.log1p(spent / target) ** form.beta).prod()


@_loss.register
def _(form: Lagrangian, loss: Tensor, spent: Tensor, target: Tensor, state: State) -> Tensor:
    return loss + (_state(form, state, "multipliers", spent) * (spent / target - 1)).sum()


@_loss.register
def _(form: AugmentedLagrangian, loss: Tensor, spent: Tensor, target: Tensor, state: State) -> Tensor:
    multipliers = _state(form, state, "multipliers", spent)
    mu = state["penalty"]
    return loss + (torch.relu(multipliers + mu * (spent / target - 1)) ** 2 - multipliers**2).sum() / (2 * mu)


@_loss.register
def _(form: Minimax, loss: Tensor, spent: Tensor, target: Tensor, state: State) -> Tensor:
    ratio = (_state(form, state, "weights", spent) * spent / target).sum()
    return _loss(form.form, loss, ratio[None], torch.ones_like(ratio)[None], NO_STATE)


def _state(form: Any, state: State, name: str, spent: Tensor) -> Tensor:
    if len(state.get(name, ())) != len(spent):
        raise ObjectiveError(
            f"{type(form).__name__} needs {name} for {len(spent)} limits, and the state has {len(state.get(name, ()))}; hand in what `init` and `update` give"
        )
    return torch.tensor(state[name], dtype=spent.dtype, device=spent.device)
