"""Ordinary distillation: a network learns from the labels and from what a teacher makes of the same examples.

Hinton, Vinyals & Dean 2015, "Distilling the knowledge in a neural network": loss = task loss + weight T^2 KL(teacher || student), both softened
by the temperature T. The factor T^2 keeps the gradient of the second term as large as it was at T = 1 (their section 2).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from niwaki.task.task import Task


class DistillationError(ValueError):
    """A teacher that cannot teach this task, or a student that cannot learn from it."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """Whom a training learns from, beside the labels.

    logits: of normalised inputs (B, ...), (B, K); called without gradients. identity: names the teacher in checkpoints, so that a training
    never goes on with another. temperature, weight: T and the weight of the loss above; 4 and 1 are the usual choice.
    """

    logits: Callable[[Tensor], Tensor]
    identity: str
    temperature: float = 4.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf") or not 0 <= self.weight < float("inf"):
            raise DistillationError(
                f"temperature={self.temperature}, weight={self.weight}: a temperature is above 0, and a weight at least 0"
            )

    def loss(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """What the teacher adds to the loss of a batch: weight T^2 KL, a scalar. inputs: (B, ...), outputs: the student's logits (B, K)."""
        with torch.no_grad():
            taught = self.logits(inputs)
        if taught.shape != outputs.shape:
            raise DistillationError(f"the teacher gives {tuple(taught.shape)} for a batch, where the student gives {tuple(outputs.shape)}")
        return self.weight * softened_divergence(outputs, taught, self.temperature)

    def describe(self) -> dict[str, Any]:
        """What the result depends on, as JSON."""
        return {"identity": self.identity, "temperature": self.temperature, "weight": self.weight}


def softened_divergence(outputs: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(taught / T) || softmax(outputs / T)), the mean over the batch: a scalar, 0 where they agree. Both (B, K).

    >>> float(softened_divergence(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), 4.0))  # a constant more in every logit is nothing
    0.0
    """
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise DistillationError(
            f"probabilities are distilled between at least two classes, (B, K); these outputs are {tuple(outputs.shape)}"
        )
    student, teacher = (F.log_softmax(logits.float() / temperature, dim=1) for logits in (outputs, taught))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def teacher_of(module: nn.Module, *, temperature: float = 4.0, weight: float = 1.0) -> Teacher:
    """A teacher that is a torch module: a copy of it in evaluation mode, which later changes of the module do not reach."""
    frozen = copy.deepcopy(module).eval().requires_grad_(False)
    home: list[torch.device] = []

    def logits(inputs: Tensor) -> Tensor:
        if home != [inputs.device]:
            frozen.to(inputs.device)
            home[:] = [inputs.device]
        return frozen(inputs)

    return Teacher(logits, weights_hash(module), temperature, weight)


def weights_hash(module: nn.Module) -> str:
    """16 hexadecimal digits of all parameters and buffers of a module, with their names."""
    return tensors_hash(module.state_dict())


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """The same, of tensors by their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_answers(teacher: Teacher, task: Task, device: torch.device | str = "cpu") -> None:
    """Refuses a teacher that does not take the examples of the task, or does not give as many numbers for each as the task asks for."""
    indices = task.part("train")[:2]
    inputs, _ = task.batch(indices, torch.device(device))
    try:
        with torch.no_grad():
            given = teacher.logits(inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        shape = " x ".join(map(str, task.input_shape))
        raise DistillationError(f"the teacher does not take the examples of {task.source}, {shape} each: {error}") from error
    if tuple(given.shape) != (len(indices), task.outputs):
        raise DistillationError(
            f"the teacher gives {tuple(given.shape)[1:]} numbers for an example of {task.source}; {task.outputs} are needed"
        )
    if not bool(given.isfinite().all()):
        raise DistillationError(f"the teacher gives numbers that are not finite for examples of {task.source}")


def check_teaches(teacher: Teacher, task: Task, device: torch.device | str = "cpu") -> None:
    """Refuses what `check_answers` does, and a task without classes, whose answers have no softened probabilities."""
    check_answers(teacher, task, device)
    if task.outputs < 2:
        raise DistillationError(f"{task.source} asks for one number; a teacher's probabilities are of at least two classes")
