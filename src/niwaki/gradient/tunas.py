"""TuNAS (Bender et al., CVPR 2020): the weights of a supernet and a policy over its members learned together, by descent and by REINFORCE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from niwaki.factor.within import Within
from niwaki.gradient.controller import Control, PathController, filters_of
from niwaki.gradient.weights import load_state_, rising_cosine, saved, sgd, state_of
from niwaki.net.control import Network
from niwaki.nn.supernet import supernet
from niwaki.task.task import Task, derive_seed
from niwaki.train.loop import TrainingDiverged, batches_per_epoch, epoch_batches, own_randomness, seed_dropout, under_way


@dataclass(frozen=True)
class TuNAS:
    """Hyper-parameters. The defaults are those of TuNAS's code: 90 epochs of batches of 4,096, learning rates proportional to the batch.

    Each step draws one member, updates its weights on a batch of the weights' share of the training data, and rewards it on a batch
    `validation_batches` times as large of the architecture's share, with the statistics of that batch in BatchNorm, before the policy moves.
    The weights' learning rate rises over the first `weight_warm_up` of the steps, then falls to 0 along a cosine.

    Deviation: SGD with momentum in place of RMSProp, whose eps of 1 in the code outweighs all but large gradients, so that it is
    nearly that.
    """

    epochs: int = 90
    batch_size: int = 4096
    weight_lr: float = 0.165 * 4096 / 256
    weight_warm_up: float = 0.025
    momentum: float = 0.9
    weight_decay: float = 4e-5
    label_smoothing: float = 0.1
    architecture_share: float = 0.04  # about 50,000 of ImageNet's 1.28 million
    validation_batches: int = 4
    control: Control = field(default_factory=Control)

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={getattr(self, name)!r} ({possible})"
            for name, possible, holds in (
                ("epochs", "at least 1", self.epochs >= 1),
                ("batch_size", "at least 2", self.batch_size >= 2),
                ("weight_lr", "above 0", self.weight_lr > 0),
                ("weight_warm_up", "from 0 to below 1", 0 <= self.weight_warm_up < 1),
                ("momentum", "from 0 to below 1", 0 <= self.momentum < 1),
                ("weight_decay", "at least 0", self.weight_decay >= 0),
                ("label_smoothing", "from 0 to below 1", 0 <= self.label_smoothing < 1),
                ("architecture_share", "between 0 and 1", 0 < self.architecture_share < 1),
                ("validation_batches", "at least 1", self.validation_batches >= 1),
            )
            if not holds
        ]
        if wrong:
            raise ValueError(f"TuNAS cannot run with {'; '.join(wrong)}")


@dataclass(frozen=True)
class TuNASRecord:
    """One epoch of a search. Loss, quality and reward are means over its steps; `ratios` are expected cost / limit of each policy, at its end."""

    epoch: int
    weight_loss: float
    quality: float
    reward: float
    entropy: float
    ratios: tuple[float, ...]


class TuNASSearch:
    """A search under way. Several budgets share the weights; each has a controller of its own, and the steps take turns.

    spaces: one for each controller, the network's space within its budget. weights: to begin with, the owner's of an adopted model. The same
    seed gives the same search, also through `state_dict` and `load` after any step, at the same number of threads.
    """

    def __init__(
        self,
        network: Network,
        task: Task,
        spaces: Sequence[Within],
        method: TuNAS,
        *,
        weights: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.task, self.spaces, self.method, self.seed, self.device = task, tuple(spaces), method, seed, torch.device(device)
        self.net = supernet(network, weights, seed=derive_seed(seed, "supernet")).to(self.device)
        self.optimizer = sgd(self.net, lr=method.weight_lr, momentum=method.momentum, weight_decay=method.weight_decay)
        self.weight_part, self.architecture_part = task.search_split(method.architecture_share)
        self.steps_per_epoch = batches_per_epoch(len(self.weight_part), method.batch_size)
        turns = -(-self.total_steps // len(self.spaces))
        filters = filters_of(self.net.placement)
        self.controllers = [PathController(space, filters, method.control, steps=turns) for space in self.spaces]
        self.step = 0
        self.history: list[TuNASRecord] = []
        self._sums = [0.0, 0.0, 0.0]  # of the epoch under way: loss, quality, reward

    @property
    def total_steps(self) -> int:
        return self.method.epochs * self.steps_per_epoch

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    def probabilities(self) -> list[dict[str, np.ndarray]]:
        """Of each policy, by decision."""
        return [controller.probabilities() for controller in self.controllers]

    def run(self, max_steps: int | None = None) -> None:
        """Takes `max_steps` steps, or as many as are left of the epoch under way."""
        if self.finished:
            return
        epoch, first, last = under_way(self.step, self.steps_per_epoch, max_steps)
        batches = epoch_batches(self.weight_part, self.method.batch_size, seed=derive_seed(self.seed, "weights", epoch))
        validation = Rounds(
            self.architecture_part, self.method.batch_size * self.method.validation_batches, derive_seed(self.seed, "reward")
        )
        with own_randomness(self.device):
            for step in range(first, last):
                self._step(batches[step], validation.batch(self.step), epoch, step)
                self.step += 1
        if last == self.steps_per_epoch:
            loss, quality, reward = (total / self.steps_per_epoch for total in self._sums)
            entropy = float(np.mean([controller.entropy() for controller in self.controllers]))
            ratios = tuple(controller.ratio() for controller in self.controllers)
            self.history.append(TuNASRecord(epoch + 1, loss, quality, reward, entropy, ratios))
            self._sums = [0.0, 0.0, 0.0]

    def _step(self, indices: Tensor, validation: Tensor, epoch: int, step: int) -> None:
        method, at = self.method, self.step % len(self.spaces)
        draw = self.controllers[at].draw(np.random.default_rng(derive_seed(self.seed, "path", self.step)))
        decisions = on_device(draw.decisions, self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = rising_cosine(method.weight_lr, method.weight_warm_up, self.step, self.total_steps)
        seed_dropout(derive_seed(self.seed, "dropout", epoch, step), self.device)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "augment", epoch, step))
        inputs, targets = self.task.augmented_batch(indices, self.device, generator)
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.task.loss(self.net(inputs, decisions), targets, label_smoothing=method.label_smoothing)
        loss.backward()
        self.optimizer.step()
        if not isfinite(value := loss.item()):
            raise TrainingDiverged(f"the search's loss became {value}", epoch + 1, step + 1)
        quality = self._quality(validation, decisions)
        reward = self.controllers[at].learn(draw, quality)
        for number, part in enumerate((value, quality, reward)):
            self._sums[number] += part

    def _quality(self, indices: Tensor, decisions: dict[str, Any]) -> float:
        inputs, targets = self.task.batch(indices, self.device)
        with torch.no_grad(), batch_statistics(self.net):
            outputs = self.net(inputs, decisions)
        return self.task.metrics(outputs, targets)[self.task.metric]

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that `load` needs to go on with the same bits: named tensors (copies, on the CPU) and JSON."""
        tensors, states = state_of(self.net, self.optimizer), []
        for at, controller in enumerate(self.controllers):
            own, state = controller.state_dict(f"controller.{at}")
            tensors |= own
            states.append(state)
        return saved(tensors), {
            "method": asdict(self.method), "controllers": states, "step": self.step, "sums": self._sums,
            "history": [asdict(record) for record in self.history],
        }  # fmt: skip

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave, in a search started alike."""
        if state["method"] != asdict(self.method):
            raise ValueError(f"this state is of a search with {state['method']}, not with {asdict(self.method)}")
        load_state_(self.net, self.optimizer, tensors)
        for at, (controller, own) in enumerate(zip(self.controllers, state["controllers"], strict=True)):
            controller.load(f"controller.{at}", tensors, own)
        self.step, self._sums = state["step"], list(state["sums"])
        self.history = [TuNASRecord(**{**record, "ratios": tuple(record["ratios"])}) for record in state["history"]]


class Rounds:
    """Batches of examples, numbered from 0, that go round and round over `indices`, in another order each time."""

    def __init__(self, indices: Tensor, batch_size: int, seed: int) -> None:
        self.indices, self.batch_size, self.seed = indices, min(batch_size, len(indices)), seed
        self.count = batches_per_epoch(len(indices), self.batch_size)
        self._round: tuple[int, list[Tensor]] = (-1, [])

    def batch(self, number: int) -> Tensor:
        turn, at = divmod(number, self.count)
        if self._round[0] != turn:
            self._round = turn, epoch_batches(self.indices, self.batch_size, seed=derive_seed(self.seed, turn))
        return self._round[1][at]


def on_device(decisions: Any, device: torch.device) -> dict[str, Any]:
    """`decisions` with the tensors among them on the device."""
    return {name: one.to(device) if isinstance(one, Tensor) else one for name, one in decisions.items()}


@contextmanager
def batch_statistics(net: nn.Module) -> Iterator[None]:
    """Within, `net` is in evaluation mode, but its batch norms use the statistics of the batch, for a member of a supernet has no others.

    Their running ones move, too: nobody looks at a supernet's.
    """
    was_training = net.training
    net.eval()
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    try:
        yield
    finally:
        net.train(was_training)
