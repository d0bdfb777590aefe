"""Searches that learn which decisions depend on each other, as a tree: Chow and Liu's from the best so far, or CRANK's from all rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from random import Random
from typing import Any

import numpy as np

from niwaki.distribution.fit import chow_liu_tree
from niwaki.distribution.tree import BETWEEN, Edge, Tree
from niwaki.factor.reorder import open_states
from niwaki.factor.within import Within
from niwaki.objective import BEST_ACCURACY, Objective
from niwaki.space.architecture import Architecture
from niwaki.space.choice import SpaceError
from niwaki.space.space import Space
from niwaki.strategy.evolution import Member, members_from_arrays, members_to_arrays
from niwaki.strategy.scores import scores
from niwaki.strategy.seen import Log, Seen
from niwaki.strategy.strategy import MOST_LISTED, SearchSpace, check_space, fingerprint, propose, whole
from niwaki.structure.surrogate import Ridge, crank_tree, worth_having
from niwaki.trial import Trial

MOST_OPEN = 200_000  # arcs of an elimination within budgets; edges that would need more are left out
RANKED = 64  # of the best under one draw of the surrogate, looked through for one that was not evaluated
DRAWN = 16  # architectures drawn at once


@dataclass(frozen=True)
class Known:
    """A member with what every proposal asks of it: its option numbers, and how good it is by the objective."""

    member: Member
    row: tuple[int, ...]
    order: tuple[float, float]  # larger is better: -violation of the limits, then quality


@dataclass(frozen=True)
class TreeState:
    """edges: of CRANK's tree, learned when `learned` members were known (they are kept: relearning is slow, and due at fixed numbers only)."""

    space: SearchSpace
    members: Log[Known] = field(default_factory=Log)  # those that have metrics
    seen: Seen = field(default_factory=Seen)  # all that was told
    edges: tuple[Edge, ...] = ()
    learned: int = 0


@dataclass(frozen=True)
class ChowLiuSearch:
    """Draws from the Chow-Liu tree of the elites: an estimation-of-distribution algorithm with pairwise dependence (crank.md (a); BMDA).

    elites: the best part of all that was told. founders: uniform ones at first. uniform: part of the proposals that stay uniform. edges:
    False leaves only the marginals (UMDA, a factorised policy, for comparison). Within budgets, draws are exactly those of the tree given them.
    """

    objective: Objective = BEST_ACCURACY
    elites: float = 0.2
    founders: int = 50
    uniform: float = 0.1
    edges: bool = True
    name: str = "chow-liu"

    def __post_init__(self) -> None:
        if not 0 < self.elites <= 1 or not 0 <= self.uniform <= 1 or self.founders < 2:
            raise ValueError(
                f"elites={self.elites}, uniform={self.uniform}, founders={self.founders}: parts of the whole, elites above 0, and 2 founders"
            )

    def init(self, space: SearchSpace) -> TreeState:
        _whole(space)
        return TreeState(space)

    def ask(self, state: TreeState, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        drawn: Iterator[Architecture] | None = None

        def draw(asked: int) -> Architecture:
            nonlocal drawn
            founding = len(state.members) + len(pending) + asked < self.founders or len(state.members) < 2
            if founding or rng.random() < self.uniform:
                return state.space.sample_uniform(rng)
            if drawn is None:
                drawn = _draws(self.tree(state), state.space, rng)
            return next(drawn)

        return propose(count, draw, state.space, state.seen, pending, rng)

    def tell(self, state: TreeState, trials: Sequence[Trial]) -> TreeState:
        return _told(state, trials, self.objective)

    def tree(self, state: TreeState) -> Tree:
        """The distribution that the next proposals are drawn from."""
        space = _whole(state.space)
        ranked = sorted(state.members, key=lambda known: known.order, reverse=True)
        rows = np.array([known.row for known in ranked[: max(2, round(self.elites * len(ranked)))]], dtype=np.int64)
        return chow_liu_tree(space, rows, edges=self.edges, keeps=_affordable(state.space))

    def save(self, state: TreeState) -> tuple[Any, dict[str, np.ndarray]]:
        return _saved(state)

    def load(self, space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> TreeState:
        return _loaded(space, content, arrays, self.objective)


@dataclass(frozen=True)
class CrankSearch:
    """The best architecture under a tree-structured surrogate of the reward, the tree learned by CRANK's penalty (crank.md (b)).

    Each proposal is the exact best, within the budgets, under one draw from the posterior of the ridge regression on the tree (Thompson
    sampling, ours: the best under the mean itself would be proposed again and again until it is told). The tree is relearned whenever
    `growth` times as many architectures are known, and keeps as many of its edges as leave-one-out error asks for. edges: False leaves an additive surrogate, for comparison.
    """

    objective: Objective = BEST_ACCURACY
    founders: int = 20
    growth: float = 1.3
    uniform: float = 0.05
    l2: float = 0.01
    edges: bool = True
    name: str = "crank"

    def __post_init__(self) -> None:
        if self.founders < 2 or not self.growth > 1 or not 0 <= self.uniform <= 1 or not self.l2 > 0:
            raise ValueError(
                f"founders={self.founders}, growth={self.growth}, uniform={self.uniform}, l2={self.l2}: 2 founders, a growth above 1, "
                f"a part from 0 to 1, an l2 above 0"
            )

    def init(self, space: SearchSpace) -> TreeState:
        _whole(space)
        return TreeState(space)

    def ask(self, state: TreeState, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        model: Ridge | None = None
        out = {fingerprint(arch) for arch in pending}

        def draw(asked: int) -> Architecture:
            nonlocal model
            if state.learned == 0 or rng.random() < self.uniform:
                return state.space.sample_uniform(rng)
            if model is None:
                model = self.surrogate(state)
            best = self._best(state, model, out, rng)
            out.add(fingerprint(best))
            return best

        return propose(count, draw, state.space, state.seen, pending, rng)

    def tell(self, state: TreeState, trials: Sequence[Trial]) -> TreeState:
        for trial in trials:
            state = _told(state, [trial], self.objective)
            if len(state.members) >= max(self.founders, self.growth * state.learned):
                state = replace(state, edges=self._learned(state), learned=len(state.members))
        return state

    def surrogate(self, state: TreeState) -> Ridge:
        space = _whole(state.space)
        rows, exists, rewards = self._data(state)
        positions = [(space.position(a), space.position(b)) for a, b in state.edges]
        return Ridge.fitted(rows, exists, [len(d.options) for d in space.decisions], rewards, positions, self.l2)

    def _learned(self, state: TreeState) -> tuple[Edge, ...]:
        if not self.edges:
            return ()
        space = _whole(state.space)
        rows, exists, rewards = self._data(state)
        names = [d.name for d in space.decisions]
        options = [len(d.options) for d in space.decisions]
        found = worth_having(crank_tree(rows, exists, options, rewards, l2=self.l2), rows, exists, options, rewards, self.l2)
        edges = [(names[i], names[j]) for i, j in found]
        keeps = _affordable(state.space)
        if keeps(edges):
            return tuple(edges)
        kept: list[Edge] = []
        for edge in edges:
            if keeps([*kept, edge]):
                kept.append(edge)
        return tuple(kept)

    def _data(self, state: TreeState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = np.array([known.row for known in state.members], dtype=np.int64)
        violation, quality = np.array([known.order for known in state.members]).T
        return rows, _whole(state.space).existence.of(rows), scores(quality, -violation)

    def _best(self, state: TreeState, model: Ridge, out: set[str], rng: Random) -> Architecture:
        space = _whole(state.space)
        unary, pair = model.tables(model.draw(np.random.default_rng(rng.getrandbits(128))))
        parameters = {d.name: table for d, table in zip(space.decisions, unary, strict=True)}
        parameters |= {BETWEEN.join(edge): table for edge, table in zip(state.edges, pair, strict=True)}
        tree = Tree(space, parameters)
        if not isinstance(state.space, Space | Within):  # of a list: by looking at all of it
            rows = _listed(state.space)[1]
            ordered = (space.from_indices(row) for row in rows[np.argsort(-_scores(tree, rows), kind="stable")].tolist())
            first = next(ordered)
            return next((arch for arch in (first, *ordered) if fingerprint(arch) not in out and fingerprint(arch) not in state.seen), first)
        for _, arch in islice(tree.ranked(), RANKED):
            if fingerprint(arch) not in out and fingerprint(arch) not in state.seen and _kept(arch, state.space):
                return arch
        return tree.mode_within(state.space) if isinstance(state.space, Within) else tree.mode()

    def save(self, state: TreeState) -> tuple[Any, dict[str, np.ndarray]]:
        return _saved(state)

    def load(self, space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> TreeState:
        return _loaded(space, content, arrays, self.objective)


# --- what both share -----------------------------------------------------------------------------------------------------------------


def _whole(space: SearchSpace) -> Space:
    return whole(space) if isinstance(space, Space | Within) else _listed(space)[0]


@lru_cache(maxsize=4)
def _listed(space: SearchSpace) -> tuple[Space, np.ndarray]:
    """Of a space that is a list of architectures, as the rows of a table that is a sample are: the whole space, and (N, decisions) option numbers."""
    if space.size > MOST_LISTED:
        raise SpaceError(f"a tree needs a Space, one within budgets, or a list of at most {MOST_LISTED:,}; this one has {space.size:,}")
    return Space(tuple(space.decisions)), np.array(space.indices(space.enumerate()), dtype=np.int64)


def _scores(tree: Tree, rows: np.ndarray) -> np.ndarray:
    """(N,): `tree.score` of each row."""
    exists, total = tree.space.existence.of(rows), np.zeros(len(rows))
    for name, table in tree.parameters.items():
        at = [tree.space.position(one) for one in name.split(BETWEEN)]
        total += np.where(exists[:, at].all(axis=1), table[tuple(rows[:, position] for position in at)], 0.0)
    return total


def _kept(arch: Architecture, space: SearchSpace) -> bool:
    return arch in space if isinstance(space, Within) else True


def _affordable(space: SearchSpace) -> Callable[[Sequence[Edge]], bool]:
    """Whether the elimination within the space's budgets can hold these edges."""
    if not isinstance(space, Within):
        return lambda edges: True
    return lambda edges: open_states(space.space, space.limits, edges) <= MOST_OPEN


def _draws(tree: Tree, space: SearchSpace, rng: Random) -> Iterator[Architecture]:
    if not isinstance(space, Space | Within):  # p(y | list) = p(y) / sum over the list
        of, rows = _listed(space)
        found = _scores(tree, rows)
        p = np.exp(found - found.max())
        generator = np.random.default_rng(rng.getrandbits(128))
        while True:
            yield from (of.from_indices(row) for row in rows[generator.choice(len(rows), DRAWN, p=p / p.sum())].tolist())
    while True:
        yield from tree.sample_many_within(DRAWN, space, rng) if isinstance(space, Within) else tree.sample_many(DRAWN, rng)


def _told(state: TreeState, trials: Sequence[Trial], objective: Objective) -> TreeState:
    members = [Member(trial.arch, trial.metrics) for trial in trials if trial.status == "ok"]
    known = state.members.with_(_known(members, state.space, objective))
    return replace(state, members=known, seen=state.seen.with_(fingerprint(trial.arch) for trial in trials))


def _known(members: Sequence[Member], space: SearchSpace, objective: Objective) -> list[Known]:
    return [
        Known(member, tuple(row), (-objective.violation(member.metrics), objective.quality(member.metrics)))
        for member, row in zip(members, space.indices([member.arch for member in members]), strict=True)
    ]


def _saved(state: TreeState) -> tuple[Any, dict[str, np.ndarray]]:
    names, members = members_to_arrays([known.member for known in state.members])
    content = {"space": state.space.hash, "metrics": names, "edges": [list(edge) for edge in state.edges], "learned": state.learned}
    return content, {"seen": state.seen.to_array(), **members}


def _loaded(space: SearchSpace, content: Any, arrays: dict[str, np.ndarray], objective: Objective) -> TreeState:
    check_space(content, space)
    members = members_from_arrays(content["metrics"], arrays, space)
    edges = tuple((first, second) for first, second in content["edges"])
    return TreeState(space, Log(_known(members, space, objective)), Seen.from_array(arrays["seen"]), edges, content["learned"])
