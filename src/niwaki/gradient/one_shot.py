"""Single-path one-shot training (Guo et al., ECCV 2020): each step trains one member, drawn uniformly among those within the budget.

It makes the shared weights by which ask/tell strategies judge architectures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niwaki.factor.within import Within
from niwaki.gradient.weights import load_state_, rising_cosine, saved, sgd, state_of
from niwaki.net.control import Network
from niwaki.nn.supernet import supernet
from niwaki.task.task import Task, derive_seed
from niwaki.train.loop import TrainingDiverged, batches_per_epoch, epoch_batches, own_randomness, seed_dropout, under_way


@dataclass(frozen=True)
class OneShot:
    """Hyper-parameters of the supernet's training."""

    epochs: int = 90
    batch_size: int = 192
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4


@dataclass(frozen=True)
class OneShotRecord:
    epoch: int
    weight_loss: float


class OneShotSearch:
    """A supernet's training under way; several budgets take turns. weights: to begin with, the owner's of an adopted model.

    The same seed gives the same weights, also after `load`.
    """

    def __init__(
        self,
        network: Network,
        task: Task,
        spaces: Sequence[Within],
        method: OneShot,
        *,
        weights: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.task, self.spaces, self.method, self.seed, self.device = task, tuple(spaces), method, seed, torch.device(device)
        self.net = supernet(network, weights, seed=derive_seed(seed, "supernet")).to(self.device)
        self.optimizer = sgd(self.net, lr=method.lr, momentum=method.momentum, weight_decay=method.weight_decay)
        self.part = task.part("train")
        self.steps_per_epoch = batches_per_epoch(len(self.part), method.batch_size)
        self.step = 0
        self.history: list[OneShotRecord] = []
        self._sum = 0.0

    @property
    def total_steps(self) -> int:
        return self.method.epochs * self.steps_per_epoch

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    def run(self, max_steps: int | None = None) -> None:
        """Takes `max_steps` steps, or as many as are left of the epoch under way."""
        if self.finished:
            return
        epoch, first, last = under_way(self.step, self.steps_per_epoch, max_steps)
        batches = epoch_batches(self.part, self.method.batch_size, seed=derive_seed(self.seed, "weights", epoch))
        drawn = [
            space.sample_many(self.steps_per_epoch, np.random.default_rng(derive_seed(self.seed, "paths", epoch, at)))
            for at, space in enumerate(self.spaces)
        ]
        self.net.train()
        with own_randomness(self.device):
            for step in range(first, last):
                for group in self.optimizer.param_groups:
                    group["lr"] = rising_cosine(self.method.lr, 0.0, self.step, self.total_steps)
                seed_dropout(derive_seed(self.seed, "dropout", epoch, step), self.device)
                inputs, targets = self.task.augmented_batch(
                    batches[step], self.device, torch.Generator().manual_seed(derive_seed(self.seed, "augment", epoch, step))
                )
                self.optimizer.zero_grad(set_to_none=True)
                turn = self.step % len(self.spaces)  # over the whole training: an epoch may have fewer steps than there are budgets
                arch = self.spaces[turn].from_indices(drawn[turn][step].tolist())
                loss = self.task.loss(self.net(inputs, arch), targets)
                loss.backward()
                self.optimizer.step()
                if not isfinite(value := loss.item()):
                    raise TrainingDiverged(f"the supernet's loss became {value}", epoch + 1, step + 1)
                self._sum += value
                self.step += 1
        if last == self.steps_per_epoch:
            self.history.append(OneShotRecord(epoch + 1, self._sum / self.steps_per_epoch))
            self._sum = 0.0

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that `load` needs to go on with the same bits: named tensors (copies, on the CPU) and JSON."""
        return saved(state_of(self.net, self.optimizer)), {
            "method": asdict(self.method), "step": self.step, "sum": self._sum, "history": [asdict(record) for record in self.history],
        }  # fmt: skip

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave, in a search started alike."""
        if state["method"] != asdict(self.method):
            raise ValueError(f"this state is of a search with {state['method']}, not with {asdict(self.method)}")
        load_state_(self.net, self.optimizer, tensors)
        self.step, self._sum = state["step"], state["sum"]
        self.history = [OneShotRecord(**record) for record in state["history"]]
