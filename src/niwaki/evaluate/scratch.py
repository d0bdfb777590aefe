"""Train it and see: the evaluator that all others try to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from niwaki.net.control import Network
from niwaki.nn.build import build
from niwaki.task.task import Task, derive_seed
from niwaki.train.loop import evaluate, train
from niwaki.train.recipe import Recipe


@dataclass(frozen=True)
class Scratch:
    """architecture -> validation metrics after training it from scratch by `recipe` on the train part."""

    network: Network
    task: Task
    recipe: Recipe
    seed: int = 0
    device: str = "cpu"

    def __call__(self, arch: Mapping[str, Any]) -> dict[str, float]:
        module = build(self.network, arch, seed=derive_seed(self.seed, "scratch weights"))
        module = train(module, self.task, self.recipe, self.task.part("train"), seed=derive_seed(self.seed, "scratch"), device=torch.device(self.device))  # type: ignore[assignment]
        return evaluate(module, self.task, self.task.part("validation"), device=self.device)
