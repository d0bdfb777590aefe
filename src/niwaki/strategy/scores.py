"""Told trials as the numbers that models are fitted to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from niwaki.objective import Objective


def scores_of(objective: Objective, metrics: Sequence[Mapping[str, float]]) -> np.ndarray:
    """float64 (N,), larger is better: the quality of what is within the limits; of the others, less than of all those, by their violation.

    How much less for a violation of 1 (twice the limit) is the spread of all qualities: infeasible architectures are then no outliers that
    a squared error would see alone.
    """
    quality = np.array([objective.quality(one) for one in metrics], dtype=np.float64)
    violation = np.array([objective.violation(one) for one in metrics], dtype=np.float64)
    feasible = violation == 0
    if feasible.all():
        return quality
    least = quality[feasible].min() if feasible.any() else quality.min()
    spread = float(np.ptp(quality)) or 1.0
    return np.where(feasible, quality, np.minimum(quality, least) - spread * np.minimum(violation, 1.0))


def seed_from(scores: np.ndarray) -> int:
    """A seed for fitting a model to these scores (N,) float64, which follows from them alone: a resumed search fits the same model. 63 bits."""
    return int.from_bytes(hashlib.sha256(np.ascontiguousarray(scores).tobytes()).digest()[:8], "little") >> 1
