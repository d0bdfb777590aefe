"""One candidate for one piece of a teacher: where it starts, its training, and what it costs (see recipe/student_search.py)."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.adoption.counter import counted_macs
from niwaki.cost.count import COSTS
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.recipe.students import KEEP, Candidate, Neighbourhood
from niwaki.store.checkpoint import pack
from niwaki.store.files import atomic_write
from niwaki.task.task import derive_seed
from niwaki.train.neighbourhood import Distilling, LocalError, Pairs, distil, inherit_, local_error


@dataclass(frozen=True)
class Trained:
    """A candidate after its training. seconds: of CPU time. file: with its weights; none for the teacher's own piece."""

    error: LocalError
    losses: tuple[float, ...]
    seconds: float
    file: Path | None = None


def train_candidate(
    neighbourhood: Neighbourhood,
    candidate: Candidate,
    pairs: Pairs,
    held: Pairs,
    how: Distilling,
    tail: nn.Module | None,
    seed: int,
    device: str,
    file: Path,
    inherit: bool = True,
) -> None:
    """Trains one candidate and writes it to `file`, weights and figures: a job for any process; nothing else is read or written.

    held: examples that the errors are told of.
    """
    began = time.process_time()
    student, masks = started(neighbourhood, candidate, seed, inherit=inherit)
    with held_at_zero(masks):
        done = distil(student, pairs, how, seed=seed, tail=tail, device=device)
    error = local_error(done.module, held, tail if how.tail and held.after is not None else None, device)
    seconds = time.process_time() - began
    state = {name: tensor.detach().cpu().numpy() for name, tensor in done.module.state_dict().items()}
    atomic_write(file, pack(state, {"error": asdict(error), "losses": list(done.losses), "seconds": seconds}))


Masks = list[tuple[nn.Parameter, Tensor]]  # a weight, and 0 where it is to stay 0, of its shape


@contextmanager
def held_at_zero(masks: Masks) -> Iterator[None]:
    """Within, no gradient reaches what the masks hold at 0, on whatever device it is."""
    hooks = [parameter.register_hook(partial(_masked, mask)) for parameter, mask in masks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _masked(mask: Tensor, gradient: Tensor) -> Tensor:
    return gradient * mask.to(gradient.device)


def zeros_of(parameters: Iterable[nn.Parameter]) -> Masks:
    """The masks of sparse weights as they are: of every matrix and kernel, what is not 0."""
    return [(parameter, (parameter.detach() != 0).to(parameter.dtype)) for parameter in parameters if parameter.ndim > 1]


def started(neighbourhood: Neighbourhood, candidate: Candidate, seed: int, *, inherit: bool = True) -> tuple[nn.Module, Masks]:
    """The candidate before its training, and what of its weights is held at 0: of sparse ones, the smallest of each convolution and linear layer."""
    if candidate.sparsity or candidate.name == KEEP:
        student = copy_of(neighbourhood.teacher)
    elif candidate.layer is not None:
        student = build(neighbourhood.network(candidate.layer), seed=derive_seed(seed, "weights"))
        if inherit:
            inherit_(student, neighbourhood.teacher)
    else:
        assert candidate.module is not None
        student = copy_of(candidate.module)
    masks: Masks = []
    if candidate.sparsity:
        for parameter in student.parameters():
            if parameter.ndim > 1:
                count = int(candidate.sparsity * parameter.numel())
                kept = torch.ones(parameter.numel())
                kept[parameter.detach().abs().flatten().argsort()[:count]] = 0.0
                mask = kept.view_as(parameter)
                parameter.data.mul_(mask)
                masks.append((parameter, mask))
    return student, masks


def copy_of(module: nn.Module) -> nn.Module:
    """A copy whose parameters learn."""
    return copy.deepcopy(module).requires_grad_(True)


def cost_of(neighbourhood: Neighbourhood, candidate: Candidate, name: str) -> int:
    """One cost of one candidate. Of sparse ones, multiply-adds and parameters are those of weights that are not 0; the size is not: files have
    all weights."""
    if candidate.layer is not None and not candidate.sparsity:
        network = neighbourhood.network(candidate.layer)
        return COSTS[name](network)(space_of(network).architecture({}))
    student, _ = started(neighbourhood, candidate, 0)
    if name == "macs":
        return count_module_macs(student, neighbourhood.input_shape)
    if name == "params":
        return sum(int(p.count_nonzero()) if candidate.sparsity and p.ndim > 1 else p.numel() for p in student.parameters())
    if name == "size":
        return 4 * sum(one.numel() for one in (*student.parameters(), *student.buffers()) if one.is_floating_point())
    assert candidate.layer is not None  # other costs are counted of described teachers alone
    network = neighbourhood.network(candidate.layer)
    return COSTS[name](network)(space_of(network).architecture({}))


@torch.no_grad()
def count_module_macs(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-adds for one example, by PyTorch's counter of operations; less those with weights that are 0."""
    zeros = 0

    def count(layer: nn.Module, given: Any, output: Tensor) -> None:
        nonlocal zeros
        weight = layer.weight
        assert isinstance(weight, Tensor)
        positions = output[0].numel() // output.shape[1] if isinstance(layer, nn.Conv2d) else output[0].numel() // output.shape[-1]
        zeros += int((weight == 0).sum()) * positions

    hooks = [layer.register_forward_hook(count) for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    macs = counted_macs(module.eval(), torch.zeros(1, *input_shape))
    for hook in hooks:
        hook.remove()
    return macs - zeros
