"""Training any module on a task, so that it can stop after any step and go on elsewhere with the same bits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.task.task import Task, derive_seed
from niwaki.train.distill import Teacher
from niwaki.train.ema import Ema
from niwaki.train.recipe import Recipe, lr_at, optimizer_for

CHECK_EVERY = 25  # steps between looks at the loss; each look waits for a GPU to catch up


class TrainingDiverged(RuntimeError):
    """The loss or the weights are no longer finite. The last state the caller has saved is the last good one."""

    def __init__(self, what: str, epoch: int, step: int) -> None:
        super().__init__(f"{what} in epoch {epoch}, step {step}; a smaller learning rate, warm-up or clip_norm may help")
        self.epoch, self.step = epoch, step


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch was like. epoch: from 1. loss: mean over its steps, with label smoothing.

    No wall time: it stands in checkpoints, and those of the same training are the same.
    """

    epoch: int
    loss: float
    lr: float


class Training:
    """A training under way: module, optimizer, average of the weights, place in the data. Made by `start`."""

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        recipe: Recipe,
        indices: Tensor,
        *,
        seed: int,
        device: torch.device,
        teacher: Teacher | None = None,
    ) -> None:
        self.module, self.teacher = module.to(device), teacher
        self.task, self.recipe, self.indices, self.seed, self.device = task, recipe, indices, seed, device
        self.optimizer = optimizer_for(module, recipe)
        self.ema = Ema(module, recipe.ema) if recipe.ema is not None else None
        self.steps_per_epoch = batches_per_epoch(len(indices), recipe.batch_size)
        self.step = 0  # steps done, over all epochs
        self.history: list[EpochRecord] = []
        self._loss_sum = 0.0  # of the epoch under way
        self._autocast = _bfloat16(recipe, device)

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.step // self.steps_per_epoch

    @property
    def finished(self) -> bool:
        return self.epoch >= self.recipe.epochs

    def run(self, max_steps: int | None = None) -> None:
        """Takes `max_steps` steps, or as many as are left of the epoch under way: a training never runs over the end of an epoch."""
        if self.finished:
            return
        epoch, first, last = under_way(self.step, self.steps_per_epoch, max_steps)
        batches = epoch_batches(self.indices, self.recipe.batch_size, seed=derive_seed(self.seed, "order", epoch))
        losses: list[Tensor] = []
        self.module.train()
        with own_randomness(self.device):
            for i in range(first, last):
                losses.append(self._step(batches[i], epoch))
                if len(losses) % CHECK_EVERY == 0 or i == last - 1:
                    self._check(losses, epoch, i + 1 - len(losses))
                    losses.clear()
        if last == self.steps_per_epoch:
            lr = self.optimizer.param_groups[0]["lr"]
            self.history.append(EpochRecord(epoch + 1, self._loss_sum / self.steps_per_epoch, lr))
            self._loss_sum = 0.0

    def evaluation_module(self) -> nn.Module:
        """What the training has led to so far: a copy in evaluation mode, with the averaged weights where the recipe averages."""
        module = copy.deepcopy(self.module)
        if self.ema is not None:
            module.load_state_dict(self.ema.average)
        return module.eval()

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that `load` needs to go on with the same bits: named tensors (copies, on the CPU) and JSON."""
        tensors = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:  # SGD without momentum keeps an empty place
                    tensors[f"optimizer.{name}.{key}"] = value
        if self.ema is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.average.items()}
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}, {
            "identity": self._identity(),
            "step": self.step,
            "ema_updates": self.ema.updates if self.ema is not None else 0,
            "loss_sum": self._loss_sum,
            "history": [asdict(record) for record in self.history],
        }

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave, in a training started alike."""
        if (mine := self._identity()) != (theirs := state["identity"]):
            keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
            differing = ", ".join(f"{key} ({theirs.get(key)} saved, {mine.get(key)} here)" for key in keys)
            raise ValueError(f"this state is of another training: it differs in {differing}")
        self.module.load_state_dict(_under("module.", tensors))
        for name, parameter in self.module.named_parameters():
            if saved := _under(f"optimizer.{name}.", tensors):
                # AdamW's step counter stays on the CPU, or goes where the fused kernel wants it: beside its parameter
                self.optimizer.state[parameter] = {key: value.to(self.device, copy=True) for key, value in saved.items()}
        if self.ema is not None:
            self.ema.load(_under("ema.", tensors), state["ema_updates"])
        self.step, self._loss_sum = state["step"], state["loss_sum"]
        self.history = [EpochRecord(**record) for record in state["history"]]

    def _step(self, indices: Tensor, epoch: int) -> Tensor:
        step = self.step % self.steps_per_epoch
        # every random number of a step follows from its place, none from the steps before: that is what makes any step a place to resume
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "augment", epoch, step))
        seed_dropout(derive_seed(self.seed, "dropout", epoch, step), self.device)
        lr = lr_at(self.step, self.steps_per_epoch, self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        inputs, targets = self.task.augmented_batch(indices, self.device, generator)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            outputs = self.module(inputs)
            taught = self.teacher.loss(inputs, outputs) if self.teacher is not None else None
        loss = self.task.loss(outputs, targets, label_smoothing=self.recipe.label_smoothing)
        if taught is not None:
            loss = loss + taught
        loss.backward()
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.module)
        self.step += 1
        return loss.detach()

    def _check(self, losses: list[Tensor], epoch: int, first: int) -> None:
        values = torch.stack(losses).tolist()
        for i, value in enumerate(values):
            if not math.isfinite(value):
                raise TrainingDiverged(f"the loss became {value}", epoch + 1, first + i + 1)
            self._loss_sum += value
        if not all(bool(parameter.isfinite().all()) for parameter in self.module.parameters()):
            raise TrainingDiverged("weights became NaN or infinite", epoch + 1, first + len(values))

    def _identity(self) -> dict[str, Any]:
        recipe = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self.recipe).items()}
        taught = {} if self.teacher is None else {"teacher": self.teacher.describe()}
        indices = self.indices.tolist()
        return {"recipe": recipe, "seed": self.seed, "examples": len(indices), "examples_seed": derive_seed(indices), **taught}


def start(
    module: nn.Module,
    task: Task,
    recipe: Recipe,
    indices: Tensor,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    teacher: Teacher | None = None,
) -> Training:
    """A training of the module, in place, on the examples `indices` of the task. Order and augmentation follow from `seed` alone.

    The weights are taken as they are: build the module under a seed of your own. Go on with `run` until it is `finished`. teacher: learned
    from beside the labels, see `train/distill.py`.
    """
    if len(indices) < 2:
        raise ValueError(f"{len(indices)} training examples were given; at least 2 are needed")
    return Training(module, task, recipe, indices, seed=seed, device=torch.device(device), teacher=teacher)


def train(
    module: nn.Module,
    task: Task,
    recipe: Recipe,
    indices: Tensor,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    after_epoch: Callable[[Training], None] = lambda training: None,
    teacher: Teacher | None = None,
) -> nn.Module:
    """The trained network, in evaluation mode. after_epoch: called with the training, to report or to save. teacher: as of `start`."""
    training = start(module, task, recipe, indices, seed=seed, device=device, teacher=teacher)
    while not training.finished:
        training.run()
        after_epoch(training)
    return training.evaluation_module()


def under_way(step: int, steps_per_epoch: int, most: int | None) -> tuple[int, int, int]:
    """The epoch that step number `step` lies in, and its steps to take now: from, and up to but without; `most` of them, or None for all that are left.

    >>> under_way(7, 5, None), under_way(7, 5, 2)
    ((1, 2, 5), (1, 2, 4))
    """
    epoch, first = divmod(step, steps_per_epoch)
    return epoch, first, steps_per_epoch if most is None else min(steps_per_epoch, first + most)


def batches_per_epoch(examples: int, batch_size: int) -> int:
    """ceil(examples / batch_size), or one less where a batch would hold a single example: BatchNorm cannot train on that.

    >>> batches_per_epoch(130, 64), batches_per_epoch(25, 2)
    (3, 12)
    """
    return max(1, min(math.ceil(examples / batch_size), examples // 2))


def epoch_batches(indices: Tensor, batch_size: int, *, seed: int) -> list[Tensor]:
    """The indices in a new order, in `batches_per_epoch` batches whose sizes differ by one at most: none left out, none of one example."""
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    return list(indices[order].tensor_split(batches_per_epoch(len(indices), batch_size)))


@torch.no_grad()
def predict(module: nn.Module, task: Task, indices: Tensor, *, batch_size: int = 256, device: torch.device | str = "cpu") -> Tensor:
    """Outputs of the module, in evaluation mode and float32, for the examples: (I, ...), on the CPU, in their order."""
    device, was_training = torch.device(device), module.training
    module.to(device).eval()
    outputs = [module(task.batch(part, device)[0]).float().cpu() for part in indices.split(batch_size)]
    module.train(was_training)
    return torch.cat(outputs)


def evaluate(
    module: nn.Module, task: Task, indices: Tensor, *, batch_size: int = 256, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Metrics of the module on the examples: `loss`, and what the task measures."""
    outputs = predict(module, task, indices, batch_size=batch_size, device=device)
    return task.metrics(outputs, task.labels(indices))


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Within, seeds and draws of the global generators change nothing for the world outside."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], device_type="cuda"):
        yield


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seeds the global generators that dropout draws from; within `own_randomness`."""
    # not torch.manual_seed: where CUDA is not in use it records a traceback at every call, which takes as long as a small layer
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _bfloat16(recipe: Recipe, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    return recipe.precision == "bfloat16" or (recipe.precision == "auto" and torch.cuda.is_bf16_supported(including_emulation=False))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
