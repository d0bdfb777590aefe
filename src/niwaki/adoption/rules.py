"""One channel rule per aten operator: what an operator says about the axes of its inputs, of its outputs and of its weights.

A rule reads the arguments by their names in the operator's schema, joins or freezes units, and gives the axes of what the operator gives.
It notes the sizes among the arguments that follow from axes (`reading.sizes`), the multiply-adds, and the axes that are summed over
(`reading.meet`). `RULES` is the allow-list; operators that PyTorch itself marks as pointwise share one rule. All else is opaque.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from niwaki.adoption.capture import name_of, overload
from niwaki.adoption.groups import Array, fixed
from niwaki.adoption.reading import Axes, Extent, Reading, elements, rows_as_captured, rows_for_one

Arguments = Mapping[str, Any]
Rule = Callable[[Reading, fx.Node, Arguments], Any]

LARGEST_JOINT = 1 << 22  # positions of several axes that a reshape may mix; beyond, they are frozen
LOOK_AHEAD = 64  # readers that are asked what the parts of a split axis are for


class NotUnderstoodError(Exception):
    """A rule that meets a case it does not cover; the operator is opaque then."""


def read_node(reading: Reading, node: fx.Node) -> None:
    """Axes of one node of the graph."""
    if node.op == "placeholder":
        reading.axes[node] = reading.fixed_like(node.meta.get("val"))
    elif node.op == "get_attr":
        if isinstance(node.meta.get("val"), Tensor):
            reading.axes[node] = reading.weight(node)
    elif node.op == "output":
        for value in pytree.tree_leaves(node.args):
            if isinstance(value, fx.Node) and value in reading.axes:
                reading.freeze(*(axis for axis in pytree.tree_leaves(reading.axes[value]) if axis is not None))
    elif node.target is operator.getitem and node.all_input_nodes[0] in reading.axes:
        inside: Any = reading.axes[node.all_input_nodes[0]]
        which: Any = node.args[1]
        reading.axes[node] = inside[which] if isinstance(inside, list) else reading.fixed_like(node.meta.get("val"))
    else:
        reading.axes[node] = _called(reading, node)


def arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of an aten operator by name, defaults included."""
    named = {}
    for number, argument in enumerate(overload(node)._schema.arguments):
        given = node.args[number] if number < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        named[argument.name] = given
    return named


def _called(reading: Reading, node: fx.Node) -> Any:
    if name_of(node) == "sym_size" or not (_tensors_in(reading, node) or isinstance(node.meta.get("val"), Tensor)):
        return None  # arithmetic on sizes
    target = overload(node)
    if target is None:
        if not isinstance(node.meta.get("val"), Tensor | tuple | list):
            return None
        return reading.give_up(node, "not an operator that is known")
    if target.namespace != "aten":
        return reading.give_up(node, "a custom operator")
    rule = RULES.get(name_of(node))
    if rule is None and torch.Tag.pointwise in target.tags and not target._schema.is_mutable:
        rule = _pointwise
    if rule is None:
        return reading.give_up(node, "writes to memory that others see" if target._schema.is_mutable else "no channel rule")
    try:
        found: Any = rule(reading, node, arguments(node))
        _check(reading, node, found)
    except NotUnderstoodError as error:
        return reading.give_up(node, str(error))
    return found


def _tensors_in(reading: Reading, node: fx.Node) -> list[fx.Node]:
    return [value for value in node.all_input_nodes if reading.axes.get(value) is not None]


def _check(reading: Reading, node: fx.Node, found: Any) -> None:
    """The rule's axes have the sizes that PyTorch found: a wrong rule makes the operator opaque, not the result wrong."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor | tuple | list):
        return
    tensors = [value] if isinstance(value, Tensor) else [each for each in value if isinstance(each, Tensor)]
    lists = [found] if isinstance(value, Tensor) else [each for each in found if each is not None]
    for tensor, axes in zip(tensors, lists, strict=True):
        if [len(axis) for axis in axes] != [rows_as_captured(size) for size in tensor.shape]:
            raise NotUnderstoodError("its sizes are not as expected")


# Maps and products


def _convolution(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    if a.get("transposed"):
        return _transposed_convolution(reading, node, a)
    weight = reading.of(a["weight"])
    dims = len(weight) - 2
    data, channel = reading.of(a["input"]), len(reading.of(a["input"])) - dims - 1
    reading.freeze(*data[channel + 1 :], *weight[2:])
    into, groups = data[channel], int(a["groups"])
    out = weight[0]
    if groups == 1:
        reading.join(into, weight[1])
        reading.meet(node, a["input"], channel)
    elif groups == len(into):
        for copy in out.reshape(groups, -1).T:  # a multiplier m gives m outputs side by side per input
            reading.join(into, copy)
        reading.freeze(weight[1])
        reading.sizes[node] = {"groups": into}
    else:
        _grouped(reading, node, a, into, weight)
    _bias(reading, a.get("bias"), out)
    space = _space(node, channel)
    _count_convolution(reading, node, weight, [*reading.extents(a["input"])[:channel], *space])
    return [*data[:channel], out, *(extent.units for extent in space)]


def _grouped(reading: Reading, node: fx.Node, a: Arguments, into: Array, weight: Axes) -> None:
    """Either whole groups are units, which ties input and output, or positions within a group are, the same in every group.

    What the input is tied to already decides; otherwise whichever gives more units.
    """
    groups, out = int(a["groups"]), weight[0]
    found = reading.units.find(into).reshape(groups, -1)
    whole = groups >= found.shape[1]
    if found.any():
        rows_tied, columns_tied = bool((found == found[:, :1]).all()), bool((found == found[:1]).all())
        whole = rows_tied if rows_tied != columns_tied else whole
    if whole:
        _tie_along(reading, into.reshape(groups, -1), 0)
        _tie_along(reading, out.reshape(groups, -1), 0)
        reading.join(into.reshape(groups, -1)[:, 0], out.reshape(groups, -1)[:, 0])
        reading.freeze(weight[1])
        reading.sizes[node] = {"groups": into.reshape(groups, -1)[:, 0]}
    else:
        for row in into.reshape(groups, -1):
            reading.join(row, weight[1])
        _tie_along(reading, out.reshape(groups, -1), 1)
        reading.meet(node, a["input"], len(reading.of(a["input"])) - len(weight) + 1)


def _transposed_convolution(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    weight = reading.of(a["weight"])
    dims = len(weight) - 2
    data, channel = reading.of(a["input"]), len(reading.of(a["input"])) - dims - 1
    reading.freeze(*data[channel + 1 :], *weight[2:])
    into, groups = data[channel], int(a["groups"])
    reading.join(into, weight[0])
    if groups == 1:
        out = weight[1]
        reading.meet(node, a["input"], channel)
    elif groups == len(into) and len(weight[1]) == 1:
        out = into
        reading.sizes[node] = {"groups": into}
    else:
        _tie_along(reading, into.reshape(groups, -1), 1)
        out = np.tile(weight[1], groups)
        reading.meet(node, a["input"], channel)
    _bias(reading, a.get("bias"), out)
    extents = reading.extents(a["input"])
    _count_convolution(reading, node, weight, [*extents[:channel], *extents[channel + 1 :]])
    return [*data[:channel], out, *(extent.units for extent in _space(node, channel))]


def _linear(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    data, weight = reading.of(a["input"]), reading.of(a["weight"])
    reading.join(data[-1], weight[1])
    reading.meet(node, a["input"], -1)
    _bias(reading, a["bias"], weight[0])
    reading.count(node, 1, [*(Extent(axis, len(axis)) for axis in weight), *reading.extents(a["input"])[:-1]])
    return [*data[:-1], weight[0]]


def _bias(reading: Reading, bias: fx.Node | None, out: Array) -> None:
    if bias is not None:
        reading.join(reading.of(bias)[0], out)


def _space(node: fx.Node, channel: int) -> list[Extent]:
    """Spatial axes of what a convolution gives."""
    return [Extent(fixed(rows_as_captured(size)), rows_for_one(size)) for size in node.meta["val"].shape[channel + 1 :]]


def _count_convolution(reading: Reading, node: fx.Node, weight: Axes, positions: Sequence[Extent]) -> None:
    """Every number of the weight is used once at each of `positions`."""
    kernel = elements([len(axis) for axis in weight[2:]])
    reading.count(node, kernel, [Extent(weight[0], len(weight[0])), Extent(weight[1], len(weight[1])), *positions])


def _tie_along(reading: Reading, table: Array, keep: int) -> None:
    """Units that differ only along the axes of `table` other than `keep` become one."""
    lines = np.moveaxis(table, keep, 0).reshape(table.shape[keep], -1)
    for other in lines.T[1:]:
        reading.join(lines[:, 0], other)


def _labelled(reading: Reading, node: fx.Node, operands: Sequence[tuple[fx.Node, str]], out: str, *, count: bool = True) -> Axes:
    """A product of tensors whose axes carry labels: equal labels are joined, labels that `out` lacks are summed over."""
    by_label: dict[str, Extent] = {}
    for value, labels in operands:
        for label, extent in zip(labels, reading.extents(value), strict=True):
            known = by_label.get(label)
            if known is None or len(known.units) == 1:
                by_label[label] = extent
            elif len(extent.units) > 1:
                reading.join(known.units, extent.units)
    for label in by_label:
        if label not in out:
            value, labels = min((o for o in operands if label in o[1]), key=lambda o: o[0].op == "get_attr")
            reading.meet(node, value, labels.index(label))
    if count:
        reading.count(node, 1, list(by_label.values()))
    return [by_label[label].units for label in out]


def _matmul_labels(ranks: Sequence[int]) -> tuple[str, str, str]:
    batch = "abcdefgh"
    one, other = ranks
    left = (batch[-(one - 2) :] if one > 2 else "") + ("ik" if one > 1 else "k")
    right = (batch[-(other - 2) :] if other > 2 else "") + ("kj" if other > 1 else "k")
    shared = max(left[:-2], right[:-2], key=len)
    return left, right, shared + ("i" if one > 1 else "") + ("j" if other > 1 else "")


def _matmul(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    values = list(a.values())[:2]
    left, right, out = _matmul_labels([len(reading.of(value)) for value in values])
    counted = len(right) > 1 and name_of(node) not in ("mv", "dot", "vdot")  # PyTorch's counter has no products with a vector
    return _labelled(reading, node, [(values[0], left), (values[1], right)], out, count=counted)


def _added_matmul(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    added, one, other = list(a.values())[:3]
    left, right, out = _matmul_labels([len(reading.of(one)), len(reading.of(other))])
    axes = _labelled(reading, node, [(one, left), (other, right)], out)
    return _broadcast(reading, [axes, reading.of(added)])


def _einsum(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    equation, operands = a["equation"].replace(" ", ""), list(a["tensors"])
    if "..." in equation or len(operands) > 2:
        raise NotUnderstoodError(f"the equation {equation!r} is not read: write out the axes of two tensors")
    left, arrow, out = equation.partition("->")
    parts = left.split(",")
    if any(len(set(part)) < len(part) for part in parts):
        raise NotUnderstoodError(f"the equation {equation!r} takes a diagonal")
    if not arrow:
        out = "".join(sorted(label for label in set(left) - {","} if left.count(label) == 1))
    return _labelled(reading, node, list(zip(operands, parts, strict=True)), out, count=len(operands) == 2)


def _attention(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    query, key, value = a["query"], a["key"], a["value"]
    axes: dict[str, Axes] = {name: reading.of(node_) for name, node_ in (("q", query), ("k", key), ("v", value))}
    rank = len(axes["q"])
    if rank < 2 or any(len(each) != rank for each in axes.values()):
        raise NotUnderstoodError("queries, keys and values differ in rank")
    if a.get("enable_gqa") and rank >= 3 and len(axes["k"][-3]) != len(axes["q"][-3]):
        heads = axes["q"][-3].reshape(len(axes["k"][-3]), -1)
        _tie_along(reading, heads, 0)
        reading.join(heads[:, 0], axes["k"][-3])
        reading.join(axes["k"][-3], axes["v"][-3])
    else:
        for lead in range(rank - 2):
            _broadcast(reading, [[axes[name][lead]] for name in "qkv"])
    reading.join(axes["q"][-1], axes["k"][-1])
    reading.join(axes["k"][-2], axes["v"][-2])
    reading.freeze(axes["k"][-2])  # a softmax runs over the keys
    reading.meet(node, query, -1)
    leading = reading.extents(query)[:-2]
    length, head = reading.extents(query)[-2:]
    keys, out = reading.extents(value)[-2:]
    reading.count(node, 1, [*leading, length, keys, head])
    reading.count(node, 1, [*leading, length, keys, out])
    if not reading.is_fixed(axes["q"][-1]) and a.get("scale") is None:
        reading.sizes[node] = {"scale": 1 / math.sqrt(len(axes["q"][-1]))}
    found = [*axes["q"][:-1], axes["v"][-1]]
    if a.get("attn_mask") is not None:
        _broadcast(reading, [[*axes["q"][:-1], axes["k"][-2]], reading.of(a["attn_mask"])])
    return found


# Pass and join


def _broadcast(reading: Reading, operands: Sequence[Axes]) -> Axes:
    """Axes of a pointwise operator on several tensors: joined where they meet, right-aligned; an axis of one position meets nothing."""
    rank = max(map(len, operands))
    found: Axes = []
    for axis in range(-rank, 0):
        here = [axes[axis] for axes in operands if len(axes) >= -axis]
        wide = [units for units in here if len(units) > 1] or here[:1]
        for one, other in pairwise(wide):
            reading.join(one, other)
        found.append(wide[0])
    return found


def _pointwise(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    return _broadcast(reading, [reading.of(value) for value in _tensors_in(reading, node)])


def _same(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    return reading.of(next(iter(a.values())))


def _numbers(reading: Reading, node: fx.Node, a: Arguments) -> Any:
    """Tensors made of numbers: zeros, ranges, masks. Their sizes do not follow the model's channels."""
    return reading.fixed_like(node.meta["val"])


def _numbers_like(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    return reading.of(a["self"])


def _softmax(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = reading.of(a["self"])
    reading.freeze(axes[a["dim"]])
    return axes


def _triangle(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = reading.of(a["self"])
    reading.freeze(*axes[-2:])
    return axes


def _prelu(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes, weight = reading.of(a["self"]), reading.of(a["weight"])
    if len(axes) > 1 and len(weight[0]) > 1:
        reading.join(axes[1], weight[0])
    return axes


# Normalisation


def _batch_norm(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = reading.of(a["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        if a.get(name) is not None:
            reading.join(axes[1], reading.of(a[name])[0])
    if a.get("training"):
        reading.averages[node] = (0, *range(2, len(axes)))  # of the batch; or of a weight that is standardised
    return axes


def _layer_norm(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes, dims = reading.of(a["input"]), len(a["normalized_shape"])
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            for one, other in zip(axes[-dims:], reading.of(a[name]), strict=True):
                reading.join(one, other)
    reading.sizes[node] = {"normalized_shape": axes[-dims:]}
    reading.averages[node] = tuple(range(len(axes) - dims, len(axes)))
    return axes


def _group_norm(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    """Whole groups are removed: statistics of the others stay as they are. With one group it is a layer norm."""
    axes, groups = reading.of(a["input"]), int(a["num_groups"])
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            reading.join(axes[1], reading.of(a[name])[0])
    reading.freeze(*axes[2:])
    if groups == 1:
        reading.averages[node] = tuple(range(1, len(axes)))
    else:
        table = axes[1].reshape(groups, -1)
        _tie_along(reading, table, 0)
        reading.sizes[node] = {"num_groups": table[:, 0]}
    return axes


def _weight_norm(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    """`g * v / |v|`, one length per position of `dim`: lengths are of what is left."""
    axes, dim = reading.of(a["v"]), a["dim"] % len(reading.of(a["v"]))
    reading.join(axes[dim], reading.of(a["g"])[dim])
    reading.averages[node] = tuple(axis for axis in range(len(axes)) if axis != dim)
    return axes


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
    axes = list(_broadcast(reading, parts))
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
        _tie_along(reading, joint, carrier)
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
    _tie_along(reading, table, 0)
    return [*axes[:-3], table[:, 0], *reading.fixed_like(node.meta["val"])[-2:]]


def _pixel_unshuffle(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes, factor = reading.of(a["self"]), int(a["downscale_factor"])
    return [*axes[:-3], np.repeat(axes[-3], factor**2), *reading.fixed_like(node.meta["val"])[-2:]]


def _channel_shuffle(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = list(reading.of(a["input"] if "input" in a else a["self"]))
    table = axes[1].reshape(int(a["groups"]), -1)
    _tie_along(reading, table, 1)
    axes[1] = table.T.reshape(-1)
    return axes


def _im2col(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = reading.of(a["self"])
    return [*axes[:-3], np.repeat(axes[-3], elements(a["kernel_size"])), *reading.fixed_like(node.meta["val"])[-1:]]


def _col2im(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = reading.of(a["self"])
    table = axes[-2].reshape(-1, elements(a["kernel_size"]))
    _tie_along(reading, table, 0)
    reading.freeze(axes[-1])
    return [*axes[:-2], table[:, 0], *reading.fixed_like(node.meta["val"])[-2:]]


def _glu(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = list(reading.of(a["self"]))
    half = len(axes[a["dim"]]) // 2
    reading.join(axes[a["dim"]][:half], axes[a["dim"]][half:])
    axes[a["dim"]] = axes[a["dim"]][:half]
    return axes


# Space, and reductions


def _spatial(dims: int) -> Rule:
    """Pools and interpolation: batch and channels pass, the last `dims` axes are space."""

    def rule(reading: Reading, node: fx.Node, a: Arguments) -> Any:
        axes = reading.of(next(iter(a.values())))
        reading.freeze(*axes[-dims:])
        value = node.meta["val"]
        results = [value] if isinstance(value, Tensor) else list(value)
        found = [[*axes[:-dims], *reading.fixed_like(each)[-dims:]] for each in results]
        return found[0] if isinstance(value, Tensor) else found

    return rule


def _pad(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes, pad = list(reading.of(a["self"])), list(a["pad"])
    sizes = [rows_as_captured(size) for size in node.meta["val"].shape]
    for number in range(len(pad) // 2):
        axis, before, after = len(axes) - 1 - number, pad[2 * number], pad[2 * number + 1]
        constant = a.get("mode", "constant") == "constant" and isinstance(before, int) and isinstance(after, int)
        if reading.is_fixed(axes[axis]) or not constant or before < 0 or after < 0:
            if before != 0 or after != 0:
                reading.freeze(axes[axis])
                axes[axis] = fixed(sizes[axis])
        elif before or after:
            axes[axis] = np.concatenate([fixed(before), axes[axis], fixed(after)])
    return axes


def _reduce(how: str) -> Rule:
    """Reductions over space pass. Over channels: a sum meets them; an average, a variance or the largest is of those left; others freeze."""

    def rule(reading: Reading, node: fx.Node, a: Arguments) -> Any:
        if a.get("other") is not None:
            return _pointwise(reading, node, a)  # the larger of two tensors
        value = next(iter(a.values()))
        axes = reading.of(value)
        given = a.get("dim")
        dims = range(len(axes)) if given is None or given == [] else [given] if isinstance(given, int) else given
        gone = sorted(dim % len(axes) for dim in dims)
        for dim in gone:
            if reading.is_fixed(axes[dim]):
                continue
            if how == "sum":
                reading.meet(node, value, dim)
            elif how == "average" or (how == "extreme" and not _is_index_read(node)):
                reading.averages[node] = tuple(gone)
            else:
                reading.freeze(axes[dim])
        found = [fixed(1) if axis in gone else units for axis, units in enumerate(axes) if axis not in gone or a.get("keepdim")]
        return found if isinstance(node.meta["val"], Tensor) else [found] * len(node.meta["val"])

    return rule


def _norm(reading: Reading, node: fx.Node, a: Arguments) -> Any:
    """A length: a sum of powers, in which a removed channel counts as zero."""
    order = a.get("ord", a.get("p", 2))
    sums = order is None or (isinstance(order, int | float) and 0 < order < math.inf)
    return _reduce("sum" if sums else "freeze")(reading, node, a)


def _cosine(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = _broadcast(reading, [reading.of(a["x1"]), reading.of(a["x2"])])
    dim = a["dim"] % len(axes)
    for value in (a["x1"], a["x2"]):
        if (at := dim - len(axes) + len(reading.of(value))) >= 0:
            reading.meet(node, value, at)
    return axes[:dim] + axes[dim + 1 :]


def _is_index_read(node: fx.Node) -> bool:
    """Whether somebody asks at which channel the largest was: removed channels change the numbers of the others."""
    return isinstance(node.meta["val"], tuple | list) and any(
        reader.args[1] == 1 for reader in node.users if reader.target is operator.getitem
    )


def _along(reading: Reading, node: fx.Node, a: Arguments) -> Any:
    """Sorting, cumulating, rolling: positions of the axis depend on each other, the others pass."""
    axes = list(reading.of(next(iter(a.values()))))
    dims = a.get("dim", a.get("dims"))
    for dim in [dims] if isinstance(dims, int) else dims or range(len(axes)):
        reading.freeze(axes[dim])
    value = node.meta["val"]
    results = [value] if isinstance(value, Tensor) else list(value)
    found = [
        [units if len(units) == len(new) else new for units, new in zip(axes, reading.fixed_like(each), strict=True)] for each in results
    ]
    return found[0] if isinstance(value, Tensor) else found


def _embedding(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    weight, indices = reading.of(a["weight"]), reading.of(a["indices"])
    reading.freeze(weight[0], *indices)
    return [*indices, weight[1]]


def _embedding_bag(reading: Reading, node: fx.Node, a: Arguments) -> list[Axes]:
    if a["mode"] == 2:
        raise NotUnderstoodError("looks for the largest of a bag")
    weight = reading.of(a["weight"])
    for name in ("indices", "offsets", "per_sample_weights"):
        if a.get(name) is not None:
            reading.freeze(*reading.of(a[name]))
    reading.freeze(weight[0])
    out, *others = reading.fixed_like(node.meta["val"])
    return [[*out[:-1], weight[1]], *others]


def _index(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    """`x[i]` with tensors of positions: the axes that are looked up freeze, the others pass."""
    axes, indices = reading.of(a["self"]), list(a["indices"])
    used = [axis for axis, index in enumerate(indices) if index is not None]
    if any(index.meta["val"].dtype in (torch.bool, torch.uint8) for index in indices if index is not None):
        raise NotUnderstoodError("looks up by a mask")
    reading.freeze(*(axes[axis] for axis in used), *(units for index in indices if index is not None for units in reading.of(index)))
    together = used == list(range(used[0], used[-1] + 1))
    shape = reading.fixed_like(node.meta["val"])
    looked_up = len(shape) - (len(axes) - len(used))
    at = used[0] if together else 0
    rest = [units for axis, units in enumerate(axes) if axis not in used]
    return [*rest[:at], *shape[at : at + looked_up], *rest[at:]]


def _gather_along(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes, index = list(reading.of(a["self"])), reading.of(a["index"])
    dim = a["dim"] % len(axes)
    for axis, (units, chosen) in enumerate(zip(axes, index, strict=True)):
        if axis == dim or len(units) != len(chosen):
            reading.freeze(units, chosen)
            axes[axis] = fixed(len(chosen))
        else:
            reading.join(units, chosen)
    return axes


def _windows(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    """`x.unfold(dim, size, step)`: windows of an axis, which become the last."""
    axes, dim = list(reading.of(a["self"])), a["dimension"]
    reading.freeze(axes[dim])
    shape = reading.fixed_like(node.meta["val"])
    axes[dim] = shape[dim % len(axes)]
    return [*axes, shape[-1]]


def _unpool(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = _broadcast(reading, [reading.of(a["self"]), reading.of(a["indices"])])
    reading.freeze(*axes[-2:])
    return [*axes[:-2], *reading.fixed_like(node.meta["val"])[-2:]]


def _gather(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = list(reading.of(a["self"]))
    reading.freeze(axes[a["dim"]], *reading.of(a["index"]))
    axes[a["dim"]] = reading.fixed_like(node.meta["val"])[a["dim"]]
    return axes


def _number_of_elements(reading: Reading, node: fx.Node, a: Arguments) -> None:
    reading.freeze(*reading.of(next(iter(a.values()))))


def _grid_sample(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = reading.of(a["input"])
    reading.freeze(*axes[2:], *reading.of(a["grid"]))
    return [*axes[:2], *reading.fixed_like(node.meta["val"])[2:]]


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        (
            "where",
            "__and__",
            "__or__",
            "__xor__",
            "isnan",
            "isinf",
            "isfinite",
            "floor_divide",
            "true_divide",
            "divide",
            "subtract",
            "multiply",
        )
        + ("rsub", "arctan2", "absolute", "special_expit", "masked_fill", "bernoulli", "fill"),
        _pointwise,
    ),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot", "linalg_matmul"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _added_matmul),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(
        ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout", "contiguous", "clone", "to", "alias")
        + ("detach", "lift_fresh_copy", "lift_fresh", "type_as", "_to_copy", "nan_to_num", "rrelu")
        + ("hardswish", "hardsigmoid", "hardtanh", "relu6", "softplus", "mish", "celu", "selu", "logsigmoid", "log_sigmoid", "softsign")
        + ("leaky_relu", "elu", "gelu", "silu", "hardshrink", "softshrink", "square", "positive", "negative"),
        _same,
    ),
    **dict.fromkeys(
        (
            "arange",
            "empty",
            "rand",
            "randn",
            "eye",
            "linspace",
            "scalar_tensor",
            "tensor",
            "new_empty",
            "tril_indices",
            "triu_indices",
            "randint",
            "logspace",
            "hann_window",
        ),
        _numbers,
    ),
    **dict.fromkeys(("zeros", "ones", "full", "new_zeros", "new_ones", "new_full"), _filled),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"), _numbers_like),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax"), _softmax),
    **dict.fromkeys(("tril", "triu"), _triangle),
    "prelu": _prelu,
    **dict.fromkeys(("batch_norm", "instance_norm"), _batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "group_norm": _group_norm,
    "_weight_norm": _weight_norm,
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "hstack": _stacked_along(1),
    "vstack": _stacked_along(0),
    "stack": _stack,
    "slice": _slice,
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
    **dict.fromkeys(("adaptive_avg_pool1d", "avg_pool1d", "max_pool1d", "max_pool1d_with_indices", "adaptive_max_pool1d"), _spatial(1)),
    **dict.fromkeys(("upsample_nearest1d", "upsample_linear1d", "_upsample_nearest_exact1d"), _spatial(1)),
    **dict.fromkeys(("adaptive_avg_pool2d", "avg_pool2d", "max_pool2d", "max_pool2d_with_indices", "adaptive_max_pool2d"), _spatial(2)),
    **dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_nearest_exact2d"), _spatial(2)),
    **dict.fromkeys(("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"), _spatial(2)),
    **dict.fromkeys(("adaptive_avg_pool3d", "avg_pool3d", "max_pool3d", "upsample_nearest3d", "upsample_trilinear3d"), _spatial(3)),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    "sum": _reduce("sum"),
    **dict.fromkeys(("mean", "var", "std", "var_mean", "std_mean"), _reduce("average")),
    **dict.fromkeys(("amax", "amin", "max", "min"), _reduce("extreme")),
    **dict.fromkeys(("argmax", "argmin", "logsumexp", "prod", "all", "any", "median", "count_nonzero"), _reduce("freeze")),
    **dict.fromkeys(("norm", "linalg_vector_norm"), _norm),
    "cosine_similarity": _cosine,
    **dict.fromkeys(("cumsum", "cumprod", "sort", "topk", "flip", "roll", "argsort", "diff"), _along),
    "embedding": _embedding,
    "embedding_bag": _embedding_bag,
    "index": _index,
    "index_select": _gather,
    "gather": _gather_along,
    "unfold": _windows,
    "max_unpool2d": _unpool,
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d"), _grid_sample),
    "sym_numel": _number_of_elements,
}
