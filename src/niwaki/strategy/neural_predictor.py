"""Neural predictor (Wen et al., ECCV 2020): train a few random architectures, predict all others, train those predicted best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np

from niwaki.objective import BEST_ACCURACY, Objective
from niwaki.predictor.graph import Fitted, GraphRecipe, Graphs, TwoStage, fit_regressor, fit_two_stage
from niwaki.space.architecture import Architecture
from niwaki.strategy.rounds import Rounds
from niwaki.strategy.strategy import MOST_LISTED, Itself, SearchSpace
from niwaki.strategy.tokens import Tokens
from niwaki.trial import Trial

PORT = GraphRecipe()


@dataclass(frozen=True)
class NeuralPredictor:
    """`first` random architectures, a regressor fitted to them, then the others from the predicted best down.

    first: N of the paper, 172 on NAS-Bench-101. candidates: how many random ones are predicted where a space cannot be listed (about 1.1e5 in
    the paper's study on ImageNet). refit: how many further trials it takes until the regressor is fitted anew; None: never, as published.
    good: of the two-stage predictor, the quantile of the scores below which an architecture is not good and is left to the classifier; None:
    one stage.

    Of architectures that compute the same only one is proposed while there are others. A fit sees nothing but told trials, and its random
    numbers follow from them.
    """

    objective: Objective = BEST_ACCURACY
    first: int = 172
    candidates: int = 110_000
    refit: int | None = None
    good: float | None = None
    recipe: GraphRecipe = PORT
    name: str = "neural-predictor"

    def __post_init__(self) -> None:
        if min(self.first, self.candidates, self.refit or 1) < 1 or not 0 < (self.good or 0.5) < 1:
            raise ValueError(
                f"first={self.first}, candidates={self.candidates}, refit={self.refit}, good={self.good}: counts are at least 1, good is "
                f"between 0 and 1"
            )

    def init(self, space: SearchSpace) -> Rounds:
        return Rounds(space)

    def ask(self, state: Rounds, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        return state.propose(self.ranked(state), count, rng, pending)

    def ranked(self, state: Rounds) -> Iterator[np.ndarray]:
        """Rows of option numbers from the predicted best down, without those told; nothing before the first fit."""
        if state.ends and state.ends[-1]:
            rows, scores = state.known(self.objective)
            told = state.rows(state.ok)
            told_keys, told_rows = set(state.space.canonical_keys(told).tolist()), {row.tobytes() for row in told}
            alike = []  # to one that was told
            ranking = _ranking(self, Itself(state.space), rows.tobytes(), scores.tobytes())
            for row, key in zip(ranking.rows, ranking.keys, strict=True):
                if key not in told_keys:
                    yield row
                elif row.tobytes() not in told_rows:
                    alike.append(row)
            yield from alike

    def tell(self, state: Rounds, trials: Sequence[Trial]) -> Rounds:
        return state.told(trials, first=self.first, every=self.refit)

    def save(self, state: Rounds) -> tuple[Any, dict[str, np.ndarray]]:
        return state.save()

    def load(self, space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> Rounds:
        return Rounds.load(space, content, arrays)


def graphs_of(space: SearchSpace, rows: np.ndarray) -> Graphs:
    """Architectures as graphs: a node for each decision, with its option one-hot, between an input and an output.

    The edges are how data flow between what was decided (`Space.flow`); decisions that do not exist are no nodes.
    """
    tokens = Tokens(space)
    spelled = tokens.of(rows)
    count, length = spelled.shape
    nodes = np.zeros((count, length + 2, tokens.vocabulary + 2), dtype=np.float32)
    nodes[:, 0, -2] = nodes[:, -1, -1] = 1
    np.put_along_axis(nodes[:, 1:-1], spelled[:, :, None], 1, axis=2)
    real = np.ones((count, length + 2), dtype=bool)
    real[:, 1:-1] = spelled != 0
    return Graphs(nodes, space.flow(), real)


@dataclass(frozen=True)
class _Ranking:
    rows: np.ndarray  # (M, decisions), from the predicted best down
    keys: list[int]


@lru_cache(maxsize=4)
def _ranking(strategy: NeuralPredictor, of: Itself[SearchSpace], rows: bytes, scores: bytes) -> _Ranking:
    space = of.it
    known = np.frombuffer(rows, dtype=np.int32).reshape(-1, len(space.decisions))
    value = np.frombuffer(scores, dtype=np.float64)
    seed = (
        int.from_bytes(np.random.SeedSequence(np.frombuffer(scores, dtype=np.uint32).tolist()).generate_state(2).tobytes(), "little") >> 1
    )
    pool = _pool(space, strategy.candidates, seed)
    graphs = graphs_of(space, known)
    predict: Fitted | TwoStage
    if strategy.good is None:
        predict = fit_regressor(graphs, value, strategy.recipe, seed=seed)
    else:
        predict = fit_two_stage(graphs, value, strategy.recipe, threshold=float(np.quantile(value, strategy.good)), seed=seed)
    predicted = np.concatenate([predict(graphs_of(space, part)) for part in np.array_split(pool, max(1, len(pool) // 8192))])
    pool = pool[np.argsort(-predicted, kind="stable")]
    keys = space.canonical_keys(pool)
    _, first = np.unique(keys, return_index=True)
    order = np.concatenate([np.sort(first), np.setdiff1d(np.arange(len(pool)), first)])  # of those that compute the same, one first
    return _Ranking(pool[order], keys[order].tolist())


def _pool(space: SearchSpace, count: int, seed: int) -> np.ndarray:
    """int32 (M, decisions): all architectures of a space that can be listed, else different random ones."""
    if space.size <= MOST_LISTED:
        return _all(space)
    return np.unique(space.sample_many(count, np.random.default_rng(seed)).astype(np.int32), axis=0)


@lru_cache(maxsize=2)
def _all(space: SearchSpace) -> np.ndarray:
    return np.array(space.indices(space.enumerate()), dtype=np.int32).reshape(-1, len(space.decisions))
