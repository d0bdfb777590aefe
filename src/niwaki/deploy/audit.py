"""The check that every shipped file passes: on real images it computes what the trained network computes, at any batch size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from niwaki.deploy.card import ExportError

BATCH_SIZES = (1, 2, 7)
BATCH = 64  # images at a time, for all of them
TIE = 1e-5  # of the logits' scale: two classes closer than this are equal to float32, and may change places


@dataclass(frozen=True)
class Audit:
    """What was checked, and how far it was off. Differences are those of the logits; `scale` is the largest logit of the network."""

    file: str
    size_bytes: int
    seconds: float  # to export, write, load and check
    images: int
    batch_sizes: tuple[int, ...]
    max_difference: float
    scale: float

    def __str__(self) -> str:
        return (
            f"{self.file}: {self.size_bytes / 1024:.0f} KiB in {self.seconds:.1f} s; on {self.images} images, and in batches of "
            f"{', '.join(map(str, self.batch_sizes))}, logits differ by at most {self.max_difference:.1e} of {self.scale:.3g}"
        )


def scale_of(logits: NDArray) -> float:
    """What differences of logits (N, K) are measured by: the largest of them; of predicted numbers (N, 1), how far these lie apart."""
    largest = float(np.abs(logits).max())
    return max(float(np.ptp(logits)), 0.1 * largest) if logits.shape[1] == 1 else largest


def compare(name: str, run: Callable[[NDArray], NDArray], images: NDArray, logits: NDArray, *, tolerance: float) -> float:
    """Largest absolute difference between `run(images)` and `logits`, over all images and over batches of 1, 2 and 7.

    logits: (N, K), those of the trained network. Raises ExportError beyond `tolerance` (a share of the largest logit), or where the class
    is another although the network does not hold the two for equal.
    """
    scale = scale_of(logits)
    largest = 0.0
    batches = [slice(start, start + BATCH) for start in range(0, len(images), BATCH)]
    picks = [np.arange(len(images))[batch] for batch in batches] + [np.arange(size) % len(images) for size in BATCH_SIZES]
    for pick in picks:
        where = f"{name}, a batch of {len(pick)}"
        got, expected = run(images[pick]), logits[pick]
        if got.shape != expected.shape:
            raise ExportError(f"{where}: logits of shape {got.shape} where the network gives {expected.shape}")
        difference = np.abs(got - expected)
        largest = max(largest, float(difference.max()))
        if not difference.max() <= tolerance * scale:  # NaN is not within any tolerance
            at = int(pick[np.unravel_index(difference.argmax(), difference.shape)[0]])
            raise ExportError(
                f"{where}: logits differ from the network's by up to {difference.max():.3g} (image {at}), where {tolerance * scale:.3g} is "
                f"allowed ({tolerance:g} of the largest logit, {scale:.3g})"
            )
        rows = np.arange(len(pick))
        taken, own = got.argmax(1), expected.argmax(1)
        margin = expected[rows, own] - expected[rows, taken]
        if len(other := np.flatnonzero(margin > TIE * scale)):
            first = other[0]
            raise ExportError(
                f"{where}: {len(other)} image(s) get another class; image {pick[first]} gets {taken[first]} instead of {own[first]}, "
                f"which the network puts ahead by {margin[first]:.3g}"
            )
    return largest
