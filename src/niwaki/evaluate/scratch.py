"""Train it and see: the evaluator that all others try to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from torch import Tensor

from niwaki.net.control import Network
from niwaki.nn.supernet import member
from niwaki.task.task import Task, derive_seed
from niwaki.train.loop import TrainingDiverged, evaluate, train
from niwaki.train.recipe import Recipe
from niwaki.trial import EvaluationFailed


@dataclass(frozen=True)
class Scratch:
    """architecture -> validation metrics after training it from scratch by `recipe` on the train part.

    folds: where more than one, by cross-validation over train and validation part: trained on all folds but one and judged on that, for
    each in turn; the metrics are the means over the folds, weighed by their images: accuracy so becomes that of all images together.
    weights: the owner's, where the network was adopted; training begins with what they have for `arch`.
    """

    network: Network
    task: Task
    recipe: Recipe
    seed: int = 0
    device: str = "cpu"
    folds: int = 1
    weights: Mapping[str, Tensor] | None = None

    def __call__(self, arch: Mapping[str, Any]) -> dict[str, float]:
        return self.mean([self.fold(arch, at) for at in range(self.folds)])

    def mean(self, metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The metrics of all folds in one."""
        sizes = [len(held_out) for _, held_out in self._parts()]
        return {name: sum(size * one[name] for size, one in zip(sizes, metrics, strict=True)) / sum(sizes) for name in metrics[0]}

    def examples(self) -> int:
        """How many images the metrics are measured on."""
        return sum(len(held_out) for _, held_out in self._parts())

    def _parts(self) -> list[tuple[Tensor, Tensor]]:
        return self.task.folds(self.folds) if self.folds > 1 else [(self.task.part("train"), self.task.part("validation"))]

    def fold(self, arch: Mapping[str, Any], at: int) -> dict[str, float]:
        """The metrics on one fold. Raises EvaluationFailed."""
        train_on, judge_on = self._parts()[at]
        module = member(self.network, arch, self.weights, seed=derive_seed(self.seed, "scratch weights"))
        try:
            trained = train(module, self.task, self.recipe, train_on, seed=derive_seed(self.seed, "scratch"), device=self.device)
        except TrainingDiverged as error:
            raise EvaluationFailed(str(error)) from error
        metrics = evaluate(trained, self.task, judge_on, device=self.device)
        if not isfinite(metrics["loss"]):
            raise EvaluationFailed(f"after training its loss on the validation part is {metrics['loss']}")
        return metrics
