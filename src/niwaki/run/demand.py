"""What a cascade shall come to, in words: an accuracy, or an average cost, and perhaps a worst case."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from niwaki.deploy.thresholds import CommitteeError
from niwaki.objective.limit import Constraint, Resource, macs, parse_limit
from niwaki.space.choice import BudgetError

COSTS = ("macs", "latency(onnxruntime)")


@dataclass(frozen=True)
class Demand:
    """accuracy: a share, at least, or with `below_largest` so much less than the largest member's on the same examples. limit: of the average cost.
    worst: of the cost of an example for which all members run."""

    text: str
    accuracy: float | None = None
    below_largest: float | None = None
    limit: Constraint | None = None
    worst: Constraint | None = None

    @property
    def resource(self) -> Resource:
        limit = self.limit or self.worst
        return macs if limit is None else limit.resource

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
    for clause in re.split(r"\s+and\s+", text.strip()):
        if worst := re.fullmatch(r"worst\((.*)\)(\s*(?:<=|≤).*)", clause):
            found["worst"] = _limit(worst[1] + worst[2], text)
        elif share := re.fullmatch(r"accuracy\s*(?:>=|≥)\s*(.*)", clause):
            found |= _accuracy(share[1], text)
        else:
            found["limit"] = _limit(clause, text)
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
    if share > 1:
        raise CommitteeError(f"{text!r}: an accuracy is a share, from 0 to 1, or from 0 to 100 %")
    return {"below_largest": share} if match[1] else {"accuracy": share}


def _limit(clause: str, text: str) -> Constraint:
    try:
        limit = parse_limit(clause)
    except BudgetError as error:
        raise CommitteeError(f"{text!r}: {error}; a demand is one {_EXAMPLES}") from error
    if limit.resource.name not in COSTS:
        raise CommitteeError(f"{text!r}: the cost of a cascade is counted in {' or '.join(COSTS)}, not in {limit.resource.name}")
    return limit
