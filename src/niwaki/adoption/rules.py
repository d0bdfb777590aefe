"""One channel rule per aten operator: what an operator says about the axes of its inputs, of its outputs and of its weights.

A rule reads the arguments by their names in the operator's schema, joins or freezes units, and gives the axes of what the operator gives.
It notes the sizes among the arguments that follow from axes (`reading.sizes`), the multiply-adds, and the axes that are summed over
(`reading.meet`). `RULES` is the allow-list, in four parts; operators that PyTorch itself marks as pointwise share one rule. All else is opaque.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from niwaki.adoption.operators import arguments, name_of, overload
from niwaki.adoption.products import PRODUCTS
from niwaki.adoption.reading import Arguments, Axes, NotUnderstoodError, Output, Reading, Rule, rows_as_captured
from niwaki.adoption.reductions import REDUCTIONS
from niwaki.adoption.shapes import SHAPES


def read_node(reading: Reading, node: fx.Node) -> None:
    """Axes of one node of the graph."""
    reading.units.reason = node
    if node.op == "placeholder":
        reading.axes[node] = reading.fixed_like(node.meta.get("val"))
    elif node.op == "get_attr":
        if isinstance(node.meta.get("val"), Tensor):
            reading.axes[node] = reading.weight(node)
    elif node.op == "output":
        for path, value in pytree.tree_leaves_with_path(node.args[0]):
            if isinstance(value, fx.Node) and value in reading.axes:
                reading.units.reason = Output(".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path))
                for axis in pytree.tree_leaves(reading.axes[value]):
                    if axis is not None:
                        reading.units.settle(axis)
    elif node.target is operator.getitem and node.all_input_nodes[0] in reading.axes:
        inside: Any = reading.axes[node.all_input_nodes[0]]
        which: Any = node.args[1]
        reading.axes[node] = inside[which] if isinstance(inside, list) else reading.fixed_like(node.meta.get("val"))
    else:
        reading.axes[node] = _called(reading, node)


def _called(reading: Reading, node: fx.Node) -> Any:
    if name_of(node) == "sym_size" or not (reading.tensors_in(node) or isinstance(node.meta.get("val"), Tensor)):
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
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        return reading.give_up(node, f"its rule does not cover this use ({type(error).__name__}: {error})")
    return found


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


# Pass and join


def _pointwise(reading: Reading, node: fx.Node, a: Arguments) -> Axes:
    return reading.join_broadcast([reading.of(value) for value in reading.tensors_in(node)])


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


PASS_AND_JOIN: Mapping[str, Rule] = {
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
        + ("rsub", "arctan2", "absolute", "special_expit", "masked_fill", "bernoulli", "fill", "zero", "copy"),
        _pointwise,
    ),
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
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"), _numbers_like),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax"), _softmax),
    **dict.fromkeys(("tril", "triu"), _triangle),
    "prelu": _prelu,
}
RULES: Mapping[str, Rule] = {**PRODUCTS, **PASS_AND_JOIN, **REDUCTIONS, **SHAPES}
