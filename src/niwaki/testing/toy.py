"""Spaces small enough to know everything about, and an objective on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import numpy as np

from niwaki.factor.factor import Cost, factor_of
from niwaki.space.architecture import Architecture
from niwaki.space.size import op, taken
from niwaki.space.space import Decision, Space


def toy_space(blocks: int = 3) -> Space:
    """A depth, a width and a kernel size for each block, a kind for the second, a switch where depth is 2. 292 architectures of 3 blocks."""
    depth = Decision("depth", tuple(range(1, blocks + 1)))
    decisions = [depth]
    for block in range(blocks):
        exists = op(">", depth.ref, block) if block else True
        decisions.append(Decision(f"block{block}.width", (8, 16), exists))
        decisions.append(Decision(f"block{block}.kernel", (3, 5), exists))
    decisions.append(Decision("block1.kind", ("plain", "bottleneck", (1, 2)), op(">", depth.ref, 1)))
    decisions.append(Decision("block1.squeeze", (False, True), taken(depth.ref, (2,))))
    return Space(tuple(decisions))


def toy_macs(space: Space) -> Cost:
    """Multiply-adds of the blocks of a toy space: width * kernel^2 each, were they on one pixel."""
    factors = []
    for block in range(len(space["depth"].options)):
        width, kernel = space[f"block{block}.width"], space[f"block{block}.kernel"]
        factors.append(factor_of(f"block{block}", width.condition, (width.ref, kernel.ref, kernel.ref)))
    return Cost("macs", "", tuple(factors), space)


def toy_accuracy(arch: Mapping[str, object]) -> float:
    """Between 0 and 1, better for deeper and wider, with a little noise that belongs to the architecture: one of them is the best."""
    wide = sum(option == 16 for name, option in arch.items() if name.endswith("width"))
    noise = int.from_bytes(hashlib.sha256(repr(sorted(map(repr, arch.items()))).encode()).digest()[:4], "little") / 2**32
    return (0.5 * int(str(arch["depth"])) + 0.3 * wide + 0.4 * noise) / 3


def toy_evaluate(space: Space) -> Callable[[Architecture], dict[str, float]]:
    """An evaluator, architecture -> accuracy and macs, that takes no time."""
    macs = toy_macs(space)

    def evaluate(arch: Architecture) -> dict[str, float]:
        return {"accuracy": toy_accuracy(arch), "macs": float(macs(arch))}

    return evaluate


def toy_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Named arrays of the kinds that checkpoints hold."""
    rng = np.random.default_rng(seed)
    return {
        "weight": rng.standard_normal((4, 3)).astype(np.float32),
        "step": np.array(seed, dtype=np.int64),
        "mask": rng.random(5) > 0.5,
        "none": np.zeros((0, 2), dtype=np.float64),
    }
