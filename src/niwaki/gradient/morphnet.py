"""MorphNet: batch norm's scales as gates, pressed to 0 by what their units cost (Gordon et al., CVPR 2018; google-research/morph-net).

Shrink: train under lambda x penalty on |gamma|; expand: multiply what is left, to the budget (`gradient/expand.py`); repeat. Where a group
has no batch norm, the lengths of its filters are pressed instead (group lasso).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from niwaki.train.recipe import Recipe

Join = Literal["max", "l2"]


class MorphNetError(ValueError):
    """Settings of MorphNet that mean nothing, or a network that it finds nothing to press in."""


@dataclass(frozen=True)
class MorphNet:
    """epochs, rounds: of shrinking, each followed by an expansion (published: 1 to 2 rounds). lr: fixed, as advised; momentum 0.9.

    threshold: of |gamma|, in units of the median of its layer at the beginning, at which a unit is dead (0.01 in the paper, where gammas
    begin at 1). join: how the layers that make the channels of one group are joined: "max", as for scales, or "l2". l1_fraction: of the
    group lasso. strength: lambda, in units of 1 / F(owner's); None: found on the way, see `Shrinking`. exact: a unit is charged what its
    removal saves, instead of the derivative. Weight decay is not applied to scales: they have one axis, see `param_groups`.
    """

    epochs: int = 4
    rounds: int = 1
    batch_size: int = 64
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    threshold: float = 0.01
    join: Join = "max"
    l1_fraction: float = 0.0
    strength: float | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={getattr(self, name)!r} ({possible})"
            for name, possible, holds in (
                ("rounds", "at least 1", self.rounds >= 1),
                ("threshold", "above 0 and below 1", 0 < self.threshold < 1),
                ("join", "max or l2", self.join in ("max", "l2")),
                ("l1_fraction", "from 0 to 1", 0 <= self.l1_fraction <= 1),
                ("strength", "None, or at least 0", self.strength is None or self.strength >= 0),
            )
            if not holds
        ]
        if wrong:
            raise MorphNetError(f"MorphNet cannot have {'; '.join(wrong)}")

    @property
    def recipe(self) -> Recipe:
        """Of one round: a fixed learning rate."""
        return Recipe(
            epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay,
            warmup=0.0, last_lr=1.0, label_smoothing=0.0,
        )  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """One tensor that says how much the units of a group are there. weight: its name; places: (U, P) int64, for each unit its positions on
    axis `axis`; filters: whether it is a layer's weight, of which a unit is a filter, or a vector of scales."""

    weight: str
    places: Tensor
    axis: int = 0
    filters: bool = False


def lengths(weight: Tensor, scale: Scale, l1_fraction: float = 0.0) -> Tensor:
    """How long each unit's part of `weight` is, (U,): of scales |gamma|, the largest of its positions; of filters (1 - a) sqrt(mean w^2) + a mean |w|."""
    parts = weight.movedim(scale.axis, 0)[scale.places]  # (U, P, ...)
    if not scale.filters:
        return parts.abs().amax(1)
    flat = parts.flatten(1)
    # where all of a filter is 0 the square root has no slope
    return (1 - l1_fraction) * (flat.square().mean(1) + 1e-12).sqrt() + l1_fraction * flat.abs().mean(1)


def joined(members: Sequence[Tensor], join: Join = "max") -> Tensor:
    """One value for each unit from those of the layers that make it, (U,) each: it is alive where any of them is."""
    stacked = torch.stack(list(members))  # (M, U)
    return stacked.amax(0) if join == "max" else stacked.square().sum(0).sqrt()


class Scales:
    """The units of a module as MorphNet sees them: the `Sparsity` of its shrinking.

    Deviation: lengths are in units of their median in the same tensor at the beginning. Trained scales do not begin at 1, filters never do,
    and what a batch norm follows does not feel how long they are: a layer's share of the pressure must not depend on it.
    """

    def __init__(self, module: nn.Module, scales: Mapping[str, Sequence[Scale]], method: MorphNet = MorphNet()) -> None:
        if not any(scales.values()):
            raise MorphNetError("the network has no group of channels with a batch norm, a convolution or a linear layer that makes them")
        self.method = method
        self.scales = {group: tuple(members) for group, members in scales.items() if members}
        self._weights = dict(module.named_parameters())
        self._median = {
            (group, at): lengths(self._weights[scale.weight].detach(), scale, method.l1_fraction).median().clamp(min=1e-6)
            for group, members in self.scales.items()
            for at, scale in enumerate(members)
        }

    def parameters(self) -> dict[str, nn.Parameter]:
        return {}

    def presence(self, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        return {group: joined(self._lengths(group), self.method.join) for group in self.scales}

    @torch.no_grad()
    def alive(self) -> dict[str, Tensor]:
        return {group: joined(self._lengths(group), self.method.join) > self.method.threshold for group in self.scales}

    @torch.no_grad()
    def margins(self) -> dict[str, Tensor]:
        return {group: joined(self._lengths(group), self.method.join) - self.method.threshold for group in self.scales}

    def _lengths(self, group: str) -> list[Tensor]:
        return [
            lengths(self._weights[scale.weight], scale, self.method.l1_fraction) / self._median[group, at]
            for at, scale in enumerate(self.scales[group])
        ]
