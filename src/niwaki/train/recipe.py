"""How a network is trained, as a value; learning rate, parameter groups and optimizer that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

OptimizerName = Literal["sgd", "adamw"]
Precision = Literal["auto", "float32", "bfloat16"]


class RecipeError(ValueError):
    """Fields of a recipe that cannot be trained with."""


@dataclass(frozen=True)
class Recipe:
    """Epochs, optimizer, schedule and regularisation. The defaults train small networks from scratch on small images.

    The learning rate rises linearly over the first `warmup` of all steps, then falls along half a cosine to `last_lr` times its
    peak. Weight decay spares biases and normalisation. ema: decay per step of an average of the weights, which then is what
    counts; None: no average. precision: "auto" is bfloat16 where the device is a GPU that has it, else float32; weights are
    float32 always.
    """

    epochs: int = 60
    batch_size: int = 64
    optimizer: OptimizerName = "sgd"
    lr: float = 0.1
    momentum: float = 0.9  # of SGD
    nesterov: bool = True  # of SGD
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    weight_decay: float = 2e-3  # four times the usual: small networks on small sets are trained for many epochs
    warmup: float = 0.05  # share of all steps
    last_lr: float = 0.0
    label_smoothing: float = 0.1
    ema: float | None = None
    clip_norm: float | None = None
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={getattr(self, name)!r} ({possible})"
            for name, possible, holds in (
                ("epochs", "a whole number, at least 1", _is_count(self.epochs, least=1)),
                ("batch_size", "a whole number, at least 2: BatchNorm cannot train on one example", _is_count(self.batch_size, least=2)),
                ("optimizer", " or ".join(get_args(OptimizerName)), self.optimizer in get_args(OptimizerName)),
                ("lr", "above 0", 0 < self.lr < math.inf),
                ("momentum", "from 0 to below 1", 0 <= self.momentum < 1),
                ("nesterov", "false where momentum is 0", not self.nesterov or self.momentum > 0 or self.optimizer != "sgd"),
                ("betas", "two numbers from 0 to below 1", len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)),
                ("weight_decay", "at least 0", 0 <= self.weight_decay < math.inf),
                ("warmup", "a share of the steps, from 0 to below 1", 0 <= self.warmup < 1),
                ("last_lr", "a share of lr, from 0 to 1", 0 <= self.last_lr <= 1),
                ("label_smoothing", "from 0 to below 1", 0 <= self.label_smoothing < 1),
                ("ema", "None, or above 0 and below 1", self.ema is None or 0 < self.ema < 1),
                ("clip_norm", "None, or above 0", self.clip_norm is None or 0 < self.clip_norm < math.inf),
                ("precision", ", ".join(get_args(Precision)), self.precision in get_args(Precision)),
            )
            if not holds
        ]
        if wrong:
            raise RecipeError(f"a recipe cannot have {'; '.join(wrong)}")


def lr_at(step: int, steps_per_epoch: int, recipe: Recipe) -> float:
    """Learning rate of step 0, 1, ...: linear warm-up to `lr`, then lr * (last + (1 - last) * (1 + cos(pi t)) / 2), t from 0 to 1."""
    total, warmup = recipe.epochs * steps_per_epoch, round(recipe.warmup * recipe.epochs * steps_per_epoch)
    if step < warmup:
        return recipe.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    return recipe.lr * (recipe.last_lr + (1 - recipe.last_lr) * (1 + math.cos(math.pi * progress)) / 2)


def param_groups(module: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The parameters that learn, in two optimizer groups: with weight decay, and without (biases, normalisation: one axis or none)."""
    decayed: list[Tensor] = []
    spared: list[Tensor] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else spared).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def optimizer_for(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of the recipe over the parameters of the module."""
    groups = param_groups(module, recipe)
    if not groups:
        raise RecipeError(f"{type(module).__name__} has no parameter that learns")
    # fused: one pass over all parameters; on a small network the optimizer would else take longer than the layers do
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)


def _is_count(value: object, *, least: int) -> bool:
    return isinstance(value, int) and value >= least
