"""From the records of searches to what is told of them. A function of the records alone: the same records, the same figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np

from niwaki.run.significance import alike, compare, critical_difference, friedman, mean_ranks
from niwaki.run.statistics import Interval, bootstrap, bootstrap_curve

Record = Mapping[str, Any]
CURVES = 2000  # resampled mean curves, of which the area is taken
MOMENTS = 120  # of simulated time, at which curves over time are drawn


def summary(facts: Mapping[str, Any], records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """{"strategies": contestant -> its regret at each number of evaluations and what else there is to say of it, "comparison": of them all}.

    facts: of the table, as `Contest.facts` gives them. records: contestant -> what `Contest.play` gave for each seed, in order.
    """
    areas = {name: [area(record["regret"], facts["floor"]) for record in of_seeds] for name, of_seeds in records.items()}
    times = _moments(records) if facts["workers"] > 1 or facts["seconds"] else []
    return {
        "facts": dict(facts),
        "strategies": {name: _one(facts, list(of_seeds), areas[name], times) for name, of_seeds in records.items()},
        "comparison": _compared(records, areas),
    }


def area(regret: Sequence[float] | np.ndarray, floor: float) -> float:
    """Mean of log10 regret over log evaluations, by trapezoids: the area under the curve of the log-log plot, divided by its width.

    floor: what a regret of 0 counts as: the smallest above 0 that there is.
    """
    heights = np.log10(np.maximum(np.asarray(regret), floor))
    if len(heights) == 1:
        return float(heights[0])
    widths = np.diff(np.log(np.arange(1, len(heights) + 1)))
    return float(((heights[1:] + heights[:-1]) / 2 * widths).sum() / widths.sum())


def _one(facts: Mapping[str, Any], records: Sequence[Record], areas: Sequence[float], times: Sequence[float]) -> dict[str, Any]:
    regrets = np.array([record["regret"] for record in records])  # (seeds, evaluations)
    found: dict[str, Any] = {"regret": _curve(regrets)}
    if facts["report"] == "hypervolume":
        found["hypervolume"] = _curve(facts["best"] - regrets)
    found["area"] = asdict(bootstrap(areas))
    if facts["random_exact"]:
        found["against_random"] = asdict(_against(regrets, facts["random_exact"], facts["floor"]))
    found["reached"] = [_reached(level, regrets) for level in facts["levels"]]
    found["within"] = float(np.mean([np.mean(record["within"]) for record in records]))
    found["seeds"] = len(records)
    found["evaluations"] = min(len(record["places"]) for record in records)
    found["distinct"] = float(np.mean([len(set(record["places"])) for record in records]))
    found["simulated_seconds"] = float(np.mean([record["finished"][-1] for record in records]))
    found["cpu_ms_per_evaluation"] = 1000 * float(np.mean([record["cpu_s"] / len(record["places"]) for record in records]))
    if times:
        known = np.array([_at_times(record, times, facts["worst_regret"]) for record in records])
        low, high = bootstrap_curve(known)
        found["over_time"] = {"seconds": list(times), "mean": known.mean(axis=0).tolist(), "low": low.tolist(), "high": high.tolist()}
    return found


def _against(regrets: np.ndarray, exact: Sequence[float], floor: float) -> Interval:
    """Area under the mean curve less that of random search in closed form, below 0 where less is left; interval over resampled seeds."""
    picked = np.random.default_rng(0).integers(len(regrets), size=(CURVES, len(regrets)))
    differences = [area(regrets[of].mean(axis=0), floor) - area(exact, floor) for of in (slice(None), *picked)]
    low, high = np.quantile(differences[1:], (0.025, 0.975))
    return Interval(differences[0], float(low), float(high))


def _curve(values: np.ndarray) -> dict[str, dict[str, float]]:
    """Mean, standard error and 95 % interval over the seeds (rows), for each number of evaluations (columns)."""
    sem = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(values.shape[1])
    low, high = bootstrap_curve(values)
    columns = zip(values.mean(axis=0).tolist(), sem.tolist(), low.tolist(), high.tolist(), strict=True)
    return {str(at): dict(zip(("mean", "sem", "low", "high"), entry, strict=True)) for at, entry in enumerate(columns, 1)}


def _reached(level: Mapping[str, Any], regrets: np.ndarray) -> dict[str, Any]:
    """How many seeds got down to a regret, and after how many evaluations half of them had (None while fewer have)."""
    there = regrets <= level["regret"] + 1e-12
    first = [int(row.argmax()) + 1 if row.any() else None for row in there]
    ended = regrets.shape[1] + 1
    middle = median(at if at is not None else ended for at in first)  # all that did not get there stopped at the same number: no bias
    return {**level, "seeds": sum(at is not None for at in first), "median": middle if middle < ended else None}


def _moments(records: Mapping[str, Sequence[Record]]) -> list[float]:
    """Moments of simulated time, evenly spread on a logarithmic axis from the first that anything was finished to the last."""
    firsts = [record["finished"][0] for of_seeds in records.values() for record in of_seeds]
    lasts = [record["finished"][-1] for of_seeds in records.values() for record in of_seeds]
    start = min((first for first in firsts if first > 0), default=1.0)
    return np.geomspace(start, max(*lasts, start * 1.001), MOMENTS).tolist()


def _at_times(record: Record, times: Sequence[float], before: float) -> np.ndarray:
    """The regret at each moment; `before` while nothing is finished."""
    done = np.searchsorted(np.asarray(record["finished"]), np.asarray(times), "right")
    return np.concatenate([[before], record["regret"]])[done]


def _compared(records: Mapping[str, Sequence[Record]], areas: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Ranks, and which differences are more than chance. A seed is a block; what is ranked is the area, and regret at some numbers."""
    names = list(records)
    last = len(next(iter(records.values()))[0]["regret"])
    seeds = len(next(iter(records.values())))
    counts = [at for at in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000) if at < last] + [last]
    ranked = {
        str(at): mean_ranks(np.array([[record["regret"][at - 1] for record in records[name]] for name in names]).T).tolist()
        for at in counts
    }
    ranked["area"] = mean_ranks(np.array([areas[name] for name in names]).T).tolist()
    of_area = dict(zip(names, ranked["area"], strict=True))
    order = sorted(names, key=lambda name: of_area[name])
    pairs = compare({name: areas[name] for name in order})
    return {
        "order": order,
        "ranks": {what: dict(zip(names, values, strict=True)) for what, values in ranked.items()},
        "friedman_p": friedman(np.array([areas[name] for name in names]).T) if len(names) > 2 and seeds > 1 else None,
        "critical_difference": critical_difference(len(names), seeds) if len(names) > 1 and seeds > 1 else None,
        "alike": [list(run) for run in alike(order, pairs)],
        "pairs": [
            {**asdict(pair), "difference": asdict(bootstrap([a - b for a, b in zip(areas[pair.first], areas[pair.second], strict=True)]))}
            for pair in pairs
        ],
    }
