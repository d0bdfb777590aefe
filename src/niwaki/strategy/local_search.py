"""Local search: White, Nolen, Savani, "Exploring the Loss Landscape in Neural Architecture Search", UAI 2021 (arXiv 2005.02960).

Algorithm 1 from the best of some random architectures; at a local optimum it begins again. The paper's two ways to move are both here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal, get_args

import numpy as np

from niwaki.objective import BEST_ACCURACY, Objective
from niwaki.space.architecture import Architecture
from niwaki.strategy.evolution import Member, members_from_arrays, members_to_arrays
from niwaki.strategy.seen import Log, Seen
from niwaki.strategy.strategy import SearchSpace, check_space, fingerprint, propose
from niwaki.trial import Trial

Move = Literal["steepest", "first"]


@dataclass(frozen=True)
class LocalState:
    space: SearchSpace
    seen: Seen = field(default_factory=Seen)  # all that was told
    members: Log[Member] = field(default_factory=Log)  # those that have metrics
    founded: int = 0  # told since the search began (again), while there is no centre
    centre: Member | None = None  # whose neighbours are tried
    best: Member | None = None  # of the founders
    untried: tuple[Architecture, ...] = ()  # neighbours of the centre that were not told yet


@dataclass(frozen=True)
class LocalSearch:
    """Tries the neighbours of an architecture and moves to a better one; where there is none, begins again from the best of random ones.

    move: "steepest" tries all neighbours and moves to the best; "first" moves as soon as one is better. founders: how many random
    architectures each start is the best of. The authors' code has 10 (`num_init`). Neighbours are tried in random order. Where more is
    asked for than there are untried neighbours, the rest is random, and no move waits for it.
    """

    objective: Objective = BEST_ACCURACY
    move: Move = "steepest"
    founders: int = 10
    name: str = "local-search"

    def __post_init__(self) -> None:
        if self.move not in get_args(Move):
            raise ValueError(f"move={self.move!r}: a local search moves to the {' or the '.join(get_args(Move))} that is better")
        if self.founders < 1:
            raise ValueError(f"founders={self.founders}: a local search begins at the best of at least 1")

    def init(self, space: SearchSpace) -> LocalState:
        return LocalState(space)

    def ask(self, state: LocalState, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        out = set(pending)
        near = [arch for arch in state.untried if arch not in out]
        rng.shuffle(near)
        return propose(count, lambda _: near.pop() if near else state.space.sample_uniform(rng), state.space, state.seen, pending, rng)

    def tell(self, state: LocalState, trials: Sequence[Trial]) -> LocalState:
        for trial in trials:
            state = self._told(state, trial)
        return state

    def _told(self, state: LocalState, trial: Trial) -> LocalState:
        member = Member(trial.arch, trial.metrics) if trial.status == "ok" else None
        near = trial.arch in state.untried
        state = replace(
            state,
            seen=state.seen.with_([fingerprint(trial.arch)]),
            members=state.members if member is None else state.members.with_([member]),
            untried=tuple(arch for arch in state.untried if arch != trial.arch) if near else state.untried,
        )
        if state.centre is None:
            best = member if member and (state.best is None or self._better(member, state.best)) else state.best
            state = replace(state, founded=state.founded + 1, best=best)
            if best is not None and state.founded >= self.founders:
                state = self._around(state, best)
        elif self.move == "first" and near and member and self._better(member, state.centre):
            state = self._around(state, member)
        while state.centre is not None and not state.untried:
            state = self._moved(state, state.centre)
        return state

    def _around(self, state: LocalState, centre: Member) -> LocalState:
        return replace(state, founded=0, best=None, centre=centre, untried=_untried(state, centre))

    def _moved(self, state: LocalState, centre: Member) -> LocalState:
        """All neighbours are known: on to the best of them (Algorithm 1, line 2), or, if none is better, to new founders."""
        near = set(state.space.neighbours(centre.arch))
        best = centre
        for member in state.members:
            if member.arch in near and self._better(member, best):
                best = member
        return replace(state, centre=None) if best is centre else self._around(state, best)

    def _better(self, a: Member, b: Member) -> bool:
        return self.objective.better(a.metrics, b.metrics)

    def save(self, state: LocalState) -> tuple[Any, dict[str, np.ndarray]]:
        members = list(state.members)
        names, arrays = members_to_arrays(members)
        place = {id(member): number for number, member in enumerate(members)}
        content = {
            "space": state.space.hash,
            "metrics": names,
            "founded": state.founded,
            "centre": None if state.centre is None else place[id(state.centre)],
            "best": None if state.best is None else place[id(state.best)],
        }
        return content, {"seen": state.seen.to_array(), **arrays}

    def load(self, space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> LocalState:
        check_space(content, space)
        members = members_from_arrays(content["metrics"], arrays, space)
        centre, best = (None if content[name] is None else members[content[name]] for name in ("centre", "best"))
        state = LocalState(space, Seen.from_array(arrays["seen"]), Log(members), content["founded"], centre, best)
        return state if centre is None else replace(state, untried=_untried(state, centre))


def _untried(state: LocalState, centre: Member) -> tuple[Architecture, ...]:
    return tuple(arch for arch in state.space.neighbours(centre.arch) if fingerprint(arch) not in state.seen)
