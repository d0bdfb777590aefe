"""What every task offers: data by index, a loss, metrics, the sizes of input and output. Trainers and searches know no more."""

from __future__ import annotations

import hashlib
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, fx, nn

Part = Literal["train", "validation", "train+validation", "test"]


class Task(Protocol):
    """Data and purpose. Examples are numbered 0..N-1 over all parts; an index set is an int64 tensor (I,) on the CPU."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one example, without the batch: (C, H, W) for images."""
        ...

    @property
    def outputs(self) -> int:
        """How many numbers the head of the network gives: for a classifier, the classes."""
        ...

    @property
    def metric(self) -> str:
        """The entry of `metrics` that the search maximizes."""
        ...

    @property
    def source(self) -> str:
        """Where the data came from, for people."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of all that a training could see."""
        ...

    @property
    def nbytes(self) -> int:
        """Of the data as they are stored, in memory."""
        ...

    def part(self, name: Part) -> Tensor:
        """The index set of a part of the data."""
        ...

    def search_split(self, architecture_share: float = 0.2) -> tuple[Tensor, Tensor]:
        """The train part in two index sets: one to learn weights on, one to learn the architecture on."""
        ...

    def folds(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """For cross-validation over the training and validation parts: `count` times the examples to train on, and those to judge on.

        Raises DataError where they cannot be cut so often.
        """
        ...

    def labels(self, indices: Tensor) -> Tensor:
        """The targets of `batch` (I, ...), on the CPU, without the work of making its inputs."""
        ...

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs (B, ...) and targets (B, ...) on the device, ready for the network."""
        ...

    def augmented_batch(self, indices: Tensor, device: torch.device, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same, changed at random as training wants it. generator: on the CPU, whatever the device."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """The number to be made small, a scalar."""
        ...

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Figures of merit over all examples at once; more is better, but for `loss`."""
        ...

    def preprocess(self) -> nn.Module:
        """From an example as it is stored to an input of the network: goes into the exported model, before the network."""
        ...

    def delivered(self, module: fx.GraphModule) -> fx.GraphModule:
        """The trained network as it is handed over: with outputs in the units of the data, where it learned others."""
        ...

    def describe(self) -> dict[str, Any]:
        """What identifies data and task, as JSON, with `source`, `sha256` and `metric` among it."""
        ...


def derive_seed(*parts: Any) -> int:
    """A seed that depends on all the parts and on nothing else: derive_seed(seed, "train", epoch). 63 bits.

    >>> derive_seed(0, "train", 1) == derive_seed(0, "train", 1) != derive_seed(0, "train", 2)
    True
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1
