"""Regular networks: what stands in many places of the network is alike in all of them, as people design them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from niwaki.factor.within import Within
from niwaki.space.architecture import Architecture
from niwaki.space.choice import Value
from niwaki.space.space import Decision

DRAWN = 1 << 16  # at a time
ROUNDS = 16
KEPT = 0.75  # of the roles of a network that others shall be like


def regular(
    space: Within,
    count: int,
    generator: np.random.Generator,
    *,
    spent: float,
    near: Architecture | None = None,
    taken: Mapping[str, Value] = MappingProxyType({}),
    same: Callable[[Architecture], Hashable] = lambda arch: arch,
    known: Iterable[Architecture] = (),
) -> list[Architecture]:
    """Up to `count` different regular architectures within the budget that cost at least `spent` of it, by the cost that comes nearest.

    For each role one number from 0 to 1 is drawn, those around a half more often (who describes a family expects the best networks in its
    middle), and all decisions of that role take the option that far along theirs: all kernels the same size, all stages the same share of
    their greatest depth and width. Such networks are better on average than ones whose every decision is drawn by itself (Radosavovic et al.
    2020, "Designing network design spaces", section 3, where sharing parameters among stages costs the best networks nothing).

    near: keeps each of its roles with probability `KEPT`. taken: options that all of them take. same: what equal networks have equal. known: none of these is given.
    """
    if not count:
        return []
    archs: dict[Hashable, Architecture] = {}
    others, seen = set(map(same, known)), set[tuple[int, ...]]()
    for _ in range(ROUNDS):
        rows = _tied(space.decisions, DRAWN, generator, near)
        for position, decision in enumerate(space.decisions):
            if decision.name in taken:
                rows[:, position] = decision.options.index(taken[decision.name])
        spends = np.max([limit.cost.batch(rows) / limit.upper for limit in space.limits], axis=0)
        for row in map(tuple, rows[(spends >= spent) & (spends <= 1)].tolist()):
            if row not in seen:
                seen.add(row)
                arch = space.from_indices(row)
                if (key := same(arch)) not in others:
                    archs.setdefault(key, arch)
            if len(archs) == count:
                return list(archs.values())
    return list(archs.values())


def role(name: str) -> str:
    """The name without its numbers: `stage1.block0.inverted.kernel` and `stage2.block1.inverted.kernel` have the same."""
    return re.sub(r"\d+", "", name)


def _tied(decisions: Sequence[Decision], count: int, generator: np.random.Generator, near: Architecture | None) -> np.ndarray:
    """(count, decisions): option numbers."""
    positions = defaultdict(list)
    for position, decision in enumerate(decisions):
        positions[role(decision.name)].append(position)
    rows = np.empty((count, len(decisions)), dtype=np.int64)
    for alike in positions.values():
        along, kept = generator.triangular(0, 0.5, 1, count), generator.random(count) < KEPT
        there = [decisions[position] for position in alike if near is not None and decisions[position].name in near]
        if near is not None and there:
            finest = max(there, key=lambda decision: len(decision.options))
            along[kept] = (finest.options.index(near[finest.name]) + 0.5) / len(finest.options)
        for position in alike:
            rows[:, position] = along * len(decisions[position].options)
    return rows
