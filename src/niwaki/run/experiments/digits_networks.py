"""A tabular benchmark of our own: the 216 networks of the zoo's `digits-cnn`, each trained twice and timed in three ways on one processor.

The table comes with the package, made once by `niwaki reproduce multihardware-hosts`, so that every search and every proxy is judged by the
same figures. `niwaki bench FILE --space digits-cnn --objective validation_accuracy` searches it.
"""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn

from niwaki import zoo
from niwaki.evaluate.table import Table, load_table
from niwaki.net.control import Network
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.space.architecture import Architecture
from niwaki.task.classify import ImageClassification
from niwaki.task.embedded import digits
from niwaki.task.task import derive_seed
from niwaki.train.loop import TrainingDiverged, evaluate, train
from niwaki.train.recipe import Recipe

SPACE = "digits-cnn"
FILE = Path(__file__).with_name("digits_networks.npz")
TRAINING = Recipe(epochs=16, batch_size=128, lr=0.2)  # about a second: networks of one second of training differ more than their seeds do


@lru_cache(maxsize=1)
def network() -> Network:
    return zoo.network(SPACE)


@lru_cache(maxsize=1)
def members() -> list[Architecture]:
    """All of the space, in its order; a network's number is its place here, and its row in the table."""
    return list(space_of(network()).enumerate())


@lru_cache(maxsize=1)
def task() -> ImageClassification:
    """The digits, the same split for everything."""
    return ImageClassification(digits())


@lru_cache(maxsize=1)
def known() -> Table:
    """The table that comes with the package."""
    return load_table(FILE, network())


def both_seeds(table: Table, part: Literal["validation", "test"]) -> np.ndarray:
    """(2, N): accuracy in % of each of the two trainings."""
    return np.stack([table.column(f"{part}_accuracy_seed{seed}") for seed in (0, 1)])


def train_member(number: int, seed: int, recipe: Recipe) -> dict[str, float]:
    """Accuracy in % on the validation and the test part after training on the train part, and the CPU seconds of that."""
    module: nn.Module = build(network(), members()[number], seed=derive_seed(seed, "weights", number))
    began = time.process_time()
    try:
        module = train(module, task(), recipe, task().part("train"), seed=derive_seed(seed, "training", number))
    except TrainingDiverged:  # counts as the worst value, and is not left out
        return {"validation": 0.0, "test": 0.0, "seconds": time.process_time() - began}
    seconds = time.process_time() - began
    parts: tuple[Literal["validation", "test"], ...] = ("validation", "test")
    return {**{part: 100 * evaluate(module, task(), task().part(part))["accuracy"] for part in parts}, "seconds": seconds}
