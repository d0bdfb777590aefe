"""How the expected cost enters the loss of a gradient search. Each takes the cross entropy and cost / limit, both scalars."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CostLoss = Callable[[Tensor, Tensor], Tensor]  # (cross entropy, expected cost / limit) -> loss


def product_loss(*, alpha: float = 0.2, beta: float = 0.6, unit: float = 1.0) -> CostLoss:
    """CE * alpha * log(1 + ratio / unit)^beta (FBNet, Eq. 2 with its alpha and beta; FBNetV2 uses the same form).

    FBNet's logarithm is of the raw cost and must be positive, so that the unit matters; 1 + ratio is positive in every unit.
    """
    return lambda cross_entropy, ratio: cross_entropy * alpha * torch.log1p(ratio / unit) ** beta


def log_loss(*, weight: float = 0.3) -> CostLoss:
    """CE + weight * log(ratio): every halving of the cost is worth the same, below the limit too."""
    return lambda cross_entropy, ratio: cross_entropy + weight * torch.log(ratio)


def absolute_loss(*, weight: float = 1.0) -> CostLoss:
    """CE + weight * |log(ratio)|: the cost is drawn to the limit from both sides, as TuNAS does with its reward (Bender et al. 2020, Eq. 5)."""
    return lambda cross_entropy, ratio: cross_entropy + weight * torch.log(ratio).abs()


def limit_loss(*, weight: float = 1.0) -> CostLoss:
    """CE + weight * max(0, log(ratio)): pressure down to the limit and none below it. Ours: the limit itself is met by derivation."""
    return lambda cross_entropy, ratio: cross_entropy + weight * torch.relu(torch.log(ratio))
