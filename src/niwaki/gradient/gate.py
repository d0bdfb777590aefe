"""Stochastic gates: one for each unit, open or shut by a logistic-sigmoid sample, almost binary (FiGS, Chaudhuri et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

INITIAL = 2.5  # of the logits: open with a probability of 0.924
TAU = 0.001
OPEN_FROM = 0.1  # a mask or a probability at which a unit counts as alive, in training


def logistic_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """log U - log(1 - U), drawn for each entry of `like`."""
    uniform = torch.rand(like.shape, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)  # in float32, 1 - U could be 0
    return (uniform.log() - (1 - uniform).log()).to(like)


def soft_gate(logits: Tensor, noise: Tensor, tau: float = TAU) -> Tensor:
    """z = sigmoid((s + n) / tau), any shape. P(z > 1/2) = sigmoid(s), whatever tau; dz/ds = z (1 - z) / tau."""
    return torch.sigmoid((logits + noise) / tau)


def straight_through_gate(logits: Tensor, noise: Tensor, tau: float = TAU) -> Tensor:
    """1[s + n > 0], with the gradient of `soft_gate`."""
    soft = soft_gate(logits, noise, tau)
    return (soft > 0.5).to(soft) + (soft - soft.detach())  # the bracket is exactly 0


def mean_gate(logits: Tensor) -> Tensor:
    """What stands for the samples in inference: 1[s > 0] sigmoid(s), scaled as dropout's outputs are."""
    return torch.where(logits > 0, torch.sigmoid(logits), torch.zeros_like(logits))


def hard_gate(logits: Tensor) -> Tensor:
    """1[s > 0]."""
    return (logits > 0).to(logits.dtype)


def any_of(presences: Sequence[Tensor]) -> Tensor:
    """1 - prod(1 - r): the probability that at least one of the sources of a unit is there, (U,) of (U,) each."""
    absent = 1 - presences[0]
    for presence in presences[1:]:
        absent = absent * (1 - presence)
    return 1 - absent


def annealed(first: float, last: float, progress: float) -> float:
    """From `first` to `last` in equal factors; progress: from 0 to 1."""
    return first * (last / first) ** progress


def first_unit_open(gates: Any) -> Any:
    """The gates (U,) with the first one open, so that no layer dies (the repository's rule). Not where operators may vanish: it would keep
    each of them."""
    return torch.cat([torch.ones_like(gates[:1]), gates[1:]])
