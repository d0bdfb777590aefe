"""NAO (Luo et al., NeurIPS 2018): architectures moved along the gradient of a predictor, in the embedding space of an autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from random import Random
from typing import Any

import numpy as np
import torch

from niwaki.objective import BEST_ACCURACY, Objective
from niwaki.predictor.sequence import Autoencoder, SequenceRecipe, fit_autoencoder, moved
from niwaki.space.architecture import Architecture
from niwaki.strategy.evolution import Member, members_from_arrays, members_to_arrays
from niwaki.strategy.scores import scores_of, seed_from
from niwaki.strategy.seen import Log, Seen
from niwaki.strategy.strategy import Itself, SearchSpace, check_space, fingerprint, propose
from niwaki.strategy.tokens import Tokens
from niwaki.trial import Trial

Move = Callable[[Autoencoder, torch.Tensor, float], torch.Tensor]  # model, steps, eta -> steps
Symmetric = Callable[[Tokens, np.ndarray, np.random.Generator], np.ndarray]  # rewrites sequences as others of the same architectures
PUBLISHED = SequenceRecipe()


@dataclass(frozen=True)
class NAOState:
    space: SearchSpace
    ok: Log[Member] = field(default_factory=Log)  # in the order told
    ends: tuple[int, ...] = ()  # how many of `ok` were there when each round began
    seen: Seen = field(default_factory=Seen)


@dataclass(frozen=True)
class NAO:
    """A random pool, then rounds: encoder, predictor and decoder are fitted to all that is known, and the best are moved and decoded anew.

    first: of the pool; per_round: new ones in each round; seeds: of the best that are moved. eta grows by 1 from 1 until there are enough
    new ones, up to most_eta. The defaults are the paper's for full training (600, then 200 from the best 200, 3 rounds; 1,000 in all).
    symmetric: see `fit_autoencoder`.

    Deviations: architectures that compute the same as a known one (`canonical_keys`) are not new, where the authors compare sequences; where
    moving finds too few new ones, the rest of a round is random.
    """

    objective: Objective = BEST_ACCURACY
    first: int = 600
    per_round: int = 200
    seeds: int = 200
    most_eta: int = 50
    recipe: SequenceRecipe = PUBLISHED
    symmetric: Symmetric | None = None
    name: str = "nao"

    def __post_init__(self) -> None:
        if min(self.first, self.per_round, self.seeds, self.most_eta) < 1:
            raise ValueError(
                f"first={self.first}, per_round={self.per_round}, seeds={self.seeds}, most_eta={self.most_eta}: each is at least 1"
            )

    def init(self, space: SearchSpace) -> NAOState:
        return NAOState(space)

    def ask(self, state: NAOState, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        generated = iter(self.generated(state))

        def draw(asked: int) -> Architecture:
            row = next(generated, None)
            return state.space.sample_uniform(rng) if row is None else state.space.from_indices(row.tolist())

        return propose(count, draw, state.space, state.seen, pending, rng)

    def generated(self, state: NAOState) -> Iterator[np.ndarray]:
        """Rows of option numbers: what the round under way proposes, in its order; nothing while the pool is filled."""
        if state.ends:
            known = tuple(state.ok)[: state.ends[-1]]
            if len(known) > 1:
                rows = np.array(state.space.indices(member.arch for member in known), dtype=np.int32)
                scores = scores_of(self.objective, [member.metrics for member in known])
                yield from _generated(self, Itself(state.space), rows.tobytes(), scores.tobytes())

    def tell(self, state: NAOState, trials: Sequence[Trial]) -> NAOState:
        ends, ok, told = list(state.ends), [], len(state.seen)
        seen = state.seen
        for trial in trials:
            if trial.status == "ok":
                ok.append(Member(trial.arch, trial.metrics))
            seen = seen.with_([fingerprint(trial.arch)])
            if len(seen) > told:
                told = len(seen)
                if told >= self.first and (told - self.first) % self.per_round == 0:
                    ends.append(len(state.ok) + len(ok))
        return NAOState(state.space, state.ok.with_(ok), tuple(ends), seen)

    def save(self, state: NAOState) -> tuple[Any, dict[str, np.ndarray]]:
        names, members = members_to_arrays(tuple(state.ok))
        return {"space": state.space.hash, "metrics": names, "ends": list(state.ends)}, {"seen": state.seen.to_array(), **members}

    def load(self, space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> NAOState:
        check_space(content, space)
        members = members_from_arrays(content["metrics"], arrays, space)
        return NAOState(space, Log(members), tuple(content["ends"]), Seen.from_array(arrays["seen"]))


@lru_cache(maxsize=4)
def _generated(strategy: NAO, of: Itself[SearchSpace], rows: bytes, scores: bytes) -> tuple[np.ndarray, ...]:
    """The new rows of a round; a function of what is known, so that a resumed search finds the same, fitted again."""
    space = of.it
    known = np.frombuffer(rows, dtype=np.int32).reshape(-1, len(space.decisions))
    return tuple(generate(strategy, space, known, np.frombuffer(scores, dtype=np.float64), moved))


def generate(strategy: NAO, space: SearchSpace, known: np.ndarray, scores: np.ndarray, move: Move) -> list[np.ndarray]:
    """Rows that are new, found by `move` from the best of `known` (N, decisions) with their scores (N,); at most `per_round`."""
    known = np.ascontiguousarray(known, dtype=np.int32)
    model, tokens = _fitted(strategy, Itself(space), known.tobytes(), np.ascontiguousarray(scores, dtype=np.float64).tobytes())
    best = np.argsort(-scores, kind="stable")[: strategy.seeds]
    taken, new = set(space.canonical_keys(known).tolist()), list[np.ndarray]()
    with torch.no_grad():
        steps = model.encode(torch.from_numpy(tokens.of(known[best])))
        for eta in range(1, strategy.most_eta + 1):
            if len(new) >= strategy.per_round:
                break
            found = tokens.rows(model.decode(move(model, steps, float(eta)), tokens.legal))
            found = found[space.holds(found)]
            for row, key in zip(found, space.canonical_keys(found).tolist(), strict=True):
                if key not in taken and len(new) < strategy.per_round:
                    taken.add(key)
                    new.append(row)
    return new


@lru_cache(maxsize=4)
def _fitted(strategy: NAO, of: Itself[SearchSpace], rows: bytes, scores: bytes) -> tuple[Autoencoder, Tokens]:
    space = of.it
    known = np.frombuffer(rows, dtype=np.int32).reshape(-1, len(space.decisions))
    value, tokens = np.frombuffer(scores, dtype=np.float64), Tokens(space)
    seed = seed_from(value)
    unlabelled, symmetric = None, None
    if strategy.recipe.unlabelled:
        unlabelled = tokens.of(space.sample_many(strategy.recipe.unlabelled, np.random.default_rng(seed)))
    if strategy.symmetric is not None:
        symmetric = partial(strategy.symmetric, tokens)
    return fit_autoencoder(
        tokens.of(known), value, tokens.vocabulary, strategy.recipe, seed=seed, symmetric=symmetric, unlabelled=unlabelled
    ), tokens
