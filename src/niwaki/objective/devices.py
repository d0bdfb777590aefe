"""Several devices, one number: how the ratios spent / limit of each become one (Chu et al. 2020, "Multi-Hardware Mobile Models").

A ratio is formed for each device first. `Joint(limits, Worst())` in limit.py makes one limit of several by one of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from niwaki.objective.error import ObjectiveError

Across = Callable[[Sequence[float]], float]  # ratios of the devices, one at least -> one ratio


@dataclass(frozen=True)
class Mean:
    """The mean ratio ("Multi-AVG"); weights: of the devices, in their order, scaled to sum to 1."""

    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(self.weights))
            if not self.weights or any(not 0 <= weight < math.inf for weight in self.weights) or not sum(self.weights) > 0:
                raise ObjectiveError(f"devices cannot be weighted by {self.weights}; weights are at least 0, and not all of them 0")

    def __call__(self, ratios: Sequence[float]) -> float:
        if self.weights is None:
            return math.fsum(ratios) / len(ratios)
        if len(self.weights) != len(ratios):
            raise ObjectiveError(f"there are {len(self.weights)} weights for {len(ratios)} devices; each needs one")
        return math.fsum(w * r for w, r in zip(self.weights, ratios, strict=True)) / math.fsum(self.weights)

    def __str__(self) -> str:
        return "mean" if self.weights is None else f"mean weighted by {', '.join(f'{weight:g}' for weight in self.weights)}"


@dataclass(frozen=True)
class Worst:
    """The largest ratio ("Multi-MAX")."""

    def __call__(self, ratios: Sequence[float]) -> float:
        return max(ratios)

    def __str__(self) -> str:
        return "worst"


@dataclass(frozen=True)
class SmoothWorst:
    """temperature * log mean exp(ratio / temperature): between the mean (large temperatures) and the largest ratio (small ones)."""

    temperature: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ObjectiveError(f"temperature={self.temperature}: a smooth worst case has a temperature above 0, say 0.1")

    def __call__(self, ratios: Sequence[float]) -> float:
        most = max(ratios)  # taken out, so that no exponential overflows
        return most + self.temperature * math.log(math.fsum(math.exp((r - most) / self.temperature) for r in ratios) / len(ratios))

    def __str__(self) -> str:
        return f"smooth worst ({self.temperature:g})"


@dataclass(frozen=True)
class CVaR:
    """Conditional value at risk: the mean of the worst 1 - `level` of the devices, the device on the edge with the part that belongs to them.

    Level 0 is the mean, and from 1 - 1 / devices on it is the worst (Rockafellar & Uryasev 2000, for equally likely devices).
    """

    level: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.level < 1:
            raise ObjectiveError(f"level={self.level}: the level of a CVaR is at least 0 and below 1; 0.5 is the mean of the worse half")

    def __call__(self, ratios: Sequence[float]) -> float:
        left, total = tail = (1 - self.level) * len(ratios), 0.0
        for ratio in sorted(ratios, reverse=True):
            share = min(1.0, left)
            total, left = total + share * ratio, left - share
        return total / tail[0]

    def __str__(self) -> str:
        return f"mean of the worst {100 * (1 - self.level):g} %"
