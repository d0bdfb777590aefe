"""Told trials as the numbers that models are fitted to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from niwaki.objective import Objective, standing


def scores_of(objective: Objective, metrics: Sequence[Mapping[str, float]]) -> np.ndarray:
    """float64 (N,), larger is better: see `scores`."""
    quality = np.array([objective.quality(one) for one in metrics], dtype=np.float64)
    violation = np.array([objective.violation(one) for one in metrics], dtype=np.float64)
    return scores(quality, violation)


def scores(quality: np.ndarray, violation: np.ndarray) -> np.ndarray:
    """float64 (N,): the quality, where all are within the limits; else the `standing` of each among all, feasible first, free of units."""
    return quality if not violation.any() else standing(quality, violation, float(quality.mean()), float(quality.std()))


def seed_from(scores: np.ndarray) -> int:
    """A seed for fitting a model to these scores (N,) float64, which follows from them alone: a resumed search fits the same model. 63 bits."""
    return int.from_bytes(hashlib.sha256(np.ascontiguousarray(scores).tobytes()).digest()[:8], "little") >> 1
