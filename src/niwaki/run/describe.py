"""What there is to know of a space before anything is trained, as JSON."""

from __future__ import annotations

from typing import Any

from niwaki.cost.count import COSTS
from niwaki.factor.factor import Limit
from niwaki.factor.quantile import quantiles
from niwaki.factor.within import within
from niwaki.net.control import Network
from niwaki.net.place import space_of
from niwaki.net.program import distinct
from niwaki.objective import budget_text, parse_budget
from niwaki.run.model import ModelError, load_model


def describe_space(word: str, budget: str | None = None) -> dict[str, Any]:
    """`choices`, `assignments`, `size`, `distinct` (or `distinct_reason`), `macs: {min, max, quantiles}`; with a budget, `within: {count, share, bounds}`."""
    network = load_model(word)
    if not isinstance(network, Network):
        raise ModelError(f"{word} is a {type(network).__name__}, which has no choices; a niwaki Network is needed")
    limits = parse_budget(budget) if budget is not None else None
    space = space_of(network)
    macs = COSTS["macs"](network)
    programs, reason = distinct(network)
    found: dict[str, Any] = {
        "network": word,
        "choices": [
            {"name": decision.name, "options": list(decision.options), "conditional": decision.condition is not True}
            for decision in space.decisions
        ],
        "assignments": space.assignments,
        "size": space.size,
        "distinct": programs,
        "distinct_reason": reason,
        "macs": {
            "min": macs.minimum()[0],
            "max": macs.maximum()[0],
            "quantiles": {f"{quantile.share:g}": quantile.value for quantile in quantiles(macs)},
        },
    }
    if limits is not None:
        costs = {constraint.resource.name: COSTS[constraint.resource.name](network) for constraint in limits}
        bounds = []
        for constraint in limits:
            cost = costs[constraint.resource.name]
            bounds.append(Limit(cost, int(constraint.of(cost.maximum()[0]).upper or 0)))
        count = within(space, bounds).count
        found["budget"] = budget_text(limits)
        found["within"] = {"count": count.count, "share": count.share, "bounds": {"count": [count.lo, count.hi]}}
    return found
