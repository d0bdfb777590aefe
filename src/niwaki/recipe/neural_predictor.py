"""Neural predictor (Wen et al., ECCV 2020, arXiv 1912.00848): train N random architectures, predict the others, train the best K of those.

Parts: the graph convolutional regressor, in one stage or two (predictor/graph.py), architectures as graphs of what is decided and the
ranking (strategy/neural_predictor.py). The only settings that matter are N and K; N + K trainings are what it costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from niwaki.objective import BEST_ACCURACY, Objective
from niwaki.predictor.graph import GraphRecipe, PredictorError
from niwaki.space.architecture import Architecture
from niwaki.strategy.neural_predictor import NeuralPredictor
from niwaki.strategy.strategy import SearchSpace
from niwaki.trial import Trial

PUBLISHED_N = 172  # on NAS-Bench-101, about 0.04 % of its 423,624 cells
PUBLISHED_FASTER = 20  # times fewer evaluations than regularized evolution there (abstract; 22.8 in the paper, by memory)
GOOD = 91.0  # validation accuracy on NAS-Bench-101 from which the first stage calls an architecture good
# with 100 architectures a tenfold learning rate and half the epochs rank better than the port's defaults (Spearman .69 against .62 here)
TABLE = GraphRecipe(epochs=150, lr=1e-3)


@dataclass(frozen=True)
class Found:
    """What a search came to. trainings: N + K; predictions: of how many architectures; seconds: of wall time, evaluations left out."""

    best: Trial
    trials: tuple[Trial, ...]
    trainings: int
    predictions: int
    seconds: float


def of_evaluations(objective: Objective = BEST_ACCURACY, evaluations: int = 200) -> NeuralPredictor:
    """N is half of the evaluations, at most the paper's 172, and K the rest."""
    return NeuralPredictor(objective, first=max(2, min(PUBLISHED_N, evaluations // 2)), recipe=TABLE)


def search(
    space: SearchSpace,
    evaluate: Callable[[Architecture], Mapping[str, float]],
    *,
    first: int,
    top: int,
    objective: Objective = BEST_ACCURACY,
    good: float | None = None,
    recipe: GraphRecipe = TABLE,
    seed: int = 0,
) -> Found:
    """The published search: N = `first` random architectures, one fit, K = `top` predicted best; the best of all of them by the objective.

    space: within limits, everything keeps them. Raises PredictorError where there are not as many different architectures as asked for.
    """
    strategy = NeuralPredictor(objective, first=first, good=good, recipe=recipe)
    state, trials, predictions, began, spent = strategy.init(space), list[Trial](), 0, time.perf_counter(), 0.0
    for wanted, what in ((first, "to be trained at random"), (top, "left to be trained by their prediction")):
        if len(trials):
            predictions = sum(1 for _ in strategy.ranked(state))
        asked = strategy.ask(state, wanted, Random(f"{seed}/{len(trials)}"), pending=())
        if len(asked) < wanted:
            raise PredictorError(f"{wanted} architectures are {what}, but there are only {len(asked)}")
        before = time.perf_counter()
        told = [Trial(len(trials) + at, arch, evaluate(arch), strategy.name) for at, arch in enumerate(asked)]
        spent += time.perf_counter() - before
        state, trials = strategy.tell(state, told), [*trials, *told]
    return Found(objective.best(trials), tuple(trials), len(trials), predictions, time.perf_counter() - began - spent)
