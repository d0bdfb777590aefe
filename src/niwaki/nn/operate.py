"""How operations of adopted models run: the PyTorch function of each target, the torch.nn layer of those that have one, and, in a supernet,
with weights cut to the decisions or with soft widths.

Soft widths of operations: a tensor travels raw, with the mask of its open axes beside it (FBNetV2's, P(unit j is alive)), through everything
that treats the positions along these axes each on its own; what sums over such an axis (a convolution, a linear layer, a product) reads
the masked tensor, or folds the mask into its weights. So a mask counts once between two such sums, whatever stands between.
"""

from __future__ import annotations

import base64
import operator
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from niwaki.net.axes import Axis, length, most, positions, size_of, unit_numbers
from niwaki.net.operation import RETURN, UNUSED, In, Items, Named, Operation, Weight
from niwaki.net.place import Placed
from niwaki.nn.expect import Answers, Expectations
from niwaki.nn.feature import Feature, along_channels
from niwaki.space.choice import SpaceError
from niwaki.space.size import Symbol, scope

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
    elif kind == "batch_norm" and "num_batches_tracked" in keywords and item.shape.axes is not None and 1 <= len(item.shape.axes) <= 4:
        named = {"weight": args[1], "bias": args[2], "running_mean": args[3], "running_var": args[4]}
        named["num_batches_tracked"] = keywords["num_batches_tracked"]
        norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}[len(item.shape.axes)]
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


# --- in a supernet ----------------------------------------------------------------------------------------------------------


# operators that treat the positions along an open axis each on its own, wherever that axis lies
POINTWISE = frozenset(
    [
        "relu",
        "relu6",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
        "silu",
        "mish",
        "elu",
        "softplus",
        "leaky_relu",
        "gelu",
        "prelu",
        "sigmoid",
        "tanh",
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "pow",
        "abs",
        "neg",
        "clamp",
        "clamp_min",
        "clamp_max",
        "square",
        "erf",
        "celu",
        "selu",
        "add",
        "sub",
        "mul",
        "div",
        "maximum",
        "minimum",
        "where",
        "masked_fill",
        "dropout",
        "feature_dropout",
        "batch_norm",
        "max_pool1d",
        "max_pool2d",
        "avg_pool1d",
        "avg_pool2d",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "flatten",
        "view",
        "reshape",
        "permute",
        "transpose",
        "squeeze",
        "unsqueeze",
        "unflatten",
        "expand",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "getitem",
        "cat",
        "stack",
        "contiguous",
        "alias",
        "clone",
        "detach",
        "to",
        "_to_copy",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "repeat",
        "narrow",
        "movedim",
        "swapaxes",
        "t",
        "constant_pad_nd",
        "pad",
        "upsample_nearest2d",
        "upsample_bilinear2d",
        "zeros_like",
    ]
)
SUMS = (
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "linear",
    "matmul",
    "bmm",
    "sum",
    "embedding",
)
OVER = ("mean", "softmax", "log_softmax", "amax", "amin", "max", "min", "cumsum", "var", "std")  # need the axes over which they run closed


class Call:
    """An operation of a supernet under hard decisions: which part of the owner's weights it uses, and its soft rule if some are open.

    Called with the features of its inputs, the answers about soft decisions, and the layers of the supernet.
    """

    def __init__(self, item: Placed, full: Operation, ask: Expectations) -> None:
        layer = item.layer
        assert isinstance(layer, Operation)
        self.item, self.layer, self.path, self.kind = item, layer, item.path, layer.kind
        self.weights = [(now.name, cuts(whole.axes, now.axes)) for now, whole in zip(layer.weights, full.weights, strict=True)]
        self._owners: list[tuple[Any, dict[str, Any]]] = []  # of the weights: the tree they were found in, and the table there
        self._tree: Any = None
        self._numbers = iter(range(len(self.weights)))
        self.arguments = [self._compiled(value) for value in layer.arguments]
        self.keywords = {key: self._compiled(value) for key, value in layer.keywords}
        self.special = layer.target in (RETURN, UNUSED) or self.kind in ("batch_norm", "dropout", "feature_dropout")
        if not self.special:  # what is the same in every call is worked out once
            self.function, given, self.options = written(layer, self.arguments, self.keywords)
            self.given = list(given)
            self.slots = [at for at, value in enumerate(given) if _is_filled(value)]
            self.option_slots = [key for key, value in self.options.items() if _is_filled(value)]
        self.open = [(at, axis) for at, axis in enumerate(item.shape.axes or ()) if scope(*(run.units for run in axis))]
        self.masks = [_Mask(at, len(item.shape.axes or ()), axis, ask, item.condition) for at, axis in self.open]
        self.inputs_open = [[at for at, axis in enumerate(shape.axes or ()) if _is_open(axis)] for shape in item.input_shapes]
        self.same = bool(self.masks) and item.shape.axes == item.input_shapes[0].axes
        self.soft = bool(self.masks) or any(self.inputs_open) or any(_is_open(shape.channels) for shape in item.input_shapes)
        if self.soft:
            self._require_rule()

    # --- hard -----------------------------------------------------------------------------------------------------------

    def __call__(self, inputs: Sequence[Feature], known: Answers, layers: nn.ModuleDict) -> Feature:
        if self.soft and self.kind not in (RETURN, UNUSED):
            return self._soft(inputs, known, layers)
        return Feature(self.run([feature.whole() for feature in inputs], layers))

    def run(self, tensors: Sequence[Any], layers: nn.ModuleDict, scale: Callable[[Tensor], Tensor] | None = None) -> Any:
        """The operation on plain tensors. scale: what its first weight is changed by."""
        if self.special:
            return self._run_special(tensors, layers)
        given, options = self.given.copy(), self.options
        for at in self.slots:
            value = given[at]
            given[at] = tensors[value.at] if type(value) is In else self._filled(value, tensors, layers)
        if scale is not None:
            at = next(at for at, value in enumerate(self.given) if isinstance(value, _Getter))
            given[at] = scale(given[at])
        if self.option_slots:
            options = {key: self._filled(value, tensors, layers) for key, value in options.items()}
        return self.function(*given, **options)

    def _run_special(self, tensors: Sequence[Any], layers: nn.ModuleDict) -> Any:
        """What follows the mode of the supernet, and what is no operator."""
        if self.kind == UNUSED:
            return None
        if self.kind == RETURN:
            return self._filled(self.arguments[0], tensors, layers)
        args = [self._filled(value, tensors, layers) for value in self.arguments]
        if self.kind == "batch_norm":
            return self._batch_norm(args, layers)
        return (F.dropout if self.kind == "dropout" else F.dropout2d)(args[0], args[1], layers.training)

    def _batch_norm(self, args: list[Any], layers: nn.ModuleDict) -> Tensor:
        x, weight, bias, mean, var, _, momentum, eps, *_ = args
        training = layers.training or mean is None
        if training and "num_batches_tracked" in self.keywords:
            self.keywords["num_batches_tracked"](None, layers).add_(1)
        y = F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
        if layers.training and mean is not None:  # scattered channels were cut by copy
            for at, value in ((3, mean), (4, var)):
                stored = self._stored(self.arguments[at], layers)
                if stored is not None:
                    tensor, kept = stored
                    tensor.index_copy_(0, kept.on(tensor.device), value)
        return y

    def _stored(self, getter: Any, layers: nn.ModuleDict) -> tuple[Tensor, Index] | None:
        number = getter.number
        where = self.weights[number][1]
        if not where or isinstance(where[0][1], slice):
            return None
        return self.whole_weight(number, layers), where[0][1]

    def whole_weight(self, number: int, layers: nn.ModuleDict) -> Tensor:
        """Weight `number` of the operation, uncut."""
        if self._tree is not layers:
            self._tree, self._owners = layers, []
            for name, _ in self.weights:
                parent, _, last = name.rpartition(".")
                module = layers[OWNED].get_submodule(parent)
                table = module._parameters if last in module._parameters else module._buffers
                self._owners.append((last, table))
        last, table = self._owners[number]
        return table[last]  # type: ignore[return-value]

    def _compiled(self, value: Any) -> Any:
        """`value` with each weight as a function that cuts it, and sizes as numbers at their largest."""
        if isinstance(value, Weight):
            return _Getter(self, next(self._numbers))
        if isinstance(value, Symbol):
            return most(value)
        if isinstance(value, tuple):
            return [self._compiled(part) for part in value]
        if isinstance(value, Items):
            return dict(zip(value.keys, map(self._compiled, value.values), strict=True))
        if isinstance(value, Named) and value.name not in ("device", "training"):
            return constant(value)
        return value

    def _filled(self, value: Any, tensors: Sequence[Any], layers: nn.ModuleDict) -> Any:
        if isinstance(value, In):
            return tensors[value.at]
        if isinstance(value, _Getter):
            return value(tensors, layers)
        if isinstance(value, (list, tuple)):
            return type(value)([self._filled(part, tensors, layers) for part in value])
        if isinstance(value, slice):
            return slice(*(self._filled(part, tensors, layers) for part in (value.start, value.stop, value.step)))
        if isinstance(value, dict):
            return {key: self._filled(part, tensors, layers) for key, part in value.items()}
        if isinstance(value, Named):
            if value.name == "training":
                return layers.training
            return next(tensor.device for tensor in (*tensors, *layers.parameters()) if isinstance(tensor, Tensor))
        return value

    # --- soft -----------------------------------------------------------------------------------------------------------

    def _require_rule(self) -> None:
        kind, layer = self.kind, self.layer
        if kind in POINTWISE or kind in SUMS or layer.target in (RETURN, UNUSED) or layer.target.startswith("operator."):
            return
        first = self.inputs_open[0] if self.inputs_open else []
        rank = len(self.item.input_shapes[0].axes or ()) if self.item.input_shapes else 0
        if kind == "sym_size" or (self.item.shape.axes is None and not any(self.inputs_open)):
            return
        if kind in ("mean", "group_norm") or (kind == "scaled_dot_product_attention" and dict(layer.keywords).get("scale") is not None):
            return
        if kind in OVER and len(layer.arguments) > 1 and not any(at in first for at in self._dims(layer.arguments[1], rank)):
            return
        if kind == "layer_norm" and len(layer.arguments[1]) == 1:
            return
        if kind == "scaled_dot_product_attention" and all(at < rank - 2 for opened in self.inputs_open for at in opened):
            return
        names = scope(*(run.units for shape in (*self.item.input_shapes, self.item.shape) for axis in shape.axes or () for run in axis))
        raise SpaceError(
            f"{self.path}: {layer.target} has no rule for soft widths along the axes it is given; decide {', '.join(names)} by an option "
            f"(hard), as sampling and evolution do, or leave their group as it is"
        )

    def _dims(self, dims: Any, rank: int) -> Iterator[int]:
        """Over which axes, counted without the batch, `dims` run; the batch leads."""
        for dim in dims if isinstance(dims, tuple) else (dims,):
            yield dim + rank if dim < 0 else dim - 1

    def _soft(self, inputs: Sequence[Feature], known: Answers, layers: nn.ModuleDict) -> Feature:
        kind = self.kind
        if kind == "layer_norm" and self.inputs_open[0] and self.inputs_open[0][-1] == len(self.item.input_shapes[0].axes or ()) - 1:
            x, mask = raw(inputs[0])
            y = self._layer_norm(x, mask, layers)
            return self._given(y, mask, inputs, known)
        if kind == "mean" and len(self.layer.arguments) > 1 and self._over(self.layer.arguments[1]):
            return self._given(self._mean(*raw(inputs[0])), None, inputs, known)
        if kind == "group_norm" and self.inputs_open[0]:
            x, mask = raw(inputs[0])
            return self._given(self._group_norm(x, mask, layers), mask, inputs, known)
        if (kind in SUMS and not self._alone()) or (kind == "scaled_dot_product_attention" and self._sums_heads()):
            x, mask = raw(inputs[0]) if inputs else (None, None)
            if mask is not None and kind in ("conv2d", "linear") and self._folds(x, mask):
                view = (1, -1, 1, 1) if kind == "conv2d" else (1, -1)
                return self._given(self.run([x], layers, lambda weight: weight * mask.reshape(view)), None, inputs, known)
            return self._given(self.run([feature.whole() for feature in inputs], layers), None, inputs, known)
        tensors, masks = zip(*map(raw, inputs), strict=True) if inputs else ((), ())
        return self._given(self.run(tensors, layers), masks[0] if masks else None, inputs, known)

    def _over(self, dims: Any) -> bool:
        """Whether `dims` are among the open axes of the first input."""
        return any(at in self.inputs_open[0] for at in self._dims(dims, len(self.item.input_shapes[0].axes or ())))

    def _sums_heads(self) -> bool:
        """Whether an attention sums over an open axis: within heads, not over them."""
        ranks = [len(shape.axes or ()) for shape in self.item.input_shapes]
        return any(at >= rank - 2 for opened, rank in zip(self.inputs_open, ranks, strict=True) for at in opened)

    def _mean(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Over the units that are alive, each weighed by its mask."""
        dims = self.arguments[1] if isinstance(self.arguments[1], list) else [self.arguments[1]]
        keep = torch.ones_like(x[:1]) if mask is None else along_channels(mask, x).expand(1, *x.shape[1:])
        keepdim = bool(self.arguments[2]) if len(self.arguments) > 2 else False
        return (x * keep).sum(dims, keepdim=keepdim) / keep.sum(dims, keepdim=keepdim).clamp_min(1e-6)

    def _group_norm(self, x: Tensor, mask: Tensor | None, layers: nn.ModuleDict) -> Tensor:
        """Of each group, mean and variance of the units that are alive, each weighed by its mask."""
        _, groups, *rest = (self._filled(value, [x], layers) for value in self.arguments)
        weight, bias, eps = (rest + [None, None, 1e-5][len(rest) :])[:3]
        keep = torch.ones_like(x[:1]) if mask is None else along_channels(mask, x).expand(1, *x.shape[1:])
        parts, keep = x.reshape(x.shape[0], groups, -1), keep.reshape(1, groups, -1)
        total = keep.sum(-1, keepdim=True).clamp_min(1e-6)
        centred = parts - (parts * keep).sum(-1, keepdim=True) / total
        y = (centred * torch.rsqrt((centred.square() * keep).sum(-1, keepdim=True) / total + eps)).view(x.shape)
        form = (-1, *(1,) * (x.dim() - 2))
        y = y if weight is None else y * weight.view(form)
        return y if bias is None else y + bias.view(form)

    def _alone(self) -> bool:
        """Whether an operator that sums has nothing open to sum over: a depthwise convolution, products of many heads each."""
        if self.kind.startswith("conv"):
            weight = self.layer.arguments[1]
            return isinstance(weight, Weight) and size_of(weight.axes[1]) == 1 and len(self.layer.arguments) > 6
        if self.kind in ("matmul", "bmm"):
            ranks = [len(shape.axes or ()) for shape in self.item.input_shapes]
            return all(at < rank - 2 for opened, rank in zip(self.inputs_open, ranks, strict=True) for at in opened)
        return False

    def _folds(self, x: Any, mask: Tensor) -> bool:
        """Whether the mask goes into the weights at less cost than over the map."""
        weight = self.layer.arguments[1]
        if not isinstance(weight, Weight) or isinstance(self.layer.arguments[0], Weight):
            return False
        numbers = prod(shape_of(weight.axes))
        if self.kind == "conv2d":
            groups = self.layer.arguments[6] if len(self.layer.arguments) > 6 else 1
            return mask.dim() == 1 and groups == 1 and numbers <= x.numel()
        return mask.numel() == x.shape[-1] and mask.shape[-1] == x.shape[-1] and (mask.dim() > 1 or x.dim() == 2) and numbers <= x.numel()

    def _layer_norm(self, x: Tensor, mask: Tensor | None, layers: nn.ModuleDict) -> Tensor:
        """Mean and variance of the units that are alive, each weighed by its mask."""
        _, _, *rest = (self._filled(value, [x], layers) for value in self.arguments)
        weight, bias, eps = [*rest, *(None, None, 1e-5)[len(rest) :]][:3]
        keep = torch.ones_like(x[:1]) if mask is None else along_channels(mask, x)
        total = keep.sum(-1, keepdim=True).clamp_min(1e-6)
        mean = (x * keep).sum(-1, keepdim=True) / total
        centred = x - mean
        y = centred * torch.rsqrt((centred.square() * keep).sum(-1, keepdim=True) / total + eps)
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def _given(self, y: Any, mask: Tensor | None, inputs: Sequence[Feature], known: Answers) -> Feature:
        """`y` with the mask of its open axes; that of the first input, where the axes are the same."""
        if not self.masks:
            return Feature(y)
        if self.same and mask is not None:
            return Feature(y, mask)
        found: Tensor | None = None
        for one in self.masks:
            own = one(known, y, alone=len(self.masks) == 1, path=self.path)
            found = own if found is None else found * own
        return Feature(y, found)


class _Getter:
    """Gives a weight of a call, cut."""

    __slots__ = ("call", "cuts", "number")

    def __init__(self, call: Call, number: int) -> None:
        self.call, self.number, self.cuts = call, number, call.weights[number][1]

    def __call__(self, tensors: Any, layers: nn.ModuleDict) -> Tensor:
        tensor = self.call.whole_weight(self.number, layers)
        return cut(tensor, self.cuts) if self.cuts else tensor


class _Mask:
    """The mask of one open axis: how likely the unit of each position is alive."""

    def __init__(self, at: int, rank: int, axis: Axis, ask: Expectations, condition: Any) -> None:
        self.at, self.rank, self.length = at, rank, length(axis)
        self.question = ask.mask(tuple(run.units for run in axis), condition)
        numbers = np.array(unit_numbers(axis))
        self.units = None if np.array_equal(numbers, np.arange(len(numbers))) else Index(numbers.tolist())

    def __call__(self, known: Answers, y: Tensor, *, alone: bool, path: str) -> Tensor:
        """In the form that `Feature` has it: a vector for the second dimension, or as many dimensions as it is from the last one."""
        assert self.question is not None
        mask = known[self.question]
        if self.units is not None:
            mask = mask.index_select(0, self.units.on(mask.device))
        if y.dim() == self.rank + 1 and self.at == 0 and alone and y.shape[1] == self.length:
            return mask
        back = self.rank - self.at  # the axis, counted from the last
        size = y.shape[-back] if back <= y.dim() else 0
        if y.dim() == self.rank and size and size != self.length and size % self.length == 0:
            mask = mask.repeat(size // self.length)  # the batch and this axis were made one, the batch first
        elif size != self.length:
            raise SpaceError(f"{path}: its open axis of {self.length} positions is none of {tuple(y.shape)}")
        return mask.view(-1, *(1,) * (back - 1)) if back > 1 else mask.view(1, -1)


def raw(feature: Feature) -> tuple[Any, Tensor | None]:
    """The tensor of a feature without its mask, whatever its form, and the mask."""
    if feature.norm is not None or feature.gate is not None:
        return feature.whole(), None
    return feature.tensor, feature.mask


def _is_filled(value: Any) -> bool:
    """Whether an argument is known only in a call."""
    if isinstance(value, (list, tuple)):
        return any(map(_is_filled, value))
    if isinstance(value, slice):
        return any(map(_is_filled, (value.start, value.stop, value.step)))
    return isinstance(value, (In, _Getter, Named)) or (isinstance(value, dict) and any(map(_is_filled, value.values())))


def _is_open(axis: Any) -> bool:
    return bool(scope(*(getattr(run, "units", run) for run in axis)))
