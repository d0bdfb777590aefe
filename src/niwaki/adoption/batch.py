"""Which axis of a model's inputs is the batch: found by trying, since a graph does not tell time from rows."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # positional and by name


@dataclass(frozen=True)
class Batch:
    """`axis` of the inputs along which rows do not know of each other, or None, and how many `outputs` have it: none, if the model draws them.

    `tried`: inputs with other numbers of rows than the example, and what the model gives for them.
    """

    axis: int | None
    outputs: int = 0
    tried: tuple[tuple[Arguments, list[Any]], ...] = ()


def run(owner: nn.Module, arguments: Arguments) -> Any:
    """Outputs of a model, which may write to what it is given and to its buffers: neither is left changed."""
    args, kwargs = copy.deepcopy(arguments)
    with buffers_kept(owner), torch.no_grad():
        return owner(*args, **kwargs)


@contextmanager
def buffers_kept(owner: nn.Module) -> Iterator[None]:
    """With the buffers afterwards as they were."""
    before = [(buffer, buffer.clone()) for buffer in owner.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def gradients(owner: nn.Module, arguments: Arguments) -> dict[str, Tensor]:
    """By parameter, the derivative of a fixed sum of all outputs, each number with a weight of its own; zeros where there is none."""
    args, kwargs = copy.deepcopy(arguments)
    parameters = {name: parameter for name, parameter in owner.named_parameters() if parameter.requires_grad}
    with buffers_kept(owner), torch.enable_grad():  # as they were only when the gradients are there, which are of what the buffers are now
        leaves = pytree.tree_leaves(owner(*args, **kwargs))
        outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not outputs or not parameters:
            return {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        real = [torch.view_as_real(output) if output.is_complex() else output for output in outputs]
        weights = [torch.arange(1, output.numel() + 1).mul(0.7).cos().view(output.shape) for output in real]
        total = torch.stack([(output * weight).sum() for output, weight in zip(real, weights, strict=True)]).sum()
        found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }


def batch_of(owner: nn.Module, arguments: Arguments, outputs: Sequence[Any]) -> Batch:
    """The axis of the batch: 0, or 1 where time comes first, or none.

    The example is given together with another one made of it, side by side along the axis, a single row twice; every output must then be
    what the two give alone, side by side along one axis, or be the same as before. A single number beside such outputs may be a statistic of
    all rows. A model that does not run on one row has no batch: costs are of one.
    """
    for axis in (0, 1):
        try:
            other = _changed(arguments, axis)
            alone = pytree.tree_leaves(run(owner, other))
            both = side_by_side([arguments, other] * (2 if rows_of(arguments, axis) == 1 else 1), axis)
            together = pytree.tree_leaves(run(owner, both))
            if (found := _outputs_of_both(together, outputs, alone)) is None:
                continue
            tried = [(both, together)]
            if rows_of(arguments, axis) > 1:
                tried.append((one_row(arguments, axis), pytree.tree_leaves(run(owner, one_row(arguments, axis)))))
        except Exception:
            continue  # whatever stops it: along this axis there is no batch
        return Batch(axis, found, tuple(tried))
    if not are_equal(pytree.tree_leaves(run(owner, arguments)), outputs):
        return Batch(0)  # the model draws random numbers: nothing can be told
    return Batch(None)


def fixed_examples(owner: nn.Module, arguments: Arguments, outputs: Sequence[Any]) -> int:
    """How many examples lie in inputs whose number cannot be changed: other values in the first row change no other row of any output."""
    for axis in (0, 1):
        rows = [leaf.shape[axis] for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor) and leaf.dim() > axis]
        if not rows or rows[0] < 2:
            continue
        first = pytree.tree_map(lambda leaf: _other_first(leaf, axis) if has_rows(leaf, arguments, axis) else leaf, arguments)  # noqa: B023
        changed = pytree.tree_leaves(run(owner, first))
        pairs = [(one, other) for one, other in zip(outputs, changed, strict=True) if isinstance(one, Tensor) and one.dim()]
        known = [(one, other) for one, other in pairs if one.dim() > axis and one.shape[axis] == rows[0] and one.shape == other.shape]
        others = [[each.narrow(axis, 1, rows[0] - 1) for each in pair] for pair in known]
        if known and len(known) == len(pairs) and are_equal(*zip(*others, strict=True)) and not are_equal(*zip(*known, strict=True)):
            return rows[0]
    return 1


def _other_first(leaf: Tensor, axis: int) -> Tensor:
    """Other values in the first row alone."""
    leaf = leaf.clone()
    leaf.narrow(axis, 0, 1).copy_(_other_values(leaf).narrow(axis, 0, 1))
    return leaf


def _changed(arguments: Arguments, axis: int) -> Arguments:
    """Inputs with other values of the same kind."""
    return pytree.tree_map(lambda leaf: _other_values(leaf) if has_rows(leaf, arguments, axis) else leaf, arguments)


def _other_values(leaf: Tensor) -> Tensor:
    other = leaf.flip(tuple(range(leaf.dim())))
    if leaf.is_floating_point():
        return 0.75 * other + 0.25 * leaf
    return torch.zeros_like(leaf) if torch.equal(other, leaf) else other


def _outputs_of_both(together: Sequence[Any], outputs: Sequence[Any], alone: Sequence[Any]) -> int | None:
    """How many outputs are those of the two examples side by side; None if some output is neither that nor unchanged."""
    found = 0
    for both, one, other in zip(together, outputs, alone, strict=True):
        if not isinstance(both, Tensor):
            continue
        if not both.dim() and one.shape == both.shape:
            continue
        grown = [dim for dim in range(one.dim()) if both.shape[dim] != one.shape[dim]]
        parts = both.split(one.shape[grown[0]], grown[0]) if len(grown) == 1 else [both, both]
        if len(parts) not in (2, 4) or not are_equal(parts, [one, other] * (len(parts) // 2)):
            return None
        found += len(grown)
    return found or None


def are_equal(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether leaves are the same, tensors to the rounding of another order of sums."""
    return len(some) == len(others) and all(map(_is_equal, some, others))


def _is_equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and one == other
    kind = torch.complex128 if one.is_complex() else torch.float64
    return one.shape == other.shape and torch.allclose(one.to(kind), other.to(kind), rtol=1e-3, atol=1e-4, equal_nan=True)


def side_by_side(examples: Sequence[Arguments], axis: int) -> Arguments:
    """Examples as one: inputs with a batch one after another, the others as in the first."""
    leaves = [pytree.tree_flatten(example) for example in examples]
    rows = [
        torch.cat(each, axis) if has_rows(each[0], examples[0], axis) else each[0]
        for each in zip(*(flat for flat, _ in leaves), strict=True)
    ]
    return pytree.tree_unflatten(rows, leaves[0][1])


def one_row(arguments: Any, axis: int) -> Any:
    """The first row of every tensor that has the batch."""
    return pytree.tree_map(lambda value: value.narrow(axis, 0, 1) if has_rows(value, arguments, axis) else value, arguments)


def rows_of(arguments: Any, axis: int) -> int:
    """How many rows the inputs have along an axis: those of the first that has it."""
    return next(int(leaf.shape[axis]) for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor) and leaf.dim() > axis)


def has_rows(leaf: Any, arguments: Any, axis: int) -> bool:
    """Whether an input has the batch: as many rows as the first input that has such an axis."""
    return isinstance(leaf, Tensor) and leaf.dim() > axis and leaf.shape[axis] == rows_of(arguments, axis)
