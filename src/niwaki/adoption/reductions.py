"""Channel rules of normalisation, pooling, reductions and look-ups: what happens along the axes that are summed, averaged or searched."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from niwaki.adoption.groups import fixed
from niwaki.adoption.operators import name_of
from niwaki.adoption.reading import Arguments, Axes, NotUnderstoodError, Reading, Rule, rows_as_captured

# Normalisation


def _batch_norm(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes = reading.of(a["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        if a.get(name) is not None:
            reading.join(axes[1], reading.of(a[name])[0])
    if a.get("training"):
        reading.spread(node, a["input"], (0, *range(2, len(axes))))  # of the batch; or of a weight that is standardised
    return axes


def _layer_norm(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    axes, dims = reading.of(a["input"]), len(a["normalized_shape"])
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            for one, other in zip(axes[-dims:], reading.of(a[name]), strict=True):
                reading.join(one, other)
    reading.sizes[node] = {"normalized_shape": axes[-dims:]}
    reading.spread(node, a["input"], range(len(axes) - dims, len(axes)))
    return axes


def _group_norm(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    """Whole groups are removed: statistics of the others stay as they are. With one group it is a layer norm."""
    axes, groups = reading.of(a["input"]), int(a["num_groups"])
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            reading.join(axes[1], reading.of(a[name])[0])
    reading.freeze(*axes[2:])
    if groups == 1:
        reading.spread(node, a["input"], range(1, len(axes)))
    else:
        table = axes[1].reshape(groups, -1)
        reading.tie_along(table, 0)
        reading.sizes[node] = {"num_groups": table[:, 0]}
    return axes


def _weight_norm(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    """`g * v / |v|`, one length per position of `dim`: lengths are of what is left."""
    axes, dim = reading.of(a["v"]), a["dim"] % len(reading.of(a["v"]))
    reading.join(axes[dim], reading.of(a["g"])[dim])
    reading.averages[node] = tuple(axis for axis in range(len(axes)) if axis != dim)
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
            return reading.join_broadcast([reading.of(each) for each in reading.tensors_in(node)])  # the larger of two tensors
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
            elif how == "average" and name_of(node).startswith(("var", "std")):
                correction = a.get("correction", a.get("unbiased"))
                reading.spread(node, value, gone, correction=1 if correction is None else int(correction))
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
    axes = reading.join_broadcast([reading.of(a["x1"]), reading.of(a["x2"])])
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
    axes = reading.join_broadcast([reading.of(a["self"]), reading.of(a["indices"])])
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


REDUCTIONS: Mapping[str, Rule] = {
    **dict.fromkeys(("batch_norm", "instance_norm"), _batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "group_norm": _group_norm,
    "_weight_norm": _weight_norm,
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
