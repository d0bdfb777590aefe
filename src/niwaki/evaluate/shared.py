"""Shared weights: an architecture judged by the supernet's weights for it, with BatchNorm statistics of its own."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import torch
from torch import fx

from niwaki.nn.supernet import Supernet, extract
from niwaki.task.task import Task, derive_seed
from niwaki.train.batch_norm import recalibrate_batch_norm_
from niwaki.train.loop import epoch_batches, evaluate
from niwaki.trial import EvaluationFailed


class SharedWeights:
    """architecture -> validation metrics with inherited weights. The supernet is not changed.

    The supernet's running statistics are those of a soft mixture, near chance for a member: they are measured anew on
    `calibration_batches` batches of the train part, the same ones for every architecture.
    """

    def __init__(self, net: Supernet, task: Task, *, calibration_batches: int = 4, batch_size: int = 256, seed: int = 0) -> None:
        self.net, self.task, self.device = net, task, next(net.parameters()).device
        # indices, of which each use makes its batches anew: as float32 they would lie beside the data all through a search
        self.batches = epoch_batches(task.part("train"), batch_size, seed=derive_seed(seed, "calibration"))[:calibration_batches]

    def module(self, arch: Mapping[str, Any]) -> fx.GraphModule:
        """The plain module of `arch` with inherited weights and its own statistics, in evaluation mode."""
        with torch.no_grad():
            module = extract(self.net, arch)
        recalibrate_batch_norm_(module, (self.task.batch(indices, self.device)[0] for indices in self.batches))
        module.eval()
        return module

    def __call__(self, arch: Mapping[str, Any]) -> dict[str, float]:
        metrics = evaluate(self.module(arch), self.task, self.task.part("validation"), device=self.device)
        if not isfinite(metrics["loss"]):
            raise EvaluationFailed(f"with shared weights its loss is {metrics['loss']}")
        return metrics
