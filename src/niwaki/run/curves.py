"""From the records of searches to what is told of them. A function of the records alone: the same records, the same figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from niwaki.run.statistics import bootstrap_curve


def summary(facts: Mapping[str, Any], records: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """contestant -> its regret at each number of evaluations, and what else there is to say of it.

    facts: of the table, as `Contest.facts` gives them. records: contestant -> what `Contest.play` gave for each seed, in order.
    """
    return {name: _one(facts, list(of_seeds)) for name, of_seeds in records.items()}


def _one(facts: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    regrets = np.array([record["regret"] for record in records])  # (seeds, evaluations)
    sem = regrets.std(axis=0, ddof=1) / np.sqrt(len(regrets)) if len(regrets) > 1 else np.zeros(regrets.shape[1])
    low, high = bootstrap_curve(regrets)
    found: dict[str, Any] = {
        "regret": {
            str(at + 1): {"mean": float(mean), "sem": float(error), "low": float(lo), "high": float(hi)}
            for at, (mean, error, lo, hi) in enumerate(zip(regrets.mean(axis=0), sem, low, high, strict=True))
        }
    }
    if facts["report"] == "hypervolume":
        found["hypervolume"] = {at: {**entry, "mean": facts["best"] - entry["mean"]} for at, entry in found["regret"].items()}
        for entry in found["hypervolume"].values():
            entry["low"], entry["high"] = facts["best"] - entry["high"], facts["best"] - entry["low"]
    found["within"] = float(np.mean([np.mean(record["within"]) for record in records]))
    found["seeds"] = len(records)
    found["evaluations"] = min(len(record["places"]) for record in records)
    found["simulated_seconds"] = float(np.mean([record["finished"][-1] for record in records]))
    found["cpu_ms_per_evaluation"] = 1000 * float(np.mean([record["cpu_s"] / len(record["places"]) for record in records]))
    return found
