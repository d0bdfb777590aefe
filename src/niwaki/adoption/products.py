"""Channel rules of maps and products: convolutions, linear layers, matrix products, attention. They alone cost multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import fx

from niwaki.adoption.groups import Array, fixed
from niwaki.adoption.operators import name_of
from niwaki.adoption.reading import Arguments, Axes, Extent, NotUnderstoodError, Reading, Rule, elements, rows_as_captured, rows_for_one


def _convolution(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    if a.get("transposed"):
        return _transposed_convolution(reading, node, a)
    weight = reading.of(a["weight"])
    dims = len(weight) - 2
    data, channel = reading.of(a["input"]), len(reading.of(a["input"])) - dims - 1
    space = _slid_over(node, a, data, channel)
    reading.freeze(*(axis for axis, new in zip(data[channel + 1 :], space, strict=True) if axis is not new.units), *weight[2:])
    into, groups = data[channel], _groups(a)
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
    _count_convolution(reading, node, weight, [*reading.extents(a["input"])[:channel], *space])
    return [*data[:channel], out, *(extent.units for extent in space)]


def _slid_over(node: fx.Node, a: Arguments, data: Axes, channel: int) -> list[Extent]:
    """Spatial axes of what a convolution gives: where the kernel is one position at a time, as they were."""
    found = []
    for dim, (axis, new) in enumerate(zip(data[channel + 1 :], _space(node, channel), strict=True)):
        stride, padding = (each if isinstance(each, str) else list(each)[min(dim, len(each) - 1)] for each in (a["stride"], a["padding"]))
        whole = a["weight"].meta["val"].shape[2 + dim] == 1 and stride == 1 and padding in (0, "same", "valid")
        found.append(Extent(axis, new.rows) if whole else new)
    return found


def _groups(a: Arguments) -> int:
    if isinstance(a["groups"], fx.Node):
        raise NotUnderstoodError("the number of groups depends on the batch")
    return int(a["groups"])


def _grouped(reading: Reading, node: fx.Node, a: Arguments, into: Array, weight: Axes) -> None:
    """Either whole groups are units, which ties input and output, or positions within a group are, the same in every group.

    What the input is tied to already decides; otherwise whichever gives more units.
    """
    groups, out = _groups(a), weight[0]
    found = reading.units.find(into).reshape(groups, -1)
    whole = groups >= found.shape[1]
    if found.any():
        rows_tied, columns_tied = bool((found == found[:, :1]).all()), bool((found == found[:1]).all())
        whole = rows_tied if rows_tied != columns_tied else whole
    if whole:
        reading.tie_along(into.reshape(groups, -1), 0)
        reading.tie_along(out.reshape(groups, -1), 0)
        reading.join(into.reshape(groups, -1)[:, 0], out.reshape(groups, -1)[:, 0])
        reading.freeze(weight[1])
        reading.sizes[node] = {"groups": into.reshape(groups, -1)[:, 0]}
    else:
        for row in into.reshape(groups, -1):
            reading.join(row, weight[1])
        reading.tie_along(out.reshape(groups, -1), 1)
        reading.meet(node, a["input"], len(reading.of(a["input"])) - len(weight) + 1)


def _transposed_convolution(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    weight = reading.of(a["weight"])
    dims = len(weight) - 2
    data, channel = reading.of(a["input"]), len(reading.of(a["input"])) - dims - 1
    reading.freeze(*data[channel + 1 :], *weight[2:])
    into, groups = data[channel], _groups(a)
    reading.join(into, weight[0])
    if groups == 1:
        out = weight[1]
        reading.meet(node, a["input"], channel)
    elif groups == len(into) and len(weight[1]) == 1:
        out = into
        reading.sizes[node] = {"groups": into}
    else:
        reading.tie_along(into.reshape(groups, -1), 1)
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
    return reading.join_broadcast([axes, reading.of(added)])


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
        reading.tie_along(heads, 0)
        reading.join(heads[:, 0], axes["k"][-3])
        reading.join(axes["k"][-3], axes["v"][-3])
    else:
        for lead in range(rank - 2):
            reading.join_broadcast([[axes[name][lead]] for name in "qkv"])
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
        reading.join_broadcast([[*axes["q"][:-1], axes["k"][-2]], reading.of(a["attn_mask"])])
    return found


PRODUCTS: Mapping[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot", "linalg_matmul"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _added_matmul),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
}
