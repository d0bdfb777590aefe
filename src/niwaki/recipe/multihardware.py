"""Multi-hardware search (Chu et al. 2020, arXiv 2008.08178): one network for several devices.

Parts: TuNAS's search (recipe/tunas.py), whose reward takes the mean or the worst of spent / target over the devices (objective/devices.py). Every ratio
is of a device's own target, the latency of a reference network on it: in milliseconds the slowest device would decide alone, and the
choice of the reference weighs the devices. `capped` is ours: the mean as the aim, and a hard cap on every device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from niwaki.objective import Absolute, Constraint, Joint, Mean, Objective, Worst, measured
from niwaki.objective.devices import Across
from niwaki.recipe.tunas import BETA
from niwaki.space.choice import BudgetError
from niwaki.trial import Trial

DEVICES = ("Pixel 4 CPU", "Pixel 4 GPU", "Pixel 4 DSP", "Pixel 4 Edge TPU")  # the paper's
ACCURACY = "accuracy"


def limits(targets: Mapping[str, float]) -> tuple[Constraint, ...]:
    """One limit for each device: metric -> its target, in the metric's own unit."""
    if not targets:
        raise BudgetError("a search for several devices needs a target for each; there are none")
    return tuple(measured(metric) <= target for metric, target in targets.items())


def toward(targets: Mapping[str, float], across: Across, *, maximize: str = ACCURACY, beta: float = BETA) -> Objective:
    """quality + beta * |rho - 1|, rho = `across` of the devices' ratios. Nothing is forbidden."""
    return Objective(maximize, form=Absolute(beta), toward=(Joint(limits(targets), across),))


def average_case(targets: Mapping[str, float], *, weights: tuple[float, ...] | None = None, maximize: str = ACCURACY, beta: float = BETA) -> Objective:  # fmt: skip
    """Multi-AVG. weights: of the devices; by default all alike."""
    return toward(targets, Mean(weights), maximize=maximize, beta=beta)


def worst_case(targets: Mapping[str, float], *, maximize: str = ACCURACY, beta: float = BETA) -> Objective:
    """Multi-MAX: between two binding devices the controller may swing, so reports show every device's ratio (`ratios`)."""
    return toward(targets, Worst(), maximize=maximize, beta=beta)


def capped(targets: Mapping[str, float], caps: Mapping[str, float], *, maximize: str = ACCURACY, beta: float = BETA) -> Objective:
    """The mean as the aim, which alone may hide a device far over its target, and no device above its cap in what is picked (ours)."""
    if missing := [name for name in caps if name not in targets]:
        raise BudgetError(f"there is a cap for {', '.join(missing)}, but targets only for {', '.join(targets)}")
    return Objective(maximize, limits(caps), Absolute(beta), (Joint(limits(targets), Mean()),))


def ratios(metrics: Mapping[str, float], targets: Mapping[str, float]) -> dict[str, float]:
    """Device -> spent / target."""
    return {limit.metric: limit.ratio(metrics) for limit in limits(targets)}


def pick(trials: Sequence[Trial], objective: Objective) -> Trial:
    """The trial of the best reward among those within all caps; ObjectiveError, which names the devices that bind, if none is."""
    kept = [trial for trial in trials if trial.status == "ok" and objective.feasible(trial.metrics)]
    if not kept:
        return objective.best(trials)  # raises, and says which limits bind
    return max(kept, key=lambda trial: objective.reward(trial.metrics))
