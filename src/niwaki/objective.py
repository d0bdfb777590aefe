"""What a search is to reach: a metric to maximize, and budgets, which are limits on resources. Also the Pareto front of trials.

>>> Objective("accuracy", subject_to=parse_budget("macs<=5e6 and params<=1M")).feasible({"accuracy": 0.9, "macs": 4e6, "params": 2e6})
False
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from numbers import Real
from typing import Any

from niwaki.space.choice import BudgetError
from niwaki.trial import Trial

COUNT = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}
BYTES = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
MILLISECONDS: Mapping[str, int | Decimal] = {"": 1, "us": Decimal("0.001"), "ms": 1, "s": 1000}
LARGEST = 10**18  # counts are 64-bit
RUNTIMES = ("onnxruntime", "openvino", "torch")


class ObjectiveError(ValueError):
    """Objectives that the trials cannot answer."""


@dataclass(frozen=True)
class Resource:
    """Something that a budget limits. `macs <= 5e6` makes a constraint of it.

    metric: under which a trial holds it, in the unit that `units` maps to 1. counted: known exactly from the description, without a device.
    """

    name: str
    metric: str
    units: Mapping[str, int | Decimal]
    counted: bool = True

    def __le__(self, upper: float) -> Constraint:
        return Constraint(self, upper)

    def __hash__(self) -> int:
        return hash(self.name)


macs = Resource("macs", "macs", COUNT)  # multiply-adds
params = Resource("params", "params", COUNT)  # all that learn
size = Resource("size", "size", BYTES)  # of the weights and statistics, in float32
activations = Resource("activations", "activations", COUNT)  # output elements of convolutions and linear layers
peak_activation = Resource("peak_activation", "peak_activation", COUNT)  # elements alive at once
COUNTED = {resource.name: resource for resource in (macs, params, size, activations, peak_activation)}


def latency(runtime: str) -> Resource:
    """The time that one example takes in `runtime`, in milliseconds; a number without a unit means milliseconds, too."""
    if runtime not in RUNTIMES:
        raise BudgetError(f"latency cannot be measured in {runtime!r}{_near(runtime, RUNTIMES)}; there are {', '.join(RUNTIMES)}")
    return Resource(f"latency({runtime})", f"latency_ms({runtime})", MILLISECONDS, counted=False)


@dataclass(frozen=True)
class Constraint:
    """A limit on a resource: at most `upper`, in the metric's unit; or at most the `share` of a reference that is not known yet."""

    resource: Resource
    upper: float | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if (self.upper is None) == (self.share is None):
            raise BudgetError(f"a limit on {self.resource.name} needs either an upper bound or a share of a reference")
        bound = self.upper if self.upper is not None else self.share
        if isinstance(bound, bool) or not isinstance(bound, Real) or not 0 < bound < math.inf:
            raise BudgetError(f"{self.resource.name} cannot be limited to {bound!r}; a limit is a number above 0")
        if self.upper is not None and self.resource.counted:
            object.__setattr__(self, "upper", _whole(Decimal(str(self.upper)), self.resource.name))

    @property
    def metric(self) -> str:
        """The name under which a trial's metrics hold the resource."""
        return self.resource.metric

    def of(self, reference: float) -> Constraint:
        """The limit as an upper bound, where a share is meant as that share of `reference`."""
        if self.share is None:
            return self
        bound = Decimal(str(self.share)) * Decimal(str(reference))
        return Constraint(self.resource, _whole(bound, self.resource.name) if self.resource.counted else float(bound))

    def ratio(self, metrics: Mapping[str, float]) -> float:
        """What was spent, as a share of the limit; at most 1 where the limit holds."""
        if self.upper is None:
            raise BudgetError(f"{self} is a share of a reference; fix the reference with `of` first")
        if self.metric not in metrics:
            raise ObjectiveError(f"the limit {self} needs the metric {self.metric!r}; a trial has {', '.join(metrics) or 'none'}")
        return metrics[self.metric] / self.upper

    def __str__(self) -> str:
        """The limit as `parse_limit` reads it."""
        if self.share is not None:
            return f"{self.resource.name}<={_plain(Decimal(str(self.share)) * 100)}%"
        unit = "ms" if not self.resource.counted else "B" if self.resource.units is BYTES else ""
        return f"{self.resource.name}<={_plain(Decimal(str(self.upper)))}{unit}"


Budget = tuple[Constraint, ...]  # limits that one network keeps all of


def parse_limit(text: str) -> Constraint:
    """One limit from text: "macs<=5e6", "params<=1M", "size<=200kB", "macs<=50%", "latency(onnxruntime)<=2ms".

    >>> print(parse_limit("size <= 1.5 MB"), parse_limit("macs<=50%"))
    size<=1500000B macs<=50%
    """
    example = 'a limit looks like "macs<=5e6"'
    match = re.fullmatch(r"\s*([^<>=]*?)\s*(<=|>=|==|=|<|>|≤|≥)\s*(.*?)\s*", text)
    if not match:
        raise BudgetError(f"{text!r} is no limit; {example}")
    name, relation, bound = match.groups()
    if relation not in ("<=", "≤"):
        raise BudgetError(f"{text!r}: a budget is an upper limit, so {relation!r} cannot be asked for; {example}")
    resource = _resource(name, text)
    number = re.fullmatch(r"([+-]?)((?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)\s*(.*)", bound)
    if not number:
        raise BudgetError(f"{text!r}: {bound!r} is no number" + (" with a unit" if bound else f"; {example}"))
    sign, digits, unit = number.groups()
    value = Decimal(digits.replace("_", ""))
    if sign == "-" or not value:
        raise BudgetError(f"{text!r}: a limit is above 0, not {sign}{digits}")
    if unit == "%":
        return Constraint(resource, share=float(value / 100))
    if unit not in resource.units:
        known = ", ".join(unit for unit in resource.units if unit)
        raise BudgetError(f"{text!r}: {unit!r} is no unit of {resource.name}; it is a plain number, in {known}, or in % of a reference")
    bound_value = value * resource.units[unit]
    return Constraint(resource, _whole(bound_value, text) if resource.counted else float(bound_value))


def parse_budget(text: str | Sequence[str]) -> Budget:
    """The limits of one budget, in the order given: text joins them by "and" or commas; a list has one or more in each entry.

    Latency is refused for now: it has to be measured, and searching under a measured limit is still to come.
    """
    texts: list[str] = [text] if isinstance(text, str) or not isinstance(text, Sequence) else list(text)
    if wrong := [entry for entry in texts if not isinstance(entry, str)]:
        raise BudgetError(f'{wrong[0]!r} is no limit; a limit is text such as "macs<=5e6"')
    limits = [parse_limit(part) for entry in texts for part in re.split(r",|\band\b", entry)]
    for number, limit in enumerate(limits):
        if not limit.resource.counted:
            raise BudgetError(f"{limit}: a limit on latency cannot be searched under yet; limit {', '.join(COUNTED)}")
        if any(limit.resource == other.resource for other in limits[:number]):
            raise BudgetError(f"{' and '.join(map(str, limits))}: {limit.resource.name} is limited twice")
    return tuple(limits)


def parse_budgets(text: str | Sequence[str | Sequence[str]]) -> tuple[Budget, ...]:
    """The budgets of one search, one network for each: the entries of a list, or the parts of a text between semicolons."""
    entries = [part for part in text.split(";") if part.strip()] if isinstance(text, str) else text
    budgets = tuple(parse_budget(entry) for entry in entries)
    for number, budget in enumerate(budgets):
        if budget in budgets[:number]:
            raise BudgetError(f"the budget {budget_text(budget)} is asked for twice")
    return budgets


def budget_text(budget: Budget) -> str:
    """A budget as `parse_budget` reads it, the same text for the same limits however they were written."""
    return " and ".join(map(str, budget))


@dataclass(frozen=True)
class Objective:
    """Make the metric `maximize` as large as the limits in `subject_to` allow: feasible first, then best, then cheapest."""

    maximize: str = "accuracy"
    subject_to: Budget = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "subject_to", tuple(self.subject_to))

    def quality(self, metrics: Mapping[str, float]) -> float:
        if self.maximize not in metrics:
            raise ObjectiveError(f"the objective maximizes {self.maximize!r}; a trial has {', '.join(metrics) or 'no metrics'}")
        return metrics[self.maximize]

    def feasible(self, metrics: Mapping[str, float]) -> bool:
        """Whether all limits hold."""
        return all(limit.ratio(metrics) <= 1 for limit in self.subject_to)

    def violation(self, metrics: Mapping[str, float]) -> float:
        """By how much the limits are exceeded: the sum over limits of max(0, spent / limit - 1)."""
        return sum(max(0.0, limit.ratio(metrics) - 1) for limit in self.subject_to)

    def better(self, a: Mapping[str, float], b: Mapping[str, float]) -> bool:
        """Whether metrics `a` are better: feasible first, then quality, then cost; of two infeasible ones, the smaller violation."""
        return self._rank(a) > self._rank(b)

    def best(self, trials: Sequence[Trial]) -> Trial:
        """The best trial among those that are ok; the earliest of equals. There must be a feasible one."""
        candidates = [trial for trial in trials if trial.status == "ok"]
        feasible = [trial for trial in candidates if self.feasible(trial.metrics)]
        if not feasible:
            closest = max(candidates, key=lambda trial: self._rank(trial.metrics), default=None)
            spent = "" if closest is None else f"; the closest, trial {closest.number}, has {_listed(closest.metrics)}"
            raise ObjectiveError(f"none of {len(trials)} trials is within {budget_text(self.subject_to) or 'the search'}{spent}")
        return max(feasible, key=lambda trial: self._rank(trial.metrics))

    def _rank(self, metrics: Mapping[str, float]) -> tuple[Any, ...]:
        """Larger is better; a tuple of the same length and kinds for any metrics."""
        return -self.violation(metrics), self.quality(metrics), *(-limit.ratio(metrics) for limit in self.subject_to)


def pareto_front(trials: Sequence[Trial], objective: Objective, costs: Sequence[str] = ()) -> list[Trial]:
    """The ok trials that no other dominates, in the order of their costs: more of the quality, or less of some cost.

    costs: metrics to be small; left out, those that the objective limits, or else "macs". Of equal trials, the earliest.
    """
    small = tuple(costs) or tuple(limit.metric for limit in objective.subject_to) or (macs.metric,)

    def point(trial: Trial) -> tuple[float, ...]:
        if missing := [name for name in small if name not in trial.metrics]:
            raise ObjectiveError(f"the front needs {', '.join(missing)} of every trial; trial {trial.number} has {_listed(trial.metrics)}")
        return *(trial.metrics[name] for name in small), -objective.quality(trial.metrics)

    front: list[tuple[tuple[float, ...], Trial]] = []
    # sorted, whatever dominates a trial stands before it, and what dominates that is already in the front
    for at, trial in sorted(((point(trial), trial) for trial in trials if trial.status == "ok"), key=lambda pair: pair[0]):
        if not any(all(x <= y for x, y in zip(other, at, strict=True)) for other, _ in front):
            front.append((at, trial))
    return [trial for _, trial in front]


def _resource(name: str, text: str) -> Resource:
    if name in COUNTED:
        return COUNTED[name]
    if match := re.fullmatch(r"latency\s*\(\s*[\"']?([^)\"']*?)[\"']?\s*\)", name):
        return latency(match.group(1))
    if name == "latency":
        raise BudgetError(f"{text!r}: latency needs a runtime, as in latency(onnxruntime)<=2ms; there are {', '.join(RUNTIMES)}")
    known = (*COUNTED, "latency(RUNTIME)")
    raise BudgetError(f"{text!r}: {name!r} is no resource{_near(name, (*COUNTED, 'latency'))}; there are {', '.join(known)}")


def _near(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word.lower(), known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _whole(value: Decimal, where: str) -> int:
    """The largest whole number that is at most `value`: half a multiply-add cannot be spent."""
    if value > LARGEST:
        raise BudgetError(f"{where}: a limit of {value} is more than can be counted; it is at most {LARGEST:.0e}")
    if (whole := int(value)) < 1:
        raise BudgetError(f"{where}: a limit of {_plain(value)} leaves nothing to spend; it is at least 1")
    return whole


def _plain(value: Decimal) -> str:
    return f"{value.normalize():f}"


def _listed(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in metrics.items()) or "no metrics"
