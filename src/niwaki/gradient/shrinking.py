"""Training a network under pressure to spend less: the loop that MorphNet's scales and FiGS's gates share, resumable after any step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from niwaki.gradient.expand import Bound, Widths, best_first, lowest_level
from niwaki.gradient.resource import penalty
from niwaki.task.task import Task, derive_seed
from niwaki.train.distill import Teacher
from niwaki.train.loop import TrainingDiverged, batches_per_epoch, epoch_batches, own_randomness, seed_dropout, under_way
from niwaki.train.recipe import Recipe, lr_at, optimizer_for

LOOKS = 50  # at where the pressure leads, in a training; at most one a step
MOST_FACTOR = 1.3  # by which the pressure changes at a look
SMOOTHING = 0.7  # of the speeds at which margins fall, over looks
ARRIVAL = 0.85  # of the steps
RANGE = 1000.0  # how far the pressure goes from where it began, either way


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

    @property
    def proximal(self) -> bool:
        """Whether the penalty acts by `shorten_` after each step, and not through the loss."""
        ...

    def shorten_(self, amounts: Mapping[str, float]) -> None:
        """Takes so much off the presence of each unit of a group."""
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

    strength: lambda, one for all bounds, held; None: each bound's own, moved so that the budget is met towards the end. That is ours: the
    papers sweep lambda by hand, in factors of ten around 1 / F. What is steered is the margin of the last unit that the budget has room for
    when the units are ranked by their margins: it shall fall to 0, at an even speed, by `ARRIVAL` of the steps. A controller of the cost of
    what is alive would see its effect an epoch too late, and then all at once.
    """

    def __init__(
        self, module: nn.Module, task: Task, sparsity: Sparsity, units: Mapping[str, int], bounds: Sequence[Bound], recipe: Recipe,
        indices: Tensor, *, strength: float | None = None, first_strength: float = 1.0, own_lr: float = 1e-2,
        needed: Mapping[str, int] | None = None,
        teacher: Teacher | None = None, seed: int = 0, device: str | torch.device = "cpu",
    ) -> None:  # fmt: skip
        self.device = torch.device(device)
        self.module, self.task, self.sparsity, self.units = module.to(self.device), task, sparsity, dict(units)
        self.bounds, self.recipe, self.indices, self.seed = tuple(bounds), recipe, indices, seed
        self.teacher, self.needed = teacher, dict(needed or {})
        self.optimizer = optimizer_for(module, recipe)
        own = sparsity.parameters()
        self.own_optimizer = torch.optim.Adam(list(own.values()), lr=own_lr) if own else None
        self.held = strength is not None
        self._first = strength if strength is not None else first_strength
        self.strength = [self._first] * len(self.bounds)
        self.whole = [bound.resource.cost(self.units) for bound in self.bounds]
        self.steps_per_epoch = batches_per_epoch(len(indices), recipe.batch_size)
        self.look_every = max(1, self.total_steps // LOOKS)
        self.step, self.history, self._loss_sum = 0, list[ShrinkRecord](), 0.0
        self._levels: list[float] = []  # of each bound, at the last look: the margin of the last unit that it has room for
        self._speeds: list[float] = []  # at which they fall, a step

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
        epoch, first, last = under_way(self.step, self.steps_per_epoch, max_steps)
        batches = epoch_batches(self.indices, self.recipe.batch_size, seed=derive_seed(self.seed, "order", epoch))
        self.module.train()
        with own_randomness(self.device):
            for at in range(first, last):
                loss = self._step(batches[at], epoch, at)
                if not math.isfinite(loss):
                    raise TrainingDiverged(f"the loss became {loss}", epoch + 1, at + 1)
                self._loss_sum += loss
                self.step += 1
                if not self.held and self.step % self.look_every == 0:
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
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}, {
            "step": self.step,
            "strength": self.strength,
            "levels": self._levels,
            "speeds": self._speeds,
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
                    # Adam's step counter stays on the CPU
                    self.own_optimizer.state[parameter] = {
                        key: value.to("cpu" if key == "step" else self.device, copy=True) for key, value in saved.items()
                    }
        self._levels, self._speeds = list(state["levels"]), list(state["speeds"])
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
        if not self.sparsity.proximal:
            parts = zip(self.bounds, self.strength, self.whole, strict=True)
            loss_and_pressure = loss + sum(strength / whole * penalty(bound.resource, alive, presence) for bound, strength, whole in parts)
            loss_and_pressure.backward()
        else:
            loss.backward()
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        if self.own_optimizer:
            self.own_optimizer.step()
        if self.sparsity.proximal:
            # what momentum would make of a gradient that stays the same
            scale = self.optimizer.param_groups[0]["lr"] / (1 - self.recipe.momentum)
            amounts = dict.fromkeys(self.units, 0.0)
            for bound, strength, whole in zip(self.bounds, self.strength, self.whole, strict=True):
                for name, slope in bound.resource.slopes(alive).items():
                    amounts[name] += scale * strength * slope / whole
            self.sparsity.shorten_(amounts)
        return float(loss.detach())

    def _look(self) -> None:
        """Moves each strength so that its level reaches 0 in time."""
        margins = {group: of_group.detach().cpu() for group, of_group in self.sparsity.margins().items()}
        _, ranked = best_first(margins)
        left_alive = self.units | {group: max(1, int((of_group > 0).sum())) for group, of_group in margins.items()}
        widths = Widths(self.units, needed=self.needed)
        found = [lowest_level(ranked, widths, [bound]) for bound in self.bounds]
        most = max(of_group[0] for of_group in ranked.values())
        levels = [most if level is None else level for level in found]
        if self._levels:
            speeds = [(before - level) / self.look_every for before, level in zip(self._levels, levels, strict=True)]
            old = self._speeds or speeds
            self._speeds = [SMOOTHING * one + (1 - SMOOTHING) * new for one, new in zip(old, speeds, strict=True)]
            left = ARRIVAL * self.total_steps - self.step
            for at, (bound, level, speed) in enumerate(zip(self.bounds, levels, self._speeds, strict=True)):
                if level <= 0 or bound.holds(left_alive):
                    factor = 1 / MOST_FACTOR
                elif left <= 0:
                    factor = 1.0
                else:
                    factor = MOST_FACTOR if speed <= 0 else min(MOST_FACTOR, max(1 / MOST_FACTOR, math.sqrt(level / left / speed)))
                self.strength[at] = min(self._first * RANGE, max(self._first / RANGE, self.strength[at] * factor))
        self._levels = levels


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
