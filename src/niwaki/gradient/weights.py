"""The weights of a supernet in training: their optimizer, and both as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi

import torch
from torch import Tensor, nn


def sgd(net: nn.Module, *, lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD over the parameters of `net`; biases and normalisation, of one axis or none, do not decay."""
    return torch.optim.SGD(
        [
            {"params": [p for p in net.parameters() if p.dim() > 1], "weight_decay": weight_decay},
            {"params": [p for p in net.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=lr, momentum=momentum, foreach=True,
    )  # fmt: skip


def rising_cosine(lr: float, warm_up: float, step: int, total: int) -> float:
    """Learning rate of step 0, 1, ... of `total`: up to `lr` over the share `warm_up` of them, then to 0 along half a cosine."""
    rising = round(warm_up * total)
    if step < rising:
        return lr * (step + 1) / (rising + 1)
    return lr * (1 + cos(pi * (step - rising) / max(1, total - rising))) / 2


def state_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters and buffers of `net` as "net.NAME", momentum as "momentum.NAME"; not copied."""
    tensors = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    for name, parameter in net.named_parameters():
        if (buffer := optimizer.state.get(parameter, {}).get("momentum_buffer")) is not None:
            tensors[f"momentum.{name}"] = buffer
    return tensors


def load_state_(net: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Gives `net` and `optimizer` what `state_of` took from such a pair; other names are left to the caller."""
    net.load_state_dict({name.removeprefix("net."): tensor for name, tensor in tensors.items() if name.startswith("net.")})
    for name, parameter in net.named_parameters():
        if (buffer := tensors.get(f"momentum.{name}")) is not None:
            optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter.device, copy=True)


def saved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, as a checkpoint holds them."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
