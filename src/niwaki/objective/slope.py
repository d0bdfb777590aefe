"""Is the cost weight of the absolute reward strong enough to hold the cost at its target? Measured on trials, such as the first random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from niwaki.objective.error import ObjectiveError
from niwaki.objective.objective import Objective
from niwaki.objective.reward import Absolute
from niwaki.trial import Trial

MARGIN = 1.5  # of the weight that is suggested over the slope that was measured
BAND = 0.03  # of cost / target: what counts as at the target


@dataclass(frozen=True)
class Slope:
    """How much quality a unit of cost / target is worth around the target, and what that means for `beta`.

    front: the weight from which on the best reward of these trials is at the target, within 3 % (or as near as one of them comes): the
    steepest way from there to any trial further off. trend: the slope of the mean quality over log cost, by least squares within a factor of
    two; what a policy sees early on. suggested: a beta that holds. warning: what is wrong with the given one; "" if nothing is.
    """

    beta: float
    front: float
    trend: float
    suggested: float
    warning: str

    @property
    def slope(self) -> float:
        """What -beta must exceed."""
        return max(self.front, self.trend)


def slope_test(trials: Sequence[Trial], objective: Objective) -> Slope:
    """Slopes of quality over cost / target around the target, from trials on both sides of it; the objective has one limit and `Absolute`.

    The maximizer of quality + beta |ratio - 1| is at the target where -beta exceeds the slope of the front on both sides (Bender et al. 2020,
    for concave fronts). Random trials lie below the front, so what they tell is an estimate; the suggested beta is half as much again.
    """
    limits = objective.toward or objective.subject_to
    if len(limits) != 1 or not isinstance(objective.form, Absolute):
        raise ObjectiveError(
            f"the slope test is for one limit and tunas-absolute; the objective has {len(limits)} limits and {objective.form!r}"
        )
    ok = [trial.metrics for trial in trials if trial.status == "ok"]
    ratio = np.array([limits[0].ratio(metrics) for metrics in ok])
    quality = np.array([objective.quality(metrics) for metrics in ok])
    if not (ratio <= 1).any() or not (ratio > 1).any():
        there, none = ("within", "beyond") if (ratio <= 1).any() else ("beyond", "within")
        raise ObjectiveError(f"the slope at {limits[0]} needs trials on both sides of it; {len(ok)} are {there} it and none is {none} it")
    off = np.abs(ratio - 1)
    band = off <= max(BAND, off.min())
    # trial o is passed over for trial b of the band where quality_o + beta off_o < quality_b + beta off_b
    needed = (quality[~band, None] - quality[None, band]) / (off[~band, None] - off[None, band])
    front = float(needed.min(axis=1).max(initial=0.0))
    near = (ratio >= 0.5) & (ratio <= 2)
    log_ratio = np.log(ratio[near]) if near.any() else np.zeros(0)
    trend = float(np.polyfit(log_ratio, quality[near], 1)[0]) if len(np.unique(log_ratio)) > 1 else 0.0
    found, beta = max(front, trend), objective.form.beta
    suggested = -MARGIN * found
    warning = ""
    if -beta <= found:
        warning = (
            f"beta={beta:g} is too weak to hold {limits[0]}: quality rises by {found:.3g} per unit of cost / target there; "
            f"take beta={suggested:.3g} or below"
        )
    return Slope(beta, front, trend, suggested, warning)
