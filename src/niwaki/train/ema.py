"""An exponential moving average of weights: what a noisy trajectory has in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """Average of the floating-point state of a module (parameters, running statistics); counters are copied.

    average <- d average + (1 - d) state, with d = min(decay, (1 + t) / (10 + t)) at update t = 0, 1, ...: early on a long memory
    would only remember the random start (TensorFlow's ExponentialMovingAverage with `num_updates`).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        state = module.state_dict()
        floating = [name for name, tensor in state.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.average[name] for name in floating], [state[name] for name in floating], 1 - decay)
        for name in state.keys() - set(floating):
            self.average[name].copy_(state[name])

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.average)

    def load(self, average: dict[str, Tensor], updates: int) -> None:
        for name, tensor in self.average.items():
            tensor.copy_(average[name])
        self.updates = updates
