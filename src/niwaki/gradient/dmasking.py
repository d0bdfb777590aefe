"""DMaskingNAS (Wan et al., FBNetV2, CVPR 2020): weights and a distribution over architectures learned together on soft masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import cos, isfinite, pi
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from niwaki.distribution.soft import SoftIndependent
from niwaki.factor.expect import expected
from niwaki.factor.within import Within
from niwaki.gradient.cost_loss import CostLoss, absolute_loss, limit_loss, log_loss, product_loss
from niwaki.gradient.weights import load_state_, saved, sgd, state_of
from niwaki.net.control import Network
from niwaki.net.place import forks
from niwaki.nn.relax import gumbel_softmax
from niwaki.nn.supernet import supernet
from niwaki.space.choice import Value
from niwaki.space.size import scope
from niwaki.task.task import Task, derive_seed
from niwaki.train.loop import TrainingDiverged, batches_per_epoch, epoch_batches, own_randomness, seed_dropout

CHECK_EVERY = 25  # steps between looks at the loss


@dataclass(frozen=True)
class DMasking:
    """Hyper-parameters. The defaults are the published ones of FBNet, which FBNetV2 builds on; FBNetV2's own were not found.

    Each epoch goes over the weights' share of the training data with SGD on the weights, then, after `warmup_epochs`, over the
    architecture's share with Adam on the logits; every step draws Gumbel-softmax weights anew, one draw per decision for the whole
    batch. Then the temperature is multiplied by `temperature_decay`.

    objective: "mul" is FBNet's product, "add" CE + cost_weight log(cost / limit), "absolute"
    CE + cost_weight |log(cost / limit)|, which keeps the expected cost at the limit, "limit" the same while above it only.
    logit_passes: how many times the architecture's share is gone over per epoch; 1 as published.
    paths: what a step on the weights does about choices among layers, depths and resolutions: "mixture" runs all of them, as published;
    "sample" (ours) takes the likeliest of the draw, so that the step costs one path and trains what will be delivered. Steps on the logits
    always run the mixture, and widths, expansions and kernel sizes are always soft.
    """

    epochs: int = 90
    warmup_epochs: int = 10
    batch_size: int = 192
    temperature: float = 5.0
    temperature_decay: float = 0.956
    weight_lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    logit_lr: float = 0.01
    logit_weight_decay: float = 5e-4
    architecture_share: float = 0.2
    logit_passes: int = 1
    paths: Literal["mixture", "sample"] = "mixture"
    objective: Literal["mul", "add", "absolute", "limit"] = "mul"
    alpha: float = 0.2
    beta: float = 0.6
    cost_weight: float = 1.0

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={getattr(self, name)!r} ({possible})"
            for name, possible, holds in (
                ("epochs", "at least 1", self.epochs >= 1),
                ("warmup_epochs", "from 0 to below epochs", 0 <= self.warmup_epochs < self.epochs),
                ("batch_size", "at least 2", self.batch_size >= 2),
                ("temperature", "above 0", self.temperature > 0),
                ("temperature_decay", "above 0, at most 1", 0 < self.temperature_decay <= 1),
                ("weight_lr", "above 0", self.weight_lr > 0),
                ("logit_lr", "above 0", self.logit_lr > 0),
                ("architecture_share", "between 0 and 1", 0 < self.architecture_share < 1),
                ("logit_passes", "at least 1", self.logit_passes >= 1),
                ("paths", "mixture or sample", self.paths in ("mixture", "sample")),
                ("objective", "mul, add, absolute or limit", self.objective in ("mul", "add", "absolute", "limit")),
                ("cost_weight", "at least 0", self.cost_weight >= 0),
            )
            if not holds
        ]
        if wrong:
            raise ValueError(f"DMaskingNAS cannot run with {'; '.join(wrong)}")

    def cost_loss(self) -> CostLoss:
        if self.objective == "mul":
            return product_loss(alpha=self.alpha, beta=self.beta)
        return {"add": log_loss, "absolute": absolute_loss, "limit": limit_loss}[self.objective](weight=self.cost_weight)


@dataclass(frozen=True)
class SearchRecord:
    """One epoch of a search. Losses are means over its steps; `ratios` are expected cost / limit of each distribution, at its end."""

    epoch: int
    weight_loss: float
    logit_loss: float | None
    temperature: float
    entropy: float
    ratios: tuple[float, ...]


class DMaskingSearch:
    """A search under way. Several distributions share the weights; each has logits of its own, and the steps take turns.

    spaces: one for each distribution, the network's space within its budget. taken: options that are certain, for each, where there are any:
    one budget may be searched several times, with another option each. guidance: of the drawn option weights, by decision, a scalar that the
    steps on the logits make large beside the objective (`recipe.irlas.Topology.expected_score`, say, times its weight). weights: the owner's, where
    the network was adopted; the shared weights start from them. The same seed gives the same search, also through `state_dict` and
    `load` after any step, at the same number of threads.
    """

    def __init__(
        self,
        network: Network,
        task: Task,
        spaces: Sequence[Within],
        method: DMasking,
        *,
        taken: Sequence[Mapping[str, Value]] = (),
        guidance: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
        weights: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.guidance = guidance
        self.task, self.spaces, self.method, self.seed, self.device = task, tuple(spaces), method, seed, torch.device(device)
        self.net = supernet(network, weights, seed=derive_seed(seed, "supernet")).to(self.device)
        self._learned = [parameter for parameter in self.net.parameters() if parameter.requires_grad]  # an owner's frozen ones stay so
        self.distributions = [
            SoftIndependent(within.space, taken=one) for within, one in zip(self.spaces, taken or [{}] * len(spaces), strict=True)
        ]
        shape = self.distributions[0].logits.shape
        # (D, O) each; a parameter each, so that a step for one leaves the others and their momentum alone
        self.logits = [torch.zeros(shape, device=self.device, requires_grad=True) for _ in self.spaces]
        for distribution, logits in zip(self.distributions, self.logits, strict=True):
            distribution.logits = logits
        self.weight_optimizer = sgd(self.net, lr=method.weight_lr, momentum=method.momentum, weight_decay=method.weight_decay)
        self.logit_optimizer = torch.optim.Adam(self.logits, lr=method.logit_lr, weight_decay=method.logit_weight_decay)
        self.weight_part, self.architecture_part = task.search_split(method.architecture_share)
        self.weight_steps = batches_per_epoch(len(self.weight_part), method.batch_size)
        self.logit_steps = batches_per_epoch(len(self.architecture_part), method.batch_size) * method.logit_passes
        # forks cost the supernet a pass per option; those that decide a width too are mixed with it
        widths = {name for item in self.net.placement.items for name in scope(*item.shape.channels)}
        self.forks = forks(self.net.placement) - widths if method.paths == "sample" else frozenset()
        self.step = 0
        self.history: list[SearchRecord] = []
        self._sums = [0.0, 0.0]  # of the epoch under way: loss of the weight steps, of the logit steps
        self._cost_loss = method.cost_loss()

    # --- progress ----------------------------------------------------------------------------------------------------

    def steps_in(self, epoch: int) -> int:
        return self.weight_steps + (self.logit_steps if epoch >= self.method.warmup_epochs else 0)

    @property
    def total_steps(self) -> int:
        return sum(self.steps_in(epoch) for epoch in range(self.method.epochs))

    @property
    def place(self) -> tuple[int, int]:
        """Epoch, from 0, and step within it, of the next step."""
        method, short = self.method, self.weight_steps * self.method.warmup_epochs
        if self.step < short:
            return divmod(self.step, self.weight_steps)
        epoch, step = divmod(self.step - short, self.weight_steps + self.logit_steps)
        return method.warmup_epochs + epoch, step

    @property
    def finished(self) -> bool:
        return self.place[0] >= self.method.epochs

    def probabilities(self) -> list[dict[str, np.ndarray]]:
        """Of each distribution, by decision."""
        return [distribution.arrays() for distribution in self.distributions]

    def run(self, max_steps: int | None = None) -> None:
        """Takes `max_steps` steps, or as many as are left of the epoch under way."""
        if self.finished:
            return
        epoch, first = self.place
        count = self.steps_in(epoch)
        last = count if max_steps is None else min(count, first + max_steps)
        weight_batches = epoch_batches(self.weight_part, self.method.batch_size, seed=derive_seed(self.seed, "weights", epoch))
        logit_batches: list[Tensor] = []
        for again in range(self.method.logit_passes if last > self.weight_steps else 0):
            logit_batches += epoch_batches(
                self.architecture_part, self.method.batch_size, seed=derive_seed(self.seed, "logits", epoch, again)
            )
        self.net.train()
        waiting: list[Tensor] = []
        with own_randomness(self.device):
            for step in range(first, last):
                on_weights = step < self.weight_steps
                waiting.append(
                    self._weight_step(weight_batches[step], epoch, step)
                    if on_weights
                    else self._logit_step(logit_batches[step - self.weight_steps], epoch, step)
                )
                if len(waiting) == CHECK_EVERY or step in (self.weight_steps - 1, last - 1):
                    for loss in self._checked(waiting, epoch, step):  # one by one: the same sum however the steps were split among calls
                        self._sums[0 if on_weights else 1] += loss
                    waiting.clear()
                self.step += 1
        if last == count:
            self._close(epoch, count)

    def _close(self, epoch: int, count: int) -> None:
        with torch.no_grad():
            ratios = tuple(float(self._ratio(at, distribution.probabilities())) for at, distribution in enumerate(self.distributions))
            entropy = sum(float(distribution.entropy()) for distribution in self.distributions) / len(self.distributions)
        logit_steps = count - self.weight_steps
        logit_loss = self._sums[1] / logit_steps if logit_steps else None
        self.history.append(
            SearchRecord(epoch + 1, self._sums[0] / self.weight_steps, logit_loss, self.temperature(epoch), entropy, ratios)
        )
        self._sums = [0.0, 0.0]

    def _checked(self, losses: list[Tensor], epoch: int, step: int) -> list[float]:
        values = torch.stack(losses).tolist()
        if not all(map(isfinite, values)):
            raise TrainingDiverged(f"the search's loss became {next(v for v in values if not isfinite(v))}", epoch + 1, step + 1)
        return values

    # --- steps -------------------------------------------------------------------------------------------------------

    def temperature(self, epoch: int) -> float:
        return self.method.temperature * self.method.temperature_decay**epoch

    def _decisions(self, epoch: int, step: int, at: int) -> dict[str, Tensor]:
        generator = torch.Generator(self.device).manual_seed(derive_seed(self.seed, "gumbel", epoch, step))
        return self.distributions[at].draw(lambda logits: gumbel_softmax(logits, temperature=self.temperature(epoch), generator=generator))

    def _batch(self, indices: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "augment", epoch, step))
        seed_dropout(derive_seed(self.seed, "dropout", epoch, step), self.device)
        return self.task.augmented_batch(indices, self.device, generator)

    def _weight_step(self, indices: Tensor, epoch: int, step: int) -> Tensor:
        done = (epoch * self.weight_steps + step) / (self.method.epochs * self.weight_steps)
        for group in self.weight_optimizer.param_groups:
            group["lr"] = self.method.weight_lr * (1 + cos(pi * done)) / 2
        inputs, targets = self._batch(indices, epoch, step)
        with torch.no_grad():
            turn = (
                epoch * self.weight_steps + step
            )  # of the weight steps, over the whole search: an epoch may have fewer than distributions
            at = turn % len(self.spaces)
            decisions: dict[str, Any] = dict(self._decisions(epoch, step, at))
            for name in self.forks:
                decisions[name] = self.spaces[0].space[name].options[int(decisions[name].argmax())]
            decisions |= self.distributions[at].taken
        self.weight_optimizer.zero_grad(set_to_none=True)
        loss = self.task.loss(self.net(inputs, decisions), targets)
        loss.backward()
        self.weight_optimizer.step()
        return loss.detach()

    def _logit_step(self, indices: Tensor, epoch: int, step: int) -> Tensor:
        turn = (epoch - self.method.warmup_epochs) * self.logit_steps + step - self.weight_steps
        at = turn % len(self.spaces)
        inputs, targets = self._batch(indices, epoch, step)
        for parameter in self._learned:
            parameter.requires_grad_(False)  # spares the gradients of the weights, not those through the maps
        decisions = self._decisions(epoch, step, at)
        self.logit_optimizer.zero_grad(set_to_none=True)
        outputs = self.net(inputs, {**decisions, **self.distributions[at].taken})  # what is taken costs no pass but its own
        loss = self._cost_loss(self.task.loss(outputs, targets), self._ratio(at, decisions))
        if self.guidance is not None:
            loss = loss - self.guidance(decisions)
        loss.backward()
        self.logit_optimizer.step()
        for parameter in self._learned:
            parameter.requires_grad_(True)
        return loss.detach()

    def _ratio(self, at: int, decisions: dict[str, Tensor]) -> Tensor:
        """Expected cost / limit, the largest over the budget's limits: effective shape propagation, exact also where a choice is shared.

        Limits on a maximum (peak activation) have no expectation of this form; they put no pressure on the search, and hold at derivation.
        """
        ratios = [
            expected(limit.cost, {name: weights.double() for name, weights in decisions.items()}) / max(1, limit.upper)
            for limit in self.spaces[at].limits
            if limit.cost.kind == "sum"
        ]
        return torch.stack(ratios).max() if ratios else torch.ones((), dtype=torch.float64, device=self.device)

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that `load` needs to go on with the same bits: named tensors (copies, on the CPU) and JSON."""
        adam = {
            f"adam.{at}.{key}": value
            for at, logits in enumerate(self.logits)
            for key, value in self.logit_optimizer.state.get(logits, {}).items()
        }
        return saved(state_of(self.net, self.weight_optimizer) | {"logits": torch.stack(self.logits)} | adam), {
            "method": asdict(self.method),
            "taken": [distribution.taken for distribution in self.distributions],
            "step": self.step,
            "sums": self._sums,
            "history": [asdict(record) for record in self.history],
        }

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave, in a search started alike."""
        if state["method"] != asdict(self.method):
            raise ValueError(f"this state is of a search with {state['method']}, not with {asdict(self.method)}")
        load_state_(self.net, self.weight_optimizer, tensors)
        for at, logits in enumerate(self.logits):
            with torch.no_grad():
                logits.copy_(tensors["logits"][at])
            adam = {key.removeprefix(f"adam.{at}."): value for key, value in tensors.items() if key.startswith(f"adam.{at}.")}
            if adam:
                self.logit_optimizer.state[logits] = {
                    key: value.to("cpu" if key == "step" else self.device, copy=True) for key, value in adam.items()
                }
        self.step, self._sums = state["step"], list(state["sums"])
        self.history = [SearchRecord(**{**record, "ratios": tuple(record["ratios"])}) for record in state["history"]]
