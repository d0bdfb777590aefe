"""Quality and costs as one number, as the published searches reward an architecture. None of these picks the final one: `Objective.better` does.

All but `Linear` see a cost only as the ratio of what is spent to the target, so that the cost's unit does not matter. The quality's does: the
constants of all but the products are in its unit (a beta of -0.1 for an accuracy from 0 to 1 is -10 for one in points); a product of a quality
in another unit is the same reward in another unit. `FeasibleFirst` in dual.py, the default, knows no unit at all.
With several limits each is charged for itself; `Joint` in limit.py makes one of several devices.

>>> round(Absolute(beta=-0.1)(0.9, [Spent(cost=3.0, target=2.0)]), 3), round(mnasnet_soft(0.9, [Spent(3.0, 2.0)]), 3)
(0.85, 0.875)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from niwaki.objective.error import ObjectiveError


class Spent(NamedTuple):
    """What one limit allows, and what of it is spent, in its unit."""

    cost: float
    target: float

    @property
    def ratio(self) -> float:
        return self.cost / self.target


Form = Callable[[float, Sequence[Spent]], float]  # (quality, what is spent of each limit) -> reward; a function of one's own is one, too


@dataclass(frozen=True)
class Product:
    """quality * ratio^w, with w = `inside` where the limit holds and `beyond` where it does not (MnasNet, Eq. 2-3).

    The defaults are the paper's soft form: at -0.07 twice the cost must bring 5 % more quality, relatively, within the limit and beyond. It
    has no fixed point at the limit: where quality grows more slowly with cost it ends below, where faster above.
    """

    inside: float = -0.07
    beyond: float = -0.07

    def __post_init__(self) -> None:
        _not_positive(inside=self.inside, beyond=self.beyond)

    def __call__(self, quality: float, spent: Sequence[Spent]) -> float:
        if quality < 0:
            raise ObjectiveError(
                f"a product rewards cost where the quality is below 0, and it is {quality:g}; take tunas-absolute, or a quality that is "
                f"never negative"
            )
        return quality * math.prod(_positive(one).ratio ** (self.inside if one.ratio <= 1 else self.beyond) for one in spent)


@dataclass(frozen=True)
class Absolute:
    """quality + beta * |ratio - 1| (TuNAS, Bender et al. 2020, and its code's beta).

    Draws the cost to the target from both sides, if -beta exceeds the slope of the best quality over log cost there: `slope_test` measures
    that. What is found may be dominated by something cheaper: `cheaper` looks.
    """

    beta: float = -0.10

    def __post_init__(self) -> None:
        _not_positive(beta=self.beta)

    def __call__(self, quality: float, spent: Sequence[Spent]) -> float:
        return quality + self.beta * math.fsum(abs(one.ratio - 1) for one in spent)


@dataclass(frozen=True)
class Hinge:
    """quality + beta * max(0, ratio - 1): cheaper is fine, and the pull down ends at the limit. Ours; with a weak beta it settles above it."""

    beta: float = -1.0

    def __post_init__(self) -> None:
        _not_positive(beta=self.beta)

    def __call__(self, quality: float, spent: Sequence[Spent]) -> float:
        return quality + self.beta * math.fsum(max(0.0, one.ratio - 1) for one in spent)


@dataclass(frozen=True)
class Rejection:
    """The quality where all limits hold. Beyond, `otherwise`; where that is None, an error: the caller was to draw again.

    A policy that draws again learns from p(a | feasible): grad log p(a) - grad log P(feasible). Leaving out the second term pulls it to
    where the limits are exceeded; `factor.expect.log_probability_within` has it exactly.
    """

    otherwise: float | None = None

    def __post_init__(self) -> None:
        if self.otherwise is not None and not math.isfinite(self.otherwise):
            raise ObjectiveError(
                f"otherwise={self.otherwise}: what is rewarded beyond the limits is a finite number, or None to draw again"
            )

    def __call__(self, quality: float, spent: Sequence[Spent]) -> float:
        if all(one.cost <= one.target for one in spent):
            return quality
        if self.otherwise is None:
            raise ObjectiveError("beyond its limits an architecture has no reward by rejection; draw again, or give `otherwise`")
        return self.otherwise


@dataclass(frozen=True)
class Linear:
    """quality - price * cost, in the cost's own unit: the one form that changes with the unit of the cost. price: one for all limits, or one for each."""

    price: float | tuple[float, ...]

    def __post_init__(self) -> None:
        prices = self.price if isinstance(self.price, tuple) else (self.price,)
        if not prices or any(not 0 <= price < math.inf for price in prices):
            raise ObjectiveError(f"price={self.price}: a price for a unit of cost is finite and not below 0")

    def __call__(self, quality: float, spent: Sequence[Spent]) -> float:
        prices = self.price if isinstance(self.price, tuple) else (self.price,) * len(spent)
        if len(prices) != len(spent):
            raise ObjectiveError(f"there are {len(prices)} prices for {len(spent)} limits; each needs one, or all the same")
        return quality - math.fsum(price * one.cost for price, one in zip(prices, spent, strict=True))


@dataclass(frozen=True)
class Logarithm:
    """quality - weight * log(ratio): every halving of the cost is worth the same, below the limit too (FBNetV2's sum, as a reward)."""

    weight: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ObjectiveError(f"weight={self.weight}: the weight of the cost is finite and not below 0")

    def __call__(self, quality: float, spent: Sequence[Spent]) -> float:
        return quality - self.weight * math.fsum(math.log(_positive(one).ratio) for one in spent)


@dataclass(frozen=True)
class LossProduct:
    """-loss * alpha * log(1 + ratio)^beta, for a quality that is a loss, negated: maximize="-loss" (FBNet, Eq. 2, alpha and beta).

    FBNet's logarithm is of the raw cost and must be positive; 1 + ratio is so in every unit. The same form for gradient searches is
    `gradient.cost_loss.product_loss`. Its pressure fades with the loss: on data that are easily fitted it ends at large models.
    """

    alpha: float = 0.2
    beta: float = 0.6

    def __post_init__(self) -> None:
        if not (0 < self.alpha < math.inf and 0 <= self.beta < math.inf):
            raise ObjectiveError(f"alpha={self.alpha}, beta={self.beta}: alpha is above 0, beta is not below it, and both are finite")

    def __call__(self, quality: float, spent: Sequence[Spent]) -> float:
        if quality > 0:
            raise ObjectiveError(f'fbnet-product is of a loss that is to be small, as in maximize="-loss"; the quality is {quality:g}')
        return quality * self.alpha * math.prod(math.log1p(one.ratio) ** self.beta for one in spent)


def _positive(spent: Spent) -> Spent:
    if not spent.cost > 0:
        raise ObjectiveError(f"a cost of {spent.cost:g} has no logarithm and no negative power; this form needs costs above 0")
    return spent


def _not_positive(**weights: float) -> None:
    for name, weight in weights.items():
        if not -math.inf < weight <= 0:
            raise ObjectiveError(f"{name}={weight}: it weighs the cost against the quality, so it is finite and not above 0, such as -0.1")


mnasnet_soft = Product()
mnasnet_hard = Product(inside=0.0, beyond=-1.0)  # MnasNet's values; TuNAS's `mnas_hard`, min(1, ratio^w), is inside=0, beyond=w
tunas_absolute = Absolute()
