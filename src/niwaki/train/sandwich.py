"""BigNAS (Yu et al., ECCV 2020, arXiv 2003.11142): what a training step of a supernet is made of, and its learning rate.

The sandwich rule, in-place distillation, AlphaNet's divergence in its place (Wang et al., ICML 2021, arXiv 2102.07954), regularisation of the
biggest member only, and an exponential decay that ends constant. Where residual branches begin at zero: nn/residual.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from niwaki.nn.forward import After
from niwaki.nn.supernet import Supernet

Divergence = Callable[[Tensor, Tensor], Tensor]  # of the student's outputs and the teacher's, (B, K) each: a scalar
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def sandwich_backward(
    net: Supernet,
    inputs: Tensor,
    biggest: Mapping[str, Any],
    others: Sequence[Mapping[str, Any]],
    *,
    loss: Callable[[Tensor], Tensor],
    divergence: Divergence,
    after: After | None = None,
) -> tuple[Tensor, Tensor]:
    """Adds to the gradients of `net` those of L = loss(f_max(x)) + sum_c divergence(f_c(x), sg[f_max(x)]); the first term, and the mean of the others.

    The biggest member alone learns from the labels, by `loss` of its outputs, and it alone has dropout and `after` (drop-connect); every other
    member learns from the biggest one's outputs of the same step, through which no gradient flows (section 3.1). One backward pass for each, so
    that only one member's maps are in memory at a time.
    """
    outputs = net(inputs, biggest, after=after)
    own = loss(outputs)
    own.backward()
    teacher, told = outputs.detach(), []
    with without_dropout(net):
        for arch in others:
            one = divergence(net(inputs, arch), teacher)
            one.backward()
            told.append(one.detach())
    return own.detach(), torch.stack(told).mean() if told else torch.zeros_like(own)


@contextmanager
def without_dropout(net: Supernet) -> Iterator[None]:
    """Within, nothing of `net` is dropped; BatchNorm goes on with the statistics of the batch."""
    changed = [net.layers, *(module for module in net.modules() if isinstance(module, DROPOUTS))]
    modes = [module.training for module in changed]
    for module in changed:
        module.training = False  # of itself alone: the supernet's own dropout asks its `layers`
    try:
        yield
    finally:
        for module, mode in zip(changed, modes, strict=True):
            module.training = mode


# --- what a member learns from the biggest one ------------------------------------------------------------------------------


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax teacher || softmax student), mean over the batch; (B, K) logits each. Its gradient is that of the soft cross entropy."""
    return F.kl_div(F.log_softmax(student, 1), F.log_softmax(teacher.detach(), 1), reduction="batchmean", log_target=True)


def alpha_divergence(student: Tensor, teacher: Tensor, *, alphas: tuple[float, float] = (-1.0, 1.0), clip: float = 5.0) -> Tensor:
    """AlphaNet's adaptive divergence: for each example the larger of D_alpha for the two alphas, mean over the batch; (B, K) logits each.

    D_alpha(p || q) = sum_i q_i ((p_i / q_i)^alpha - 1) / (alpha (alpha - 1)), p the teacher's probabilities and q the student's; its gradient is
    -sum_i q_i (p_i / q_i)^alpha / alpha grad log q_i, in which (p / q)^alpha is clipped. At alpha = 1 it is KL(p || q), which punishes where the
    student is too sure of too little; a negative alpha punishes where it sees what the teacher does not. Values, as the gradient, are clipped.
    """
    both = [_alpha_divergence(student, teacher.detach(), alpha, clip) for alpha in alphas]
    (first, first_way), (second, second_way) = both
    larger = first > second
    value, way = torch.where(larger, first, second), torch.where(larger, first_way, second_way)
    return (value.detach() + way - way.detach()).mean()


def _alpha_divergence(student: Tensor, teacher: Tensor, alpha: float, clip: float) -> tuple[Tensor, Tensor]:
    """(B,) each: the divergence, and a number that has its gradient."""
    log_q, log_p = F.log_softmax(student, 1), F.log_softmax(teacher, 1)
    q, log_ratio = log_q.detach().exp(), (log_p - log_q).detach()
    if alpha == 1.0:
        return (log_p.exp() * log_ratio).sum(1), -(log_p.exp() * log_q).sum(1)
    if alpha == 0.0:  # KL(q || p)
        return -(q * log_ratio).sum(1), -(q * (log_ratio - 1).clamp(max=clip) * log_q).sum(1)
    power = (alpha * log_ratio).exp().clamp(max=clip)
    return (q * (power - 1)).sum(1) / (alpha * (alpha - 1)), -(q * power / alpha * log_q).sum(1)


# --- the learning rate ----------------------------------------------------------------------------------------------------------


def constant_ending(lr: float, step: int, total: int, *, warm_up: float = 0.0, last: float = 0.05, reached: float = 0.6) -> float:
    """Learning rate of step 0, 1, ... of `total`: up to `lr` over the share `warm_up` of them, then exponentially to `last` times `lr` at the
    share `reached`, and constant from there (section 3.1, Fig. 4).

    Big members overfit before small ones have converged; the constant ending leaves those more to learn with. BigNAS decays by 0.97 every 2.4
    epochs, which is at 5 % after 236 of its 360 to 400 epochs; here the decay is smooth.

    >>> [round(constant_ending(1.0, step, 10), 3) for step in (0, 3, 6, 9)]
    [1.0, 0.224, 0.05, 0.05]
    """
    rising = round(warm_up * total)
    if step < rising:
        return lr * (step + 1) / (rising + 1)
    return lr * last ** min(1.0, (step - rising) / max(1e-9, reached * total - rising))
