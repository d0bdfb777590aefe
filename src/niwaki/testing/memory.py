"""What training holds in memory beside the network itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def saved_bytes(loss: Callable[[], Tensor], module: nn.Module) -> int:
    """Bytes that the forward pass of `loss()` keeps for backward: every storage once, the parameters of `module` left out.

    Parameters are kept whether or not there is a backward pass; what is made of them for one pass, such as a masked weight, counts.
    """
    kept: dict[int, Tensor] = {}  # holding the tensors keeps their addresses from being given to others

    def pack(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()  # a graph that held its own outputs with their history would never be freed
        return kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)
