"""How sure a classifier is of its answer: functions of its probabilities that are 0 at the least and 1 at the most; and temperatures.

Wang et al. 2022 ("Wisdom of Committees", section 4.1) compare the largest probability, the gap between the two largest logits or probabilities,
and the entropy, and find them as good. Here each is written so that it lies within 0 and 1, which changes the number of a threshold and not the
order of the examples: a threshold of 0 lets every example go, one above 1 none.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from niwaki.deploy.thresholds import CommitteeError

Confidence = Callable[[NDArray], NDArray]  # probabilities (N, K), float64 -> (N,)
SPREAD = 0.5  # standard deviation of log(temperature) before any example was seen


def softmax(logits: NDArray) -> NDArray:
    """Probabilities, float64 (N, K).

    >>> softmax(np.array([[0.0, np.log(3)]]))
    array([[0.25, 0.75]])
    """
    shifted = logits.astype(np.float64)
    shifted = np.exp(shifted - shifted.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def max_probability(probabilities: NDArray) -> NDArray:
    """The largest probability: the paper's default."""
    return probabilities.max(1)


def gap(probabilities: NDArray) -> NDArray:
    """How far the largest probability is ahead of the next."""
    first, second = _two_largest(probabilities)
    return first - second


def logit_gap(probabilities: NDArray) -> NDArray:
    """(p1 - p2) / (p1 + p2) of the two largest: tanh of half the gap between their logits, of which it has the order."""
    first, second = _two_largest(probabilities)
    return (first - second) / (first + second)


def entropy(probabilities: NDArray) -> NDArray:
    """1 - H / log K, with H the entropy: 0 where all classes are as likely, 1 where one is certain. It has the order of -H."""
    p = np.maximum(probabilities, TINY)
    return 1 + (p * np.log(p)).sum(1) / np.log(probabilities.shape[1])


TINY = 1e-300  # for a logarithm of 0
CONFIDENCES: tuple[Confidence, ...] = (max_probability, gap, logit_gap, entropy)  # those that an ONNX file can hold, too


def confidence_named(name: str) -> Confidence:
    """One of `CONFIDENCES`."""
    known = {one.__name__: one for one in CONFIDENCES}
    if name not in known:
        raise CommitteeError(f"there is no confidence function {name!r}; there are {', '.join(known)}")
    return known[name]


def temperature(logits: NDArray, labels: NDArray) -> float:
    """The T by which logits (N, K) are divided to fit labels (N,) best: the mode of likelihood times a log-normal around 1 (Guo et al. 2017).

    Ours: without the prior a member that has all held-out examples right would be given T = 0, and be certain of everything.
    """
    rows, logits = np.arange(len(labels)), logits.astype(np.float64)

    def loss(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        top = scaled.max(1)
        likelihood = top + np.log(np.exp(scaled - top[:, None]).sum(1)) - scaled[rows, labels]
        return float(likelihood.sum()) + log_t**2 / (2 * SPREAD**2)

    grid = np.linspace(-3, 3, 61)
    centre = float(grid[np.argmin([loss(at) for at in grid])])
    low, high = centre - 0.1, centre + 0.1  # a golden section search within
    ratio = (np.sqrt(5) - 1) / 2
    for _ in range(30):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


def _two_largest(probabilities: NDArray) -> tuple[NDArray, NDArray]:
    if probabilities.shape[1] == 1:
        return probabilities[:, 0], np.zeros(len(probabilities))
    top = np.partition(probabilities, -2, axis=1)
    return top[:, -1], top[:, -2]
