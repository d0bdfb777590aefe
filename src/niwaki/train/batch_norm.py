"""Running statistics of batch normalisation, measured anew: a network cut out of a supernet has none that fit it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrate_batch_norm_(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets mean and variance of every batch norm to the average over the batches (inputs, (B, ...) each); weights stay as they are.

    Every batch counts the same, so let them be of one size. All other layers run as in evaluation: no dropout. The module's
    training or evaluation mode is as it was, afterwards.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    modes = {layer: layer.training for layer in module.modules()}
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's word for a cumulative average
        norm.train()
    seen = 0
    try:
        for batch in batches:
            module(batch)
            seen += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for layer, mode in modes.items():
            layer.training = mode
    if norms and not seen:
        raise ValueError("recalibration needs at least one batch; the running statistics are now reset")
