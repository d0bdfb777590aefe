"""Several objectives at once: the Pareto front of trials, and hypervolume in a frame that is fixed before anything is compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import moocore
import numpy as np
from numpy.typing import ArrayLike

from niwaki.objective.dual import Observed, State
from niwaki.objective.error import ObjectiveError
from niwaki.objective.limit import macs
from niwaki.objective.objective import Objective, listed, value_of
from niwaki.objective.reward import Spent
from niwaki.trial import Trial


def pareto_front(trials: Sequence[Trial], objective: Objective | Sequence[str], costs: Sequence[str] = ()) -> list[Trial]:
    """The ok trials that no other dominates, in the order of their costs: more of the quality, or less of some cost.

    objective: with `costs`, metrics to be small; left out, those that the objective limits, or else "macs". Or several metrics to be large,
    "-metric" for one that is to be small: the front is in the order of the first. Of equal trials, the earliest.
    """
    if isinstance(objective, Objective):
        limited = tuple(dict.fromkeys(name for limit in objective.subject_to for name in limit.metrics))
        names = (*(f"-{name}" for name in tuple(costs) or limited or (macs.metric,)), objective.maximize)
    else:
        names = (*objective, *(f"-{name}" for name in costs))

    def point(trial: Trial) -> tuple[float, ...]:
        if missing := [name for name in (name.removeprefix("-") for name in names) if name not in trial.metrics]:
            raise ObjectiveError(f"the front needs {', '.join(missing)} of every trial; trial {trial.number} has {listed(trial.metrics)}")
        return tuple(-value_of(trial.metrics, name) for name in names)

    front: list[tuple[tuple[float, ...], Trial]] = []
    # sorted, whatever dominates a trial stands before it, and what dominates that is already in the front
    for at, trial in sorted(((point(trial), trial) for trial in trials if trial.status == "ok"), key=lambda pair: pair[0]):
        if not any(all(x <= y for x, y in zip(other, at, strict=True)) for other, _ in front):
            front.append((at, trial))
    return [trial for _, trial in front]


def cheaper(trial: Trial, trials: Sequence[Trial], objective: Objective) -> list[Trial]:
    """The trials that are at least as good, spend no more of any limit, and less of one: what a reward that draws to a target passes over."""

    def spends(one: Trial) -> tuple[float, ...]:
        return tuple(limit.ratio(one.metrics) for limit in objective.subject_to)

    quality, spent = objective.quality(trial.metrics), spends(trial)
    candidates = [one for one in trials if one.status == "ok" and objective.quality(one.metrics) >= quality]
    return [one for one in candidates if spends(one) != spent and all(a <= b for a, b in zip(spends(one), spent, strict=True))]


def hypervolume(points: ArrayLike, reference: Sequence[float]) -> float:
    """The measure of what `points` (N, M), all to be small, dominate below `reference` (M,). Points beyond it in any axis add nothing."""
    given, least = _points(points, reference)
    if given.shape[1] == 1:
        return float(max(0.0, least[0] - given.min(initial=least[0])))
    return float(moocore.hypervolume(given, ref=least)) if len(given) else 0.0


def hypervolume_gain(points: ArrayLike, candidate: Sequence[float], reference: Sequence[float]) -> float:
    """How much the hypervolume of `points` (N, M) grows with `candidate` (M,); summed over points that come one by one, it is the hypervolume."""
    given, _ = _points(points, reference)
    return hypervolume(np.vstack([given, np.asarray(candidate, dtype=np.float64)]), reference) - hypervolume(given, reference)


def epsilon_indicator(points: ArrayLike, of: ArrayLike) -> float:
    """By how much `points` (N, M) must be moved, in every axis, to be no worse than each of `of` (K, M): 0 or less where they already are."""
    given, other = np.atleast_2d(np.asarray(points, dtype=np.float64)), np.atleast_2d(np.asarray(of, dtype=np.float64))
    return float((given[:, None] - other[None]).max(axis=2).min(axis=0).max())


@dataclass(frozen=True)
class Frame:
    """Bounds of several metrics, fixed before a comparison: `best` is 0 and `worst`, the reference of the hypervolume, is 1 in each.

    names: metrics to be large, "-metric" for those to be small; best, worst: in the metric's own unit. log: those on a logarithmic axis. All
    of it belongs beside a hypervolume that is reported: ratios of hypervolumes depend on it.
    """

    names: tuple[str, ...]
    best: tuple[float, ...]
    worst: tuple[float, ...]
    log: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("names", "best", "worst", "log"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.names or len(set(self.names)) < len(self.names) or not len(self.names) == len(self.best) == len(self.worst):
            raise ObjectiveError(
                f"a frame needs different metrics, and a best and a worst of each: {self.names}, {self.best}, {self.worst}"
            )
        if unknown := [name for name in self.log if name not in self.names]:
            raise ObjectiveError(f"{unknown[0]!r} cannot be logarithmic in a frame of {', '.join(self.names)}")
        for name, best, worst in zip(self.names, self.best, self.worst, strict=True):
            if name in self.log and not (best > 0 and worst > 0):
                raise ObjectiveError(f"{name} is from {best:g} to {worst:g}; on a logarithmic axis both are above 0")
            if not (math.isfinite(best) and math.isfinite(worst) and (best < worst if name.startswith("-") else best > worst)):
                raise ObjectiveError(
                    f"the best of {name}, {best:g}, must be {'below' if name.startswith('-') else 'above'} the worst, {worst:g}"
                )

    @staticmethod
    def around(metrics: Sequence[Mapping[str, float]], names: Sequence[str], *, log: Sequence[str] = (), beyond: float = 0.1) -> Frame:
        """From what is known beforehand, such as random trials: the best, and the worst with a tenth of the range beyond it."""
        if not metrics:
            raise ObjectiveError("a frame is made around the metrics of some trials; there are none")
        bests, worsts = [], []
        for name in names:
            sign = -1.0 if name.startswith("-") else 1.0
            values = [value_of(one, name) * sign for one in metrics]
            best, worst = (min(values), max(values)) if sign < 0 else (max(values), min(values))
            if best == worst:
                raise ObjectiveError(
                    f"all of {len(values)} trials have {name.removeprefix('-')} = {best:g}; there is no range to make a frame of"
                )
            if name in log:
                if min(values) <= 0:
                    raise ObjectiveError(f"{name.removeprefix('-')} is down to {min(values):g}; on a logarithmic axis all are above 0")
                worst = math.exp(math.log(worst) + beyond * (math.log(worst) - math.log(best)))
            else:
                worst += beyond * (worst - best)
            bests.append(best)
            worsts.append(worst)
        return Frame(tuple(names), tuple(bests), tuple(worsts), tuple(log))

    def point(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """Where a trial lies: 0 at the best, 1 at the worst, in each metric."""
        at = []
        for name, best, worst in zip(self.names, self.best, self.worst, strict=True):
            value = abs(value_of(metrics, name)) if name in self.log else value_of(metrics, name) * (-1.0 if name.startswith("-") else 1.0)
            if name in self.log:
                if not value > 0:
                    raise ObjectiveError(f"{name.removeprefix('-')} = {value:g} has no place on a logarithmic axis")
                value, best, worst = math.log(value), math.log(best), math.log(worst)
            at.append((value - best) / (worst - best))
        return tuple(at)

    def hypervolume(self, metrics: Sequence[Mapping[str, float]]) -> float:
        """Of these trials: 1 for one that is the best in everything, 0 for none within the frame."""
        return hypervolume([self.point(one) for one in metrics], [1.0] * len(self.names)) if metrics else 0.0

    def to_json(self) -> dict[str, Any]:
        return {"names": list(self.names), "best": list(self.best), "worst": list(self.worst), "log": list(self.log)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Frame:
        return Frame(**{name: tuple(entries) for name, entries in data.items()})


@dataclass(frozen=True)
class HypervolumeGain:
    """As a reward: how much an architecture adds to the hypervolume, over quality and the ratio of each limit, of all that was seen.

    worst_quality, worst_ratio: the reference, fixed for the whole search; beyond it nothing is gained. The state holds the front. The reward
    of the same architecture falls as the front grows: a policy needs a baseline.
    """

    worst_quality: float = 0.0
    worst_ratio: float = 2.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.worst_quality) and 0 < self.worst_ratio < math.inf):
            raise ObjectiveError(
                f"worst_quality={self.worst_quality}, worst_ratio={self.worst_ratio}: both are finite, the ratio is above 0"
            )

    def init(self, limits: int) -> State:
        return {"limits": limits, "points": []}

    def reward(self, quality: float, spent: Sequence[Spent], state: State) -> float:
        return hypervolume_gain(self._points(state), self._point(quality, spent), self._reference(len(spent)))

    def update(self, state: State, observed: Observed) -> State:
        points = np.vstack([self._points(state), *(self._point(quality, spent) for quality, spent in observed)])
        points = np.unique(points[(points < self._reference(state["limits"])).all(axis=1)], axis=0)
        dominated = (points[:, None] <= points[None]).all(axis=2).sum(axis=0) > 1  # by another than itself
        return {"limits": state["limits"], "points": points[~dominated].tolist()}

    def _points(self, state: State) -> np.ndarray:
        return np.array(state["points"], dtype=np.float64).reshape(-1, 1 + state["limits"])

    def _point(self, quality: float, spent: Sequence[Spent]) -> list[float]:
        return [-quality, *(one.ratio for one in spent)]

    def _reference(self, limits: int) -> list[float]:
        return [-self.worst_quality, *[self.worst_ratio] * limits]


def _points(points: ArrayLike, reference: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    least = np.asarray(reference, dtype=np.float64)
    given = np.asarray(points, dtype=np.float64).reshape(-1, len(least)) if np.size(points) == 0 else np.asarray(points, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] != len(least):
        raise ObjectiveError(
            f"points of the shape {given.shape} do not fit a reference of {len(least)} objectives; (N, {len(least)}) is needed"
        )
    if not (np.isfinite(given).all() and np.isfinite(least).all()):
        raise ObjectiveError("points and reference of a hypervolume are finite numbers")
    return given, least
