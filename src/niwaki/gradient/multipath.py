"""Several domains trained together over one supernet, each on its own path: searched by a controller for each (MPNAS), or given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite, log
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niwaki.factor.within import Within
from niwaki.gradient.balance import Balance, Prioritised, Seen
from niwaki.gradient.controller import Control, Draw, PathController, filters_of
from niwaki.gradient.tunas import Rounds, batch_statistics, on_device
from niwaki.gradient.weights import load_state_, rising_cosine, saved, sgd, state_of
from niwaki.net.control import Network
from niwaki.nn.multipath import MultiPath
from niwaki.space.architecture import Architecture
from niwaki.task.task import Task, derive_seed
from niwaki.train.loop import TrainingDiverged, own_randomness, seed_dropout


@dataclass(frozen=True)
class JointTraining:
    """Hyper-parameters of the weights, of a search and of the training afterwards alike. steps: each has a batch of every domain.

    The defaults but `steps` are those of TuNAS, which the paper's search space and controllers come from; how long it searched was not found.
    """

    steps: int = 25_000
    batch_size: int = 4096
    weight_lr: float = 0.165 * 4096 / 256
    weight_warm_up: float = 0.025
    momentum: float = 0.9
    weight_decay: float = 4e-5
    label_smoothing: float = 0.1
    validation_batches: int = 4  # the batch of which the quality is measured is so many times as large

    def __post_init__(self) -> None:
        if (
            self.steps < 1
            or self.batch_size < 2
            or self.validation_batches < 1
            or not self.weight_lr > 0
            or not 0 <= self.weight_warm_up < 1
        ):
            raise ValueError(
                f"steps={self.steps}, batch_size={self.batch_size}, validation_batches={self.validation_batches}, weight_lr={self.weight_lr}, "
                f"weight_warm_up={self.weight_warm_up}: at least 1 step, batches of 2 and a validation batch, a learning rate above 0, a share "
                f"below 1"
            )


@dataclass(frozen=True)
class MPNAS:
    """Hyper-parameters of a search. control: of each domain's controller. architecture_share: of each train part."""

    training: JointTraining = field(default_factory=JointTraining)
    control: Control = field(default_factory=Control)
    architecture_share: float = 0.2


class Together:
    """Weights of several domains in training, on paths that come with each step. The same seed gives the same weights, also after `load`."""

    def __init__(
        self, networks: Mapping[str, Network], tasks: Mapping[str, Task], parts: Mapping[str, tuple[Tensor, Tensor]], method: JointTraining,
        balance: Balance, *, seed: int, device: torch.device | str,
    ) -> None:  # fmt: skip
        """parts: for each domain what the weights learn from, and what the quality is measured on."""
        self.tasks, self.method, self.balance, self.seed, self.device = dict(tasks), method, balance, seed, torch.device(device)
        self.net = MultiPath(networks, seed=derive_seed(seed, "supernet")).to(self.device)
        self.domains = self.net.domains
        if set(self.tasks) != set(self.domains):
            raise ValueError(
                f"there are networks for {', '.join(self.domains)} and tasks for {', '.join(self.tasks)}; each domain needs both"
            )
        self.optimizer = sgd(self.net, lr=method.weight_lr, momentum=method.momentum, weight_decay=method.weight_decay)
        self.weight_batches = [Rounds(parts[domain][0], method.batch_size, derive_seed(seed, "weights", domain)) for domain in self.domains]
        self.validation = [
            Rounds(parts[domain][1], method.batch_size * method.validation_batches, derive_seed(seed, "reward", domain))
            for domain in self.domains
        ]
        self.state = balance.init([len(parts[domain][0]) for domain in self.domains])
        self.step = 0
        self.taken = [0] * len(self.domains)  # batches of each domain

    @property
    def finished(self) -> bool:
        return self.step >= self.method.steps

    def advance(self, decisions: list[dict[str, Any]]) -> Seen:
        """One step of the weights of all domains, by the paths `decisions`, in the order of the domains."""
        decisions = [on_device(one, self.device) for one in decisions]
        count, weights = len(self.domains), self.balance.weights(self.state)
        turns = self.balance.turns(self.state, np.random.default_rng(derive_seed(self.seed, "turns", self.step)))
        for group in self.optimizer.param_groups:
            group["lr"] = rising_cosine(self.method.weight_lr, self.method.weight_warm_up, self.step, self.method.steps)
        losses, norms = np.full(count, np.nan), np.full(count, np.nan)
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        with own_randomness(self.device):
            for at in turns:
                loss = self._loss(at, decisions[at])
                if self.balance.wants_norms:
                    norms[at] = self._norm(loss)
                (float(weights[at]) * loss).backward()
                losses[at] = loss.item()
                if not isfinite(losses[at]):
                    raise TrainingDiverged(f"the loss of {self.domains[at]} became {losses[at]}", 1, self.step + 1)
        self.optimizer.step()
        qualities = np.array([self._quality(at, decisions[at]) for at in range(count)])
        self.step += 1
        seen = Seen(qualities, losses, norms, self.step / self.method.steps)
        self.state = self.balance.after(self.state, seen)
        return seen

    def _loss(self, at: int, decisions: dict[str, Any]) -> Tensor:
        """Cross entropy over log(classes), so that chance is 1 in every domain."""
        domain, number = self.domains[at], self.taken[at]
        self.taken[at] += 1
        task = self.tasks[domain]
        seed_dropout(derive_seed(self.seed, "dropout", domain, number), self.device)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "augment", domain, number))
        inputs, targets = task.augmented_batch(self.weight_batches[at].batch(number), self.device, generator)
        loss = task.loss(self.net(inputs, domain, decisions), targets, label_smoothing=self.method.label_smoothing)
        return loss / log(max(2, task.outputs))

    def _norm(self, loss: Tensor) -> float:
        shared = [p for name in self.net.shared for p in self.net.net(self.domains[0]).layers[name].parameters()]
        gradients = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        return float(torch.stack([gradient.square().sum() for gradient in gradients if gradient is not None]).sum().sqrt())

    def _quality(self, at: int, decisions: dict[str, Any]) -> float:
        domain = self.domains[at]
        inputs, targets = self.tasks[domain].batch(self.validation[at].batch(self.step), self.device)
        with torch.no_grad(), batch_statistics(self.net.net(domain)):
            outputs = self.net(inputs, domain, decisions)
        return self.tasks[domain].metrics(outputs, targets)[self.tasks[domain].metric]

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return saved(state_of(self.net, self.optimizer)), {
            "method": asdict(self.method), "balance": dict(self.state), "step": self.step, "taken": list(self.taken),
        }  # fmt: skip

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        if state["method"] != asdict(self.method):
            raise ValueError(f"this state is of a training with {state['method']}, not with {asdict(self.method)}")
        load_state_(self.net, self.optimizer, tensors)
        self.state, self.step, self.taken = state["balance"], state["step"], list(state["taken"])


class MultiPathSearch:
    """A search under way: one controller for each domain, with a baseline of its own, over shared weights.

    spaces: for each domain the network's space within its budget. Each step draws a path for every domain, moves the weights on the sum of the
    domains' losses as `balance` weighs them, and rewards every controller on a validation batch of its own domain.
    """

    def __init__(
        self, networks: Mapping[str, Network], tasks: Mapping[str, Task], spaces: Mapping[str, Within], method: MPNAS, *,
        balance: Balance | None = None, seed: int = 0, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        parts = {domain: task.search_split(method.architecture_share) for domain, task in tasks.items()}
        self.method, self.seed = method, seed
        self.weights = Together(networks, tasks, parts, method.training, balance or Prioritised(), seed=seed, device=device)
        filters = filters_of(self.weights.net.net(self.weights.domains[0]).placement)
        if missing := [domain for domain in self.weights.domains if domain not in spaces]:
            raise ValueError(f"no space is given for {', '.join(missing)}; each domain needs one, within its budget")
        self.controllers = {
            domain: PathController(spaces[domain], filters, method.control, steps=method.training.steps) for domain in self.weights.domains
        }

    @property
    def finished(self) -> bool:
        return self.weights.finished

    @property
    def paths(self) -> dict[str, Architecture]:
        """The most likely path of each domain."""
        return {domain: controller.mode() for domain, controller in self.controllers.items()}

    def run(self, max_steps: int | None = None) -> None:
        """Takes `max_steps` steps, or all that are left."""
        last = self.method.training.steps
        last = last if max_steps is None else min(last, self.weights.step + max_steps)
        while self.weights.step < last:
            draws: list[Draw] = [
                controller.draw(np.random.default_rng(derive_seed(self.seed, "path", domain, self.weights.step)))
                for domain, controller in self.controllers.items()
            ]
            seen = self.weights.advance([dict(draw.decisions) for draw in draws])
            for controller, draw, quality in zip(self.controllers.values(), draws, seen.qualities.tolist(), strict=True):
                controller.learn(draw, quality)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that `load` needs to go on with the same bits: named tensors (copies, on the CPU) and JSON."""
        tensors, state = self.weights.state_dict()
        own = {}
        for domain, controller in self.controllers.items():
            arrays, own[domain] = controller.state_dict(f"controller.{domain}")
            tensors |= arrays
        return tensors, {"weights": state, "controllers": own, "control": asdict(self.method.control)}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave, in a search started alike."""
        if state["control"] != asdict(self.method.control):
            raise ValueError(f"this state is of a search with {state['control']}, not with {asdict(self.method.control)}")
        self.weights.load(tensors, state["weights"])
        for domain, controller in self.controllers.items():
            controller.load(f"controller.{domain}", tensors, state["controllers"][domain])


def train_paths(
    networks: Mapping[str, Network], tasks: Mapping[str, Task], paths: Mapping[str, Architecture], method: JointTraining, *,
    balance: Balance | None = None, seed: int = 0, device: torch.device | str = "cpu",
) -> MultiPath:  # fmt: skip
    """The final multi-path model, trained from scratch, all domains jointly, on their train parts; `MultiPath.extract` makes it plain.

    What is measured on the validation parts only balances the domains.
    """
    parts = {domain: (task.part("train"), task.part("validation")) for domain, task in tasks.items()}
    training = Together(networks, tasks, parts, method, balance or Prioritised(), seed=seed, device=device)
    decisions = [dict(paths[domain]) for domain in training.domains]
    while not training.finished:
        training.advance(decisions)
    return training.net
