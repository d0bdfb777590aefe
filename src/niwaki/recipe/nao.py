"""NAO (Luo et al., NeurIPS 2018, arXiv 1808.07233): a random pool, then rounds of moving the best in an embedding space.

Parts: encoder, predictor and decoder (predictor/sequence.py), the rounds (strategy/nao.py). The published search trains about 1,000
architectures; `TABLE` is the same method for a few hundred evaluations.
"""

from __future__ import annotations

import numpy as np

from niwaki.net.place import space_of
from niwaki.objective import BEST_ACCURACY, Objective
from niwaki.predictor.sequence import SequenceRecipe
from niwaki.space.space import Space
from niwaki.strategy.nao import NAO
from niwaki.strategy.tokens import Tokens
from niwaki.zoo.nao import nao as network

PUBLISHED_ERROR = {"CIFAR-10": "1.93 %", "CIFAR-10, weights shared": "2.93 %", "PTB perplexity": "56.0"}  # abstract; not testable here
CELLS = 2  # normal and reduction
# a hundred scored sequences are too few to be decoded again: .75 of their tokens are; with 500 unscored ones beside them .96 after 400 epochs
# (6 s of a fit), .98 after 1,000 (15 s)
TABLE = SequenceRecipe(unlabelled=500, epochs=400)


def published(objective: Objective = BEST_ACCURACY) -> NAO:
    """600, then 200 from the best 200 in each round, on pairs of predecessor and operation."""
    return NAO(objective, recipe=SequenceRecipe(per_step=2), symmetric=swapped)


def table(objective: Objective = BEST_ACCURACY, evaluations: int = 200) -> NAO:
    """Half of the evaluations at random, then rounds of 15 % from as many of the best: 100 and 30 of 200."""
    per_round = max(1, round(0.15 * evaluations))
    return NAO(objective, first=max(2, evaluations // 2), per_round=per_round, seeds=per_round, most_eta=20, recipe=TABLE)


def cells() -> Space:
    """The published space, 8 decisions for each of the nodes, 40 tokens in all: in both cells predecessor and operation, twice."""
    return space_of(network())


def swapped(tokens: Tokens, sequences: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Each sequence of `cells` with the two pairs of one node of each cell, drawn at random, the other way round: the same architecture."""
    per_cell = sequences.shape[1] // CELLS
    found = sequences.copy()
    for cell in range(CELLS):
        node = generator.integers(per_cell // 4, size=len(sequences))
        first = cell * per_cell + 4 * node[:, None] + np.arange(4)
        np.put_along_axis(found, first, np.take_along_axis(sequences, first, 1)[:, [2, 3, 0, 1]], 1)
    return found
