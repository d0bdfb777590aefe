"""NAO (Luo et al., NeurIPS 2018): architectures moved along the gradient of a predictor, in the embedding space of an autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from random import Random
from typing import Any

import numpy as np
import torch

from niwaki.objective import BEST_ACCURACY, Objective
from niwaki.predictor.sequence import Autoencoder, SequenceRecipe, fit_autoencoder, moved
from niwaki.space.architecture import Architecture
from niwaki.strategy.rounds import Rounds
from niwaki.strategy.scores import seed_from
from niwaki.strategy.strategy import Itself, SearchSpace
from niwaki.strategy.tokens import Tokens
from niwaki.trial import Trial

Move = Callable[[Autoencoder, torch.Tensor, float], torch.Tensor]  # model, steps, eta -> steps
Symmetric = Callable[[Tokens, np.ndarray, np.random.Generator], np.ndarray]  # rewrites sequences as others of the same architectures
PUBLISHED = SequenceRecipe()


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

    def init(self, space: SearchSpace) -> Rounds:
        return Rounds(space)

    def ask(self, state: Rounds, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        return state.propose(self.generated(state), count, rng, pending)

    def generated(self, state: Rounds) -> Iterator[np.ndarray]:
        """Rows of option numbers: what the round under way proposes, in its order; nothing while the pool is filled."""
        if state.ends and state.ends[-1] > 1:
            rows, scores = state.known(self.objective)
            yield from _generated(self, Itself(state.space), rows.tobytes(), scores.tobytes())

    def tell(self, state: Rounds, trials: Sequence[Trial]) -> Rounds:
        return state.told(trials, first=self.first, every=self.per_round)

    def save(self, state: Rounds) -> tuple[Any, dict[str, np.ndarray]]:
        return state.save()

    def load(self, space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> Rounds:
        return Rounds.load(space, content, arrays)


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
