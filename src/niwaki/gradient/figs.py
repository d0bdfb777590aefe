"""FiGS: every unit behind a stochastic gate of its own, and a penalty on the gates by what their units cost (Chaudhuri et al., 2020).

Weights and gates are trained together on the same data. What is left is built with the open gates' units; a gate is after batch norm, so
that a shut one takes its unit out of every layer that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from niwaki.gradient.gate import (
    INITIAL,
    OPEN_FROM,
    TAU,
    annealed,
    any_of,
    first_unit_open,
    hard_gate,
    logistic_noise,
    mean_gate,
    soft_gate,
    straight_through_gate,
)
from niwaki.train.recipe import Recipe


class FigsError(ValueError):
    """Settings of FiGS that mean nothing."""


@dataclass(frozen=True)
class FiGS:
    """tau, last_tau: temperature at the beginning and, geometrically annealed, at the end. initial: the logits', 2.5 is open with p = 0.924.

    regulariser: what stands for a unit in the penalty, the sampled "mask" or the "probability"; open_from: at which of it a unit counts as
    alive. keep_first: the first unit of every group is always open (not where operators are selected). strength, exact, temper: as of
    MorphNet. tau, initial, regulariser, open_from, keep_first and momentum are the repository's; lr (0.01 in its example), weight decay, the
    gates' own Adam with `logit_lr`, and how long it lasts are ours. `SMALL` is what a short training on a CPU wants.
    """

    epochs: int = 4
    rounds: int = 1
    batch_size: int = 64
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    tau: float = TAU
    last_tau: float = TAU
    straight_through: bool = False
    initial: float = INITIAL
    regulariser: Literal["mask", "probability"] = "mask"
    open_from: float = OPEN_FROM
    keep_first: bool = True
    logit_lr: float = 1e-2
    strength: float | None = None
    exact: bool = False
    temper: float = 1.0

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={getattr(self, name)!r} ({possible})"
            for name, possible, holds in (
                ("tau", "above 0", self.tau > 0),
                ("last_tau", "above 0", self.last_tau > 0),
                ("regulariser", "mask or probability", self.regulariser in ("mask", "probability")),
                ("open_from", "above 0 and below 1", 0 < self.open_from < 1),
                ("logit_lr", "above 0", self.logit_lr > 0),
                ("rounds", "at least 1", self.rounds >= 1),
                ("strength", "None, or at least 0", self.strength is None or self.strength >= 0),
                ("temper", "from 0 to 1", 0 <= self.temper <= 1),
            )
            if not holds
        ]
        if wrong:
            raise FigsError(f"FiGS cannot have {'; '.join(wrong)}")

    @property
    def recipe(self) -> Recipe:
        """Of the weights: a fixed learning rate, as advised while a structure is learned."""
        return Recipe(
            epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay,
            warmup=0.0, last_lr=1.0, label_smoothing=0.0,
        )  # fmt: skip


# With tau = 0.001 a gate has a gradient once in hundreds of steps, and a training here has a few hundred; in so few, Adam has to move the logits
# from 2.5 to below 0 by larger steps than 0.01.
SMALL = FiGS(tau=0.5, last_tau=0.05, regulariser="probability", keep_first=False, logit_lr=2e-2, temper=0.5)


Put = Callable[[Tensor], None]  # sets the values, (U,), of gates that stand somewhere in a network


class Gate(nn.Module):
    """Multiplies each position of one axis with the gate of its unit, where a network is written with it; open until it is `put`."""

    def __init__(self, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis
        self.values: Tensor | None = None

    def put(self, values: Tensor) -> None:
        self.values = values

    def forward(self, x: Tensor) -> Tensor:
        if self.values is None:
            return x
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return x * self.values.reshape(shape)


class Gates:
    """The gates of a network as FiGS trains them: the `Sparsity` of its shrinking.

    sources: for each group, where the gates of each of its sources are put; a source has a vector of logits, and a unit is there where any
    source's gate is open. With one source for a group, a unit has one gate, wherever it is made.
    """

    def __init__(
        self, sources: Mapping[str, Sequence[Put]], units: Mapping[str, int], method: FiGS = SMALL, *, device: torch.device | str = "cpu"
    ) -> None:
        self.method = method
        self.sources = {group: tuple(of_group) for group, of_group in sources.items() if of_group}
        if not self.sources:
            raise FigsError("the network has no group of channels that a gate can stand behind")
        self.logits = {
            (group, at): nn.Parameter(torch.full((units[group],), method.initial, device=device))
            for group, of_group in self.sources.items()
            for at in range(len(of_group))
        }
        self._masks = {group: torch.ones(units[group], device=device) for group in self.sources}

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{group}/{at}": logits for (group, at), logits in self.logits.items()}

    def presence(self, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        tau = annealed(self.method.tau, self.method.last_tau, progress)
        draw = straight_through_gate if self.method.straight_through else soft_gate
        found = {}
        for group, of_group in self.sources.items():
            parts = []
            for at, put in enumerate(of_group):
                logits = self.logits[group, at]
                z = draw(logits, logistic_noise(logits, generator), tau)
                z = first_unit_open(z) if self.method.keep_first else z
                put(z)
                parts.append(z if self.method.regulariser == "mask" else torch.sigmoid(logits))
            found[group] = any_of(parts)
            self._masks[group] = found[group].detach()
        return found

    def alive(self) -> dict[str, Tensor]:
        """By the masks of the last step, or by the probabilities."""
        return {group: mask >= self.method.open_from for group, mask in self._masks.items()}

    @torch.no_grad()
    def margins(self) -> dict[str, Tensor]:
        """The largest logit of a unit's sources: above 0, it is kept."""
        return {
            group: torch.stack([self.logits[group, at] for at in range(len(of_group))]).amax(0) for group, of_group in self.sources.items()
        }

    @property
    def proximal(self) -> bool:
        return False

    def shorten_(self, amounts: Mapping[str, float]) -> None:
        raise NotImplementedError("gates learn by their gradient")

    @torch.no_grad()
    def close_(self, *, mean: bool = False) -> None:
        """Sets all gates as in inference: 1[s > 0], or times sigmoid(s) (mean: the repository's default)."""
        for group, of_group in self.sources.items():
            for at, put in enumerate(of_group):
                values = (mean_gate if mean else hard_gate)(self.logits[group, at].detach())
                put(first_unit_open(values) if self.method.keep_first else values)
