"""What a cascade shall come to, in words: an accuracy, or an average cost, and perhaps a worst case."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from niwaki.deploy.thresholds import CommitteeError
from niwaki.objective.limit import Constraint, macs, parse_limit
from niwaki.space.choice import BudgetError

COSTS = ("macs", "latency(onnxruntime)")


@dataclass(frozen=True)
class Demand:
    """accuracy: a share, at least, or with `below_largest` so much less than the largest member's on the same examples. limit: of the average cost.
    worst: of the cost of an example for which all members run. Limits in per cent are shares of the largest member's cost."""

    text: str
    accuracy: float | None = None
    below_largest: float | None = None
    limit: Constraint | None = None
    worst: Constraint | None = None

    def counted(self, cost: str | None) -> str:
        """The cost that is counted: the one that is limited, else `cost`, by default multiply-adds."""
        if cost is not None and cost not in COSTS:
            raise CommitteeError(f"the cost of a cascade is counted in {' or '.join(COSTS)}, not in {cost!r}")
        limit = self.limit or self.worst
        if limit is None:
            return cost or macs.name
        if cost not in (None, limit.resource.name):
            raise CommitteeError(f"{self.text!r} limits {limit.resource.name}, so that is the cost that is counted, not {cost}")
        return limit.resource.name

    def target(self, largest: float) -> float | None:
        """The least accuracy, where the largest member's is this."""
        return self.accuracy if self.below_largest is None else max(0.0, largest - self.below_largest)


def parse_demand(text: str) -> Demand:
    """What a cascade shall come to, from text: one of an accuracy and an average cost, and, if need be, the worst case.

    >>> parse_demand("accuracy>=largest-1%").below_largest, parse_demand("accuracy >= 97.5%").accuracy
    (0.01, 0.975)
    >>> demand = parse_demand("macs<=50% and worst(macs)<=2M")
    >>> print(demand.limit, demand.worst)
    macs<=50% macs<=2000000
    """
    found: dict[str, Any] = {}
    named, told = set[str](), dict[str, Any]()
    for clause in re.split(r"\s+and\s+", text.strip()):
        if worst := re.fullmatch(r"worst\((.*)\)(\s*(?:<=|≤).*)", clause):
            name, told = "worst", {"worst": _limit(worst[1] + worst[2], text)}
        elif share := re.fullmatch(r"accuracy\s*(?:>=|≥)\s*(.*)", clause):
            name, told = "accuracy", _accuracy(share[1], text)
        else:
            name, told = "average cost", {"limit": _limit(clause, text)}
        if name in named:
            raise CommitteeError(f"{text!r} says twice what the {name} shall be; a demand is one {_EXAMPLES}")
        named.add(name)
        found |= told
    demand = Demand(text, **found)
    if (demand.limit is None) == (demand.accuracy is None and demand.below_largest is None):
        raise CommitteeError(f"{text!r}: a cascade is chosen for an accuracy or for an average cost, one of the two; {_EXAMPLES}")
    if demand.limit is not None and demand.worst is not None and demand.limit.resource != demand.worst.resource:
        raise CommitteeError(f"{text!r}: the worst case is limited in the same cost as the average")
    return demand


_EXAMPLES = 'such as "accuracy>=97%", "accuracy>=largest-1%", "macs<=50%" or "latency(onnxruntime)<=1ms", and "... and worst(macs)<=2M"'


def _accuracy(bound: str, text: str) -> dict[str, float]:
    match = re.fullmatch(r"(largest)?\s*(?:(-?)\s*(\d+\.?\d*|\.\d+)\s*(%?))?", bound)
    if not bound or not match or bool(match[1]) != (match[2] == "-" or match[3] is None):
        raise CommitteeError(f"{text!r}: an accuracy of {bound!r} is not understood; it is one {_EXAMPLES}")
    share = float(match[3] or 0) / (100 if match[4] else 1)
    if share > 1 or (match[1] and share == 1):  # "largest-1" means a point, and not that nothing need be right
        raise CommitteeError(
            f"{text!r}: an accuracy is a share, from 0 to 1, or from 0 to 100 %; one point below the largest is largest-1%"
        )
    return {"below_largest": share} if match[1] else {"accuracy": share}


def _limit(clause: str, text: str) -> Constraint:
    try:
        limit = parse_limit(clause)
    except BudgetError as error:
        raise CommitteeError(f"{text!r}: {error}; a demand is one {_EXAMPLES}") from error
    if limit.resource.name not in COSTS:
        raise CommitteeError(f"{text!r}: the cost of a cascade is counted in {' or '.join(COSTS)}, not in {limit.resource.name}")
    if limit.margin:
        raise CommitteeError(f"{text!r}: the cost of a cascade is one number, without a deviation to keep a margin of")
    return limit
