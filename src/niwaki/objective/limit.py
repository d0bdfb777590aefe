"""Limits on resources: a budget is some of them. From Python (`macs <= 5e6`) or from text ("macs<=5e6 and params<=1M").

>>> print(*parse_budget("macs<=5e6 and params<=1M"))
macs<=5000000 params<=1000000
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from numbers import Real

from niwaki.objective.devices import Across
from niwaki.objective.error import ObjectiveError
from niwaki.space.choice import BudgetError

COUNT = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}
BYTES = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
MILLISECONDS: Mapping[str, int | Decimal] = {"": 1, "us": Decimal("0.001"), "ms": 1, "s": 1000}
PLAIN: Mapping[str, int | Decimal] = {"": 1}
LARGEST = 10**18  # counts are 64-bit
RUNTIMES = ("onnxruntime", "openvino", "torch")


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


def measured(metric: str) -> Resource:
    """Any other metric that is to be small, such as the column of a table: a plain number in its own unit."""
    return Resource(metric, metric, PLAIN, counted=False)


@dataclass(frozen=True)
class Constraint:
    """A limit on a resource: at most `upper`, in the metric's unit; or at most the `share` of a reference that is not known yet.

    margin: for costs that are predicted: so many standard deviations are added before the cost is compared, T + margin * std <= upper. The
    deviation is the metric of the same name with " std" behind it.
    """

    resource: Resource
    upper: float | None = None
    share: float | None = None
    margin: float = 0.0

    def __post_init__(self) -> None:
        if (self.upper is None) == (self.share is None):
            raise BudgetError(f"a limit on {self.resource.name} needs either an upper bound or a share of a reference")
        bound = self.upper if self.upper is not None else self.share
        if isinstance(bound, bool) or not isinstance(bound, Real) or not 0 < bound < math.inf:
            raise BudgetError(f"{self.resource.name} cannot be limited to {bound!r}; a limit is a number above 0")
        if isinstance(self.margin, bool) or not isinstance(self.margin, Real) or not 0 <= self.margin < math.inf:
            raise BudgetError(
                f"the margin on {self.resource.name} cannot be {self.margin!r}; it is a number of standard deviations, at least 0"
            )
        if self.margin and self.resource.counted:
            raise BudgetError(f"{self.resource.name} is counted exactly, so that there is no deviation to keep a margin of")
        if self.upper is not None and self.resource.counted:
            object.__setattr__(self, "upper", _whole(Decimal(str(self.upper)), self.resource.name))

    @property
    def metric(self) -> str:
        """The name under which a trial's metrics hold the resource."""
        return self.resource.metric

    @property
    def metrics(self) -> tuple[str, ...]:
        """The same, as `Joint` has it."""
        return (self.metric,)

    @property
    def target(self) -> float:
        """The upper bound; BudgetError where it is a share of a reference that is not known."""
        if self.upper is None:
            raise BudgetError(f"{self} is a share of a reference; fix the reference with `of` first")
        return self.upper

    def of(self, reference: float) -> Constraint:
        """The limit as an upper bound, where a share is meant as that share of `reference`."""
        if self.share is None:
            return self
        bound = Decimal(str(self.share)) * Decimal(str(reference))
        upper = _whole(bound, self.resource.name) if self.resource.counted else float(bound)
        return Constraint(self.resource, upper, margin=self.margin)

    def cost(self, metrics: Mapping[str, float]) -> float:
        """What is spent, in the unit of `upper`, the margin included: finite and not negative."""
        spent = _metric(metrics, self.metric, self)
        if self.margin:
            spent += self.margin * _metric(metrics, f"{self.metric} std", self)
        return spent

    def ratio(self, metrics: Mapping[str, float]) -> float:
        """What was spent, as a share of the limit; at most 1 where the limit holds."""
        target = self.target
        return self.cost(metrics) / target

    def __str__(self) -> str:
        """The limit as `parse_limit` reads it."""
        name = self.resource.name + (f"+{_plain(Decimal(str(self.margin)))}std" if self.margin else "")
        if self.share is not None:
            return f"{name}<={_plain(Decimal(str(self.share)) * 100)}%"
        unit = "ms" if self.resource.units is MILLISECONDS else "B" if self.resource.units is BYTES else ""
        return f"{name}<={_plain(Decimal(str(self.upper)))}{unit}"


@dataclass(frozen=True)
class Joint:
    """One limit made of several, as on several devices: `across` (the mean, the worst, ...) of spent / limit may be at most 1.

    The ratios are formed for each device first: a mean of raw milliseconds would be the slowest device's.
    """

    limits: tuple[Constraint, ...]
    across: Across

    def __post_init__(self) -> None:
        object.__setattr__(self, "limits", tuple(self.limits))
        if not self.limits:
            raise BudgetError("a joint limit needs at least one limit to join")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names under which a trial's metrics hold the resources."""
        return tuple(limit.metric for limit in self.limits)

    @property
    def target(self) -> float:
        """1: the ratios are what is joined."""
        return 1.0

    def ratios(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """For each limit, what was spent as a share of it."""
        return tuple(limit.ratio(metrics) for limit in self.limits)

    def cost(self, metrics: Mapping[str, float]) -> float:
        return self.across(self.ratios(metrics))

    def ratio(self, metrics: Mapping[str, float]) -> float:
        """`across` of the ratios; at most 1 where the joint limit holds."""
        return self.cost(metrics)

    def __str__(self) -> str:
        return f"{self.across} of {', '.join(map(str, self.limits))}"


Budget = tuple[Constraint, ...]  # limits that one network keeps all of


def parse_limit(text: str, columns: Sequence[str] = (), resources: Mapping[str, Resource] | None = None) -> Constraint:
    """One limit from text: "macs<=5e6", "params<=1M", "size<=200kB", "macs<=50%", "latency(onnxruntime)<=2ms".

    A cost that is predicted may be given a margin: "latency(onnxruntime)+2std<=2ms". columns: other metrics that may be limited, such as
    those of a table: "pixel3<=4". resources: those that may be limited, where they are others than the ones above.

    >>> print(parse_limit("size <= 1.5 MB"), parse_limit("macs<=50%"))
    size<=1500000B macs<=50%
    """
    example = 'a limit looks like "macs<=5e6"'
    match = re.fullmatch(r"\s*([^<>=]*?)\s*(<=|>=|==|=|<|>|≤|≥)\s*(.*?)\s*", text)
    if not match:
        raise BudgetError(f"{text!r} is no limit; {example}")
    name, relation, bound = match.groups()
    margin = re.fullmatch(r"(.*?)\s*\+\s*(\d+\.?\d*|\.\d+)?\s*\*?\s*std", name) if name not in columns else None
    if margin:
        name = margin.group(1)
    if relation not in ("<=", "≤"):
        raise BudgetError(f"{text!r}: a budget is an upper limit, so {relation!r} cannot be asked for; {example}")
    resource = _resource(name, text, columns) if resources is None else _one_of(name, text, resources)
    deviations = float(margin.group(2) or 1) if margin else 0.0
    number = re.fullmatch(r"([+-]?)((?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)\s*(.*)", bound)
    if not number:
        raise BudgetError(f"{text!r}: {bound!r} is no number" + (" with a unit" if bound else f"; {example}"))
    sign, digits, unit = number.groups()
    value = Decimal(digits.replace("_", ""))
    if sign == "-" or not value:
        raise BudgetError(f"{text!r}: a limit is above 0, not {sign}{digits}")
    if unit == "%":
        return Constraint(resource, share=float(value / 100), margin=deviations)
    if unit not in resource.units:
        known = "".join(f", in {unit}" if number == 0 else f", {unit}" for number, unit in enumerate(filter(None, resource.units)))
        raise BudgetError(f"{text!r}: {unit!r} is no unit of {resource.name}; it is a plain number{known}, or in % of a reference")
    bound_value = value * resource.units[unit]
    return Constraint(resource, _whole(bound_value, text) if resource.counted else float(bound_value), margin=deviations)


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


def _resource(name: str, text: str, columns: Sequence[str]) -> Resource:
    if name in columns:
        return COUNTED.get(name) or measured(name)
    if name in COUNTED:
        return COUNTED[name]
    if match := re.fullmatch(r"latency\s*\(\s*[\"']?([^)\"']*?)[\"']?\s*\)", name):
        return latency(match.group(1))
    if name == "latency":
        raise BudgetError(f"{text!r}: latency needs a runtime, as in latency(onnxruntime)<=2ms; there are {', '.join(RUNTIMES)}")
    known = (*COUNTED, "latency(RUNTIME)", *columns)
    raise BudgetError(f"{text!r}: {name!r} is no resource{_near(name, (*COUNTED, 'latency', *columns))}; there are {', '.join(known)}")


def _one_of(name: str, text: str, resources: Mapping[str, Resource]) -> Resource:
    if name not in resources:
        raise BudgetError(f"{text!r}: {name!r} is no resource{_near(name, tuple(resources))}; there are {', '.join(resources)}")
    return resources[name]


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


def _metric(metrics: Mapping[str, float], name: str, limit: Constraint) -> float:
    if name not in metrics:
        raise ObjectiveError(f"the limit {limit} needs the metric {name!r}; a trial has {', '.join(metrics) or 'none'}")
    value = metrics[name]
    if not 0 <= value < math.inf:
        raise ObjectiveError(f"the limit {limit}: {name} = {value} is no cost; a cost is a finite number, not below 0")
    return value
