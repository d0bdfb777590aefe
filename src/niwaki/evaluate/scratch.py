"""Train it and see: the evaluator that all others try to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from niwaki.net.control import Network
from niwaki.nn.build import build
from niwaki.task.task import Task, derive_seed
from niwaki.train.loop import TrainingDiverged, evaluate, train
from niwaki.train.recipe import Recipe
from niwaki.trial import EvaluationFailed


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
        try:
            trained = train(
                module, self.task, self.recipe, self.task.part("train"), seed=derive_seed(self.seed, "scratch"), device=self.device
            )
        except TrainingDiverged as error:
            raise EvaluationFailed(str(error)) from error
        metrics = evaluate(trained, self.task, self.task.part("validation"), device=self.device)
        if not isfinite(metrics["loss"]):
            raise EvaluationFailed(f"after training its loss on the validation part is {metrics['loss']}")
        return metrics
