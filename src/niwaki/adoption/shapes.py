"""Channel rules of operators that move values: concatenate, slice and split, permute, expand, reshape, shuffle."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from niwaki.adoption.groups import Array, fixed
from niwaki.adoption.operators import arguments, name_of, overload
from niwaki.adoption.reading import Arguments, Axes, NotUnderstoodError, Reading, Rule, elements, rows_as_captured

LARGEST_JOINT = 1 << 22  # positions of several axes that a reshape may mix; beyond, they are frozen
LOOK_AHEAD = 64  # readers that are asked what the parts of a split axis are for


# Concatenate, slice, split


def _cat(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    rank = max(len(reading.of(value)) for value in a["tensors"])
    parts = [reading.of(value) for value in a["tensors"] if len(reading.of(value)) == rank]  # an empty 1-D tensor is skipped by PyTorch
    dim = a["dim"] % rank
    for one, other in pairwise(parts):
        for axis in range(rank):
            if axis != dim:
                reading.join(one[axis], other[axis])
    return [np.concatenate([part[dim] for part in parts]) if axis == dim else parts[0][axis] for axis in range(rank)]


def _stacked_along(dim: int) -> Rule:
    """`hstack` and `vstack`, of tensors that have such an axis."""

    def rule(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
        if min(len(reading.of(value)) for value in a["tensors"]) < 2:
            raise NotUnderstoodError("stacks vectors")
        return _cat(reading, node, {**a, "dim": dim})

    return rule


def _stack(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    parts = [reading.of(value) for value in a["tensors"]]
    axes = list(reading.join_broadcast(parts))
    axes.insert(a["dim"] % (len(axes) + 1), fixed(len(parts)))
    return axes


def _slice(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes, dim = list(reading.of(a["self"])), a["dim"]
    whole, step = axes[dim], a["step"]
    if reading.is_fixed(whole) or not (a["start"] or step != 1 or _inside(a["end"], whole)):
        axes[dim] = reading.fixed_like(node.meta["val"])[dim] if reading.is_fixed(whole) else whole
        return axes
    if step != 1 or isinstance(a["start"], fx.Node) or isinstance(a["end"], fx.Node):
        reading.freeze(whole)
        axes[dim] = reading.fixed_like(node.meta["val"])[dim]
        return axes
    start, end, _ = slice(a["start"], a["end"]).indices(len(whole))
    reading.sizes[node] = {"start": whole[:start]} | ({"end": whole[:end]} if _inside(a["end"], whole) else {})
    axes[dim] = whole[start:end]
    return axes


def _slice_scatter(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    """A part of `self` is replaced by `src`, which is cut as that part is."""
    axes, part, dim = reading.of(a["self"]), reading.of(a["src"]), a["dim"] % len(reading.of(a["self"]))
    for axis, (units, new) in enumerate(zip(axes, part, strict=True)):
        if axis != dim:
            reading.join(units, new)
    whole = axes[dim]
    if isinstance(a["start"], fx.Node) or isinstance(a["end"], fx.Node) or a["step"] != 1:
        reading.freeze(whole, part[dim])
        return axes
    start, end, _ = slice(a["start"], a["end"]).indices(len(whole))
    reading.join(whole[start:end], part[dim])
    reading.sizes[node] = {"start": whole[:start]} | ({"end": whole[:end]} if _inside(a["end"], whole) else {})
    return axes


def _select_scatter(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes, dim = reading.of(a["self"]), a["dim"] % len(reading.of(a["self"]))
    reading.freeze(axes[dim])
    for units, new in zip(axes[:dim] + axes[dim + 1 :], reading.of(a["src"]), strict=True):
        reading.join(units, new)
    return axes


def _inside(end: Any, whole: Array) -> bool:
    return isinstance(end, fx.Node) or (end is not None and end < len(whole))


def _narrow(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes, dim = list(reading.of(a["self"])), a["dim"]
    whole = axes[dim]
    if reading.is_fixed(whole) or not isinstance(a["start"], int) or not isinstance(a["length"], int):
        reading.freeze(whole)
        axes[dim] = reading.fixed_like(node.meta["val"])[dim]
        return axes
    start = a["start"] % len(whole)
    axes[dim] = whole[start : start + a["length"]]
    reading.sizes[node] = {"start": whole[:start], "length": axes[dim]}
    return axes


def _select(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = list(reading.of(a["self"]))
    reading.freeze(axes[a["dim"]])
    del axes[a["dim"]]
    return axes


def _unbind(reading: Reading, node: fx.Node, a: Arguments) -> list[Axes]:
    axes = list(reading.of(a["self"]))
    parts = len(axes[a["dim"]])
    reading.freeze(axes[a["dim"]])
    del axes[a["dim"]]
    return [axes] * parts


def _split(reading: Reading, node: fx.Node, a: Arguments) -> list[Axes]:
    """`chunk` and `split`: parts of the captured sizes. Written as a split by sizes when the axis may be cut."""
    axes, dim = reading.of(a["self"]), a["dim"]
    sizes = [rows_as_captured(part.shape[dim]) for part in node.meta["val"]]
    whole = axes[dim]
    cuts = np.cumsum([0, *sizes])
    parts = [fixed(size) for size in sizes] if reading.is_fixed(whole) else [whole[one:other] for one, other in pairwise(cuts)]
    if not reading.is_fixed(whole):
        reading.sizes[node] = {"split_sizes": parts}
    return [[part if axis == dim % len(axes) else units for axis, units in enumerate(axes)] for part in parts]


# Reshape


def _permute(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = reading.of(a["self"])
    return [axes[dim] for dim in a["dims"]]


def _transpose(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = list(reading.of(a["self"]))
    one, other = (a["dim0"], a["dim1"]) if "dim0" in a else (a["axis0"], a["axis1"])
    axes[one], axes[other] = axes[other], axes[one]
    return axes


def _reversed(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = reading.of(a["self"])
    return [*axes[:-2], *axes[-2:][::-1]]


def _moved(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = reading.of(a["self"])
    rank = len(axes)
    source, target = ([dim % rank for dim in ([dims] if isinstance(dims, int) else dims)] for dims in (a["source"], a["destination"]))
    order = [axis for axis in range(rank) if axis not in source]
    for to, axis in sorted(zip(target, source, strict=True)):
        order.insert(to, axis)
    return [axes[axis] for axis in order]


def _squeeze(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = reading.of(a["self"])
    dims = a.get("dim", list(range(len(axes))))
    gone = {dim % len(axes) for dim in ([dims] if isinstance(dims, int) else dims)}
    return [units for axis, units in enumerate(axes) if axis not in gone or len(units) != 1]


def _unsqueeze(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = list(reading.of(a["self"]))
    axes.insert(a["dim"] % (len(axes) + 1), fixed(1))
    return axes


def _expand(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    """Copies of one position are alike: they follow whatever they meet."""
    axes = reading.of(a["self"])
    found = _copies(reading, node)
    lead = len(found) - len(axes)
    for axis, units in enumerate(axes):
        if len(units) > 1:
            found[lead + axis] = units
    if "size" in a:
        _resize(reading, node, "size", list(a["size"]), found)
    elif a.get("other") is not None:
        for units, like in zip(found, reading.of(a["other"]), strict=True):
            reading.join(units, like)
    return found


def _copies(reading: Reading, node: fx.Node) -> Axes:
    """Axes of positions that are all alike; symbolic ones, of the batch, are fixed."""
    sizes = node.meta["val"].shape
    return [fixed(rows_as_captured(size)) if isinstance(size, torch.SymInt) else reading.units.fresh(int(size)) for size in sizes]


def _filled(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    """Zeros, ones: as large as whatever they meet."""
    found = _copies(reading, node)
    _resize(reading, node, "size", list(a["size"]), found)
    return found


def _repeat(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes, repeats = reading.of(a["self"]), a["repeats"] if "repeats" in a else a["dims"]
    sizes = [rows_as_captured(size) for size in node.meta["val"].shape]
    axes = [*[fixed(1)] * (len(sizes) - len(axes)), *axes]
    found = []
    for units, size, times in zip(axes, sizes, repeats, strict=True):
        if isinstance(times, fx.Node):
            reading.freeze(units)
            found.append(fixed(size))
        else:
            found.append(np.tile(units, times) if times != 1 else units)
    return found


def _repeat_interleave(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = list(reading.of(a["self"]))
    if a.get("dim") is None or not isinstance(a["repeats"], int):
        raise NotUnderstoodError("repeats along no axis, or a tensor of repeats")
    axes[a["dim"]] = np.repeat(axes[a["dim"]], a["repeats"])
    return axes


def _view(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    if "dtype" in a:
        raise NotUnderstoodError("looks at bytes as another type")
    name = "size" if "size" in a else "shape"
    found = _reshaped(reading, node, reading.of(a["self"]))
    _resize(reading, node, name, list(a[name]), found)
    return found


def _view_as(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    found, other = _reshaped(reading, node, reading.of(a["self"])), reading.of(a["other"])
    for one, like in zip(found, other, strict=True):
        reading.join(one, like)
    return found


def _flatten(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    return _reshaped(reading, node, reading.of(a["self"]))


def _unflatten(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = reading.of(a["self"])
    found = _reshaped(reading, node, axes)
    first = a["dim"] % len(axes)
    _resize(reading, node, "sizes", list(a["sizes"]), found[first : first + len(a["sizes"])])
    return found


def _resize(reading: Reading, node: fx.Node, name: str, given: list[Any], found: Axes) -> None:
    """Sizes that an operator is given, rewritten from the axes it gives. A symbolic size over units is left to PyTorch: -1."""
    for axis, (size, units) in enumerate(zip(given, found, strict=True)):
        if reading.is_fixed(units) or isinstance(size, int):
            continue
        if -1 in given:
            reading.freeze(units)
        else:
            given[axis] = -1
    if not all(map(reading.is_fixed, found)):
        reading.sizes[node] = {
            name: [
                units if isinstance(size, int) and size >= 0 and not reading.is_fixed(units) else size
                for size, units in zip(given, found, strict=True)
            ]
        }


def _reshaped(reading: Reading, node: fx.Node, axes: Axes) -> Axes:
    """Axes after a reshape. Where the positions of several axes mix, one new axis carries the units, and what it cannot tell apart is tied."""
    shape = [rows_as_captured(size) for size in node.meta["val"].shape]
    if 0 in shape:
        raise NotUnderstoodError("a tensor without elements")
    found: list[Array] = [fixed(size) for size in shape]
    for before, after in _segments([len(units) for units in axes], shape):
        old, new = [axes[axis] for axis in before if len(axes[axis]) > 1], [axis for axis in after if shape[axis] > 1]
        if not old or all(reading.is_fixed(units) for units in old):
            continue
        if len(old) == len(new) == 1:
            found[new[0]] = old[0]
            continue
        if elements([len(units) for units in old]) > LARGEST_JOINT:
            reading.freeze(*old)
            continue
        joint = _joint(reading, old).reshape([shape[axis] for axis in new])
        carrier = _carrier(reading, node, joint, new)
        reading.tie_along(joint, carrier)
        found[new[carrier]] = np.moveaxis(joint, carrier, 0).reshape(joint.shape[carrier], -1)[:, 0]
    return found


def _segments(before: Sequence[int], after: Sequence[int]) -> list[tuple[range, range]]:
    """Smallest stretches of the two shapes that hold equally many elements."""
    i = j = 0
    found = []
    while i < len(before) or j < len(after):
        first, second, one, other = i, j, 1, 1
        if i < len(before):
            one, i = before[i], i + 1
        if j < len(after):
            other, j = after[j], j + 1
        while one != other:
            if one < other:
                one, i = one * before[i], i + 1
            else:
                other, j = other * after[j], j + 1
        found.append((range(first, i), range(second, j)))
    return found


def _joint(reading: Reading, axes: Axes) -> Array:
    """Units of every combination of positions. A position has one unit: of several axes that may be cut, the one with most units stays."""
    alive = [number for number, units in enumerate(axes) if not reading.is_fixed(units)]
    chosen = max(alive, key=lambda number: len(np.unique(reading.units.find(axes[number]))))
    reading.freeze(*(axes[number] for number in alive if number != chosen))
    shape = [1] * len(axes)
    shape[chosen] = len(axes[chosen])
    return np.broadcast_to(axes[chosen].reshape(shape), [len(units) for units in axes])


def _carrier(reading: Reading, node: fx.Node, joint: Array, new: Sequence[int]) -> int:
    """Which of the new axes carries the units: the one that loses none, else the heads of an attention, else the longest."""
    found = reading.units.find(joint.ravel()).reshape(joint.shape)
    for axis in range(joint.ndim):
        if (found == found.take([0], axis)).all(axis=None) and joint.ndim > 1:
            continue  # nothing varies along it
        lines = np.moveaxis(found, axis, 0).reshape(joint.shape[axis], -1)
        if (lines == lines[:, :1]).all():
            return axis
    uses = [_use(node, axis) for axis in new]
    heads = [axis for axis, use in enumerate(uses) if use == "heads"]
    if heads:
        return heads[0]
    free = [axis for axis, use in enumerate(uses) if use != "index"] or list(range(joint.ndim))
    return max(free, key=lambda axis: (joint.shape[axis], axis))


def _use(node: fx.Node, axis: int) -> str:
    """What becomes of an axis: "heads" of a product, "index" of parts that are told apart, or something else."""
    queue, asked = [(node, axis)], 0
    while queue and asked < LOOK_AHEAD:
        (value, here), asked = queue.pop(0), asked + 1
        for reader in value.users:
            if reader.op != "call_function":
                continue
            if reader.target is operator.getitem:
                queue.append((reader, here))
                continue
            if overload(reader) is None or not isinstance(value.meta.get("val"), Tensor | tuple | list):
                continue
            after = _follow(reader, value, here)
            if isinstance(after, str):
                return after
            if after is not None:
                queue.append((reader, after))
    return ""


def _follow(reader: fx.Node, value: fx.Node, axis: int) -> int | str | None:
    """Where an axis lies after a reader; "heads" or "index"; or None, where that is not told."""
    name = name_of(reader)
    example = value.meta["val"]
    rank = (example if isinstance(example, Tensor) else example[0]).dim()
    a = arguments(reader)
    if name in ("matmul", "bmm", "scaled_dot_product_attention", "baddbmm"):
        return "heads" if axis < rank - 2 else None
    if name in ("select", "unbind", "split", "split_with_sizes", "chunk"):
        dim = a["dim"] % rank
        if dim == axis:
            return "index"
        return axis - (axis > dim) if name in ("select", "unbind") else axis
    if name == "einsum" and "..." not in a["equation"]:
        left, _, out = a["equation"].replace(" ", "").partition("->")
        label = left.split(",")[list(a["tensors"]).index(value)][axis]
        return "heads" if label in out and all(label in part for part in left.split(",")) and left.count(",") else None
    if name == "permute":
        return [dim % rank for dim in a["dims"]].index(axis)
    if name in ("transpose", "swapaxes"):
        one, other = (a["dim0"], a["dim1"]) if "dim0" in a else (a["axis0"], a["axis1"])
        return {one % rank: other % rank, other % rank: one % rank}.get(axis, axis)
    if name == "unsqueeze":
        return axis + (a["dim"] % (rank + 1) <= axis)
    if name in ("view", "reshape", "flatten"):
        sizes = [[rows_as_captured(size) for size in each.meta["val"].shape] for each in (value, reader)]
        after = next(after for before, after in _segments(*sizes) if axis in before)
        return after[0] if len(after) == 1 else None
    if name in ("slice", "cat", "expand", "repeat", "repeat_interleave"):
        return axis + reader.meta["val"].dim() - rank
    if name == "squeeze" and isinstance(a.get("dim"), int):
        return axis - (a["dim"] % rank < axis)
    if torch.Tag.pointwise in overload(reader).tags or name in (
        "contiguous",
        "clone",
        "to",
        "dropout",
        "softmax",
        "rms_norm",
        "layer_norm",
    ):
        result = reader.meta.get("val")
        return axis + result.dim() - rank if isinstance(result, Tensor) else None
    return None


def _pixel_shuffle(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes, factor = reading.of(a["self"]), int(a["upscale_factor"])
    table = axes[-3].reshape(-1, factor**2)
    reading.tie_along(table, 0)
    return [*axes[:-3], table[:, 0], *reading.fixed_like(node.meta["val"])[-2:]]


def _pixel_unshuffle(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes, factor = reading.of(a["self"]), int(a["downscale_factor"])
    return [*axes[:-3], np.repeat(axes[-3], factor**2), *reading.fixed_like(node.meta["val"])[-2:]]


def _channel_shuffle(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = list(reading.of(a["input"] if "input" in a else a["self"]))
    table = axes[1].reshape(int(a["groups"]), -1)
    reading.tie_along(table, 1)
    axes[1] = table.T.reshape(-1)
    return axes


def _im2col(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = reading.of(a["self"])
    return [*axes[:-3], np.repeat(axes[-3], elements(a["kernel_size"])), *reading.fixed_like(node.meta["val"])[-1:]]


def _col2im(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = reading.of(a["self"])
    table = axes[-2].reshape(-1, elements(a["kernel_size"]))
    reading.tie_along(table, 0)
    reading.freeze(axes[-1])
    return [*axes[:-2], table[:, 0], *reading.fixed_like(node.meta["val"])[-2:]]


def _glu(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = list(reading.of(a["self"]))
    half = len(axes[a["dim"]]) // 2
    reading.join(axes[a["dim"]][:half], axes[a["dim"]][half:])
    axes[a["dim"]] = axes[a["dim"]][:half]
    return axes


SHAPES: Mapping[str, Rule] = {
    **dict.fromkeys(("zeros", "ones", "full", "new_zeros", "new_ones", "new_full"), _filled),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "hstack": _stacked_along(1),
    "vstack": _stacked_along(0),
    "stack": _stack,
    "slice": _slice,
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
    "narrow": _narrow,
    "select": _select,
    "unbind": _unbind,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk"), _split),
    "permute": _permute,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transpose),
    **dict.fromkeys(("t", "numpy_T", "mT", "matrix_H", "adjoint"), _reversed),
    **dict.fromkeys(("movedim", "moveaxis"), _moved),
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    **dict.fromkeys(("repeat", "tile"), _repeat),
    "repeat_interleave": _repeat_interleave,
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), _view),
    **dict.fromkeys(("view_as", "reshape_as"), _view_as),
    **dict.fromkeys(("flatten", "ravel"), _flatten),
    "unflatten": _unflatten,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "channel_shuffle": _channel_shuffle,
    "im2col": _im2col,
    "col2im": _col2im,
    "glu": _glu,
}
