"""Independent categorical logits as one torch tensor, for searches that learn them with the weights of a network by gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from niwaki.distribution.independent import Independent
from niwaki.space.choice import Value
from niwaki.space.space import Space


class SoftIndependent:
    """p(architecture) = product over its active decisions of softmax(logits)[option].

    logits: (D, O) with O the most options of any decision; a row's entries beyond its own options are never looked at. One tensor
    for all decisions, so that a draw is a handful of operations however many decisions there are. taken: options that are certain.
    """

    def __init__(self, space: Space, logits: Tensor | None = None, taken: Mapping[str, Value] | None = None) -> None:
        self.space = space
        self.names = [decision.name for decision in space.decisions]
        self.counts = [len(decision.options) for decision in space.decisions]
        most = max(self.counts, default=1)
        self.logits = torch.zeros(len(self.counts), most) if logits is None else logits
        self.taken = dict(taken or {})
        self._beyond = torch.arange(most) >= torch.tensor(self.counts).view(-1, 1)  # (D, O)
        for name, option in self.taken.items():
            row = space.position(name)
            self._beyond[row] = torch.arange(most) != space.decisions[row].options.index(option)

    def probabilities(self) -> dict[str, Tensor]:
        """(O,) for each decision, by name."""
        return self._rows(torch.softmax(self._masked(), -1))

    def draw(self, relax: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """(O,) weights for each decision, by name, as `relax` (see nn/relax.py) makes them of the logits (D, O)."""
        return self._rows(relax(self._masked()))

    def entropy(self) -> Tensor:
        """Mean entropy of a decision, each divided by that of the uniform distribution: 1 undecided, 0 decided."""
        log_p = torch.log_softmax(self._masked(), -1)
        entropies = -(log_p.exp() * log_p.masked_fill(self._beyond.to(log_p.device), 0.0)).sum(-1)
        free = [row for row, (name, count) in enumerate(zip(self.names, self.counts, strict=True)) if count > 1 and name not in self.taken]
        if not free:
            return torch.zeros(())
        return (entropies[free] / torch.tensor([float(self.counts[row]) for row in free], device=entropies.device).log()).mean()

    def hard(self) -> Independent:
        """The same distribution as a value that samples, and is conditioned on budgets, exactly. What is taken has probability 1."""
        return Independent.of(self.space, self.arrays())

    def arrays(self) -> dict[str, np.ndarray]:
        """The probabilities as float64 arrays, as the cost algebra takes them."""
        return {name: p.detach().cpu().double().numpy() for name, p in self.probabilities().items()}

    def _masked(self) -> Tensor:
        return self.logits.masked_fill(self._beyond.to(self.logits.device), -torch.inf)

    def _rows(self, weights: Tensor) -> dict[str, Tensor]:
        return {name: row[:count] for name, row, count in zip(self.names, weights.unbind(0), self.counts, strict=True)}
