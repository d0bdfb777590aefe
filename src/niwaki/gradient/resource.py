"""What a network of groups of units costs, how much of it each unit is responsible for, and the penalty on units that follows (MorphNet).

A resource is a polynomial in the numbers of units alive, a sum of coefficient x product of axis sizes; a layer costs c A_in A_out. The
penalty of MorphNet (Gordon et al., CVPR 2018) for it is c (A_in sum r_out + A_out sum r_in), where r says how much a unit is there and the
counts A are constants for the gradient: what is multiplied with r is the slope of the polynomial. FiGS (Chaudhuri et al., 2020) has the
same penalty on its gates, so both share this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Protocol

from torch import Tensor

from niwaki.adoption.axes import Term, total, value

Alive = Mapping[str, int]  # units alive by group


class ResourceError(ValueError):
    """A resource that cannot be counted."""


class Resource(Protocol):
    """Something that a network of groups costs. Never less with more units alive."""

    @property
    def name(self) -> str: ...

    def cost(self, alive: Alive) -> float: ...

    def slopes(self, alive: Alive) -> dict[str, float]:
        """For each group, the derivative of the cost by the number of its units, at `alive`."""
        ...


@dataclass(frozen=True)
class Polynomial:
    """sum_t c_t prod_a size_a(alive), the size of an axis being a sum of whole numbers x units alive; exact, in Python integers."""

    name: str
    terms: tuple[Term, ...]

    def cost(self, alive: Alive) -> int:
        return total(self.terms, alive)

    def slopes(self, alive: Alive) -> dict[str, float]:
        found: dict[str, float] = {}
        for term in self.terms:
            sizes = [value(axis, alive) for axis in term.sizes]
            for at, axis in enumerate(term.sizes):
                others = term.coefficient * prod(sizes[:at] + sizes[at + 1 :])
                for group, factor in axis:
                    if group is not None:
                        found[group] = found.get(group, 0) + others * factor
        return found

    def saved(self, group: str, alive: Alive) -> int:
        """cost(alive) - cost(alive without one unit of `group`): what the unit is truly worth, a product of two axes of one group included."""
        fewer = {**alive, group: alive[group] - 1}
        terms = self._of_group.get(group, ())
        return total(terms, alive) - total(terms, fewer)

    @cached_property
    def _of_group(self) -> dict[str, tuple[Term, ...]]:
        found: dict[str, list[Term]] = {}
        for term in self.terms:
            for group in {group for axis in term.sizes for group, _ in axis if group is not None}:
                found.setdefault(group, []).append(term)
        return {group: tuple(terms) for group, terms in found.items()}


@dataclass(frozen=True)
class Marginal:
    """A polynomial whose slopes are what the removal of one unit saves, exactly, instead of its derivative. Ours: where input and output of a
    convolution are of one residual group the derivative, which MorphNet charges, is 2cA and the saving c(2A - 1)."""

    polynomial: Polynomial

    @property
    def name(self) -> str:
        return self.polynomial.name

    def cost(self, alive: Alive) -> int:
        return self.polynomial.cost(alive)

    def slopes(self, alive: Alive) -> dict[str, float]:
        return {group: self.polynomial.saved(group, alive) if alive[group] > 0 else 0 for group in self.polynomial._of_group}


@dataclass(frozen=True)
class Tempered:
    """A resource whose slopes are nearer to each other: m (slope / m)^exponent, m their mean over groups. Ours, for short trainings: units under a
    steady pressure go a distance in proportion to their price, and those of a dear group are gone before the loss has had a say.
    """

    resource: Resource
    exponent: float

    @property
    def name(self) -> str:
        return self.resource.name

    def cost(self, alive: Alive) -> float:
        return self.resource.cost(alive)

    def slopes(self, alive: Alive) -> dict[str, float]:
        slopes = {group: slope for group, slope in self.resource.slopes(alive).items() if slope > 0}
        mean = sum(slopes.values()) / max(1, len(slopes))
        return {group: mean * (slope / mean) ** self.exponent for group, slope in slopes.items()}


def charged_twice(polynomial: Polynomial, depthwise: Iterable[Term]) -> Polynomial:
    """The polynomial as MorphNet's repository charges it: a depthwise convolution c (sum r_in + sum r_out), twice what it costs.

    Only its slopes mean something; the cost is that of `polynomial`.
    """
    return Polynomial(polynomial.name, (*polynomial.terms, *depthwise))


# --- latency by the roofline --------------------------------------------------------------------------------------------------------

DEVICES = {  # GFLOP/s and GB/s, as MorphNet's repository has them
    "K80": (8740, 480),
    "P4": (5500, 192),
    "T4": (8100, 300),
    "P100": (9300, 732),
    "V100": (125_000, 900),
    "TPUv2": (22_500, 300),
}


@dataclass(frozen=True)
class Operator:
    """What one operator needs. macs: multiply-adds; moved_bytes: of inputs, outputs and weights."""

    macs: Polynomial
    moved_bytes: Polynomial


@dataclass(frozen=True)
class Roofline:
    """Milliseconds by MorphNet's model of latency: each operator takes the longer of computing (2 FLOPs per multiply-add, at the device's
    peak) and moving its bytes; its slopes are those of the longer. A model of the device's two limits, not a measurement.
    """

    name: str
    operators: tuple[Operator, ...]
    gflops: float
    gbytes: float

    def cost(self, alive: Alive) -> float:
        return sum(max(self._times(one, alive)) for one in self.operators)

    def slopes(self, alive: Alive) -> dict[str, float]:
        found: dict[str, float] = {}
        for one in self.operators:
            computing, moving = self._times(one, alive)
            dominant, scale = (one.macs, 2e-6 / self.gflops) if computing >= moving else (one.moved_bytes, 1e-6 / self.gbytes)
            for group, slope in dominant.slopes(alive).items():
                found[group] = found.get(group, 0.0) + slope * scale
        return found

    def _times(self, one: Operator, alive: Alive) -> tuple[float, float]:
        """Milliseconds of computing and of moving."""
        return 2e-6 * one.macs.cost(alive) / self.gflops, 1e-6 * one.moved_bytes.cost(alive) / self.gbytes


def roofline(device: str, operators: Sequence[Operator]) -> Roofline:
    """The model of one of `DEVICES`."""
    if device not in DEVICES:
        raise ResourceError(f"there is no device {device!r}; there are {', '.join(DEVICES)}")
    gflops, gbytes = DEVICES[device]
    return Roofline(f"roofline({device})", tuple(operators), gflops, gbytes)


# --- the penalty --------------------------------------------------------------------------------------------------------------------


def penalty(resource: Resource, alive: Alive, presence: Mapping[str, Tensor]) -> Tensor:
    """sum over groups of slope(alive) x sum_j r_j, a scalar; differentiable in `presence`, r by group, (U,) each. Groups that have no
    regulariser count in `alive` and not in `presence`.

    With counts as the slopes' arguments, and not sums of r, the pressure on a unit does not vanish as its neighbours become small.
    """
    slopes = resource.slopes(alive)
    parts = [slopes.get(group, 0.0) * r.sum() for group, r in presence.items()]
    if not parts:
        raise ResourceError(f"no group of the network has a regulariser, so that {resource.name} cannot be made less")
    return sum(parts[1:], parts[0])
