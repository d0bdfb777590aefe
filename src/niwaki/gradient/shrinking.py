"""Training a network under pressure to spend less: the loop that MorphNet's scales and FiGS's gates share, resumable after any step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from niwaki.gradient.expand import Bound
from niwaki.gradient.resource import penalty
from niwaki.task.task import Task, derive_seed
from niwaki.train.distill import Teacher
from niwaki.train.loop import TrainingDiverged, batches_per_epoch, epoch_batches, own_randomness, seed_dropout
from niwaki.train.recipe import Recipe, lr_at, optimizer_for

CONTROL_EVERY = 8  # steps between looks at where the pressure leads
MOST_FACTOR = 1.25  # by which the pressure changes at a look
SMOOTHING = 0.7  # of the speeds at which units go, over looks


class Sparsity(Protocol):
    """How a method sees its units: how much each is there, and from when on it is not."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """What it learns beside the network's weights, with an optimizer of its own."""
        ...

    def presence(self, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        """r by group, (U,) each, for the penalty of this step; sets the gates that the step's forward pass goes through. progress: 0 to 1."""
        ...

    def alive(self) -> dict[str, Tensor]:
        """Which units count as alive now, by group, bool (U,)."""
        ...

    def margins(self) -> dict[str, Tensor]:
        """How far each unit is from not being there, (U,) each: 0 or less is gone. Also what units are ranked by."""
        ...


@dataclass(frozen=True)
class ShrinkRecord:
    """One epoch. loss: of the task, mean over steps; share: what is alive costs, as a share of the tightest bound; strength: lambda of each bound."""

    epoch: int
    loss: float
    share: float
    strength: tuple[float, ...]


class Shrinking:
    """A network in training under lambda x penalty / F(owner's) for each bound.

    strength: lambda, one for all bounds, held; None: each bound's own, moved so that where the units are heading for meets the bound at the
    last step. That is ours: the papers sweep lambda by hand, in factors of ten around 1 / F. Where units head for is their margin, moved on
    at its smoothed speed; a controller of what is alive already would see its effect an epoch too late, and then all at once.
    """

    def __init__(
        self, module: nn.Module, task: Task, sparsity: Sparsity, units: Mapping[str, int], bounds: Sequence[Bound], recipe: Recipe,
        indices: Tensor, *, strength: float | None = None, first_strength: float = 1.0, own_lr: float = 1e-2,
        teacher: Teacher | None = None, seed: int = 0, device: str | torch.device = "cpu",
    ) -> None:  # fmt: skip
        self.device = torch.device(device)
        self.module, self.task, self.sparsity, self.units = module.to(self.device), task, sparsity, dict(units)
        self.bounds, self.recipe, self.indices, self.seed = tuple(bounds), recipe, indices, seed
        self.teacher = teacher
        self.optimizer = optimizer_for(module, recipe)
        own = sparsity.parameters()
        self.own_optimizer = torch.optim.Adam(list(own.values()), lr=own_lr) if own else None
        self.held = strength is not None
        self.strength = [strength if strength is not None else first_strength] * len(self.bounds)
        self.whole = [bound.resource.cost(self.units) for bound in self.bounds]
        self.steps_per_epoch = batches_per_epoch(len(indices), recipe.batch_size)
        self.step, self.history, self._loss_sum = 0, list[ShrinkRecord](), 0.0
        self._before: dict[str, Tensor] = {}  # margins at the last look
        self._speed: dict[str, Tensor] = {}  # of the margins, a step

    @property
    def total_steps(self) -> int:
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    def run(self, max_steps: int | None = None) -> None:
        """Takes `max_steps` steps, or as many as are left of the epoch under way."""
        if self.finished:
            return
        epoch, first = divmod(self.step, self.steps_per_epoch)
        last = self.steps_per_epoch if max_steps is None else min(self.steps_per_epoch, first + max_steps)
        batches = epoch_batches(self.indices, self.recipe.batch_size, seed=derive_seed(self.seed, "order", epoch))
        self.module.train()
        with own_randomness(self.device):
            for at in range(first, last):
                loss = self._step(batches[at], epoch, at)
                if not math.isfinite(loss):
                    raise TrainingDiverged(f"the loss became {loss}", epoch + 1, at + 1)
                self._loss_sum += loss
                self.step += 1
                if not self.held and self.step % CONTROL_EVERY == 0:
                    self._look()
        if last == self.steps_per_epoch:
            share = max(bound.share(self.counts()) for bound in self.bounds)
            self.history.append(ShrinkRecord(epoch + 1, self._loss_sum / self.steps_per_epoch, share, tuple(self.strength)))
            self._loss_sum = 0.0

    def counts(self) -> dict[str, int]:
        """Units alive by group; of a group that has no regulariser, all."""
        return self.units | {group: int(alive.sum()) for group, alive in self.sparsity.alive().items()}

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that `load` needs to go on with the same bits: named tensors (copies, on the CPU) and JSON."""
        tensors = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"optimizer.{name}.{key}"] = value
        for name, parameter in self.sparsity.parameters().items():
            tensors[f"own.{name}"] = parameter
            for key, value in self.own_optimizer.state.get(parameter, {}).items() if self.own_optimizer else ():
                tensors[f"own optimizer.{name}.{key}"] = value
        tensors |= {f"before.{group}": margins for group, margins in self._before.items()}
        tensors |= {f"speed.{group}": speed for group, speed in self._speed.items()}
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}, {
            "step": self.step,
            "strength": self.strength,
            "loss_sum": self._loss_sum,
            "history": [[one.epoch, one.loss, one.share, list(one.strength)] for one in self.history],
        }

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave, in a training started alike."""
        self.module.load_state_dict(_under("module.", tensors))
        for name, parameter in self.module.named_parameters():
            if saved := _under(f"optimizer.{name}.", tensors):
                self.optimizer.state[parameter] = {key: value.to(self.device, copy=True) for key, value in saved.items()}
        with torch.no_grad():
            for name, parameter in self.sparsity.parameters().items():
                parameter.copy_(tensors[f"own.{name}"])
                if (saved := _under(f"own optimizer.{name}.", tensors)) and self.own_optimizer:
                    self.own_optimizer.state[parameter] = {key: value.clone() for key, value in saved.items()}
        self._before, self._speed = _under("before.", tensors), _under("speed.", tensors)
        self.step, self.strength, self._loss_sum = state["step"], list(state["strength"]), state["loss_sum"]
        self.history = [ShrinkRecord(epoch, loss, share, tuple(strength)) for epoch, loss, share, strength in state["history"]]

    def _step(self, indices: Tensor, epoch: int, at: int) -> float:
        # every random number of a step follows from its place, so that any step is a place to resume
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "augment", epoch, at))
        seed_dropout(derive_seed(self.seed, "dropout", epoch, at), self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(self.step, self.steps_per_epoch, self.recipe)
        inputs, targets = self.task.augmented_batch(indices, self.device, generator)
        gates = torch.Generator().manual_seed(derive_seed(self.seed, "gates", epoch, at))
        presence = self.sparsity.presence(self.step / self.total_steps, gates)
        alive = self.counts()
        for optimizer in filter(None, (self.optimizer, self.own_optimizer)):
            optimizer.zero_grad(set_to_none=True)
        outputs = self.module(inputs)
        loss = self.task.loss(outputs, targets, label_smoothing=self.recipe.label_smoothing)
        if self.teacher is not None:
            loss = loss + self.teacher.loss(inputs, outputs)
        pressure = sum(
            strength / whole * penalty(bound.resource, alive, presence)
            for bound, strength, whole in zip(self.bounds, self.strength, self.whole, strict=True)
        )
        (loss + pressure).backward()
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        if self.own_optimizer:
            self.own_optimizer.step()
        return float(loss.detach())

    def _look(self) -> None:
        """Moves each strength by where the units head for, against its bound."""
        now = {group: margins.detach().clone().cpu() for group, margins in self.sparsity.margins().items()}
        if self._before:
            for group, margins in now.items():
                speed = (margins - self._before[group]) / CONTROL_EVERY
                self._speed[group] = SMOOTHING * self._speed[group] + (1 - SMOOTHING) * speed if group in self._speed else speed
            left = self.total_steps - self.step
            ahead = self.units | {group: max(1, int((now[group] + left * self._speed[group] > 0).sum())) for group in now}
            for at, bound in enumerate(self.bounds):
                self.strength[at] *= min(MOST_FACTOR, max(1 / MOST_FACTOR, bound.share(ahead)))
        self._before = now


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
