"""A task around another one, of which it changes what is learned or measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from niwaki.task.task import Part, Task


@dataclass(frozen=True)
class Around:
    """Everything is the inner task's own but what a subclass says anew: `loss`, `metrics`, `metric`, `describe`."""

    task: Task

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.task.input_shape

    @property
    def outputs(self) -> int:
        return self.task.outputs

    @property
    def metric(self) -> str:
        return self.task.metric

    @property
    def source(self) -> str:
        return self.task.source

    @property
    def sha256(self) -> str:
        return self.task.sha256

    @property
    def nbytes(self) -> int:
        return self.task.nbytes

    def part(self, name: Part) -> Tensor:
        return self.task.part(name)

    def search_split(self, architecture_share: float = 0.2) -> tuple[Tensor, Tensor]:
        return self.task.search_split(architecture_share)

    def folds(self, count: int) -> list[tuple[Tensor, Tensor]]:
        return self.task.folds(count)

    def labels(self, indices: Tensor) -> Tensor:
        return self.task.labels(indices)

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.task.batch(indices, device)

    def augmented_batch(self, indices: Tensor, device: torch.device, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.task.augmented_batch(indices, device, generator)

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        return self.task.loss(outputs, targets, label_smoothing=label_smoothing)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return self.task.metrics(outputs, targets)

    def preprocess(self) -> nn.Module:
        return self.task.preprocess()

    def delivered(self, module: fx.GraphModule) -> fx.GraphModule:
        return self.task.delivered(module)

    def describe(self) -> dict[str, Any]:
        """What identifies the task, as JSON."""
        return self.task.describe()
