"""From a shape to numbers of units that keep budgets and use them up: a common multiplier (MorphNet's expansion), or the best units first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, floor

from torch import Tensor

from niwaki.gradient.resource import Alive, Resource

CLOSE = 0.02  # of a budget may be left unused
EXCHANGES = 200  # of units, at most, that are tried to come closer to a budget
STEPS = 4  # by which one group is moved for it
BISECTIONS = 64


class LandingError(ValueError):
    """A budget that no numbers of units keep."""


@dataclass(frozen=True)
class Bound:
    """cost <= upper. text: as the budget was given, for messages."""

    resource: Resource
    upper: float
    text: str = ""

    def holds(self, alive: Alive) -> bool:
        return self.resource.cost(alive) <= self.upper

    def share(self, alive: Alive) -> float:
        """What of the bound is used."""
        return self.resource.cost(alive) / self.upper


@dataclass(frozen=True)
class Widths:
    """Which numbers of units there may be. units: of each group in the owner's model, the most. multiple_of: the numbers below that are
    multiples of it, if the group has so many. needed: the fewest of a group, where that is more than one."""

    units: Mapping[str, int]
    multiple_of: int = 1
    needed: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.multiple_of < 1 or any(count < 1 for count in self.units.values()):
            raise LandingError(f"widths are multiples of {self.multiple_of} up to {dict(self.units)}; both are at least 1")

    @cached_property
    def least(self) -> Mapping[str, int]:
        step = self.multiple_of
        return {group: min(most, step * ceil(self.needed.get(group, 1) / step)) for group, most in self.units.items()}

    def near(self, group: str, width: float) -> int:
        """The possible number nearest to `width`; never less for more."""
        most, step = self.units[group], self.multiple_of
        if width >= most:
            return most
        return min(most, max(self.least[group], step * floor(width / step + 0.5)))

    def next(self, group: str, count: int) -> int | None:
        """The next larger number, or None."""
        most, step = self.units[group], self.multiple_of
        return None if count >= most else min(most, step * (count // step + 1))

    def before(self, group: str, count: int) -> int | None:
        """The next smaller number, or None."""
        step = self.multiple_of
        return None if count <= self.least[group] else step * ((count - 1) // step)


def kept(bounds: Sequence[Bound], alive: Alive) -> bool:
    return all(bound.holds(alive) for bound in bounds)


def used(bounds: Sequence[Bound], alive: Alive) -> float:
    """The share of the tightest bound that is used."""
    return max(bound.share(alive) for bound in bounds)


def check_reachable(widths: Widths, bounds: Sequence[Bound]) -> None:
    """Raises LandingError, with the least there is, where even the fewest units cost too much."""
    least, most = widths.least, dict(widths.units)
    for bound in bounds:
        if not bound.holds(least):
            reached, whole = bound.resource.cost(least), bound.resource.cost(most)
            units = f"{max(least.values(), default=1)} units" if any(count > 1 for count in least.values()) else "one unit"
            left = (
                f"with {units} left of each of the {len(most)} groups{'' if len(set(least.values())) == 1 else ', or fewer'}"
                if most
                else "for none of its channels may be removed: they are its output, or kept whole by what niwaki adopt tells"
            )
            raise LandingError(
                f"{bound.text or bound.resource.name} cannot be reached by removing channels: the least is {_number(reached)} {bound.resource.name} "
                f"({reached / whole:.1%} of {_number(whole)}), {left}"
            )


def check_needed(widths: Widths, bounds: Sequence[Bound]) -> None:
    """Raises LandingError where the owner's network keeps all bounds already, so that nothing would be removed."""
    most, least = dict(widths.units), widths.least
    if not kept(bounds, most):
        return
    given = " and ".join(bound.text or bound.resource.name for bound in bounds)
    costs = ", ".join(
        f"{_number(whole := bound.resource.cost(most))} {bound.resource.name}, of at most {_number(bound.upper)}; any limit below that, down to "
        f"{_number(reached := bound.resource.cost(least))} ({reached / whole:.1%}), can be asked for"
        for bound in bounds
    )
    raise LandingError(f"{given}: there is nothing to shrink, for the network as it is keeps this. It costs {costs}")


def expand(shape: Mapping[str, float], widths: Widths, bounds: Sequence[Bound]) -> tuple[float, dict[str, int]]:
    """The largest omega for which round(omega x shape) keeps the bounds, and those numbers (MorphNet, step 3).

    The numbers never fall as omega rises, so that it is found by bisection. Deviation: no group gets more units than `widths` has of it,
    for an owner's model holds no weights for more; a group whose units are used up stays there while the others go on. A uniform width
    multiplier is this with the owner's widths as the shape.
    """
    check_reachable(widths, bounds)

    def at(omega: float) -> dict[str, int]:
        return {group: widths.near(group, omega * max(shape[group], 1e-9)) for group in widths.units}

    most = max(widths.units[group] / max(shape[group], 1e-9) for group in widths.units)
    if kept(bounds, at(most)):
        return most, at(most)
    low, high = 0.0, most
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(bounds, at(middle)) else (low, middle)
    return low, at(low)


def fill(counts: Alive, widths: Widths, bounds: Sequence[Bound], scores: Mapping[str, Sequence[float]]) -> dict[str, int]:
    """`counts` with further units while they fit, of all next units the one with the highest score first; then exchanged for others where
    more than 2 % of the bounds is left.

    scores: of the units of each group, from the best on. Ours: omega alone lands up to 2.4 % below a budget on narrow networks.
    """
    found = _filled(dict(counts), widths, bounds, scores)
    for _ in range(EXCHANGES):
        if used(bounds, found) >= 1 - CLOSE or all(found[group] == most for group, most in widths.units.items()):
            break
        better = max(_exchanges(found, widths, bounds, scores), key=lambda counts: used(bounds, counts), default=found)
        if used(bounds, better) <= used(bounds, found):
            break
        found = better
    return found


def _exchanges(
    found: dict[str, int], widths: Widths, bounds: Sequence[Bound], scores: Mapping[str, Sequence[float]]
) -> Iterator[dict[str, int]]:
    """Numbers of units within the bounds that differ in one group, up or down, and in what the others gain or give for it."""
    for group in widths.units:
        fewer: int | None = found[group]
        more: int | None = found[group]
        for _ in range(STEPS):
            fewer = None if fewer is None else widths.before(group, fewer)
            more = None if more is None else widths.next(group, more)
            if fewer is not None:
                yield _filled({**found, group: fewer}, widths, bounds, scores, without=group)
            if more is not None and (given := _reduced({**found, group: more}, widths, bounds, scores, without=group)) is not None:
                yield _filled(given, widths, bounds, scores)


def _reduced(
    found: dict[str, int], widths: Widths, bounds: Sequence[Bound], scores: Mapping[str, Sequence[float]], *, without: str
) -> dict[str, int] | None:
    """Fewer units, those of the lowest scores first and none of group `without`, until the bounds are kept; None if they never are."""
    while not kept(bounds, found):
        options = [
            (scores[group][found[group] - 1], group, fewer)
            for group in widths.units
            if group != without and (fewer := widths.before(group, found[group])) is not None
        ]
        if not options:
            return None
        _, group, fewer = min(options)
        found[group] = fewer
    return found


def _filled(
    found: dict[str, int], widths: Widths, bounds: Sequence[Bound], scores: Mapping[str, Sequence[float]], *, without: str | None = None
) -> dict[str, int]:
    open_groups = {group for group in widths.units if group != without}
    while open_groups:
        options = [(scores[group][found[group]], group) for group in open_groups if found[group] < widths.units[group]]
        if not options:
            break
        _, group = max(options)
        more = widths.next(group, found[group])
        if more is not None and kept(bounds, {**found, group: more}):
            found[group] = more
        else:
            open_groups.discard(group)  # costs only rise from here, so it will not fit later either
    return found


def by_rank(scores: Mapping[str, Sequence[float]], widths: Widths, bounds: Sequence[Bound]) -> dict[str, int]:
    """The numbers of units above the lowest score at which the bounds are kept: one threshold for all groups, moved until the budget holds.

    scores: of the units of each group, from the best on, comparable between groups. Ours: MorphNet keeps its threshold and multiplies.
    """
    check_reachable(widths, bounds)
    level = lowest_level(scores, widths, bounds)
    return dict(widths.least) if level is None else _above(level, scores, widths)


def lowest_level(scores: Mapping[str, Sequence[float]], widths: Widths, bounds: Sequence[Bound]) -> float | None:
    """The lowest score from which on units can be kept within the bounds; None where not even the best of all can."""
    levels = sorted({score for of_group in scores.values() for score in of_group}, reverse=True)
    low, high = 0, len(levels)  # so many of the highest levels are kept
    while low < high:
        middle = (low + high + 1) // 2
        if kept(bounds, _above(levels[middle - 1], scores, widths)):
            low = middle
        else:
            high = middle - 1
    return levels[low - 1] if low else None


def _above(level: float, scores: Mapping[str, Sequence[float]], widths: Widths) -> dict[str, int]:
    return {
        group: widths.near(group, sum(score >= level for score in scores[group])) if group in scores else most
        for group, most in widths.units.items()
    }


def best_first(scores: Mapping[str, Tensor]) -> tuple[dict[str, list[int]], dict[str, list[float]]]:
    """For each group, its units from the highest score on, and those scores. scores: (U,) each; of equals the first unit first."""
    order = {group: of_group.argsort(descending=True, stable=True).tolist() for group, of_group in scores.items()}
    return order, {group: scores[group][order[group]].tolist() for group in scores}


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
