"""Coarse to fine: BigNAS's selection of a member of a trained supernet (Yu et al., ECCV 2020, section 3.3), as a strategy of asking and telling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from math import prod
from random import Random
from typing import Any

import numpy as np

from niwaki.factor.within import Within
from niwaki.objective import BEST_ACCURACY, Objective
from niwaki.space.architecture import Architecture
from niwaki.space.space import Decision
from niwaki.strategy.evolution import Member, members_from_arrays, members_to_arrays, mutated
from niwaki.strategy.seen import Seen
from niwaki.strategy.strategy import Itself, SearchSpace, check_space, fingerprint, propose
from niwaki.trial import Trial

LEVELS = 3  # small, middle and large
MOST_SKELETONS = 20_000  # of a grid; with more, its kinds have fewer levels


@dataclass(frozen=True)
class CoarseState:
    space: SearchSpace
    seen: Seen = field(default_factory=Seen)  # all that was told
    best: tuple[Member, ...] = ()  # of those that have metrics, the best first


@dataclass(frozen=True)
class CoarseToFine:
    """First skeletons, those nearest below the budget first; then changes of one decision of the best that were found.

    A skeleton has one level, small, middle or large, for all decisions of a kind: all depths, all kernels. What is of one kind has the same last
    word in its name (`stage0.depth`, `stage1.depth`); a kind of one decision has as many levels as it has options, up to the number of levels
    that keeps the grid small. skeletons: how many are looked at, at most. keep: of how many of the best the changes are. Of a space without
    budgets the skeletons come from the largest down. Deviation: the paper changes the best skeletons; here whatever is best by now.
    """

    objective: Objective = BEST_ACCURACY
    skeletons: int = 64
    keep: int = 4
    name: str = "coarse-to-fine"

    def __post_init__(self) -> None:
        if self.skeletons < 1 or self.keep < 1:
            raise ValueError(f"skeletons={self.skeletons}, keep={self.keep}: coarse to fine begins with at least 1, and keeps at least 1")

    def init(self, space: SearchSpace) -> CoarseState:
        return CoarseState(space)

    def ask(self, state: CoarseState, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        space, out = state.space, {fingerprint(arch) for arch in pending}
        grid = skeletons_of(space)[: self.skeletons]
        coarse = [arch for arch in grid if fingerprint(arch) not in state.seen and fingerprint(arch) not in out][::-1]

        def draw(_: int) -> Architecture:
            if coarse:
                return coarse.pop()
            return mutated(space, rng.choice(state.best).arch, rng) if state.best else space.sample_uniform(rng)

        return propose(count, draw, space, state.seen, pending, rng)

    def tell(self, state: CoarseState, trials: Sequence[Trial]) -> CoarseState:
        best = list(state.best)
        for trial in trials:
            if trial.status == "ok":
                member = Member(trial.arch, trial.metrics)
                better = (at for at, other in enumerate(best) if self.objective.better(member.metrics, other.metrics))
                best.insert(next(better, len(best)), member)
                del best[self.keep :]
        return replace(state, seen=state.seen.with_([fingerprint(trial.arch) for trial in trials]), best=tuple(best))

    def save(self, state: CoarseState) -> tuple[Any, dict[str, np.ndarray]]:
        names, arrays = members_to_arrays(state.best)
        return {"space": state.space.hash, "metrics": names}, {"seen": state.seen.to_array(), **arrays}

    def load(self, space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> CoarseState:
        check_space(content, space)
        return CoarseState(space, Seen.from_array(arrays["seen"]), members_from_arrays(content["metrics"], arrays, space))


def kind_of(decision: Decision) -> str:
    """The last word of a name, without numbers and what stands before an underscore: kernel of `stage2.block1.kernel`, depth of `d3_depth`.

    >>> kind_of(Decision("stage2.block1.kernel", (3, 5))), kind_of(Decision("ks12", (3, 5)))
    ('kernel', 'ks')
    """
    return re.sub(r"\d+", "", decision.name.rpartition(".")[2].rpartition("_")[2]) or decision.name


def skeletons_of(space: SearchSpace) -> tuple[Architecture, ...]:
    """All that the space holds, the one that uses its budget best first."""
    return _skeletons(Itself(space))


@lru_cache(maxsize=4)
def _skeletons(space: Itself[SearchSpace]) -> tuple[Architecture, ...]:
    rows = _grid(space.it.decisions)
    rows = np.unique(space.it.canonical_rows(rows), axis=0)
    rows = rows[space.it.holds(rows)]
    if isinstance(space.it, Within) and space.it.limits:
        spent = np.max([limit.cost.batch(rows) / max(1, limit.upper) for limit in space.it.limits], axis=0)
    else:
        spent = rows.sum(1)
    return tuple(space.it.from_indices(row) for row in rows[np.argsort(-spent, kind="stable")].tolist())


def _grid(decisions: Sequence[Decision]) -> np.ndarray:
    """(N, decisions): option numbers of the skeletons."""
    kinds = [kind_of(decision) for decision in decisions]
    names = list(dict.fromkeys(kinds))

    def levels(kind: str, most: int) -> int:
        sizes = [len(decision.options) for decision, one in zip(decisions, kinds, strict=True) if one == kind]
        return min(max(sizes), most if len(sizes) == 1 else min(most, LEVELS))

    most = max((len(decision.options) for decision in decisions), default=1)
    while most > 1 and prod(levels(kind, most) for kind in names) > MOST_SKELETONS:
        most -= 1
    counts = [levels(kind, most) for kind in names]
    shares = [np.linspace(0, 1, count) if count > 1 else np.ones(1) for count in counts]  # of one level: the largest
    grid = np.array(list(product(*shares))) if names else np.zeros((1, 0))  # (N, kinds)
    columns = [
        np.floor(grid[:, names.index(kind)] * (len(decision.options) - 1) + 0.5) for decision, kind in zip(decisions, kinds, strict=True)
    ]
    return np.stack(columns, axis=1).astype(np.int32) if columns else np.zeros((1, 0), dtype=np.int32)
