"""How operations of adopted models run: the PyTorch function of each target, the torch.nn layer of those that have one, and which positions of
the owner's weights a decision uses. `call` runs them in a supernet.
"""

from __future__ import annotations

import base64
import operator
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from niwaki.net.axes import Axis, length, positions, size_of
from niwaki.net.operation import Named, Operation, Weight
from niwaki.net.place import Placed
from niwaki.space.choice import SpaceError

OWNED = "owned"  # under which a supernet keeps the owner's tensors, by their own names
LAST = 2**63 - 1  # the end of a slice, as torch.export writes "all"


# --- the function of each target ------------------------------------------------------------------------------------------

# targets that have a function people know, with the same arguments
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{f"aten.conv{n}d.{form}": getattr(F, f"conv{n}d") for n in (1, 2, 3) for form in ("default", "padding")},
    "aten.conv_transpose1d.default": F.conv_transpose1d,
    "aten.conv_transpose2d.input": F.conv_transpose2d,
    "aten.conv_transpose3d.input": F.conv_transpose3d,
    "aten.linear.default": F.linear,
    "aten.matmul.default": torch.matmul,
    "aten.bmm.default": torch.bmm,
    "aten.scaled_dot_product_attention.default": F.scaled_dot_product_attention,
    "aten.group_norm.default": F.group_norm,
    "aten.layer_norm.default": F.layer_norm,
    "aten.relu.default": F.relu,
    "aten.relu6.default": F.relu6,
    "aten.hardtanh.default": F.hardtanh,
    "aten.hardswish.default": F.hardswish,
    "aten.hardsigmoid.default": F.hardsigmoid,
    "aten.silu.default": F.silu,
    "aten.mish.default": F.mish,
    "aten.elu.default": F.elu,
    "aten.softplus.default": F.softplus,
    "aten.leaky_relu.default": F.leaky_relu,
    "aten.gelu.default": F.gelu,
    "aten.prelu.default": F.prelu,
    "aten.sigmoid.default": torch.sigmoid,
    "aten.tanh.default": torch.tanh,
    "aten.exp.default": torch.exp,
    "aten.softmax.int": torch.softmax,
    "aten.log_softmax.int": torch.log_softmax,
    "aten.cat.default": torch.cat,
    "aten.stack.default": torch.stack,
    "aten.flatten.using_ints": torch.flatten,
    "aten.view.default": torch.reshape,
    "aten.reshape.default": torch.reshape,
    "aten.permute.default": torch.permute,
    "aten.transpose.int": torch.transpose,
    "aten.squeeze.dim": torch.squeeze,
    "aten.unsqueeze.default": torch.unsqueeze,
    "aten.select.int": torch.select,
    "aten.split.Tensor": torch.split,
    "aten.split_with_sizes.default": torch.split,
    "aten.chunk.default": torch.chunk,
    "aten.unbind.int": torch.unbind,
    "aten.mean.dim": torch.mean,
    "aten.sum.dim_IntList": torch.sum,
    "aten.adaptive_avg_pool1d.default": F.adaptive_avg_pool1d,
    "aten.adaptive_avg_pool2d.default": F.adaptive_avg_pool2d,
    "aten.adaptive_max_pool2d.default": F.adaptive_max_pool2d,
    "aten.avg_pool1d.default": F.avg_pool1d,
    "aten.avg_pool2d.default": F.avg_pool2d,
    "aten.max_pool1d.default": F.max_pool1d,
    "aten.max_pool2d.default": F.max_pool2d,
    "aten.pixel_shuffle.default": F.pixel_shuffle,
    "aten.pixel_unshuffle.default": F.pixel_unshuffle,
    "aten.channel_shuffle.default": F.channel_shuffle,
    "aten.pad.default": F.pad,
    "aten.unflatten.int": torch.unflatten,
    "aten.masked_fill.Scalar": torch.masked_fill,
    "aten.bitwise_not.default": torch.bitwise_not,
    "aten.logical_not.default": torch.logical_not,
    "aten.rsqrt.default": torch.rsqrt,
    "aten.sqrt.default": torch.sqrt,
    "aten.pow.Tensor_Scalar": torch.pow,
    "aten.square.default": torch.square,
    "aten.clamp.default": torch.clamp,
    "aten.instance_norm.default": torch.instance_norm,
}
SIGNS: Mapping[str, Callable[..., Any]] = {
    f"aten.{name}.{form}": function
    for name, function in (("add", operator.add), ("sub", operator.sub), ("mul", operator.mul), ("div", operator.truediv))
    for form in ("Tensor", "Scalar")
}


def written(layer: Operation, args: list[Any], kwargs: dict[str, Any]) -> tuple[Callable[..., Any], tuple, dict[str, Any]]:
    """The call of an operation as a person would write it: a function, and the arguments it takes."""
    target = layer.target
    if target in SIGNS and len(args) == 2 and not kwargs:
        return SIGNS[target], tuple(args), {}
    if target == "aten.slice.Tensor" and (dim := args[1] if len(args) > 1 else 0) >= 0:
        start, stop, step = (args + [None] * 3)[2:5]
        cut = slice(start or None, None if stop == LAST else stop, None if step == 1 else step)
        return operator.getitem, (args[0], (*(slice(None),) * dim, cut)), {}
    if target == "aten.embedding.default":
        return F.embedding, (args[1], args[0], *[None if index == -1 else index for index in args[2:3]]), {}
    if target == "aten.layer_norm.default":
        args = args[:5]
    if target == "aten.group_norm.default":
        args = args[:5]
    if target == "aten.adaptive_max_pool2d.default":
        return F.adaptive_max_pool2d, tuple(args), {"return_indices": True}
    return FUNCTIONS.get(target) or operator_of(target), tuple(args), kwargs


def operator_of(target: str) -> Callable[..., Any]:
    """The function that a target names: an operator of PyTorch, or of Python."""
    library, *rest = target.split(".")
    if library == "operator":
        return getattr(operator, rest[0])
    packet = getattr(getattr(torch.ops, library), rest[0], None)
    if packet is None or not hasattr(packet, rest[1]):
        raise SpaceError(f"this PyTorch, {torch.__version__}, has no operator {target!r}")
    return getattr(packet, rest[1])


def constant(value: Named) -> Any:
    """What PyTorch has under that name."""
    found = getattr(torch, value.name, None)
    if not isinstance(found, (torch.dtype, torch.layout, torch.memory_format)):
        raise SpaceError(f"PyTorch has no type, layout or memory format called {value.name!r}")
    return found


# --- the owner's tensors --------------------------------------------------------------------------------------------------


def hold_(root: nn.Module, name: str, tensor: Tensor, kind: str) -> None:
    """Makes `tensor` what `root` holds as `name`, a path with dots, with plain modules on the way."""
    *parents, last = name.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root._modules[parent]  # type: ignore[assignment]
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(last, tensor)
    else:
        root.register_buffer(last, tensor, persistent=kind != "constant")


def held(root: nn.Module, name: str) -> Tensor:
    """The tensor that `root` holds as `name`."""
    parent, _, last = name.rpartition(".")
    return getattr(root.get_submodule(parent), last)


def shape_of(axes: Sequence[Axis]) -> tuple[int, ...]:
    """The largest shape of a tensor of these axes."""
    return tuple(map(length, axes))


def started(weight: Weight, full: Weight) -> Tensor:
    """A weight of no layer of torch.nn, as it starts where no owner's weights are loaded. full: the same at its largest."""
    dtype, shape = getattr(torch, weight.dtype), shape_of(full.axes)
    if full.data is not None:
        raw = bytearray(zlib.decompress(base64.b64decode(full.data)))
        tensor = torch.frombuffer(raw, dtype=dtype).reshape(shape) if raw else torch.zeros(shape, dtype=dtype)
    elif full.fill is not None:
        tensor = torch.full(shape, full.fill, dtype=dtype)
    elif weight.kind in ("parameter", "frozen"):
        tensor = (torch.randn(shape) * 0.02).to(dtype)
    else:
        tensor = torch.ones(shape, dtype=dtype) if weight.name.endswith("running_var") else torch.zeros(shape, dtype=dtype)
    tensor = cut(tensor, cuts(full.axes, weight.axes)).clone()
    return nn.Parameter(tensor, requires_grad=weight.kind == "parameter") if weight.kind in ("parameter", "frozen") else tensor


class Index:
    """Scattered positions along a dimension, on every device on which they were asked for."""

    __slots__ = ("_on", "positions")

    def __init__(self, positions: Sequence[int]) -> None:
        self.positions = torch.tensor(positions)
        self._on: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        if device not in self._on:
            self._on[device] = self.positions.to(device)
        return self._on[device]


Cut = tuple[int, slice | Index]


def cuts(full: Sequence[Axis], now: Sequence[Axis]) -> tuple[Cut, ...]:
    """Along which dimensions a tensor of the axes `full` is cut to those of `now`, and to which positions."""
    found: list[Cut] = []
    for dim, (whole, part) in enumerate(zip(full, now, strict=True)):
        if length(part) < length(whole):
            kept = positions(whole, part)
            found.append((dim, kept if isinstance(kept, slice) else Index(kept)))
    return tuple(found)


def cut(tensor: Tensor, where: Sequence[Cut]) -> Tensor:
    """`tensor` cut: itself, a view, or for scattered positions a copy."""
    for dim, kept in where:
        tensor = tensor.narrow(dim, 0, kept.stop) if isinstance(kept, slice) else tensor.index_select(dim, kept.on(tensor.device))
    return tensor


# --- the layer of torch.nn ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """An operation as a layer of torch.nn: where the owner has it, its weights by their names in it, and which arguments are left to it."""

    prefix: str
    weights: Mapping[str, Weight]
    make: Callable[[], nn.Module]
    reads: Any


def form_of(layer: Operation, item: Placed) -> Form | None:
    """The layer of torch.nn that does what `layer`, whose sizes are numbers, does with weights that are named as that layer names them."""
    args = list(layer.arguments)
    keywords = dict(layer.keywords)
    named: dict[str, Any] = {}
    kind = layer.kind

    def argument(at: int, default: Any = None) -> Any:
        return args[at] if at < len(args) else default

    if kind in ("conv1d", "conv2d", "conv3d") and isinstance(argument(1), Weight):
        named = {"weight": argument(1), "bias": argument(2)}
        out, into, *window = map(size_of, argument(1).axes)
        groups = argument(6, 1)
        make = getattr(nn, f"C{kind[1:]}")
        options = {"stride": argument(3, 1), "padding": argument(4, 0), "dilation": argument(5, 1), "groups": groups}
        options = {key: _one(value) for key, value in options.items()}
        build = lambda: _he(make(into * groups, out, _one(tuple(window)), **options, bias=argument(2) is not None), groups)  # noqa: E731
    elif kind == "linear" and isinstance(argument(1), Weight):
        named = {"weight": argument(1), "bias": argument(2)}
        out, into = map(size_of, argument(1).axes)
        build = lambda: nn.Linear(into, out, bias=argument(2) is not None)  # noqa: E731
    elif kind == "batch_norm" and "num_batches_tracked" in keywords and (norm := _batch_norm_of(keywords, item)) is not None:
        named = {"weight": args[1], "bias": args[2], "running_mean": args[3], "running_var": args[4]}
        named["num_batches_tracked"] = keywords["num_batches_tracked"]
        channels = size_of(args[3].axes[0])
        build = lambda: norm(channels, eps=args[7], momentum=args[6], affine=args[1] is not None)  # noqa: E731
    elif kind == "layer_norm" and isinstance(argument(2), Weight):
        named = {"weight": argument(2), "bias": argument(3)}
        build = lambda: nn.LayerNorm(tuple(args[1]), eps=argument(4, 1e-5), bias=argument(3) is not None)  # noqa: E731
    elif kind == "group_norm" and isinstance(argument(2), Weight) and isinstance(argument(3), Weight):
        named = {"weight": args[2], "bias": args[3]}
        build = lambda: nn.GroupNorm(args[1], size_of(args[2].axes[0]), eps=argument(4, 1e-5))  # noqa: E731
    elif kind == "embedding" and isinstance(args[0], Weight):
        named = {"weight": args[0]}
        rows, width = map(size_of, args[0].axes)
        index = argument(2, -1)
        build = lambda: nn.Embedding(rows, width, padding_idx=None if index == -1 else index)  # noqa: E731
    elif kind == "prelu" and isinstance(argument(1), Weight):
        named = {"weight": args[1]}
        build = lambda: nn.PReLU(size_of(args[1].axes[0]))  # noqa: E731
    else:
        return None
    weights = {key: weight for key, weight in named.items() if weight is not None}
    if not all(isinstance(weight, Weight) for weight in weights.values()):
        return None
    prefix = next(iter(weights.values())).name.rpartition(".")[0] if weights else ""
    if not prefix or any(weight.name != f"{prefix}.{key}" for key, weight in weights.items()):
        return None
    return Form(prefix, weights, build, args[1 if kind == "embedding" else 0])


def _batch_norm_of(keywords: Mapping[str, Any], item: Placed) -> Callable[..., nn.Module] | None:
    """The class for an input of that many dimensions. A shape does not tell: batch and time in one axis stay in it, the batch alone does not."""
    dims = keywords.get("dims", len(item.shape.axes or ()) + 1)
    return {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(dims)


def _one(value: Any) -> Any:
    """(3, 3) as 3."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def _he(conv: Any, groups: int) -> nn.Module:
    """He et al. 2015 with fan-out counted per group, as the convolutions of a description start."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    conv.weight.data.mul_(groups**0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
