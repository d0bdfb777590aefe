"""From logits to weights over options: the relaxations of one decision."""

from __future__ import annotations

import torch
from torch import Tensor


def gumbel_softmax(logits: Tensor, *, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """One draw of softmax((logits + noise) / temperature), noise standard Gumbel (Jang et al. 2017; FBNet, Eq. 7).

    logits: (O,) or (..., O). The draw sums to 1 over the last dimension and is differentiable in the logits.
    """
    uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
    tiny = torch.finfo(logits.dtype).tiny
    noise = -torch.log((-torch.log(uniform.clamp_min(tiny))).clamp_min(tiny))
    return torch.softmax((logits + noise) / temperature, dim=-1)
