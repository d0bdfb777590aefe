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

    threshold: of |gamma|, as a share of the group's largest, at which a unit is dead (0.01 in the paper, of gammas that begin at 1). join: how
    the layers that make the channels of one group are joined: "max", as for scales, or "l2". l1_fraction: of the group lasso. step:
    "proximal", ours, soft thresholding of the lengths after each step, so that a dead unit is exactly 0 and comes back only where the loss
    gains more than it costs; or "gradient", the penalty in the loss, as published, whose steps swing around 0. strength: lambda, in units of
    1 / F(owner's); None: found on the way, see `Shrinking`. exact: a unit is charged what its removal saves, instead of the derivative.
    Depthwise convolutions are charged once either way; the repository charges them twice (`resource.charged_twice`). temper: exponent of
    prices, 1 as published, see `Tempered`. `SHORT` is for a few epochs. Weight decay is not applied to scales: they have one axis, see
    `param_groups`.
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
    step: Literal["proximal", "gradient"] = "proximal"
    strength: float | None = None
    exact: bool = False
    temper: float = 1.0

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={getattr(self, name)!r} ({possible})"
            for name, possible, holds in (
                ("rounds", "at least 1", self.rounds >= 1),
                ("threshold", "above 0 and below 1", 0 < self.threshold < 1),
                ("join", "max or l2", self.join in ("max", "l2")),
                ("step", "proximal or gradient", self.step in ("proximal", "gradient")),
                ("l1_fraction", "from 0 to 1", 0 <= self.l1_fraction <= 1),
                ("strength", "None, or at least 0", self.strength is None or self.strength >= 0),
                ("temper", "from 0 to 1", 0 <= self.temper <= 1),
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


SHORT = MorphNet(temper=0.5)


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

    Deviations: lengths are in units of their median in the same tensor at the beginning, for trained scales do not begin at 1, and filters
    never do. And a unit is dead below `threshold` of the longest of its group now: the layers after it do not feel how long all of them are
    together where a batch norm follows, so that in a short training a costly group sinks as a whole, which says nothing of its units.
    """

    def __init__(self, module: nn.Module, scales: Mapping[str, Sequence[Scale]], method: MorphNet = MorphNet()) -> None:
        self._weights = dict(module.named_parameters())
        learned = {group: [one for one in members if self._weights[one.weight].requires_grad] for group, members in scales.items()}
        if not any(learned.values()):
            raise MorphNetError(
                "the network has no group of channels with a batch norm, a convolution or a linear layer that makes them and learns"
            )
        self.method = method
        self.scales = {group: tuple(members) for group, members in learned.items() if members}
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
        return {group: margins > 0 for group, margins in self.margins().items()}

    @torch.no_grad()
    def margins(self) -> dict[str, Tensor]:
        found = {group: joined(self._lengths(group), self.method.join) for group in self.scales}
        return {group: length / length.max().clamp(min=1e-12) - self.method.threshold for group, length in found.items()}

    @property
    def proximal(self) -> bool:
        return self.method.step == "proximal"

    @torch.no_grad()
    def shorten_(self, amounts: Mapping[str, float]) -> None:
        """Soft thresholding: takes `amounts[group]` off the length of every unit, of each layer that makes it, down to 0 at least.

        amounts: in units of the lengths' medians. The gradient of the published "max" would take it off the longest layer alone, and the
        others would come after it.
        """
        for group, scales in self.scales.items():
            for scale, length in zip(scales, self._lengths(group), strict=True):
                left = ((length - amounts.get(group, 0.0)).clamp(min=0.0) / length.clamp(min=1e-12)).to(length)  # (U,)
                weight = self._weights[scale.weight]
                factors = torch.ones(weight.shape[scale.axis]).to(weight)
                factors[scale.places.flatten()] = left.repeat_interleave(scale.places.shape[1])
                shape = [1] * weight.ndim
                shape[scale.axis] = -1
                weight.mul_(factors.reshape(shape))

    def _lengths(self, group: str) -> list[Tensor]:
        return [
            lengths(self._weights[scale.weight], scale, self.method.l1_fraction) / self._median[group, at]
            for at, scale in enumerate(self.scales[group])
        ]
